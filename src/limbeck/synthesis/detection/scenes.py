"""Scenes optimised for a detector: boxes are placed, then found and pruned by the detector itself (adaptive labels).

After the task-specific zero-shot recipe for detectors (arXiv:2507.16782, ICCV 2025) and DIODE (Chawla et al., WACV 2021):
noise at a low resolution becomes a picture in which the teacher finds one box that was placed at random; on the way what
else it finds becomes a target, and what it does not find is forgotten. Then fresh noise at the full resolution is
optimised for these labels. The formulas stand in `scene_loss.py`, the labels' rules in `labels.py`.

Inferred, since the sources describe neither a Mask R-CNN's masks nor one set of weights for all detectors: masks (see
`labels.py`), and what `prior_weight="auto"` stands for.
"""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from limbeck.detection import Size, Target
from limbeck.errors import UserError
from limbeck.synthesis.detection.base import DetectionSetting, MadeScenes, SceneSynthesis, find
from limbeck.synthesis.detection.labels import adapt, balanced_labels, merge, place, rescale
from limbeck.synthesis.detection.moving import mirror, roll
from limbeck.synthesis.detection.scene_loss import DEVIATION, MEAN, PriorName, SceneLoss

_BETAS = (0.5, 0.9)
_STRIDE = 32
"""Sides at the low resolution are multiples of this, so that no detector has to pad them."""


