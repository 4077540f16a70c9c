"""The real handwritten digits inside scikit-learn: 1797 images of 8 x 8 pixels in 17 grey levels, no download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998
(its test part). The validation split is fixed, so that numbers on digits compare across runs.
"""

import numpy as np
from sklearn.datasets import load_digits

from limbeck.data.base import DataSet
from limbeck.data.npz import ArraySource
from limbeck.data.split import SubsetSource, stratified_split

VAL_FRACTION = 0.2
SPLIT_SEED = 0


def open_digits() -> DataSet:
    """The digits, 0 to 16 scaled to 0 to 255, with a fifth of each class held out for validation."""
    data = load_digits()
    images = ((data.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)
    whole = ArraySource(images, data.target.astype(np.int64), "digits")
    class_names = tuple(str(digit) for digit in range(10))
    train, val, _ = stratified_split(data.target.astype(np.int64), VAL_FRACTION, SPLIT_SEED, class_names)
    record = {"kind": "digits", "split": "made", "seed": SPLIT_SEED, "val_fraction": VAL_FRACTION}
    return DataSet("digits", SubsetSource(whole, train), SubsetSource(whole, val), class_names, (8, 8), record)
