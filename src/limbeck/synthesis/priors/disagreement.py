"""Terms that compare the teacher with a student: pictures on which the two disagree have something to teach.

`Disagreement` is that of Adaptive DeepInversion (Yin et al., CVPR 2020, arXiv:1912.08795), `KLDisagreement` that of CMI
(Fang et al., IJCAI 2021, arXiv:2105.08584) and Fast-DFKD (AAAI 2022, arXiv:2112.06253). The mask of agreement counts
only pictures that both put into the same class, so that none is made that belongs to no class.
"""

import torch.nn.functional as F
from torch import Tensor

from limbeck.call_checks import require_positive
from limbeck.synthesis.priors.base import Needs, Prior, Seen
from limbeck.synthesis.priors.precision import full


def jensen_shannon(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 3.0) -> Tensor:
    """½ KL(p‖m) + ½ KL(q‖m) of each image, p = softmax(t/τ), q = softmax(s/τ), m = ½ (p + q).

    As published, all three are clamped to [0.01, 0.99] before the logarithms and sums; where classes are many, that
    leaves the most probable ones.

    Args:
        teacher_logits, student_logits: (B, K).
        temperature: τ > 0.

    Returns:
        (B,), between 0 and log 2 where the clamp changes nothing.
    """
    p = (full(teacher_logits) / temperature).softmax(1)
    q = (full(student_logits) / temperature).softmax(1)
    mixture = (0.5 * (p + q)).clamp(0.01, 0.99)
    p, q = p.clamp(0.01, 0.99), q.clamp(0.01, 0.99)
    divergence: Tensor = 0.5 * (p * (p / mixture).log() + q * (q / mixture).log()).sum(1)
    return divergence


def kullback_leibler(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """τ² · KL(softmax(t/τ) ‖ softmax(s/τ)) of each image, with gradient to both.

    Args:
        teacher_logits, student_logits: (B, K).
        temperature: τ > 0.

    Returns:
        (B,).
    """
    teacher = (full(teacher_logits) / temperature).log_softmax(1)
    student = (full(student_logits) / temperature).log_softmax(1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1) * temperature**2


def agreement(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """(B,): 1 where both put the image into the same class, 0 elsewhere."""
    return (teacher_logits.argmax(1) == student_logits.argmax(1)).to(full(teacher_logits).dtype)


class Disagreement(Prior):
    """1 - clamp(mean_b `jensen_shannon`, 0, 1). Published weight 0.2.

    Args:
        temperature: τ > 0.
        agreement_mask: images on which the two differ in class count as zero divergence.

    Raises:
        UserError: the temperature is not positive.
    """

    needs = Needs(student=True)

    def __init__(self, *, temperature: float = 3.0, agreement_mask: bool = False) -> None:
        require_positive("disagreement", temperature=temperature)
        self.temperature = temperature
        self.agreement_mask = agreement_mask

    def __call__(self, seen: Seen) -> Tensor:
        """Lower where the two disagree more."""
        teacher, student = _logits(seen)
        divergence = jensen_shannon(teacher, student, self.temperature)
        if self.agreement_mask:
            divergence = divergence * agreement(teacher, student)
        return 1 - divergence.mean().clamp(0, 1)


class KLDisagreement(Prior):
    """- mean_b `kullback_leibler`, which has no bound. Published weights 0.5 (CMI) and 1 to 1.33 (Fast-DFKD).

    Args:
        temperature: τ > 0.
        agreement_mask: as for `Disagreement`.

    Raises:
        UserError: the temperature is not positive.
    """

    needs = Needs(student=True)

    def __init__(self, *, temperature: float = 1.0, agreement_mask: bool = True) -> None:
        require_positive("disagreement", temperature=temperature)
        self.temperature = temperature
        self.agreement_mask = agreement_mask

    def __call__(self, seen: Seen) -> Tensor:
        """Lower where the two disagree more."""
        teacher, student = _logits(seen)
        divergence = kullback_leibler(teacher, student, self.temperature)
        if self.agreement_mask:
            divergence = divergence * agreement(teacher, student)
        return -divergence.mean()


def _logits(seen: Seen) -> tuple[Tensor, Tensor]:
    assert seen.student_logits is not None, "a student must be looked at for its disagreement"
    return seen.outputs.logits, seen.student_logits
