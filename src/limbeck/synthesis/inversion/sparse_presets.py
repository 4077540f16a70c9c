"""SMI and PRI: inversion of a plain vision transformer that feeds it fewer and fewer patches.

Hu et al., "Sparse Model Inversion: Efficient Inversion of Vision Transformers for Data-Free Applications", ICML 2024,
arXiv:2510.27186: patches that the class token ignores are dropped early, and stay blank. "Patch Rebirth Inversion",
arXiv:2509.23235: the most important patches are finished first, and the others go on; every patch gets its turn.

Both minimise a class loss and the total variation alone. Inferred: PRI's loss and schedule, which are taken over from SMI;
which patches are blank in SMI's pictures (those that were dropped; its program asks the attention once more); moments in
proportion to the iterations.
"""

from collections.abc import Sequence
from typing import Literal

from limbeck.call_checks import require_at_least, require_positive, require_share
from limbeck.errors import UserError
from limbeck.synthesis.base import Setting
from limbeck.synthesis.inversion.abilities import sparsity_or_note
from limbeck.synthesis.inversion.augment import Augmentation, require_roll
from limbeck.synthesis.inversion.engine import PixelInversion, Plan
from limbeck.synthesis.inversion.sparse import Sparsity, dropping, rebirth
from limbeck.synthesis.inversion.stages import Stage, scaled
from limbeck.synthesis.priors.classes import ClassLoss
from limbeck.synthesis.priors.total_variation import TotalVariation
from limbeck.synthesis.terms import term

SMI_MOMENTS = tuple(step / 4000 for step in (50, 100, 200, 300))
"""Published iterations 50, 100, 200 and 300 of 4000."""

TRANSFER_BATCH = (100, 224, 224)
"""Batch and size to which SMI's weight of the total variation belongs in its experiments on transfer."""


class SparseInversion(PixelInversion):
    """What SMI and PRI share; they differ in which patches leave, and in what becomes of them."""

    def __init__(
        self,
        setting: Setting,
        sparsity: Sparsity,
        method: str,
        *,
        iterations: int,
        lr: float,
        ce: float,
        tv: float,
        roll: int | Literal["auto"],
        flip: float,
        classes: Sequence[int] | None,
    ) -> None:
        require_at_least(method, 1, iterations=iterations)
        require_at_least(method, 0, ce=ce, tv=tv)
        require_positive(method, lr=lr)
        require_share(method, flip=flip)
        require_roll(method, roll)
        height, width = setting.size
        rolls = (height // 8, width // 8) if roll == "auto" else (roll, roll)
        terms = (
            *term("ce", ce if setting.num_classes > 1 else 0, lambda: ClassLoss(setting.teacher.facts)),
            *term("tv", tv, lambda: TotalVariation(reference=TRANSFER_BATCH)),
        )
        possible, notes = sparsity_or_note(setting, terms, sparsity, method)
        plan = Plan(
            terms=terms,
            stages=scaled((Stage(4000, lr, final_lr=lr, rolls=(rolls,)),), iterations),
            augmentation=Augmentation(flip=flip),
            betas=(0.5, 0.99),
            sparsity=possible,
        )
        super().__init__(setting, plan, classes=classes)
        self.notes += notes


class SMI(SparseInversion):
    """Sparse model inversion.

    Args:
        setting: a plain vision transformer as a teacher; with any other, all patches are fed and a note says why.
        iterations: published 4000.
        drop: share of the remaining patches that leaves at each moment; published 0.3.
        moments: when, as shares of the iterations, rising; "auto" is the published 50, 100, 200, 300 of 4000.
        lr: of Adam, in normalised units, constant; published 0.25.
        ce: weight of the class loss; published 1.
        tv: weight of the total variation of the unaugmented pictures; published 1e-4 with batches of 100.
        roll: largest roll in pixels; "auto" is the published eighth of the side.
        flip: chance that a step shows mirrored pictures; published 0.5.
        classes: those to ask for; None is all.

    Raises:
        UserError: an option is out of range.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        iterations: int = 4000,
        drop: float = 0.3,
        moments: Sequence[float] | Literal["auto"] = "auto",
        lr: float = 0.25,
        ce: float = 1.0,
        tv: float = 1e-4,
        roll: int | Literal["auto"] = "auto",
        flip: float = 0.5,
        classes: Sequence[int] | None = None,
    ) -> None:
        if not 0 < drop < 1:
            raise UserError(f"smi: drop is {drop}; it must be between 0 and 1.")
        at = SMI_MOMENTS if isinstance(moments, str) else tuple(moments)
        if not at or list(at) != sorted(set(at)) or at[0] <= 0 or at[-1] >= 1:
            raise UserError(f"smi: moments is {list(at)}; it must be rising shares of the iterations, between 0 and 1.")
        super().__init__(
            setting, dropping(drop, at), "smi",
            iterations=iterations, lr=lr, ce=ce, tv=tv, roll=roll, flip=flip, classes=classes,
        )  # fmt: skip


class PRI(SparseInversion):
    """Patch rebirth inversion.

    Args:
        setting: a plain vision transformer as a teacher; with any other, all patches are fed and a note says why.
        iterations: inferred, SMI's 4000.
        pieces: v, equal parts of the patches that are finished one after another; published 2, 4 or 7.
        choose: the parts by the class token's attention, or at "random", which the paper found nearly as good.
        output: "whole" pictures of all pieces, or as published each of the "pieces" as a picture of its own, whose other
            patches are blank: `pieces` times as many pictures from the same work.
        lr, ce, tv, roll, flip: as for `SMI`.
        classes: those to ask for; None is all.

    Raises:
        UserError: an option is out of range.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        iterations: int = 4000,
        pieces: int = 4,
        choose: Literal["attention", "random"] = "attention",
        output: Literal["whole", "pieces"] = "whole",
        lr: float = 0.25,
        ce: float = 1.0,
        tv: float = 1e-4,
        roll: int | Literal["auto"] = "auto",
        flip: float = 0.5,
        classes: Sequence[int] | None = None,
    ) -> None:
        require_at_least("pri", 2, pieces=pieces)
        super().__init__(
            setting, rebirth(pieces, choose, output), "pri",
            iterations=iterations, lr=lr, ce=ce, tv=tv, roll=roll, flip=flip, classes=classes,
        )  # fmt: skip
