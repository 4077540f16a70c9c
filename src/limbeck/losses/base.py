"""What every distillation loss is: an `nn.Module` built from two models' facts, returning one scalar.

A loss file holds the formula as a pure function of tensors, the module with the method's own parameters where
it has any, and one subclass of `DistillationLoss`, which says which levels it reads and how it pairs them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from limbeck.outputs import ModelFacts, Request


@dataclass(frozen=True)
class Pairing:
    """One row of the table that is shown before training: which student level learns from which teacher level."""

    student: str
    teacher: str


class DistillationLoss(nn.Module, ABC):
    """A distillation term.

    Subclasses take keyword-only options with the paper's defaults, and `student`, `teacher` facts first; they
    create projectors in the constructor, so that these exist before the optimiser.

    Attributes:
        needs_labels: the formula reads the ground-truth target, so unlabelled images cannot be used.
        needs_teacher: the formula reads a teacher's outputs; one that does not is given None for them, and the student's own
            facts as the teacher's.
        on_logits: the formula reads nothing of either model but `logits`, so that these may be changed before.
        matches_blocks: intermediate blocks are compared, which stochastic depth in the student makes noisy.
        remembers_images: something is kept of every training image from epoch to epoch, by `Outputs.numbers`; see
            `expect_images`. Such a loss has no use for mixed images, whose labels are two images', nor for images that are
            made anew at every step.
        reads_members: of several teachers taken as one, the formula reads what each of them says (`Outputs.members`). Other
            losses can use their joint logits only, and are refused where they ask for more.
        chooses_patches: the teacher is asked after the student, and shown only the patches that `choose_patches` names. Every
            loss of the run reads what it says of those, so that no other may read its maps.
        compiles: the loss can be part of a compiled graph.
        default_weight: the published weight of this term in the total loss.
        default_warmup_epochs: epochs over which the published recipe raises that weight from zero.
        default_task_weight: the weight of the supervised loss that the method was published with.
        student_request, teacher_request: what the two models must return.
        pairs: the level pairs, shallow to deep; empty for losses on logits.
        notes: sentences for the user about what was decided (resized grids, unusual pairs, ...).
    """

    needs_labels: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True
    on_logits: ClassVar[bool] = False
    matches_blocks: ClassVar[bool] = False
    remembers_images: ClassVar[bool] = False
    reads_members: ClassVar[bool] = False
    chooses_patches: ClassVar[bool] = False
    compiles: ClassVar[bool] = True
    default_task_weight: ClassVar[float] = 1.0

    student_request: Request
    teacher_request: Request
    pairs: tuple[Pairing, ...]
    notes: tuple[str, ...]

    def __init__(self, student: ModelFacts, teacher: ModelFacts) -> None:
        super().__init__()
        self.student_request = Request()
        self.teacher_request = Request()
        self.pairs = ()
        self.notes = ()

    @property
    def default_weight(self) -> float:
        """The published weight of this term; a method may look it up for a known pair of models."""
        return 1.0

    @property
    def default_warmup_epochs(self) -> float:
        """Epochs over which the published recipe raises the weight linearly from zero."""
        return 0.0

    @property
    def calibration_images(self) -> int:
        """How many training images `calibrate` wants to hear the teacher's answers to; 0 where it need not be called."""
        return 0

    def calibrate(self, teacher: Iterable[Any]) -> None:
        """Take from the teacher what must be known before training, such as the spread of its features, into buffers.

        Args:
            teacher: its outputs for `teacher_request`, batch after batch, of training images as they are, not augmented.
        """

    def expect_images(self, count: int) -> None:
        """Make room for what is remembered of `count` training images; called before training and before resuming."""

    def choose_patches(self, student: Any) -> Tensor | None:
        """Where `chooses_patches`: the patches of each picture that the teacher is shown, by what the student says of it.

        Args:
            student: the student's outputs for whole pictures.

        Returns:
            (B, M) int64, numbers on the teacher's grid of patches in row-major order; None shows all.
        """
        return None

    @abstractmethod
    def forward(self, student: Any, teacher: Any, target: Any = None) -> Tensor:
        """The unweighted term, a scalar in at least float32.

        A method says in its own signature what it reads: `Outputs` of classifiers, `DetectionOutputs` of detectors,
        or the `Features` of either.

        Args:
            student: the student's outputs, with gradient.
            teacher: the teacher's outputs for the same images, without gradient; None for a loss that needs no teacher.
            target: class indices (B,) or soft labels (B, K); of detectors a sequence of `Target`, one for each
                picture; None for unlabelled images.
        """
