"""Inversion for teachers of every kind: each gives the terms that it can, and what it cannot give is left out.

Ours, from published parts: the class loss, MimiQ's similarity of heads (arXiv:2407.20021), MaskAQ's closed form of the patches'
diversity (arXiv:2606.04373), the total variation, DeepInversion's BatchNorm statistics (arXiv:1912.08795) or their exact
counterpart for other networks, stored token moments; under Plug-In Inversion's colour shifts (arXiv:2201.12961), on
fewer and fewer patches (PRI, arXiv:2509.23235).
"""

from collections.abc import Sequence
from typing import Literal

from limbeck.call_checks import require_at_least, require_positive, require_share
from limbeck.errors import UserError
from limbeck.synthesis.base import Setting
from limbeck.synthesis.batchnorm import batchnorm_layers
from limbeck.synthesis.inversion.abilities import why_dense
from limbeck.synthesis.inversion.augment import Augmentation, require_roll, scaled_roll
from limbeck.synthesis.inversion.deep_inversion import is_small, settings_for
from limbeck.synthesis.inversion.engine import PixelInversion, Plan
from limbeck.synthesis.inversion.sparse import Sparsity, dropping, rebirth
from limbeck.synthesis.inversion.sparse_presets import SMI_MOMENTS
from limbeck.synthesis.inversion.stages import Stage, scaled
from limbeck.synthesis.moments import Moments, load
from limbeck.synthesis.priors.batch_statistics import BatchStatistics
from limbeck.synthesis.priors.classes import ClassLoss
from limbeck.synthesis.priors.disagreement import Disagreement
from limbeck.synthesis.priors.head_similarity import HeadSimilarity, most_heads
from limbeck.synthesis.priors.patch_border import PatchBorder
from limbeck.synthesis.priors.patch_similarity import GaussianDiversity, why_no_diversity
from limbeck.synthesis.priors.token_moments import ClassMeans, TokenMoments
from limbeck.synthesis.priors.total_variation import TotalVariation
from limbeck.synthesis.terms import Term, term

Auto = Literal["auto"]


