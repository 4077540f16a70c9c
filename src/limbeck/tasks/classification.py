"""Image classification: targets, the supervised loss, mixing of images, and measurement."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from limbeck.models.base import VisionModel
from limbeck.tasks.base import Batch, Task


class ClassificationTask(Task):
    """Cross-entropy with label smoothing, and Mixup/CutMix of whole batches.

    Both models are shown the mixed images, and label-reading losses the mixed labels. Smoothing belongs to the
    supervised loss alone: (1 - e) y + e / K of the mixed label.

    Args:
        num_classes: K.
        label_smoothing: e.
        mixup, cutmix: alpha of the Beta distributions; 0 is off.
        mix_prob: share of batches that are mixed.
        mix_switch_prob: chance of CutMix when both are on.

    Attributes:
        teacher_logits: (N, K), the teacher's answers to the validation images, with which the student's are compared;
            None without.
    """

    main_score = "accuracy"
    teacher_logits: NDArray[np.float32] | None = None

    def __init__(
        self,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_prob: float = 1.0,
        mix_switch_prob: float = 0.5,
    ) -> None:
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.mixer = (
            Mixup(
                mixup, cutmix, prob=mix_prob, switch_prob=mix_switch_prob, label_smoothing=0.0, num_classes=num_classes
            )
            if mixup or cutmix
            else None
        )

    def learn_from(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mixed images and labels."""
        images, target = self.mix(batch["image"], batch["label"])
        return images.contiguous(memory_format=torch.channels_last), target

    def few(self, inputs: Tensor, target: Tensor | None, most: int) -> tuple[Tensor, Tensor | None]:
        """The first `most` images."""
        return inputs[:most], None if target is None else target[:most]

    def tensors(self, inputs: Tensor, target: Tensor | None) -> dict[str, Tensor]:
        """`images`, and `target`: class indices, or soft labels where the batch was mixed."""
        return {"images": inputs} if target is None else {"images": inputs, "target": target}

    def answers(self, model: nn.Module, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Logits (K,) and label of each image."""
        images = batch["image"].contiguous(memory_format=torch.channels_last)
        logits = model(images).logits.float().cpu()
        return list(zip(logits, batch["label"].cpu(), strict=True))

    def measure(self, answers: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Accuracy, loss and, where the teacher's answers are known, the agreement with them."""
        logits = torch.stack([answer[0] for answer in answers])
        measured = measure(logits, torch.stack([answer[1] for answer in answers]))
        values = {"accuracy": measured.accuracy, "loss": measured.nll}
        if self.teacher_logits is not None and self.teacher_logits.shape == tuple(logits.shape):
            values["agreement"] = agreement(logits, self.teacher_logits)
        return values

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of (B, K) logits against class indices (B,) or soft labels (B, K)."""
        return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)

    def mix(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed copies of (B, 3, H, W) images and of their targets; unchanged where mixing is off.

        The second half of the mixing partner is the batch reversed, as in timm; numpy's random state decides.
        Unlabelled images (target -1) are mixed too and keep their targets.
        """
        if self.mixer is None or len(images) < 2:
            return images, target
        if len(images) % 2:  # timm mixes pairs; the odd last image is mixed in the place of the first's twin
            images, target = torch.cat([images, images[:1]]), torch.cat([target, target[:1]])
            mixed, labels = self.mix(images, target)
            return mixed[:-1], labels[:-1]
        labelled = bool((target >= 0).all())
        mixed, labels = self.mixer(images.clone(), target.clamp(min=0))
        return mixed, labels if labelled else target


@dataclass(frozen=True)
class Measurement:
    """How a classifier does on labelled images; shares between 0 and 1.

    Attributes:
        accuracy: top-1.
        top5: share of images whose class is among the five first (None for fewer than six classes).
        nll: mean negative log-likelihood, nats.
        calibration_error: expected calibration error, 15 bins.
        images: how many were measured.
    """

    accuracy: float
    top5: float | None
    nll: float
    calibration_error: float
    images: int


def measure(logits: NDArray[Any] | Tensor, labels: NDArray[Any] | Tensor) -> Measurement:
    """Measure (N, K) logits against (N,) labels."""
    logits, labels = torch.as_tensor(logits).float(), torch.as_tensor(labels).long()
    num_classes = logits.shape[1]
    task: dict[str, Any] = {"num_classes": max(2, num_classes)}
    return Measurement(
        accuracy=float((logits.argmax(1) == labels).float().mean()),
        top5=float(multiclass_accuracy(logits, labels, top_k=5, average="micro", **task)) if num_classes > 5 else None,
        nll=float(F.cross_entropy(logits, labels)),
        calibration_error=float(multiclass_calibration_error(logits.softmax(1), labels, n_bins=15, **task)),
        images=len(labels),
    )


def agreement(first: NDArray[Any] | Tensor, second: NDArray[Any] | Tensor) -> float:
    """Share of images to which two (N, K) logits give the same first answer."""
    return float((torch.as_tensor(first).argmax(1) == torch.as_tensor(second).argmax(1)).float().mean())


@torch.no_grad()
def predict_logits(
    model: VisionModel, batches: Iterable[dict[str, Tensor]], device: torch.device | str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits (N, K) and labels (N,) of a model over a loader's batches; the model's mode is restored afterwards."""
    was_training = model.training
    model.eval().to(memory_format=torch.channels_last)
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches:
        images = batch["image"].to(device, non_blocking=True, memory_format=torch.channels_last)
        logits.append(model(images).logits.float().cpu())
        labels.append(batch["label"])
    model.train(was_training)
    return torch.cat(logits).numpy(), torch.cat(labels).numpy()
