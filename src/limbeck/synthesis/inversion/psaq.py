"""PSAQ-ViT: patches of a transformer's attention output shall be as unlike each other as in real images.

Li, Ma, Chen, Xiao, Gu, "Patch Similarity Aware Data-Free Quantization for Vision Transformers", ECCV 2022,
arXiv:2203.02250. Two phases of equal length, the second with wider rolls, each with its own optimiser.

Inferred: rolls in proportion to the picture's size, and that each picture has to come near the target of the total
variation for itself. Version 2 of the method, whose code was never published, is not this.
"""

from collections.abc import Sequence
from typing import Literal

from limbeck.call_checks import require_at_least, require_positive, require_share
from limbeck.synthesis.base import Setting
from limbeck.synthesis.inversion.abilities import require_attention
from limbeck.synthesis.inversion.augment import Augmentation, require_roll, scaled_roll
from limbeck.synthesis.inversion.engine import PixelInversion, Plan
from limbeck.synthesis.inversion.stages import Stage, scaled
from limbeck.synthesis.priors.base import Prior
from limbeck.synthesis.priors.classes import ClassLoss
from limbeck.synthesis.priors.patch_similarity import GaussianDiversity, PatchSimilarity
from limbeck.synthesis.priors.total_variation import TargetVariation
from limbeck.synthesis.terms import term


class PSAQ(PixelInversion):
    """PSAQ-ViT, version 1.

    Args:
        setting: the teacher must have attention that can be read.
        iterations: of both phases together; published 1000.
        lr: of Adam, in normalised units; published 0.2, for Swin 0.25.
        entropy: weight of the patches' diversity; published 1.
        density: of the similarities: "kde", as published, or "gaussian", the closed form, which is much cheaper and gives
            a gradient to all pairs.
        ce: weight of the class loss; published 1.
        tv: weight of |TV - U|, U between 2500 and 3000 for 32 pictures of 224 x 224; published 0.05.
        rolls: largest rolls of the two phases in pixels, one number for both axes; "auto" is the published 15 and 30 at
            224 pixels, in proportion at others.
        flip: chance that a step shows mirrored pictures; published 0.5.
        classes: those to ask for; None is all.

    Raises:
        UserError: no attention can be read of the teacher, or an option is out of range.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        iterations: int = 1000,
        lr: float = 0.2,
        entropy: float = 1.0,
        density: Literal["kde", "gaussian"] = "kde",
        ce: float = 1.0,
        tv: float = 0.05,
        rolls: tuple[int, int] | Literal["auto"] = "auto",
        flip: float = 0.5,
        classes: Sequence[int] | None = None,
    ) -> None:
        require_at_least("psaq", 1, iterations=iterations)
        require_at_least("psaq", 0, entropy=entropy, ce=ce, tv=tv)
        require_positive("psaq", lr=lr)
        require_share("psaq", flip=flip)
        for roll in [rolls] if rolls == "auto" else rolls:
            require_roll("psaq", roll)
        require_attention(setting.teacher, "psaq")
        teacher = setting.teacher

        def diversity() -> Prior:
            return PatchSimilarity(teacher) if density == "kde" else GaussianDiversity(teacher)

        first, second = (
            (scaled_roll(15, setting.size), scaled_roll(30, setting.size))
            if rolls == "auto"
            else ((rolls[0], rolls[0]), (rolls[1], rolls[1]))
        )
        plan = Plan(
            terms=(
                *term("entropy", entropy, diversity),
                *term("ce", ce if setting.num_classes > 1 else 0, lambda: ClassLoss(teacher.facts)),
                *term("tv", tv, TargetVariation),
            ),
            stages=scaled(
                (Stage(500, lr, warmup=100, rolls=(first,)), Stage(500, lr, warmup=100, rolls=(second,))), iterations
            ),
            augmentation=Augmentation(flip=flip, shared_offset=True),
            betas=(0.5, 0.9),
        )
        super().__init__(setting, plan, classes=classes)
