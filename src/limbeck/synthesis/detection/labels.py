"""Labels of pictures that do not exist yet: placed at random, then corrected by what the teacher finds.

Placing is DIODE's (Chawla et al., WACV 2021), adding and pruning follow arXiv:2507.16782. Inferred, since the paper says
it of boxes only: what masks are until the teacher gives its own (a filled ellipse), and that a target counts as found
from a score of 0.05 on, below which torchvision's detectors report nothing while those with queries report everything.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from limbeck.detection import Found, Size, Target
from limbeck.synthesis.detection.moving import inside_boxes
from limbeck.training.randomness import stable_seed

CONFIDENT = 0.2
"""Detections from this score on become targets."""
FOUND = 0.05
"""From this score on, a detection says that a target is still there."""
MATCH_IOU = 0.5
"""A detection of the target's class is the target, if it overlaps it by more."""
NEW_IOU = 0.35
"""A detection is a new object, if it overlaps every box by less."""
AREAS = (0.01, 0.85)
"""Smallest and largest share of the picture that a new object may cover."""


@dataclass(frozen=True)
class Matched:
    """What a teacher says of given targets.

    Attributes:
        scores: (N,) of the surest detection that is the target; 0 where there is none.
        rows: (N,) int64, which detection that is; -1 where there is none.
    """

    scores: Tensor
    rows: Tensor


def place(label: int, size: Size, device: torch.device, *, masks: bool) -> Target:
    """One box of random size somewhere inside a picture, from torch's own random numbers.

    Args:
        label: its class.
        size: (height, width) of the picture.
        device: for the target.
        masks: give it a mask, the ellipse in the box.

    Returns:
        A target whose sides are uniform in 0.2 to 0.8 of the picture's.
    """
    shares = 0.2 + 0.6 * torch.rand(2)
    corner = (1 - shares) * torch.rand(2)
    sides = torch.tensor([size[1], size[0]], dtype=torch.float32)
    box = torch.cat([corner * sides, (corner + shares) * sides]).to(device)[None]
    return Target(box, torch.tensor([label], device=device), ellipses(box, size) if masks else None)


def balanced_labels(first: int, count: int, num_classes: int, seed: int) -> list[int]:
    """Classes of pictures number `first` to `first + count - 1`: each K pictures in a row show every class once.

    Args:
        first: number of the first picture.
        count: of pictures.
        num_classes: K.
        seed: of the order within each K pictures.
    """
    labels = []
    for number in range(first, first + count):
        block, row = divmod(number, num_classes)
        generator = torch.Generator().manual_seed(stable_seed("balanced labels", seed, block))
        order = torch.randperm(num_classes, generator=generator)
        labels.append(int(order[row]))
    return labels


def match(target: Target, found: Found) -> Matched:
    """For each target the surest detection of its class that overlaps it by more than `MATCH_IOU`."""
    if len(found.scores) == 0 or len(target) == 0:
        nothing = target.boxes.new_zeros(len(target))
        return Matched(nothing, torch.full_like(target.labels, -1))
    same = (box_iou(target.boxes, found.boxes) > MATCH_IOU) & (target.labels[:, None] == found.labels)
    scores, rows = torch.where(same, found.scores, -1.0).max(1)
    return Matched(scores.clamp(min=0), torch.where(scores > 0, rows, -1))


def adapt(target: Target, found: Found, size: Size) -> Target:
    """Make the teacher's confident finds targets, and forget targets that it does not find.

    A detection is added from a score of `CONFIDENT` on, if it overlaps all boxes that are there, the surer ones among
    those added included, by less than `NEW_IOU`, and covers a share of the picture within `AREAS`. A target is forgotten
    if no detection of its class with a score of `FOUND` overlaps it by more than `MATCH_IOU`. Of a picture that would be
    left with nothing the target stays that a detection of its class overlaps most, or the first.

    Args:
        target: of one picture; masks of targets that are found become the teacher's own.
        found: the teacher's detections in it, best first, inside the picture.
        size: (height, width) of the picture.
    """
    matched = match(target, found)
    kept = matched.scores >= FOUND
    new = new_objects(target.boxes, found, size)
    if not kept.any() and len(new) == 0:
        kept[_nearest(target, found)] = True
    boxes, labels = (
        torch.cat([target.boxes[kept], found.boxes[new]]),
        torch.cat([target.labels[kept], found.labels[new]]),
    )
    if target.masks is None:
        return Target(boxes, labels)
    return Target(boxes, labels, torch.cat([_updated_masks(target, found, matched)[kept], _masks(found, new, size)]))


