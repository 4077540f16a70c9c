"""Faster R-CNN and Mask R-CNN (Ren et al., arXiv:1506.01497; He et al., arXiv:1703.06870) of torchvision.

The library's own parts are run in the library's own order, so that losses, gradients and random numbers are its own; only
what is needed is run, and the answers on the sampled proposals are kept.
"""

from collections.abc import Sequence
from math import log2
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss, maskrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops.poolers import initLevelMapper

from limbeck.detection import DetectionOutputs, DetectorFamily, Regions
from limbeck.models.detection.torchvision.base import TorchvisionDetector
from limbeck.outputs import Request

Boxes = Sequence[Tensor]


class TwoStageDetector(TorchvisionDetector):
    """A torchvision R-CNN behind our interface; see `TorchvisionDetector` for the arguments.

    `regions` of a batch without targets are its answers on its own proposals, and have no masks.
    """

    family: DetectorFamily = "two_stage"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The library would guess the maps' scales from the first pictures it sees and keep them; where these are padded to
        # much more than their own size, such as a panorama beside a portrait, the guess is wrong.
        strides = {self._keys[level.name]: level.stride for level in self.facts.levels}
        heads: Any = self.network.roi_heads
        for pool in (heads.box_roi_pool, heads.mask_roi_pool):
            if pool is not None:
                of = [strides[key] for key in pool.featmap_names if key in strides]
                pool.scales = [1 / stride for stride in of]
                pool.map_levels = initLevelMapper(
                    int(log2(of[0])), int(log2(of[-1])), pool.canonical_scale, pool.canonical_level
                )

    @property
    def has_masks(self) -> bool:
        """Whether it predicts masks."""
        return bool(self.network.roi_heads.has_mask())

    def _answer(
        self,
        outputs: DetectionOutputs,
        images: ImageList,
        features: dict[str, Tensor],
        targets: list[dict[str, Tensor]] | None,
        request: Request,
    ) -> None:
        sizes = images.image_sizes
        if request.read_regions:
            outputs.read_regions = lambda others: self._regions(features, others.boxes, sizes, others.mask_boxes)
        if targets is None and not request.regions:
            return
        proposals, proposal_losses = self._propose(images, features, targets)
        heads = self.network.roi_heads
        if targets is None:
            regions = self._regions(features, proposals, sizes)
        else:
            proposals, matched, labels, corrections = heads.select_training_samples(proposals, targets)
            logits, deltas = self._box_answers(features, proposals, sizes)
            classifier, box = fastrcnn_loss(logits, deltas, labels, corrections)
            outputs.losses = {"loss_classifier": classifier, "loss_box_reg": box}
            regions = Regions(tuple(proposals), self._logits(logits), self._deltas(deltas))
            if self.has_masks:
                positive = [torch.where(of_image > 0)[0] for of_image in labels]
                regions.mask_boxes = tuple(boxes[rows] for boxes, rows in zip(proposals, positive, strict=True))
                masks = self._mask_answers(features, regions.mask_boxes, sizes)
                outputs.losses["loss_mask"] = maskrcnn_loss(
                    masks,
                    list(regions.mask_boxes),
                    [target["masks"] for target in targets],
                    [target["labels"] for target in targets],
                    [of_image[rows] for of_image, rows in zip(matched, positive, strict=True)],
                )
                regions.mask_logits = self._masks(masks)
            outputs.losses.update(proposal_losses)
        if request.regions:
            outputs.regions = regions

    def _detections(self, images: ImageList, features: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        proposals, _ = self.network.rpn(images, features)
        found: list[dict[str, Tensor]] = self.network.roi_heads(features, proposals, images.image_sizes)[0]
        return found

    def _class_tensors(self) -> dict[str, int]:
        names = ["box_predictor.cls_score", "box_predictor.bbox_pred"]
        if self.has_masks:
            names.append("mask_predictor.mask_fcn_logits")
        return {f"roi_heads.{name}.{part}": 1 for name in names for part in ("weight", "bias")}

    def _propose(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """As the library's region proposal network, which has losses in training mode only and then needs targets."""
        rpn: Any = self.network.rpn
        maps = list(features.values())
        objectness, deltas = rpn.head(maps)
        anchors = rpn.anchor_generator(images, maps)
        per_level = [of_level[0].numel() for of_level in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        proposals = rpn.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
        boxes, _ = rpn.filter_proposals(proposals, objectness, images.image_sizes, per_level)
        if targets is None:
            return boxes, {}
        labels, matched = rpn.assign_targets_to_anchors(anchors, targets)
        corrections = rpn.box_coder.encode(matched, anchors)
        loss_objectness, loss_box = rpn.compute_loss(objectness, deltas, labels, corrections)
        return boxes, {"loss_objectness": loss_objectness, "loss_rpn_box_reg": loss_box}

    def _regions(
        self, features: dict[str, Tensor], boxes: Boxes, sizes: list[Any], mask_boxes: Boxes | None = None
    ) -> Regions:
        """The answers on given boxes, and with masks on the second ones."""
        logits, deltas = self._box_answers(features, boxes, sizes)
        regions = Regions(tuple(boxes), self._logits(logits), self._deltas(deltas))
        if mask_boxes is not None and self.has_masks:
            regions.mask_boxes = tuple(mask_boxes)
            regions.mask_logits = self._masks(self._mask_answers(features, mask_boxes, sizes))
        return regions

    def _box_answers(self, features: dict[str, Tensor], boxes: Boxes, sizes: list[Any]) -> tuple[Tensor, Tensor]:
        """(N, slots) and (N, 4 slots) of N boxes."""
        heads: Any = self.network.roi_heads
        logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, list(boxes), sizes)))
        return logits, deltas

    def _mask_answers(self, features: dict[str, Tensor], boxes: Boxes, sizes: list[Any]) -> Tensor:
        """(M, slots, side, side) of M boxes."""
        heads: Any = self.network.roi_heads
        masks: Tensor = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, list(boxes), sizes)))
        return masks

    def _logits(self, logits: Tensor) -> Tensor:
        return logits[:, self.slots.columns(logits.device)]

    def _deltas(self, deltas: Tensor) -> Tensor:
        return deltas.view(len(deltas), -1, 4)[:, list(self.slots.slots)]

    def _masks(self, masks: Tensor) -> Tensor:
        return masks[:, list(self.slots.slots)]