class Scenes(SceneSynthesis):
    """Annotated pictures from a detector alone.

    Args:
        setting: teacher, size, batch size and seed.
        iterations: at the full resolution.
        low_iterations: at the low resolution, where the labels adapt; 0 leaves that stage out, and with it the adapting.
        low_side: pixels of the shorter side at the low resolution (published: 160); at most the full one's.
        learning_rate: of Adam, in units of the pictures' standard deviation (published: 0.2 for normalised pictures);
            it rises during `warmup` iterations, at most a tenth of all, and falls along a cosine to 0.
        warmup: iterations (published: 100).
        detection_weight: of the teacher's own training loss on the labels; auto is 0.5 beside BatchNorm statistics
            and 10 beside others, as published for YOLO and for Mask R-CNN with Swin.
        prior: what real pictures are recognised by: "batch_statistics" of BatchNorm layers, also frozen ones;
            "patch_similarity", PSAQ-ViT's entropy of attention (published for Swin); "diversity" of attention or, without
            any that can be read, of feature maps; auto is the first where there are such layers, else the last.
        prior_weight: auto is 0.01 for BatchNorm statistics (published for YOLOv5) and 1 for others (Swin).
        tv_weight: of the total variation (published: 0 for YOLOv5 and Swin).
        norm_weight: of the pictures' norm (published: 5e-4 to 1e-3).
        adapt_every: iterations between two moments at which the labels adapt (published: 100).
        adapt_between: shares of the low resolution's iterations between which they do (DIODE: 800 to 2800 of 4000).
        labels: "targets" gives what was optimised for; "final" gives the teacher's detections in the finished pictures,
            and those targets that it does not find.
        augmentation: "none" shows the teacher the pictures as they are (arXiv:2507.16782); "roll_flip" rolled by up to an
            eighth of their sides and half of the time mirrored, with boxes and masks (DIODE): many more iterations are
            needed until the teacher finds the labels.
    """

    def __init__(
        self,
        setting: DetectionSetting,
        *,
        iterations: int = 2000,
        low_iterations: int = 2000,
        low_side: int = 160,
        learning_rate: float = 0.2,
        warmup: int = 100,
        detection_weight: float | Literal["auto"] = "auto",
        prior: PriorName | Literal["auto", "none"] = "auto",
        prior_weight: float | Literal["auto"] = "auto",
        tv_weight: float = 0.0,
        norm_weight: float = 5e-4,
        adapt_every: int = 100,
        adapt_between: tuple[float, float] = (0.2, 0.7),
        labels: Literal["targets", "final"] = "targets",
        augmentation: Literal["roll_flip", "none"] = "none",
    ) -> None:
        super().__init__(setting)
        first, last = adapt_between
        rules = {
            "iterations": (iterations >= 1, iterations, "at least 1"),
            "low_iterations": (low_iterations >= 0, low_iterations, "at least 0"),
            "low_side": (low_side >= _STRIDE, low_side, f"at least {_STRIDE} pixels"),
            "learning_rate": (learning_rate > 0, learning_rate, "above 0"),
            "warmup": (warmup >= 0, warmup, "at least 0"),
            "adapt_every": (adapt_every >= 1, adapt_every, "at least 1"),
            "adapt_between": (0 <= first <= last <= 1, adapt_between, "two shares from 0 to 1, the smaller first"),
            "labels": (labels in ("targets", "final"), labels, "targets or final"),
            "augmentation": (augmentation in ("roll_flip", "none"), augmentation, "roll_flip or none"),
        }
        for name, (holds, value, expected) in rules.items():
            if not holds:
                raise UserError(f"scenes: {name} is {value!r}; it must be {expected}.")
        self.iterations, self.low_iterations = iterations, low_iterations
        self.low_size = _low_size(setting.size, low_side)
        self.learning_rate, self.warmup = learning_rate, warmup
        self.labels, self.augmentation = labels, augmentation
        self.adapt_at = range(
            math.ceil(first * low_iterations / adapt_every) * adapt_every or adapt_every,
            math.floor(last * low_iterations) + 1,
            adapt_every,
        )
        self.loss = SceneLoss(
            setting.teacher,
            prior=prior,
            detection_weight=detection_weight,
            prior_weight=prior_weight,
            tv_weight=tv_weight,
            norm_weight=norm_weight,
        )
        self.notes += self.loss.notes
        if not self.adapt_at:
            self.notes.append(
                f"With {low_iterations} iterations at the low resolution and adapt_every={adapt_every} the labels never "
                "adapt: each picture keeps the one box that was placed."
            )
        if setting.teacher.facts.has_masks:
            self.notes.append(
                "Until the teacher finds a target, its mask is the ellipse in its box; from then on the teacher's own."
            )
        self._log: dict[str, float | Tensor] = {}

    def make(self, count: int, done: int = 0) -> Iterator[MadeScenes]:
        """See `Way.make`; of a batch of which some pictures are done, all are made and those left out."""
        size = self.setting.batch_size
        if done >= count:
            return
        for first in range(done - done % size, count, size):
            batch = min(size, count - first)
            with self.seeded("scenes", first):
                made = self._make_batch(first, batch)
            start = max(done - first, 0)
            yield MadeScenes(made.images[start:], made.targets[start:])

    def log(self) -> dict[str, float]:
        """The terms at the last iteration, unweighted, and targets per finished picture."""
        return {name: float(value) for name, value in self._log.items()}

    def _make_batch(self, first: int, count: int) -> MadeScenes:
        setting, facts = self.setting, self.setting.teacher.facts
        classes = balanced_labels(first, count, facts.num_classes, setting.seed)
        targets = [place(label, self.low_size, setting.device, masks=facts.has_masks) for label in classes]
        if self.low_iterations:
            _, targets = self._optimise(
                targets, self.low_size, self.low_iterations, self.adapt_at, "at the low resolution"
            )
        targets = [rescale(target, self.low_size, setting.size) for target in targets]
        images, targets = self._optimise(targets, setting.size, self.iterations, range(0), "at the full resolution")
        if self.labels == "final":
            pairs = zip(targets, find(setting.teacher, images), strict=True)
            targets = [merge(target, found, setting.size) for target, found in pairs]
        self._log["targets_per_picture"] = sum(map(len, targets)) / len(targets)
        return MadeScenes(images, targets)

    def _optimise(
        self, targets: list[Target], size: Size, iterations: int, adapt_at: range, what: str
    ) -> tuple[Tensor, list[Target]]:
        """Noise becomes pictures (B, 3, height, width) in [0, 1]; after so many iterations as are listed the labels adapt.

        `what` says which resolution this is, for people.
        """
        teacher, device = self.setting.teacher, self.setting.device
        mean, deviation = (torch.tensor(of, device=device).view(1, 3, 1, 1) for of in (MEAN, DEVIATION))
        lowest, highest = -mean / deviation, (1 - mean) / deviation
        # Drawn on the CPU, so that the same seed starts from the same noise on every device.
        normalised = torch.randn(len(targets), 3, *size).to(device).clamp_(lowest, highest).requires_grad_()
        optimizer = torch.optim.Adam([normalised], betas=_BETAS)
        with self.loss.watching():
            for done in range(iterations):
                optimizer.param_groups[0]["lr"] = self.learning_rate * _rate(done, iterations, self.warmup)
                shown, moved = self._augment(normalised, targets)
                pixels = (shown * deviation + mean).clamp(0, 1)
                total, terms = self.loss(pixels, moved, normalised)
                (normalised.grad,) = torch.autograd.grad(total, normalised)
                optimizer.step()
                with torch.no_grad():
                    normalised.clamp_(lowest, highest)
                if done + 1 in adapt_at:
                    found = find(teacher, normalised.detach() * deviation + mean)
                    targets = [adapt(target, one, size) for target, one in zip(targets, found, strict=True)]
                self._log = {name: value.detach() for name, value in terms.items()}
                self.tell(f"these {len(targets)} scenes {what}", done + 1, iterations)
        self._log = {**self.log()}
        return (normalised.detach() * deviation + mean).clamp(0, 1), targets

    def _augment(self, images: Tensor, targets: list[Target]) -> tuple[Tensor, list[Target]]:
        if self.augmentation == "none":
            return images, targets
        down, right = (int(torch.randint(-(side // 8), side // 8 + 1, ())) for side in images.shape[-2:])
        images, targets = roll(images, targets, down, right)
        return mirror(images, targets) if torch.rand(()) < 0.5 else (images, targets)


def _rate(done: int, iterations: int, warmup: int) -> float:
    """The share of the learning rate after so many iterations: a line up, a cosine down."""
    warmup = min(warmup, iterations // 10)
    if done < warmup:
        return (done + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(1, iterations - warmup)))


def _low_size(size: Size, low_side: int) -> Size:
    """The size with its shorter side at most `low_side`, in the same proportion; the full size if that is not larger."""
    if min(size) <= low_side:
        return size
    scale = low_side / min(size)
    height, width = (max(_STRIDE, round(side * scale / _STRIDE) * _STRIDE) for side in size)
    return height, width
