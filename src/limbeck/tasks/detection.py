"""Object detection and instance segmentation: what a step learns from, a detector's answers, and their measurement."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.data.detection.base import SceneSource
from limbeck.detection import Found, Pictures, Target
from limbeck.models.detection.base import Detector
from limbeck.tasks.base import Batch, Task
from limbeck.tasks.detection_scores import Detections, DetectionScores, score

MOST_DETECTIONS = 100
"""An image's best detections of each class that are kept; COCO's rules look at no more."""


class DetectionTask(Task):
    """Boxes, and masks where the detector has them, measured by COCO's average precision.

    Args:
        val: the scenes that are measured on; None measures nothing.
        masks: measure masks too.
    """

    main_score = "ap"

    def __init__(self, val: SceneSource | None = None, *, masks: bool = False) -> None:
        self.val = val
        self.masks = masks

    def learn_from(self, batch: Batch) -> tuple[Pictures, list[Target]]:
        """The pictures and their objects."""
        pictures: Pictures = batch["pictures"]
        images = pictures.images.contiguous(memory_format=torch.channels_last)
        return Pictures(images, pictures.sizes), batch["targets"]

    def few(self, inputs: Pictures, target: list[Target] | None, most: int) -> tuple[Pictures, list[Target] | None]:
        """The first `most` pictures."""
        return inputs.first(most), None if target is None else target[:most]

    def tensors(self, inputs: Pictures, target: list[Target] | None) -> dict[str, Tensor]:
        """`images` and their own `sizes`; all `boxes` and `labels`, with the number `of` the picture that each is in."""
        tensors = {"images": inputs.images, "sizes": torch.tensor(inputs.sizes)}
        if target is not None:
            tensors["boxes"] = torch.cat([objects.boxes for objects in target])
            tensors["labels"] = torch.cat([objects.labels for objects in target])
            tensors["of"] = torch.repeat_interleave(torch.tensor([len(objects) for objects in target]))
        return tensors

    def answers(self, model: nn.Module, batch: Batch) -> list[Detections]:
        """The best detections in each image, in pixels of the original image."""
        assert isinstance(model, Detector)
        return [compact(found) for found in model.detect(batch["pictures"], batch["original_sizes"])]

    def measure(self, answers: Sequence[Detections]) -> dict[str, float]:
        """AP, AP50 and AP75 of the boxes and, where they are measured, of the masks (`mask_ap`, ...); 0 to 1."""
        assert self.val is not None
        values = _main_scores(score(self.val, answers))
        if self.masks:
            values |= {
                f"mask_{name}": value for name, value in _main_scores(score(self.val, answers, iou="segm")).items()
            }
        return values

    def scores(self, answers: Sequence[Detections]) -> dict[str, DetectionScores]:
        """All of COCO's numbers: of `bbox` and, where masks are measured, of `segm`."""
        assert self.val is not None
        kinds: tuple[Any, ...] = ("bbox", "segm") if self.masks else ("bbox",)
        return {kind: score(self.val, answers, iou=kind) for kind in kinds}


def compact(found: Found) -> Detections:
    """Detections on the CPU, of each class the best hundred, masks as run lengths."""
    labels = found.labels.cpu().numpy()
    kept = np.sort(
        np.concatenate([np.flatnonzero(labels == k)[:MOST_DETECTIONS] for k in np.unique(labels)] or [labels])
    )
    boxes = found.boxes.float().cpu().numpy()[kept]
    scores = found.scores.float().cpu().numpy()[kept]
    masks = None
    if found.masks is not None:
        masks = Detections(boxes, scores, labels[kept], found.masks.cpu().numpy()[kept]).rles()
    return Detections(boxes, scores, labels[kept], masks)


@torch.no_grad()
def predict_detections(
    model: Detector, batches: Iterable[Batch], device: torch.device | str = "cpu"
) -> list[Detections]:
    """A detector's answers to all images of a loader; the detector's mode is restored afterwards."""
    was_training = model.training
    model.eval()
    answers = [
        compact(found)
        for batch in batches
        for found in model.detect(batch["pictures"].to(device), batch["original_sizes"])
    ]
    model.train(was_training)
    return answers


def _main_scores(scores: DetectionScores) -> dict[str, float]:
    """Of classes without any object there is no AP; with no object at all it counts as 0, so that epochs can be compared."""
    named = {"ap": scores.ap, "ap50": scores.ap50, "ap75": scores.ap75}
    return {name: 0.0 if math.isnan(value) else value for name, value in named.items()}
