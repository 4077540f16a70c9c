"""Is the teacher what the user believes it is? Measured before training; if not, the likely causes are tried out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.tasks.classification import Measurement, measure, predict_logits

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NONE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
BYTES = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))

NORMALISATIONS = {
    "with ImageNet's normalisation": IMAGENET,
    "with CIFAR-100's normalisation": CIFAR,
    "normalised to -1..1": HALVES,
    "without normalisation": NONE,
    "with pixels in 0..255": BYTES,
}
COLOURS = "with red and blue exchanged"
CLASSES = "with the classes in another order"

TOLERANCE = 0.05
DIAGNOSED_IMAGES = 1024


class ImplausibleTeacherError(UserError):
    """The teacher does not do on these images what it was trained for."""


def is_implausible(measured: Measurement, labels: NDArray[np.int64], expected: float | None) -> str | None:
    """Why a teacher's accuracy cannot be right, or None.

    Near chance: the accuracy beyond that of always naming the largest class, (a - c) / (1 - c), is below 0.1. Far below:
    more than 0.05 under the accuracy the user expects.
    """
    chance = float(np.bincount(labels).max() / len(labels))
    if chance < 1 and (measured.accuracy - chance) / (1 - chance) < 0.1:
        return f"near chance ({100 * measured.accuracy:.1f} %, where always naming the largest class gives {100 * chance:.1f} %)"
    if expected is not None and measured.accuracy < expected - TOLERANCE:
        return f"far below what was expected ({100 * measured.accuracy:.1f} % instead of {100 * expected:.1f} %)"
    return None


@dataclass(frozen=True)
class Trials:
    """How accurate a teacher is under other assumptions on some validation images.

    Attributes:
        baseline: its accuracy as it is.
        accuracies: by assumption, best first.
        renaming: (K,) which of the data's classes each of its answers fits best.
    """

    baseline: float
    accuracies: dict[str, float]
    renaming: NDArray[np.int64]

    @property
    def likely(self) -> str | None:
        """The assumption that is probably true; None where none is much better than what is assumed now."""
        name, accuracy = next(iter(self.accuracies.items()))
        return name if accuracy > self.baseline + 2 * TOLERANCE else None

    def sentences(self) -> list[str]:
        """All of them as text."""
        found = [f"{name} {100 * accuracy:.1f} %" for name, accuracy in self.accuracies.items()]
        if self.likely is not None:
            found[0] = f"{found[0]} (this is probably what is wrong)"
        return found


def require_plausible(
    teacher: VisionModel,
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    batches: Iterable[dict[str, Tensor]],
    expected: float | None,
    device: torch.device,
) -> Measurement:
    """The teacher's measurement on the validation images.

    Args:
        teacher: the model.
        logits: (N, K), its answers to all validation images.
        labels: (N,).
        batches: the same images again, for the diagnosis of an implausible teacher.
        expected: the accuracy the user named, or None.
        device: where to run.

    Raises:
        ImplausibleTeacherError: with what was tried and how accurate the teacher is then.
    """
    measured = measure(logits, labels)
    if complaint := is_implausible(measured, labels, expected):
        trials = try_out(teacher, batches, device)
        raise ImplausibleTeacherError(
            f"The teacher {teacher.facts.name} is {complaint} on the {len(labels)} validation images, so a student would "
            f"learn the wrong thing. Tried out: {'; '.join(trials.sentences())}. Likely causes are the normalisation, the input "
            "size, the order of the classes, or weights that belong to another data set. If the teacher is meant to be "
            "this weak, add --trust_teacher."
        )
    return measured


def try_out(teacher: VisionModel, batches: Iterable[dict[str, Tensor]], device: torch.device) -> Trials:
    """Measure the teacher under other assumptions, on the first of the labelled images of `batches`."""
    some = _first_images(batches, DIAGNOSED_IMAGES)
    logits, labels = predict_logits(teacher, some, device)
    tried: dict[str, float] = {}
    original = teacher.mean.clone(), teacher.std.clone()
    try:
        for name, (mean, std) in NORMALISATIONS.items():
            _set_normalisation(teacher, torch.tensor(mean), torch.tensor(std))
            tried[name] = _accuracy(teacher, some, device)
    finally:
        _set_normalisation(teacher, *original)
    tried[COLOURS] = _accuracy(teacher, some, device, lambda images: images.flip(1))
    # Learned on even images and measured on odd ones.
    renaming = _best_renaming(logits[::2], labels[::2])
    tried[CLASSES] = float((renaming[logits.argmax(1)[1::2]] == labels[1::2]).mean()) if len(labels) > 1 else 0.0
    ranked = dict(sorted(tried.items(), key=lambda pair: -pair[1]))
    return Trials(measure(logits, labels).accuracy, ranked, _best_renaming(logits, labels))


def _best_renaming(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(K,) one class of the data for each answer, so that the most images are right."""
    answers = logits.argmax(1)
    classes = max(logits.shape[1], int(labels.max()) + 1)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (answers, labels), 1)
    rows, columns = linear_sum_assignment(-counts)
    renaming = np.empty(classes, np.int64)
    renaming[rows] = columns
    return renaming


def _accuracy(
    teacher: VisionModel,
    batches: list[dict[str, Tensor]],
    device: torch.device,
    change: Callable[[Tensor], Tensor] = lambda images: images,
) -> float:
    changed = [{**batch, "image": change(batch["image"])} for batch in batches]
    return measure(*predict_logits(teacher, changed, device)).accuracy


def _first_images(batches: Iterable[dict[str, Tensor]], wanted: int) -> list[dict[str, Tensor]]:
    some: list[dict[str, Tensor]] = []
    for batch in batches:
        some.append(batch)
        if sum(len(kept["label"]) for kept in some) >= wanted:
            break
    return some


def _set_normalisation(model: VisionModel, mean: Tensor, std: Tensor) -> None:
    model.mean.copy_(mean.view(1, -1, 1, 1))
    model.std.copy_(std.view(1, -1, 1, 1))
