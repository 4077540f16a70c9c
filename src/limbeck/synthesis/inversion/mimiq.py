"""MimiQ: all heads of a transformer look at the same structure, as they do on real images; and MaskAQ's additions to it.

Choi et al., "MimiQ: Low-Bit Data-Free Quantization of Vision Transformers with Encouraging Inter-Head Attention
Similarity", AAAI 2025, arXiv:2407.20021; MaskAQ, ICML 2026, arXiv:2606.04373 (`diversity`, `student_attention`).

Inferred: rolls in proportion to the picture's size.
"""

from collections.abc import Sequence

from limbeck.call_checks import require_at_least, require_positive
from limbeck.errors import UserError
from limbeck.models.attention import attention_blocks
from limbeck.synthesis.base import Setting
from limbeck.synthesis.inversion.abilities import require_attention
from limbeck.synthesis.inversion.augment import Augmentation, scaled_roll
from limbeck.synthesis.inversion.engine import PixelInversion, Plan
from limbeck.synthesis.inversion.stages import Stage, scaled
from limbeck.synthesis.priors.attention_disagreement import AttentionDisagreement
from limbeck.synthesis.priors.classes import ClassLoss
from limbeck.synthesis.priors.head_similarity import HeadSimilarity
from limbeck.synthesis.priors.patch_similarity import GaussianDiversity
from limbeck.synthesis.priors.total_variation import TotalVariation
from limbeck.synthesis.terms import term


class MimiQ(PixelInversion):
    """MimiQ; with `diversity` 1 and `student_attention` 0.1, MaskAQ.

    Args:
        setting: the teacher must have attention that can be read, with several heads.
        iterations: published 2000.
        lr: at the start of AdamW's cosine, in normalised units; published 0.1.
        final_lr: at its end; published 1e-3.
        heads: weight of the heads' similarity; published 1.
        ce: weight of the class loss; published 1.
        tv: weight of the total variation of the unaugmented pictures; published 2.5e-5.
        diversity: weight of the closed form of the patches' diversity; 0 in MimiQ, 1 in MaskAQ.
        student_attention: weight of the difference between the class token's attention of teacher and student in the
            patches that matter most to the teacher; 0 in MimiQ, 0.1 in MaskAQ.
        color_shift: range of the shift and of the logarithm of the scale; published 1.
        channel_offset: standard deviation of the decaying offset of whole channels; published 0.5.
        classes: those to ask for; None is all.

    Raises:
        UserError: no attention can be read of the teacher, or of the student where it is compared, or an option is out of
            range.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        iterations: int = 2000,
        lr: float = 0.1,
        final_lr: float = 1e-3,
        heads: float = 1.0,
        ce: float = 1.0,
        tv: float = 2.5e-5,
        diversity: float = 0.0,
        student_attention: float = 0.0,
        color_shift: float = 1.0,
        channel_offset: float = 0.5,
        classes: Sequence[int] | None = None,
    ) -> None:
        require_at_least("mimiq", 1, iterations=iterations)
        weights = {"heads": heads, "ce": ce, "tv": tv, "diversity": diversity}
        require_at_least("mimiq", 0, **weights, student_attention=student_attention, final_lr=final_lr)
        require_at_least("mimiq", 0, color_shift=color_shift, channel_offset=channel_offset)
        require_positive("mimiq", lr=lr)
        require_attention(setting.teacher, "mimiq", heads=2 if heads else 1)
        if student_attention and setting.student is not None and not attention_blocks(setting.student):
            raise UserError(
                f"mimiq: student_attention is {student_attention:g}, which compares the attention of teacher and student, and "
                f"none can be read of the student {setting.student.facts.name}. Leave it out: student_attention=0."
            )
        teacher = setting.teacher
        plan = Plan(
            terms=(
                *term("heads", heads, lambda: HeadSimilarity(teacher)),
                *term("ce", ce if setting.num_classes > 1 else 0, lambda: ClassLoss(teacher.facts)),
                *term("tv", tv, lambda: TotalVariation(diagonal=0.5**0.5)),
                *term("diversity", diversity, lambda: GaussianDiversity(teacher)),
                *term("student_attention", student_attention, lambda: AttentionDisagreement(teacher)),
            ),
            stages=scaled(
                (Stage(2000, lr, final_lr, rolls=(scaled_roll(8, setting.size), scaled_roll(16, setting.size))),),
                iterations,
            ),
            augmentation=Augmentation(color_mean=color_shift, color_scale=color_shift, channel_offset=channel_offset),
            weight_decay=1e-6,
        )
        super().__init__(setting, plan, classes=classes)
