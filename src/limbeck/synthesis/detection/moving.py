"""Pictures rolled and mirrored with their boxes and masks.

A roll is a torus's: what leaves on one side comes in on the other. A box that is cut so becomes its larger part, as if
the object went on beyond the picture; the smaller part belongs to nobody. At least half of either side stays, so that a
box never vanishes; only an object whose mask has no pixel in that part is left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.detection import Size, Target


def roll(images: Tensor, targets: Sequence[Target], down: int, right: int) -> tuple[Tensor, list[Target]]:
    """Move all pictures by whole pixels, with wrap-around.

    Args:
        images: (B, 3, H, W).
        targets: of each picture.
        down, right: pixels, of either sign.
    """
    height, width = images.shape[-2:]
    moved = torch.roll(images, (down, right), dims=(-2, -1))
    return moved, [_rolled(target, down, right, (height, width)) for target in targets]


def mirror(images: Tensor, targets: Sequence[Target]) -> tuple[Tensor, list[Target]]:
    """Swap left and right of all pictures; shapes as in `roll`."""
    width = images.shape[-1]
    mirrored = []
    for target in targets:
        x1, y1, x2, y2 = target.boxes.unbind(-1)
        masks = None if target.masks is None else target.masks.flip(-1)
        mirrored.append(Target(torch.stack([width - x2, y1, width - x1, y2], -1), target.labels, masks, target.scores))
    return images.flip(-1), mirrored


def larger_part(start: Tensor, end: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Of intervals on a ring, the longer of the two parts into which the ring's seam cuts each; the first of equal ones.

    Args:
        start: (N,) of any sign.
        end: (N,), at most `side` after `start`.
        side: length of the ring.

    Returns:
        Start and end within 0 to `side`.
    """
    length = end - start
    start = start.remainder(side)
    before = (side - start).minimum(length)
    after = length - before
    cut = after > before
    return torch.where(cut, torch.zeros_like(start), start), torch.where(cut, after, start + before)


def _rolled(target: Target, down: int, right: int, size: Size) -> Target:
    x1, y1, x2, y2 = target.boxes.unbind(-1)
    x1, x2 = larger_part(x1 + right, x2 + right, size[1])
    y1, y2 = larger_part(y1 + down, y2 + down, size[0])
    boxes = torch.stack([x1, y1, x2, y2], -1)
    if target.masks is None:
        return Target(boxes, target.labels, None, target.scores)
    masks = torch.roll(target.masks, (down, right), dims=(-2, -1)) & inside_boxes(boxes, size)
    kept = masks.flatten(1).any(1)
    scores = None if target.scores is None else target.scores[kept]
    return Target(boxes[kept], target.labels[kept], masks[kept], scores)


def inside_boxes(boxes: Tensor, size: Size) -> Tensor:
    """(N, height, width) bool: the pixels that a box touches."""
    rows = torch.arange(size[0], device=boxes.device)
    columns = torch.arange(size[1], device=boxes.device)
    x1, y1, x2, y2 = (side[:, None] for side in boxes.unbind(-1))
    of_rows = (rows + 1 > y1) & (rows < y2)
    of_columns = (columns + 1 > x1) & (columns < x2)
    return of_rows[:, :, None] & of_columns[:, None, :]
