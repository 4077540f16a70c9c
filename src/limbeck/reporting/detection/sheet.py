"""Many pictures with what was detected on them, on one sheet."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from limbeck.contact_sheet import SheetItem, contact_sheet
from limbeck.reporting.drawing import draw_detections
from limbeck.tasks.detection_scores import Detections

THUMB = 320


def sheet_item(
    title: str,
    image: Image.Image,
    found: Detections,
    class_names: Sequence[str],
    *,
    min_score: float,
    thumb: int = THUMB,
) -> SheetItem:
    """A picture with its detections, drawn at the size at which the sheet shows it, and below it how many of what.

    Args:
        title: the line above the counts.
        image: any size.
        found: in its pixels.
        class_names: in label order.
        min_score: detections of a lower score are neither drawn nor counted.
        thumb: side in pixels of the square that the picture is fitted into.
    """
    shown = np.asarray(found.labels)[np.asarray(found.scores) >= min_score]
    counts = Counter(class_names[int(label)] for label in shown).most_common()
    line = ", ".join(f"{count} {name}" for name, count in counts) or "nothing found"
    return SheetItem(draw_detections(image, found, class_names, min_score=min_score, side=thumb), title, [line])


def detection_sheet(items: Sequence[SheetItem], thumb: int = THUMB) -> Image.Image:
    """Lay out what `sheet_item` made, at least one, in a grid.

    Lines and letters are as large as they were drawn only if `thumb` is the same.
    """
    return contact_sheet(items, thumb=thumb)
