"""How alike two networks' features are.

Kornblith, Norouzi, Lee and Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019, section 3:
centred kernel alignment (CKA) with linear kernels.
"""

import numpy as np
from numpy.typing import NDArray


def linear_cka(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Linear CKA of two sets of features of the same images.

    With the mean over images taken off every feature:

        CKA(X, Y) = ||Yᵀ X||_F² / (||Xᵀ X||_F ||Yᵀ Y||_F)

    It does not change when either side is rotated, mirrored or scaled. With more features than images the same
    number is computed from the (N, N) Gram matrices, since ||Yᵀ X||_F² = <X Xᵀ, Y Yᵀ>_F.

    Args:
        x: (N, D1) features, one row an image.
        y: (N, D2) features of the same images in the same order.

    Returns:
        The similarity, 0 to 1; NaN where one side is the same for every image.

    Raises:
        ValueError: the two do not have the same number of rows.

    Source: Kornblith et al. 2019, section 3 (the feature-space form and its equality with HSIC of linear kernels).
    """
    x = np.asarray(x, dtype=np.float64)
    y = np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"expected (N, D1) and (N, D2) with the same N, got {x.shape} and {y.shape}")
    x = x - x.mean(axis=0)
    y = y - y.mean(axis=0)
    if len(x) < max(x.shape[1], y.shape[1]):
        gram_x, gram_y = x @ x.T, y @ y.T
        between = float((gram_x * gram_y).sum())
        norms = float(np.linalg.norm(gram_x) * np.linalg.norm(gram_y))
    else:
        between = float(np.linalg.norm(y.T @ x) ** 2)
        norms = float(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return between / norms if norms > 0 else float("nan")
