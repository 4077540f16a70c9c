"""Self-distillation with customised soft labels (USKD): a student learns from itself, without any teacher.

Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach
with Normalized Loss and Customized Soft Labels", ICCV 2023, arXiv:2303.13005.

Published settings: ImageNet, all networks, α 1, β 0.1, μ 0.005; CIFAR-100 ResNet-18 α 0.1, β 0.1, μ 0.1. The weak answers
come from the middle of the network: the second-to-last stage of a convolutional network or a pyramid, pooled; the class
token after half of a plain transformer's blocks.

The ranking of the non-target classes is the paper's, by probabilities. Since July 2023 the released code takes the logarithm
of the final answer's probabilities there, by overwriting a variable; `score="log"` does the same.

Inferred, not published: plain transformers without a class token give the mean of their patches, networks with a single
level give that one; and where labels are soft but an image has one class only, it counts as with a hard label (the
released code takes some class of weight 0 out of the non-target classes, and into the mean of the second class).
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from limbeck.call_checks import require_at_least
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.kd import require_classifiers
from limbeck.losses.levels import require_levels
from limbeck.losses.pairing import is_plain
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import Level, ModelFacts, Outputs, Request

Score = Literal["probability", "log"]

SMOOTHING = 0.1


def uskd_loss(
    logits: Float[Tensor, "B K"],
    weak_logits: Float[Tensor, "B K"],
    target: Int[Tensor, " B"] | Float[Tensor, "B K"],
    alpha: float = 1.0,
    beta: float = 0.1,
    mu: float = 0.005,
    score: Score = "probability",
) -> Float[Tensor, ""]:
    """α · target part + β · non-target part + μ · weak part.

    With S the softmax of the logits, w that of the weak logits, and y the target class:

        target      -mean_b[ P_b · log S_y ],  P_b = S_y² + V - mean_b(S_y²),  V the label's weight (1 for hard labels)
        non-target  -mean_b[ Σ_{i≠y} Z_i · log Ŝ_i ],  Z from `zipf_labels`, Ŝ the softmax without the target classes
        weak        -mean_b[ Σ_i (0.9 · label_i + 0.1 / K) · log w_i ]

    P and Z receive no gradient. Of soft labels the two largest entries are targets, each with its own weight V and its own
    mean over the images that have it; a class of weight 0 is no target.

    Args:
        logits: (B, K), K >= 2.
        weak_logits: (B, K), from the middle of the same network; they receive a gradient from the weak part only.
        target: class indices (B,), or soft labels (B, K).
        alpha, beta, mu: weights >= 0 of the three parts.
        score: see `zipf_labels`.

    Returns:
        A scalar in at least float32.

    Raises:
        UserError: there are fewer than two classes.
    """
    num_classes = logits.shape[1]
    if num_classes < 2:
        raise UserError(f"uskd needs at least two classes; the logits have {num_classes}.")
    with no_autocast(logits):
        dtype = comparable(logits, weak_logits)[0].dtype
        final, weak = F.log_softmax(logits.to(dtype), dim=1), F.log_softmax(weak_logits.to(dtype), dim=1)
        values, classes = _targets(target, dtype)
        is_target = torch.zeros_like(final, dtype=torch.bool).scatter(1, classes, values > 0)

        of_targets = final.gather(1, classes)
        target_part = (target_labels(of_targets, values) * of_targets).sum(dim=1)

        labels = zipf_labels(final, weak, is_target, score)
        # The smallest number and not -inf: it is as exact, and leaves a finite gradient where both of two classes are targets.
        lowest = torch.finfo(dtype).min
        without = F.log_softmax(logits.to(dtype).masked_fill(is_target, lowest), dim=1).masked_fill(is_target, 0)
        other_part = (labels * without).sum(dim=1)

        given = target.to(dtype) if target.ndim == 2 else F.one_hot(target.long(), num_classes).to(dtype)
        weak_part = (((1 - SMOOTHING) * given + SMOOTHING / num_classes) * weak).sum(dim=1)
        return -alpha * target_part.mean() - beta * other_part.mean() - mu * weak_part.mean()


def target_labels(log_of_targets: Float[Tensor, "B T"], values: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """P = S² + V - mean of S² over the images whose V is above 0; 0 for the others. No gradient.

    Args:
        log_of_targets: log-probabilities of each image's target classes.
        values: V, their weights in the label.
    """
    squares, counts = log_of_targets.detach().exp().square(), (values > 0).to(values.dtype)
    mean = (squares * counts).sum(dim=0) / counts.sum(dim=0).clamp(min=1)
    return (squares + values - mean) * counts


def zipf_labels(
    log_final: Float[Tensor, "B K"],
    log_weak: Float[Tensor, "B K"],
    is_target: Bool[Tensor, "B K"],
    score: Score = "probability",
) -> Float[Tensor, "B K"]:
    """Soft labels of the non-target classes by Zipf's law: the class of rank k among all K weighs 1/k. No gradient.

    Classes are ranked by descending w_i / (1 - w_y) + S_i / (1 - S_y), the final and the weak answer each normalised
    without its target classes y.

    Args:
        log_final, log_weak: log-probabilities.
        is_target: the target classes, which get 0.
        score: `probability` as in the paper, or `log`: log S_i / (1 - log S_y) for the second term, as released.

    Returns:
        (B, K); each row sums to 1, or to 0 where every class is a target.
    """

    def normalised(answer: Tensor) -> Tensor:
        return answer / (1 - answer.masked_fill(~is_target, 0).sum(dim=1, keepdim=True) + 1e-6)

    final, weak = log_final.detach(), log_weak.detach().exp()
    scores = normalised(weak) + normalised(final.exp() if score == "probability" else final)
    ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    labels = (1 / (ranks + 1).to(scores.dtype)).masked_fill(is_target, 0)
    return labels / labels.sum(dim=1, keepdim=True).clamp(min=torch.finfo(labels.dtype).tiny)


class USKD(DistillationLoss):
    """`uskd_loss` of a student's answers and of a linear classifier on the middle of its network.

    Args:
        student: facts of the student.
        teacher: not read.
        alpha: weight of the target part, at least 0.
        beta: weight of the non-target part, at least 0.
        mu: weight of the weak part, at least 0.
        score: how the non-target classes are ranked: `probability` as in the paper, `log` as in the released code.

    Raises:
        UserError: an option is out of range, or the student is a detector, has no level, or knows fewer than two classes.
    """

    needs_labels: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        alpha: float = 1.0,
        beta: float = 0.1,
        mu: float = 0.005,
        score: Score = "probability",
    ) -> None:
        super().__init__(student, teacher)
        require_classifiers("uskd", student)
        require_levels("uskd", student)
        require_at_least("uskd", 0, alpha=alpha, beta=beta, mu=mu)
        if student.num_classes < 2:
            raise UserError(f"uskd needs at least two classes; {student.name} has {student.num_classes}.")
        self.alpha, self.beta, self.mu = alpha, beta, mu
        self.score: Score = score
        middle = middle_level(student)
        self.middle = middle.name
        self.student_request = Request((middle.name,), class_tokens=True)
        self.classifier = nn.Linear(middle.channels, student.num_classes)
        self.notes = (f"the weak answers come from the student's {middle.name}, {middle.channels} channels",)

    def forward(self, student: Outputs, teacher: Outputs | None, target: Tensor | None = None) -> Tensor:
        """See `uskd_loss`; the teacher is not read.

        Raises:
            UserError: there is no target.
        """
        if target is None:
            raise UserError("uskd reads the label of every image and cannot use unlabelled images; use kd instead.")
        own = student.class_tokens.get(self.middle)
        vector = student.maps[self.middle].mean((2, 3)) if own is None else own
        weak_logits = self.classifier(vector.to(self.classifier.weight.dtype))
        return uskd_loss(student.logits, weak_logits, target, self.alpha, self.beta, self.mu, self.score)


def middle_level(facts: ModelFacts) -> Level:
    """Block L/2 of L blocks (the sixth of twelve), or the second-to-last stage; the only level where there is one."""
    levels = facts.levels
    return levels[max(1, len(levels) // 2) - 1] if is_plain(levels) else levels[max(0, len(levels) - 2)]


def _targets(
    target: Int[Tensor, " B"] | Float[Tensor, "B K"], dtype: torch.dtype
) -> tuple[Float[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Weights and classes of each image's targets: one of a hard label, the two largest entries of a soft one."""
    if target.ndim == 2:
        values, classes = target.to(dtype).topk(2, dim=1)
        return values, classes
    classes = target.long().unsqueeze(1)
    return torch.ones_like(classes, dtype=dtype), classes
