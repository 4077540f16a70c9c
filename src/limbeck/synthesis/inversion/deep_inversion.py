"""DeepInversion: pictures whose activations have the moments that the teacher's BatchNorm layers remember.

Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020, arXiv:1912.08795; with `adi`
above 0 Adaptive DeepInversion, which also seeks pictures on which the student differs.

There are two published settings: large pictures (ImageNet), first at half the resolution, and small ones (CIFAR-10). Which
of them "auto" takes is decided by the pictures' size here, and where "auto" is not the published value it says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from limbeck.call_checks import require_at_least, require_positive, require_share
from limbeck.synthesis.base import Setting
from limbeck.synthesis.inversion.abilities import reads_half_size
from limbeck.synthesis.inversion.augment import Augmentation, require_roll, scaled_roll
from limbeck.synthesis.inversion.engine import PixelInversion, Plan
from limbeck.synthesis.inversion.stages import Stage, scaled
from limbeck.synthesis.priors.batch_statistics import BatchStatistics
from limbeck.synthesis.priors.classes import ClassLoss
from limbeck.synthesis.priors.disagreement import Disagreement
from limbeck.synthesis.priors.pixel_norm import PixelNorm
from limbeck.synthesis.priors.total_variation import AbsoluteVariation, TotalVariation
from limbeck.synthesis.terms import term

SMALL = 96
"""Pictures whose shorter side is below so many pixels are small; inferred (published are 32 and 224)."""


@dataclass(frozen=True)
class Choice:
    """What "auto" stands for at one size of pictures.

    Attributes:
        lr: of Adam.
        betas: of Adam.
        r_feature: weight of the BatchNorm statistics.
        tv: weight of the total variation ...
        reference: ... with this batch, height and width.
        l2: weight of the pixels' norm.
    """

    lr: float
    betas: tuple[float, float]
    r_feature: float
    tv: float
    reference: tuple[int, int, int]
    l2: float


LARGE_SETTING = Choice(0.25, (0.5, 0.9), 0.01, 1e-4, (84, 224, 224), 1e-5)
SMALL_SETTING = Choice(0.1, (0.5, 0.9), 1.0, 2.5e-5, (256, 32, 32), 0.0)
"""As published for CIFAR-10 but for the BatchNorm statistics, whose weight of 10 there leaves the class unread for hundreds of
steps: on a ResNet-14 of MNIST after 300, the teacher read 22 % of the pictures as asked, with 1 it read 94 %, at nearly the
same distance of the statistics.
"""


def is_small(size: tuple[int, int]) -> bool:
    """Whether pictures of this (height, width) take the settings of small ones."""
    return min(size) < SMALL


def settings_for(size: tuple[int, int]) -> Choice:
    """What "auto" stands for with pictures of this (height, width)."""
    return SMALL_SETTING if is_small(size) else LARGE_SETTING


class DeepInversion(PixelInversion):
    """DeepInversion and Adaptive DeepInversion.

    Args:
        setting: the teacher must have BatchNorm layers.
        iterations: of all stages together; "auto" is 2000 for small pictures, and for large ones the published 2000 at
            half the resolution and 1000 at the full one (2000 at the full one where the teacher takes no other size).
        lr: of Adam, in normalised units; "auto" is 0.25, for small pictures 0.1. Falls along a cosine.
        r_feature: weight of the BatchNorm statistics; "auto" is 0.01, for small pictures 1 (published 10).
        first: weight of the first BatchNorm layer relative to the others; published 10.
        ce: weight of the class loss; published 1.
        tv: weight of the total variation; "auto" is 1e-4 with batches of 84 at 224 pixels, for small pictures 2.5e-5 with
            batches of 256 at 32.
        tv_l1: weight of the total variation of absolute differences; published 0.
        l2: weight of the pixels' norm; "auto" is 1e-5, for small pictures 0.
        adi: weight of the disagreement with the student; published 0.2, here 0, so that no student is needed.
        roll: largest roll in pixels; "auto" is 30 at 224 pixels (half of it at half the resolution), for small pictures 2.
        flip: chance that a step shows mirrored pictures; published 0.5. Wrong for digits and letters.
        keep: the "best" pictures by the loss without augmentation, or the "last". Published is the best with
            augmentation, which compares what is not alike.
        classes: those to ask for; None is all.

    Raises:
        UserError: the teacher has no BatchNorm (`invert` needs none), or an option is out of range.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        iterations: int | Literal["auto"] = "auto",
        lr: float | Literal["auto"] = "auto",
        r_feature: float | Literal["auto"] = "auto",
        first: float = 10.0,
        ce: float = 1.0,
        tv: float | Literal["auto"] = "auto",
        tv_l1: float = 0.0,
        l2: float | Literal["auto"] = "auto",
        adi: float = 0.0,
        roll: int | Literal["auto"] = "auto",
        flip: float = 0.5,
        keep: Literal["best", "last"] = "best",
        classes: Sequence[int] | None = None,
    ) -> None:
        teacher, chosen = setting.teacher, settings_for(setting.size)
        rate = chosen.lr if lr == "auto" else lr
        statistics = chosen.r_feature if r_feature == "auto" else r_feature
        variation = chosen.tv if tv == "auto" else tv
        norm = chosen.l2 if l2 == "auto" else l2
        require_at_least("deepinversion", 0, r_feature=statistics, first=first, ce=ce, tv=variation, tv_l1=tv_l1)
        require_at_least("deepinversion", 0, l2=norm, adi=adi)
        require_positive("deepinversion", lr=rate)
        require_share("deepinversion", flip=flip)
        require_roll("deepinversion", roll)
        # Made whatever its weight: it refuses teachers without BatchNorm, for which this method is nothing.
        moments = BatchStatistics(teacher, first_weight=first)
        stages, notes = self._stages(setting, rate, roll)
        if iterations != "auto":
            require_at_least("deepinversion", 1, iterations=iterations)
            stages = scaled(stages, iterations)
        plan = Plan(
            terms=(
                *term("bn", statistics, lambda: moments),
                *term("ce", ce if setting.num_classes > 1 else 0, lambda: ClassLoss(teacher.facts)),
                *term("tv", variation, lambda: TotalVariation(of="shown", reference=chosen.reference)),
                *term("tv_l1", tv_l1, AbsoluteVariation),
                *term("l2", norm, PixelNorm),
                *term("adi", adi, Disagreement),
            ),
            stages=stages,
            augmentation=Augmentation(flip=flip),
            betas=chosen.betas,
            keep=keep,
        )
        super().__init__(setting, plan, classes=classes)
        self.notes += [
            f"Settings of {'small' if is_small(setting.size) else 'large'} pictures: lr {rate:g}, r_feature {statistics:g}, "
            f"tv {variation:g}, l2 {norm:g}.",
            *notes,
        ]

    @staticmethod
    def _stages(setting: Setting, lr: float, roll: int | Literal["auto"]) -> tuple[tuple[Stage, ...], list[str]]:
        height, width = setting.size
        if is_small(setting.size):
            rolls = (2, 2) if roll == "auto" else (roll, roll)
            return (Stage(2000, lr, rolls=(rolls,)),), []
        full = scaled_roll(30, (height, width)) if roll == "auto" else (roll, roll)
        if not reads_half_size(setting.teacher):
            note = f"{setting.teacher.facts.name} reads one size only; there is no stage at half the resolution."
            return (Stage(2000, lr, warmup=100, rolls=(full,)),), [note]
        half = full[0] // 2, full[1] // 2
        stages = (Stage(2000, lr, warmup=100, rolls=(half,), pool=2), Stage(1000, lr, warmup=100, rolls=(full,)))
        return stages, []
