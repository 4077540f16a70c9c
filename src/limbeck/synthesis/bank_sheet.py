"""Made pictures side by side, class by class, to be looked at."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from limbeck.contact_sheet import SheetItem, contact_sheet
from limbeck.data.base import ImageSource

MOST = 100
_COLUMNS = 10
_THUMB = 128


def draw_sheet(
    pictures: ImageSource,
    logits: NDArray[np.float32],
    asked: NDArray[np.int64],
    class_names: Sequence[str] | None,
) -> Image.Image:
    """Up to 100 pictures, sorted by class, with the class that the teacher sees and its probability below each.

    The first ones of every class are shown, not the best ones; of more than 100 classes, every so manieth.

    Args:
        pictures: N of them.
        logits: (N, K), the teacher's.
        asked: (N,), the class asked for, which is named where the teacher sees another; -1 where none was.
        class_names: in label order; None: their numbers.
    """
    labels = logits.argmax(1)
    confidence = torch.from_numpy(logits).double().softmax(1).amax(1).tolist()
    items = []
    for index in choose(labels, MOST).tolist():
        label, wanted = int(labels[index]), int(asked[index])
        lines = [
            f"{confidence[index]:.0%}" + ("" if wanted in (-1, label) else f", asked {_name(wanted, class_names)}")
        ]
        items.append(SheetItem(pictures.read(index), _name(label, class_names), lines))
    return contact_sheet(items, columns=_COLUMNS, thumb=_THUMB)


def choose(labels: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many pictures, sorted by class: of each class the first ones, as evenly shared out as the counts allow.

    Args:
        labels: (N,).
        most: at least 1.

    Returns:
        Indices into `labels`.
    """
    order = labels.argsort(kind="stable")
    classes, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    if len(classes) > most:
        kept = np.linspace(0, len(classes) - 1, most).round().astype(np.int64)
        return order[starts[kept]]
    place = np.arange(len(order)) - np.repeat(starts, counts)  # the how manieth of its class
    by_turns = np.lexsort((np.arange(len(order)), place))[:most]
    return order[np.sort(by_turns)]


def _name(label: int, class_names: Sequence[str] | None) -> str:
    if class_names is None or class_names[label] == str(label):
        return str(label)
    return f"{label}: {class_names[label]}"
