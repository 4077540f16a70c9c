"""From queries with a class and a mask each to instances: what to show, at which size, how sure.

Mask2Former's instance inference (2112.01527, and its code): of all Q x K pairs of a query and a class the likeliest are
kept, and each scores its class probability times how sure its mask is of its own pixels.

The library's post-processing is that rule with two changes that are not followed. For Mask2Former it judges masks on a
grid of 384 x 384 whatever the image, padding included; here, as in the papers' own code and as the library does for EoMT,
it is done at the wanted size, padding cut away. For EoMT it gives each query its best class only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.detection import Found, Size

MOST = 100
"""Instances in an image; COCO's measure reads no more."""


def instances(logits: Tensor, masks: Tensor, padded: Size, own: Size, size: Size, most: int = MOST) -> Found:
    """The instances in one image.

    score = p(class) * mean of σ(mask) over the pixels where the mask's logit is positive

    Args:
        logits: (Q, K + 1), "no object" last.
        masks: (Q, h, w) logits over the padded picture.
        padded: its size in pixels.
        own: of the image's own area in it.
        size: at which boxes and masks are wanted.
        most: pairs of query and class that are looked at; never more than Q.

    Returns:
        Those whose mask is not empty, best first, each with the tight box of its mask.
    """
    classes = logits.shape[-1] - 1
    probabilities = logits.float().softmax(-1)[:, :-1].flatten()
    scores, pairs = probabilities.topk(min(most, len(logits), len(probabilities)))
    queries, of_query = (pairs // classes).unique(return_inverse=True)
    drawn = F.interpolate(masks[queries][None].float(), padded, mode="bilinear", align_corners=False)
    drawn = F.interpolate(drawn[..., : own[0], : own[1]], size, mode="bilinear", align_corners=False)[0]
    inside = drawn > 0
    area = inside.sum((1, 2))
    sureness = (drawn.sigmoid() * inside).sum((1, 2)) / area.clamp(min=1)
    scores, labels = scores * sureness[of_query], pairs % classes
    order = scores.argsort(descending=True, stable=True)
    order = order[area[of_query[order]] > 0]
    chosen = inside[of_query[order]]
    return Found(tight_boxes(chosen), labels[order], scores[order], chosen)


def tight_boxes(masks: Tensor) -> Tensor:
    """(N, H, W) bool, none empty -> (N, 4) float32, x1, y1, x2, y2 around the masks' pixels."""
    sides = []
    for across in (1, 2):
        any_ = masks.any(across)
        first = any_.int().argmax(1)
        end = any_.shape[1] - any_.flip(1).int().argmax(1)
        sides += [first, end]
    return torch.stack([sides[0], sides[2], sides[1], sides[3]], 1).float()
