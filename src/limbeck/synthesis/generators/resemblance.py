"""What tells a generator that its pictures look real to a teacher: BatchNorm statistics, or what there is in their place.

CMI, Fast-DFKD and NAYER are published for networks with BatchNorm only. The stand-ins for others, which make these methods
usable for vision transformers at all, are ours.
"""

from limbeck.synthesis import moments
from limbeck.synthesis.base import Setting
from limbeck.synthesis.batchnorm import batchnorm_layers
from limbeck.synthesis.generators.blended_statistics import BlendedStatistics
from limbeck.synthesis.priors.head_similarity import HeadSimilarity, most_heads
from limbeck.synthesis.priors.patch_similarity import GaussianDiversity, why_no_diversity
from limbeck.synthesis.priors.token_moments import TokenMoments
from limbeck.synthesis.terms import Term, term

_WORDS = {
    "moments": "its token moments",
    "heads": "how alike its attention heads look",
    "diversity": "how unlike patches are",
}


def resemblance(
    setting: Setting, method: str, *, bn: float, bn_momentum: float, prior: float
) -> tuple[list[Term], list[str]]:
    """The terms for this teacher, and sentences for the user.

    Args:
        setting: whose teacher and token moments are used.
        method: for the sentences.
        bn: weight of `BlendedStatistics` where the teacher has BatchNorm layers.
        bn_momentum: of them.
        prior: weight of each stand-in where it has none: its token moments where the setting names them, similarity of heads
            where it has attention with several, and diversity of patches where these can be read.
    """
    teacher = setting.teacher
    if batchnorm_layers(teacher):
        return term("bn", bn, lambda: BlendedStatistics(teacher, bn_momentum)), []
    terms: list[Term] = []
    if setting.statistics is not None:
        stored = moments.load(setting.statistics)
        terms += term("moments", prior, lambda: TokenMoments(teacher, stored))
    if most_heads(teacher) > 1:
        terms += term("heads", prior, lambda: HeadSimilarity(teacher))
    blind = why_no_diversity(teacher)
    if blind is None:
        terms += term("diversity", prior, lambda: GaussianDiversity(teacher))
    what = " and ".join(_WORDS[one.name] for one in terms) or ("nothing" if prior else "nothing (prior=0)")
    notes = [
        f"{teacher.facts.name} has no BatchNorm layers, whose statistics {method} is published for; in their place stands {what}."
    ]
    if blind and prior:
        notes.append(f"{blind}; the diversity of patches is left out.")
    return terms, notes + [note for one in terms for note in one.prior.notes]
