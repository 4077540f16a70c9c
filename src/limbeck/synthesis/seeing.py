"""One pass over pictures that are being made, and all that the terms of their loss read of it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.losses.precision import no_autocast
from limbeck.models.attention import Attention, reading_attention
from limbeck.models.base import VisionModel
from limbeck.models.detection.base import evaluating
from limbeck.synthesis.batchnorm import reading_batchnorm
from limbeck.synthesis.priors.base import LayerStatistics, Needs, Seen


class Eyes:
    """The teacher, and a student where it is asked, read on pictures; a context manager that watches as long as it lasts.

    Everything is computed in evaluation mode and outside autocast, in the precision of the weights: the terms compare
    small differences. Neither network changes, nor its gradients, modes or buffers.

    Args:
        teacher: frozen.
        needs: what the terms read.
        student: in any mode, perhaps learning; None without.

    Raises:
        UserError: a term reads the student and there is none.
    """

    def __init__(self, teacher: VisionModel, needs: Needs, student: VisionModel | None = None) -> None:
        if student is None and (needs.student or needs.student_attention):
            raise UserError(
                "A term of the loss compares the teacher with a student, and there is none. Give a student, or leave the "
                "term out (weight 0)."
            )
        self.teacher = teacher
        self.needs = needs
        self.student = student if needs.student or needs.student_attention else None
        self._stack = ExitStack()
        self._statistics: list[LayerStatistics] = []
        self._attentions: list[Attention] = []
        self._student_attentions: list[Attention] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self.needs.batchnorm:
                self._statistics = stack.enter_context(reading_batchnorm(self.teacher))
            if self.needs.attention:
                self._attentions = stack.enter_context(reading_attention(self.teacher))
            if self.needs.student_attention:
                assert self.student is not None
                self._student_attentions = stack.enter_context(reading_attention(self.student))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def look(self, shown: Tensor, images: Tensor, asked: Tensor | None = None) -> Seen:
        """One pass.

        Args:
            shown: (B', 3, H, W), normalised, what the teacher is shown, at a size that it can read: nothing is resized.
            images: (B, 3, H, W), normalised, before augmentation.
            asked: (B',) int64 classes; None where none are asked for.

        Returns:
            What was seen; gradients go to `shown` and to nothing else.
        """
        self._attentions.clear()
        self._statistics.clear()
        with no_autocast(shown), _frozen(self.teacher):
            outputs = self.teacher.read(shown, self.needs.request)
        # Copies: the same network may be the student, and the next pass fills the lists anew.
        seen = Seen(images, shown, outputs, asked, list(self._attentions), list(self._statistics))
        if self.student is not None:
            picture = shown * self.teacher.std + self.teacher.mean
            self._student_attentions.clear()
            with no_autocast(picture), _frozen(self.student):
                seen.student_logits = self.student(picture).logits
            seen.student_attentions = list(self._student_attentions)
        return seen


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no parameter that takes a gradient; every part gets its own state back."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluating(model):
        try:
            for parameter in learning:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)
