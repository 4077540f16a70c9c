"""RetinaNet, FCOS and SSD of torchvision, which answer for every cell of their maps.

RetinaNet (Lin et al., arXiv:1708.02002) and FCOS (Tian et al., arXiv:1904.01355) score by sigmoid, SSD (Liu et al.,
arXiv:1512.02325) by softmax. FCOS's class logits are those of the classes alone: its centerness, by which its inference
multiplies the scores, is no class's.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_convert, box_iou

from limbeck.detection import DetectionOutputs, DetectorFamily, Predictions
from limbeck.models.detection.torchvision.base import TorchvisionDetector
from limbeck.outputs import Request

Targets = list[dict[str, Tensor]]


class DenseDetector(TorchvisionDetector):
    """A torchvision detector without proposals behind our interface; see `TorchvisionDetector` for the arguments."""

    family: DetectorFamily = "dense"

    def _answer(
        self,
        outputs: DetectionOutputs,
        images: ImageList,
        features: dict[str, Tensor],
        targets: Targets | None,
        request: Request,
    ) -> None:
        if targets is None and not request.predictions:
            return
        maps = list(features.values())
        answers = self.network.head(maps)
        anchors = self.network.anchor_generator(images, maps)
        if targets is not None:
            outputs.losses = self._losses(targets, answers, anchors, maps)
        if request.predictions:
            logits = answers["cls_logits"]
            outputs.predictions = (
                Predictions(
                    logits[..., self.slots.columns(logits.device)],
                    boxes=self._shares(self._decode(answers["bbox_regression"], anchors), images),
                ),
            )

    def _losses(
        self, targets: Targets, answers: dict[str, Tensor], anchors: list[Tensor], maps: list[Tensor]
    ) -> dict[str, Tensor]:
        network: Any = self.network
        if isinstance(network, FCOS):
            losses: dict[str, Tensor] = network.compute_loss(
                targets, answers, anchors, [map_.shape[2] * map_.shape[3] for map_ in maps]
            )
        elif isinstance(network, SSD):
            matched = [
                network.proposal_matcher(box_iou(target["boxes"], of_image))
                if target["boxes"].numel()
                else torch.full((len(of_image),), -1, dtype=torch.int64, device=of_image.device)
                for target, of_image in zip(targets, anchors, strict=True)
            ]
            losses = network.compute_loss(targets, answers, anchors, matched)
        else:
            losses = network.compute_loss(targets, answers, anchors)
        return losses

    def _detections(self, images: ImageList, features: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        network: Any = self.network
        maps = list(features.values())
        answers = network.head(maps)
        anchors = network.anchor_generator(images, maps)
        if isinstance(network, SSD):
            found: list[dict[str, Tensor]] = network.postprocess_detections(answers, anchors, images.image_sizes)
            return found
        cells = [map_.shape[2] * map_.shape[3] for map_ in maps]
        each = len(anchors[0]) // sum(cells)
        counts = [each * count for count in cells]
        found = network.postprocess_detections(
            {name: list(answer.split(counts, dim=1)) for name, answer in answers.items()},
            [list(of_image.split(counts)) for of_image in anchors],
            images.image_sizes,
        )
        return found

    def _class_tensors(self) -> dict[str, int]:
        head: Any = self.network.head.classification_head
        slots = self.slots.count
        if isinstance(self.network, SSD):
            names = [f"module_list.{index}" for index in range(len(head.module_list))]
            # SSDLite's predictions are blocks, whose last layer has the classes.
            names = [
                name if hasattr(head.get_submodule(name), "weight") else f"{name}.{len(head.get_submodule(name)) - 1}"
                for name in names
            ]
        else:
            names = ["cls_logits"]
        return {
            f"head.classification_head.{name}.{part}": len(head.get_submodule(name).weight) // slots
            for name in names
            for part in ("weight", "bias")
        }

    def _decode(self, deltas: Tensor, anchors: list[Tensor]) -> Tensor:
        """(B, A, 4) boxes in pixels."""
        coder: Any = self.network.box_coder
        if isinstance(self.network, FCOS):
            boxes: Tensor = coder.decode(deltas, torch.stack(anchors))
            return boxes
        return torch.stack([coder.decode_single(of_image, own) for of_image, own in zip(deltas, anchors, strict=True)])

    def _shares(self, boxes: Tensor, images: ImageList) -> Tensor:
        """(B, A, 4) boxes in pixels, as centre, width and height in shares of each image's own area."""
        own = torch.tensor([[w, h, w, h] for h, w in images.image_sizes], dtype=boxes.dtype, device=boxes.device)
        shares: Tensor = box_convert(boxes / own[:, None], "xyxy", "cxcywh")
        return shares
