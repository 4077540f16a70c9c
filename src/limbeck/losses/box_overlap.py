"""How far two boxes overlap: IoU, and its two relatives that also tell apart boxes that do not touch.

Generalised IoU: Rezatofighi et al., CVPR 2019, arXiv:1902.09630. Distance IoU: Zheng et al., AAAI 2020,
arXiv:1911.08287. Unlike most libraries' these stay finite, with their gradients, for boxes without area.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.detection import Size

SMALLEST = 1e-12
"""What areas and lengths are divided by at least; boxes are shares of an image, or pixels."""


def corner_form(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """(..., 4) centre x, centre y, width, height as x1, y1, x2, y2."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def shares_of(boxes: Float[Tensor, "N 4"], size: Size) -> Float[Tensor, "N 4"]:
    """(N, 4) x1, y1, x2, y2 in pixels as centre x, centre y, width, height in shares of an image of (height, width)."""
    height, width = size
    scaled = boxes / boxes.new_tensor([width, height, width, height])
    return torch.cat([(scaled[:, :2] + scaled[:, 2:]) / 2, scaled[:, 2:] - scaled[:, :2]], dim=1)


def iou(a: Float[Tensor, "... 4"], b: Float[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """Intersection over union.

    Args:
        a: (..., 4) x1, y1, x2, y2.
        b: the same; the leading dimensions are broadcast.

    Returns:
        (...) in [0, 1]; 0 where neither box has an area.
    """
    intersection, union = _areas(a, b)
    return intersection / union.clamp(min=SMALLEST)


def giou(a: Float[Tensor, "... 4"], b: Float[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """Generalised IoU: IoU less the share of the enclosing box that neither box covers.

    Args:
        a: (..., 4) x1, y1, x2, y2.
        b: the same; the leading dimensions are broadcast.

    Returns:
        (...) in [-1, 1].
    """
    intersection, union = _areas(a, b)
    hull = _area(*_hull(a, b))
    return intersection / union.clamp(min=SMALLEST) - (hull - union) / hull.clamp(min=SMALLEST)


def diou(a: Float[Tensor, "... 4"], b: Float[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """Distance IoU: IoU less the squared distance of the centres over the squared diagonal of the enclosing box.

    Unlike the other two it depends on the aspect ratio: give pixels, not shares.

    Args:
        a: (..., 4) x1, y1, x2, y2.
        b: the same; the leading dimensions are broadcast.

    Returns:
        (...) in [-1, 1].
    """
    upper_left, lower_right = _hull(a, b)
    diagonal = (lower_right - upper_left).square().sum(dim=-1)
    apart = ((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2).square().sum(dim=-1)
    return iou(a, b) - apart / diagonal.clamp(min=SMALLEST)


def _areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Of the intersection and of the union."""
    inner = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    return inner, _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - inner


def _hull(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])


def _area(upper_left: Tensor, lower_right: Tensor) -> Tensor:
    return (lower_right - upper_left).clamp(min=0).prod(dim=-1)