class Invert(PixelInversion):
    """Pictures by gradient descent on pixels, with every prior that the teacher allows.

    A weight of 0 leaves a term out, and its cost. "auto" is decided when the object is made and stands in `notes`.

    Args:
        setting: any teacher; its stored token moments are used where `setting.statistics` names them.
        iterations: steps of the whole course; 200 are enough for small teachers to read pictures of 28 pixels as asked.
        lr: at the start of AdamW's cosine, in normalised units.
        final_lr: at its end.
        ce: weight of the class loss; nothing for teachers of one class.
        heads: weight of the similarity of heads; "auto" is 1 where attention with several heads can be read and there are
            no moments, beside which it changes nothing but the time.
        diversity: weight of the patches' diversity, of attention where it can be read and otherwise of feature maps;
            "auto" is 1, and 0 beside moments, likewise, and where there is neither.
        tv: weight of the total variation of the unaugmented pictures, in units of MimiQ's; "auto" is its 2.5e-5, for pictures
            below 96 pixels ten times that, with which small teachers are surer.
        border: weight of jumps where a transformer's patches meet.
        batchnorm: weight of the BatchNorm statistics; "auto" is DeepInversion's for the pictures' size where the teacher has such
            layers, and 0 elsewhere.
        moments: weight of the stored token moments; "auto" is 3 where there are any. (On a transformer of MNIST after 200 steps,
            1 leaves pictures as noisy as without, and with 10 classes are no longer read as asked.)
        class_means: weight of the distance from the stored mean of the class asked for, where moments hold them.
        disagreement: weight of the disagreement with the student, counted where both put a picture into the same class. With
            0 no student is read, and all pictures can be made before it learns; 0.2 is published for the disagreement.
        color_shift: range of the random shift and of the logarithm of the scale of each channel; "auto" is 1, and 0 where
            statistics of real pictures are matched, which shifted colours do not have.
        channel_offset: standard deviation of the decaying offset of whole channels; "auto" as for `color_shift`, 0.5 or 0.
        roll: largest roll in pixels in the second half, half of it in the first; "auto" is 16 at 224 pixels.
        flip: chance that a step shows mirrored pictures.
        sparse: feed fewer and fewer patches of a plain transformer: "pri" finishes the most important ones first, "smi" drops the
            least important ones for good, "none" feeds all; "auto" is "pri" where it is possible.
        pieces: of "pri".
        classes: those to ask for; None is all.

    Raises:
        UserError: an option is out of range, or asks for what the teacher does not have.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        iterations: int = 1000,
        lr: float = 0.1,
        final_lr: float = 1e-3,
        ce: float = 1.0,
        heads: float | Auto = "auto",
        diversity: float | Auto = "auto",
        tv: float | Auto = "auto",
        border: float = 0.0,
        batchnorm: float | Auto = "auto",
        moments: float | Auto = "auto",
        class_means: float = 0.0,
        disagreement: float = 0.0,
        color_shift: float | Auto = "auto",
        channel_offset: float | Auto = "auto",
        roll: int | Auto = "auto",
        flip: float = 0.0,
        sparse: Literal["auto", "none", "smi", "pri"] = "auto",
        pieces: int = 4,
        classes: Sequence[int] | None = None,
    ) -> None:
        teacher = setting.teacher
        counted = most_heads(teacher)
        known = setting.statistics is not None
        normed = bool(batchnorm_layers(teacher))
        if batchnorm == "auto":
            batchnorm = settings_for(setting.size).r_feature if normed else 0.0
        if moments == "auto":
            moments = 3.0 if known else 0.0
        if tv == "auto":
            tv = 2.5e-4 if is_small(setting.size) else 2.5e-5
        if heads == "auto":
            heads = 1.0 if counted > 1 and not moments else 0.0
        blind = why_no_diversity(teacher) if diversity == "auto" and not moments else None
        if diversity == "auto":
            diversity = 0.0 if moments or blind else 1.0
        matched = batchnorm > 0 or moments > 0
        still = matched and color_shift == "auto"
        if color_shift == "auto":
            color_shift = 0.0 if matched else 1.0
        if channel_offset == "auto":
            channel_offset = 0.0 if matched else 0.5
        require_at_least("invert", 1, iterations=iterations)
        require_at_least("invert", 2, pieces=pieces)
        require_positive("invert", lr=lr)
        require_share("invert", flip=flip)
        require_roll("invert", roll)
        weights = {"ce": ce, "heads": heads, "diversity": diversity, "tv": tv, "border": border, "batchnorm": batchnorm}
        weights |= {"moments": moments, "class_means": class_means, "disagreement": disagreement}
        shifts = {"color_shift": color_shift, "channel_offset": channel_offset, "final_lr": final_lr}
        require_at_least("invert", 0, **weights, **shifts)
        terms = (
            *term("ce", ce if setting.num_classes > 1 else 0, lambda: ClassLoss(teacher.facts)),
            *term("heads", heads, lambda: HeadSimilarity(teacher)),
            *term("diversity", diversity, lambda: GaussianDiversity(teacher)),
            *term("tv", tv, lambda: TotalVariation(diagonal=0.5**0.5)),
            *term("border", border, lambda: PatchBorder(teacher.facts)),
            *term("bn", batchnorm, lambda: BatchStatistics(teacher)),
            *term("moments", moments, lambda: TokenMoments(teacher, _stored(setting))),
            *term("class_means", class_means, lambda: ClassMeans(teacher, _stored(setting))),
            *term("disagreement", disagreement, lambda: Disagreement(agreement_mask=True)),
        )
        sparsity, notes = _sparsity(setting, terms, sparse, pieces)
        if counted == 0:
            notes.insert(0, f"No attention can be read of {teacher.facts.name}; the similarity of heads is left out.")
        if blind:
            notes.insert(0, f"{blind}; the diversity of patches is left out.")
        early, late = (
            (scaled_roll(8, setting.size), scaled_roll(16, setting.size))
            if roll == "auto"
            else ((roll // 2, roll // 2), (roll, roll))
        )
        plan = Plan(
            terms=terms,
            stages=scaled((Stage(1000, lr, final_lr, rolls=(early, late)),), iterations),
            augmentation=Augmentation(
                flip=flip, color_mean=color_shift, color_scale=color_shift, channel_offset=channel_offset
            ),
            weight_decay=1e-6,
            sparsity=sparsity,
        )
        super().__init__(setting, plan, classes=classes)
        chosen = ", ".join(f"{term.name} {term.weight:g}" for term in terms)
        self.notes += [f"Terms of the loss and their weights: {chosen}.", *notes]
        if still:
            self.notes.append("Statistics of real pictures are matched, so colours are not shifted.")


def _stored(setting: Setting) -> Moments:
    """The teacher's token moments.

    Raises:
        UserError: none were given, or they are another network's.
    """
    if setting.statistics is None:
        raise UserError(
            f"invert: moments or class_means has a weight, and no token moments of {setting.teacher.facts.name} were given. "
            "`limbeck statistics` collects them where a few real pictures can be had; or leave the terms out (weight 0)."
        )
    return load(setting.statistics)


def _sparsity(
    setting: Setting, terms: Sequence[Term], asked: Literal["auto", "none", "smi", "pri"], pieces: int
) -> tuple[Sparsity | None, list[str]]:
    """Which patches are fed when, and a note where that is not what was asked for or was decided here."""
    if asked == "none":
        return None, []
    reason = why_dense(setting, terms)
    if reason is not None:
        return None, [f"All patches are fed at every step, because {reason}."]
    if asked == "smi":
        return dropping(0.3, SMI_MOMENTS), []
    note = f"Patches are finished in {pieces} parts, the most important first (sparse=pri)."
    return rebirth(pieces), [note] if asked == "auto" else []
