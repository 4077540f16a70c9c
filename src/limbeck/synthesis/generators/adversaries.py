"""What a generator is told about its pictures by a fixed teacher, and by a student that shall disagree with it.

Unlike the losses of a student, to which the teacher's answers are given, these pass the gradient through both networks
to the pictures. All are means over the batch, in float32 or better. The divergence of ZSKT stands in
`limbeck.synthesis.priors.disagreement`.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from limbeck.synthesis.priors.precision import full


def one_hot_loss(teacher_logits: Tensor) -> Tensor:
    """CE(t, argmax t): low where the teacher is sure of some class (DAFL, eq. 2).

    Args:
        teacher_logits: (B, K).
    """
    return F.cross_entropy(full(teacher_logits), teacher_logits.argmax(1))


def activation_loss(pooled: Tensor) -> Tensor:
    """-mean |f|: low where the features that enter the classifier are large (DAFL, eq. 3).

    Args:
        pooled: (B, D).
    """
    return -full(pooled).abs().mean()


def balance_loss(teacher_logits: Tensor) -> Tensor:
    """Σ_c p̄_c log p̄_c with p̄ the mean of softmax(t) over the batch: -log K where classes are balanced, 0 where all is one.

    DAFL, eq. 4 (whose authors' code takes the logarithm to the base of 10, as if the weight were 2.3 times less). Computed
    from log p̄, so that a class of which no picture shows a trace gives no infinite gradient.

    Args:
        teacher_logits: (B, K).
    """
    log_mean = full(teacher_logits).log_softmax(1).logsumexp(0) - math.log(len(teacher_logits))
    return (log_mean.exp() * log_mean).sum()


def l1_disagreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """mean |t - s| over batch and classes, which a generator shall make large (DFAD, eq. 2).

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
    """
    return (full(teacher_logits) - full(student_logits)).abs().mean()
