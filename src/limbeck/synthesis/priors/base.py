"""What every term of the loss on synthetic images is, and what it may read."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from limbeck.models.attention import Attention
from limbeck.outputs import Outputs, Request


@dataclass(frozen=True)
class Needs:
    """What must be read of a pass for a term.

    Attributes:
        request: what the teacher returns beside its logits.
        attention: the queries, keys and values of its attention blocks.
        batchnorm: the statistics of what enters its BatchNorm layers.
        student: the student's logits on the same pictures.
        student_attention: the same blocks of the student.
    """

    request: Request = field(default_factory=Request)
    attention: bool = False
    batchnorm: bool = False
    student: bool = False
    student_attention: bool = False

    @staticmethod
    def union(needs: Iterable["Needs"]) -> "Needs":
        """Everything that any of them reads."""
        needs = tuple(needs)
        return Needs(
            Request.union(one.request for one in needs),
            attention=any(one.attention for one in needs),
            batchnorm=any(one.batchnorm for one in needs),
            student=any(one.student for one in needs),
            student_attention=any(one.student_attention for one in needs),
        )


@dataclass(frozen=True)
class LayerStatistics:
    """What one BatchNorm layer saw, and what it had seen in training.

    Attributes:
        mean, variance: (C,) of this batch, with gradient; the variance is the biased one.
        running_mean, running_variance: (C,), the layer's buffers.
    """

    mean: Tensor
    variance: Tensor
    running_mean: Tensor
    running_variance: Tensor


@dataclass
class Seen:
    """One pass of the teacher over pictures that are being made.

    Attributes:
        images: (B, 3, H, W), normalised as the teacher wants them, before any augmentation.
        shown: (B', 3, H, W), what the teacher was shown: after augmentation, B' a multiple of B where it shows several.
        outputs: the teacher's, of `shown`.
        asked: (B',) int64 classes; None where none are asked for.
        attentions: of the teacher's blocks, shallow to deep; empty where not read or not there.
        statistics: of its BatchNorm layers, shallow to deep; likewise.
        student_logits: (B', K), with gradient to `shown` but not to the student.
        student_attentions: of the student's blocks.
    """

    images: Tensor
    shown: Tensor
    outputs: Outputs
    asked: Tensor | None = None
    attentions: list[Attention] = field(default_factory=list)
    statistics: list[LayerStatistics] = field(default_factory=list)
    student_logits: Tensor | None = None
    student_attentions: list[Attention] = field(default_factory=list)


class Prior(ABC):
    """A term: of one pass a scalar, lower for pictures that are more like real ones.

    Its value does not depend on the batch's size nor, where a formula of the literature does, on the resolution; the
    docstring says how the published weight was converted.

    Attributes:
        needs: what must be read.
        notes: sentences for the user about what was decided (another source than wanted, nothing to compare, ...).
    """

    needs: Needs
    notes: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, seen: Seen) -> Tensor:
        """The unweighted term, a scalar in at least float32, differentiable with respect to `images` or `shown`."""

    def advance(self, progress: float) -> None:  # noqa: B027 - most terms are the same from beginning to end
        """Told before each step how much of a batch's course is over: 0 where a new batch begins, below 1 at its last step.

        Terms that draw something once for each batch, or change on the way, do so here, from torch's random numbers.
        """
