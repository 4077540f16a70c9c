"""torchvision's detectors with a backbone of any library, made of the library's own parts with random weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import MultiScaleRoIAlign

from limbeck.detection import Resize, ScoreKind
from limbeck.errors import UserError
from limbeck.models.detection.backbones import Backbone
from limbeck.models.detection.torchvision.pyramids import ExtraLevels, Pyramid, ssd_norm

_RATIOS = (0.5, 1.0, 2.0)
_POOLED, _MASK_POOLED = 7, 14

RESIZE = Resize(800, 1333, antialias=False)
"""torchvision's; it resizes without smoothing."""

RESIZE_SSD = Resize(320, 320, stretch=True, antialias=False)


@dataclass(frozen=True)
class Family:
    """How a family's networks are made.

    Attributes:
        make: from the backbone, the number of slots, the options and the user's name for messages.
        scores: how its class logits become scores.
        resize: the size at which it wants an image.
    """

    make: Callable[[Backbone, int, dict[str, Any], str], nn.Module]
    scores: ScoreKind
    resize: Resize


def _faster_rcnn(backbone: Backbone, num_slots: int, options: dict[str, Any], text: str) -> nn.Module:
    pyramid = Pyramid(backbone.body, options["fpn_channels"], first=4, top="pool")
    made: nn.Module = FasterRCNN(pyramid, **_two_stage(backbone, pyramid, num_slots, options, text))
    return made


def _mask_rcnn(backbone: Backbone, num_slots: int, options: dict[str, Any], text: str) -> nn.Module:
    pyramid = Pyramid(backbone.body, options["fpn_channels"], first=4, top="pool")
    width = options["mask_channels"]
    made: nn.Module = MaskRCNN(
        pyramid,
        **_two_stage(backbone, pyramid, num_slots, options, text),
        mask_roi_pool=MultiScaleRoIAlign(pyramid.names, _MASK_POOLED, 2),
        mask_head=MaskRCNNHeads(pyramid.out_channels, (width,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(width, width, num_slots),
    )
    return made


def _two_stage(
    backbone: Backbone, pyramid: Pyramid, num_slots: int, options: dict[str, Any], text: str
) -> dict[str, Any]:
    width = options["head_channels"]
    sizes = _sizes(pyramid, options, text, lambda stride: (8 * stride,))
    return {
        "rpn_anchor_generator": AnchorGenerator(sizes, (_RATIOS,) * len(sizes)),
        "box_roi_pool": MultiScaleRoIAlign(pyramid.names, _POOLED, 2),
        "box_head": TwoMLPHead(pyramid.out_channels * _POOLED**2, width),
        "box_predictor": FastRCNNPredictor(width, num_slots),
        "box_batch_size_per_image": options["train_regions"],
        "rpn_post_nms_top_n_train": options["proposals"][0],
        "rpn_post_nms_top_n_test": options["proposals"][1],
        **_statistics(backbone),
    }


def _retinanet(backbone: Backbone, num_slots: int, options: dict[str, Any], text: str) -> nn.Module:
    pyramid = Pyramid(backbone.body, options["fpn_channels"], first=8, top="p6p7")

    def three(stride: int) -> tuple[float, ...]:
        return (4 * stride, int(4 * stride * 2 ** (1 / 3)), int(4 * stride * 2 ** (2 / 3)))

    sizes = _sizes(pyramid, options, text, three)
    if len({len(of_map) for of_map in sizes}) > 1:
        raise UserError(f"In {text!r}, anchor_sizes has lists of unequal lengths; RetinaNet's maps share one head.")
    anchors = AnchorGenerator(sizes, (_RATIOS,) * len(sizes))
    made: nn.Module = RetinaNet(pyramid, num_slots, anchor_generator=anchors, **_statistics(backbone))
    return made


def _fcos(backbone: Backbone, num_slots: int, options: dict[str, Any], text: str) -> nn.Module:
    if options["fpn_channels"] % 32:
        raise UserError(
            f"In {text!r}, fpn_channels is {options['fpn_channels']}; FCOS normalises its head in 32 groups, so it must be "
            "a multiple of 32."
        )
    pyramid = Pyramid(backbone.body, options["fpn_channels"], first=8, top="p6p7")
    anchors = AnchorGenerator(tuple((stride,) for stride in pyramid.strides), ((1.0,),) * len(pyramid.strides))
    made: nn.Module = FCOS(pyramid, num_slots, anchor_generator=anchors, **_statistics(backbone))
    return made


def _ssdlite(backbone: Backbone, num_slots: int, options: dict[str, Any], text: str) -> nn.Module:
    if backbone.body.plain:
        raise UserError(f"{text} has a backbone with maps of a single stride, and SSDLite reads two of its maps.")
    levels = ExtraLevels(backbone.body, options["extra_channels"])
    boxes = DefaultBoxGenerator([[2, 3] for _ in levels.out_channels], min_ratio=0.2, max_ratio=0.95)
    head = SSDLiteHead(levels.out_channels, boxes.num_anchors_per_location(), num_slots, ssd_norm)
    made: nn.Module = SSD(
        levels,
        boxes,
        (RESIZE_SSD.long, RESIZE_SSD.short),
        num_slots,
        head=head,
        score_thresh=0.001,
        nms_thresh=0.55,
        detections_per_img=300,
        topk_candidates=300,
        **_statistics(backbone),
    )
    return made


def _sizes(
    pyramid: Pyramid, options: dict[str, Any], text: str, default: Callable[[int], tuple[float, ...]]
) -> tuple[tuple[float, ...], ...]:
    """The anchors' sizes of each map."""
    given = options["anchor_sizes"]
    if given is None:
        return tuple(default(stride) for stride in pyramid.strides)
    if len(given) != len(pyramid.strides):
        raise UserError(
            f"In {text!r}, anchor_sizes has {len(given)} lists, and there are {len(pyramid.strides)} maps, at strides "
            f"{', '.join(map(str, pyramid.strides))}."
        )
    return tuple(tuple(sizes) for sizes in given)


def _statistics(backbone: Backbone) -> dict[str, Any]:
    return {"image_mean": list(backbone.mean), "image_std": list(backbone.std)}


MAKERS = {
    "faster_rcnn": Family(_faster_rcnn, "softmax", RESIZE),
    "mask_rcnn": Family(_mask_rcnn, "softmax", RESIZE),
    "retinanet": Family(_retinanet, "sigmoid", RESIZE),
    "fcos": Family(_fcos, "sigmoid", RESIZE),
    "ssdlite": Family(_ssdlite, "softmax", RESIZE_SSD),
}
