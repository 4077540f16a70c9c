"""Classes of two detectors brought together: by name, and from one kind of score to the other.

One model counts COCO in 91 slots and the other in 80, one has K classes that say yes or no (sigmoid) and the other K + 1
that compete with "no object" (softmax). Everything here works on logits over the classes that both have.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from limbeck.detection import DetectorFacts, ScoreKind, name_pairs
from limbeck.errors import UserError

MOST_LISTED = 10


def shared_classes(
    student: DetectorFacts, teacher: DetectorFacts
) -> tuple[Int[Tensor, " shared"], Int[Tensor, " shared"]]:
    """Where the classes that both models know lie in each of them.

    Names meet if they are equal; those that remain, if they are equal without regard to capitals, spaces, hyphens and
    underscores. Each class meets at most one.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.

    Returns:
        Indices into the student's classes, rising, and into the teacher's, in the same order.

    Raises:
        UserError: no name meets.
    """
    pairs = name_pairs(student.class_names, teacher.class_names)
    if not pairs:
        raise UserError(
            f"The teacher {teacher.name} and the student {student.name} have no class in common, so their scores cannot be "
            f"compared. The teacher's: {_listed(teacher.class_names)}. The student's: {_listed(student.class_names)}. "
            "Rename the classes of the data so that they meet the teacher's, use another teacher, or distil feature maps "
            "only (pkd, fgd, cwd, ...)."
        )
    own, other = zip(*sorted(pairs.items()), strict=True)
    return torch.tensor(own), torch.tensor(other)


def class_notes(method: str, student: DetectorFacts, teacher: DetectorFacts) -> tuple[str, ...]:
    """What the user should know of the classes: those that the teacher cannot teach.

    Args:
        method: for the message.
        student: facts of the student.
        teacher: facts of the teacher.

    Returns:
        One sentence where the student has classes that the teacher lacks, none otherwise.
    """
    pairs = name_pairs(student.class_names, teacher.class_names)
    missing = [name for index, name in enumerate(student.class_names) if index not in pairs]
    if not missing:
        return ()
    return (
        f"{method}: the teacher {teacher.name} does not know {_listed(missing)}; of these classes it teaches nothing.",
    )


def restrict(
    logits: Float[Tensor, "... classes"], indices: Int[Tensor, " shared"], scores: ScoreKind
) -> Float[Tensor, "... restricted"]:
    """Logits over some classes only, in the order of `indices`.

    Of a sigmoid head the others are left out. Of a softmax head they join "no object": its logit becomes the logarithm of
    the sum of exponentials of everything that is not in `indices`, so that the probabilities of the rest do not change.
    What a model knows and the other does not is thereby neither demanded nor punished.

    Args:
        logits: (..., K) of a sigmoid head, (..., K + 1) of a softmax head, "no object" last.
        indices: of the classes to keep.
        scores: kind of the head.

    Returns:
        (..., shared) or (..., shared + 1).
    """
    kept = logits.index_select(-1, indices)
    if scores == "sigmoid":
        return kept
    others = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
    others[indices] = False
    return torch.cat([kept, logits[..., others].logsumexp(-1, keepdim=True)], dim=-1)


def softmax_to_sigmoid(logits: Float[Tensor, "... classes_and_none"]) -> Float[Tensor, "... classes"]:
    """What a sigmoid head would say that gives each class the probability it has in a softmax.

    The class distribution of an object, p_c / (1 - p_none), times the probability 1 - p_none that there is one: that is
    p_c, and its logit is log p_c - log(1 - p_c). The first factor alone, without the second, would tell a sigmoid
    student that every empty query is an object.

    Args:
        logits: (..., K + 1), "no object" last.

    Returns:
        (..., K), finite for finite logits.
    """
    log_p = F.log_softmax(logits, dim=-1)
    top = log_p.argmax(dim=-1, keepdim=True)
    # 1 - p_c is far from 0 for every class but the likeliest, of which it is summed up from the others.
    log_rest = torch.log1p(-log_p.scatter(-1, top, -torch.inf).exp())
    of_top = log_p.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
    return (log_p - log_rest.scatter(-1, top, of_top))[..., :-1]


def sigmoid_to_softmax(logits: Float[Tensor, "... classes"]) -> Float[Tensor, "... classes_and_none"]:
    """Log-probabilities of a softmax head that says the same as a sigmoid head.

    With σ_c the scores: p_none = 1 - max_c σ_c, and the classes share max_c σ_c in proportion to σ_c.

    Args:
        logits: (..., K).

    Returns:
        (..., K + 1), "no object" last; their exponentials sum to 1; finite for finite logits.
    """
    best = logits.amax(dim=-1, keepdim=True)
    shares = F.log_softmax(F.logsigmoid(logits), dim=-1)
    return torch.cat([F.logsigmoid(best) + shares, F.logsigmoid(-best)], dim=-1)


def class_divergence(
    student_logits: Float[Tensor, "... classes"],
    teacher_logits: Float[Tensor, "... classes"],
    scores: ScoreKind,
    temperature: float = 1.0,
) -> Float[Tensor, "..."]:
    """How far the student's class scores are from the teacher's, query by query.

    softmax:  τ² · KL( softmax(t/τ) ‖ softmax(s/τ) )
    sigmoid:  τ² · Σ_c KL( σ(t_c/τ) ‖ σ(s_c/τ) ), the divergence of two coins: binary cross-entropy with the teacher's
              score as a soft label, less its smallest value

    Args:
        student_logits: (..., K) of sigmoid heads, (..., K + 1) of softmax heads.
        teacher_logits: the same of the teacher, converted to the student's kind.
        scores: that kind.
        temperature: τ > 0.

    Returns:
        (...), 0 where they agree.
    """
    own, other = student_logits / temperature, teacher_logits / temperature
    if scores == "softmax":
        log_own, log_other = F.log_softmax(own, dim=-1), F.log_softmax(other, dim=-1)
        return temperature**2 * (log_other.exp() * (log_other - log_own)).sum(dim=-1)
    yes = other.sigmoid() * (F.logsigmoid(other) - F.logsigmoid(own))
    no = (-other).sigmoid() * (F.logsigmoid(-other) - F.logsigmoid(-own))
    return temperature**2 * (yes + no).sum(dim=-1)


def foreground(logits: Float[Tensor, "... classes"], scores: ScoreKind) -> Float[Tensor, "..."]:
    """The probability that a query is an object of any of its classes.

    Args:
        logits: (..., K) of a sigmoid head, (..., K + 1) of a softmax head, "no object" last.
        scores: kind of the head.

    Returns:
        (...) in [0, 1]: the largest sigmoid, or 1 - p_none.
    """
    if scores == "sigmoid":
        return logits.amax(dim=-1).sigmoid()
    return F.softmax(logits, dim=-1)[..., :-1].sum(dim=-1)


class ClassMap(nn.Module):
    """Logits of a student and a teacher on the classes that both know, in the student's kind of score.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.

    Raises:
        UserError: no class name meets.
    """

    student_indices: Tensor
    teacher_indices: Tensor
    places: Tensor

    def __init__(self, student: DetectorFacts, teacher: DetectorFacts) -> None:
        super().__init__()
        own, other = shared_classes(student, teacher)
        self.register_buffer("student_indices", own, persistent=False)
        self.register_buffer("teacher_indices", other, persistent=False)
        self.register_buffer("places", torch.full((student.num_classes,), -1), persistent=False)
        self.places[own] = torch.arange(len(own))
        self.num_shared = len(own)
        self.scores = student.scores
        self.teacher_scores = teacher.scores

    def of_student(self, logits: Float[Tensor, "... classes"]) -> Float[Tensor, "... restricted"]:
        """The student's logits, restricted."""
        return restrict(logits, self.student_indices, self.scores)

    def of_teacher(self, logits: Float[Tensor, "... classes"]) -> Float[Tensor, "... restricted"]:
        """The teacher's logits, restricted and as the student's head would say it."""
        kept = restrict(logits, self.teacher_indices, self.teacher_scores)
        if self.teacher_scores == self.scores:
            return kept
        return softmax_to_sigmoid(kept) if self.scores == "sigmoid" else sigmoid_to_softmax(kept)

    def labels(self, labels: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """The student's labels as places among the shared classes; -1 of a class that the teacher lacks."""
        return self.places[labels]


def _listed(names: tuple[str, ...] | list[str]) -> str:
    listed = ", ".join(names[:MOST_LISTED])
    return listed if len(names) <= MOST_LISTED else f"{listed} and {len(names) - MOST_LISTED} more"