def merge(target: Target, found: Found, size: Size) -> Target:
    """The teacher's detections in a finished picture, and the targets that it does not find.

    A target that the teacher finds takes the place, the mask and the score of its detection, of several targets with one
    detection the first; confident detections that are new objects, by the rules of `adapt`, are added; what the teacher
    does not find stays, with a score of 0.
    """
    matched = match(target, found)
    is_found = matched.scores >= FOUND
    repeats = (matched.rows[:, None] == matched.rows).tril(-1).any(1) & is_found
    new = new_objects(target.boxes, found, size)
    own = torch.where(is_found[:, None], _rows(found.boxes, matched.rows, target.boxes), target.boxes)
    boxes = torch.cat([own[~repeats], found.boxes[new]])
    labels = torch.cat([target.labels[~repeats], found.labels[new]])
    scores = torch.cat([torch.where(is_found, matched.scores, 0.0)[~repeats], found.scores[new]])
    if target.masks is None:
        return Target(boxes, labels, None, scores)
    updated = _updated_masks(Target(own, target.labels, target.masks), found, matched)
    return Target(boxes, labels, torch.cat([updated[~repeats], _masks(found, new, size)]), scores)


def new_objects(boxes: Tensor, found: Found, size: Size) -> Tensor:
    """(M,) int64 rows of the detections that become targets, best first; see `adapt`.

    Args:
        boxes: (N, 4) that are there.
        found: the detections.
        size: (height, width) of the picture.
    """
    shares = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1) / (size[0] * size[1])
    rows: list[int] = []
    there = boxes
    fitting = (found.scores >= CONFIDENT) & (shares >= AREAS[0]) & (shares <= AREAS[1])
    for row in torch.nonzero(fitting).flatten().tolist():
        if len(there) == 0 or bool((box_iou(found.boxes[row][None], there) < NEW_IOU).all()):
            rows.append(row)
            there = torch.cat([there, found.boxes[row][None]])
    return torch.tensor(rows, dtype=torch.int64, device=boxes.device)


def ellipses(boxes: Tensor, size: Size) -> Tensor:
    """(N, height, width) bool: pixels whose centre lies in the ellipse that touches a box's sides.

    Of a box that is too thin to hold any pixel's centre, all pixels that it touches.
    """
    rows = torch.arange(size[0], device=boxes.device) + 0.5
    columns = torch.arange(size[1], device=boxes.device) + 0.5
    x1, y1, x2, y2 = (side[:, None] for side in boxes.unbind(-1))
    of_rows = ((2 * rows - y1 - y2) / (y2 - y1)) ** 2
    of_columns = ((2 * columns - x1 - x2) / (x2 - x1)) ** 2
    drawn = of_rows[:, :, None] + of_columns[:, None, :] <= 1
    return torch.where(drawn.flatten(1).any(1)[:, None, None], drawn, inside_boxes(boxes, size))


def rescale(target: Target, size: Size, to: Size) -> Target:
    """The same labels for a picture of another size; masks by the nearest pixel, an ellipse where that leaves none."""
    boxes = target.boxes * target.boxes.new_tensor([to[1] / size[1], to[0] / size[0]] * 2)
    if target.masks is None:
        return Target(boxes, target.labels, None, target.scores)
    masks = F.interpolate(target.masks[None].float(), to, mode="nearest-exact")[0] > 0.5
    masks = torch.where(masks.flatten(1).any(1)[:, None, None], masks, ellipses(boxes, to))
    return Target(boxes, target.labels, masks, target.scores)


def _updated_masks(target: Target, found: Found, matched: Matched) -> Tensor:
    """(N, height, width): the teacher's mask within the box of each target that it finds, its present one of the others."""
    assert target.masks is not None
    if found.masks is None:
        return target.masks
    size = (int(target.masks.shape[-2]), int(target.masks.shape[-1]))
    theirs = _rows(found.masks, matched.rows, target.masks) & inside_boxes(target.boxes, size)
    usable = (matched.scores >= FOUND) & theirs.flatten(1).any(1)
    return torch.where(usable[:, None, None], theirs, target.masks)


def _masks(found: Found, rows: Tensor, size: Size) -> Tensor:
    """(M, height, width) of some detections; the ellipse in the box of those whose mask is empty."""
    drawn = ellipses(found.boxes[rows], size)
    if found.masks is None:
        return drawn
    theirs = found.masks[rows] & inside_boxes(found.boxes[rows], size)
    return torch.where(theirs.flatten(1).any(1)[:, None, None], theirs, drawn)


def _nearest(target: Target, found: Found) -> int:
    """The target that a detection of its class overlaps most; the first if none does."""
    if len(found.scores) == 0:
        return 0
    overlap = box_iou(target.boxes, found.boxes) * (target.labels[:, None] == found.labels)
    return int(overlap.max(1).values.argmax())


def _rows(values: Tensor, rows: Tensor, otherwise: Tensor) -> Tensor:
    """Of each target the value of its detection; of those without one, anything of the right shape."""
    return values[rows.clamp(min=0)] if len(values) else otherwise
