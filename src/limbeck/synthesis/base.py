"""What every way of making images for a teacher is, and the three moments at which one can be asked for them.

Before any student exists (`Synthesis.make`), between the epochs of a student that learns (`GrownSynthesis.grow`), and at
every step of it (`StreamedSynthesis.learn`, `.draw`). Images are pictures in [0, 1]; each way normalises for the teacher
where it optimises in the teacher's own space.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck.models.base import VisionModel
from limbeck.synthesis.way import Way


@dataclass(frozen=True)
class Setting:
    """What is given to every way of making images.

    Attributes:
        teacher: on its device, frozen, in evaluation mode; no way may change it.
        size: (height, width) in pixels of the pictures.
        batch_size: pictures that are made together.
        seed: of everything random.
        class_names: in label order; None where nobody recorded any.
        student: a finished network to disagree with; None without. (One that learns is given to `grow` and `learn`.)
        statistics: a file of the teacher's token moments (see `limbeck statistics`); None without.
        say: takes a line for a person about what takes long; None says nothing. The pictures do not depend on it.
    """

    teacher: VisionModel
    size: tuple[int, int]
    batch_size: int = 64
    seed: int = 0
    class_names: tuple[str, ...] | None = None
    student: VisionModel | None = None
    statistics: str | None = None
    say: Callable[[str], None] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for model in (self.teacher, self.student):
            if model is not None:
                model.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where the teacher is, and everything is computed."""
        return self.teacher.mean.device

    @property
    def num_classes(self) -> int:
        """K of the teacher's logits."""
        return self.teacher.facts.num_classes


@dataclass
class Made:
    """Finished pictures.

    Attributes:
        images: (N, 3, height, width) float in [0, 1], on any device, without gradient.
        asked: (N,) int64, the class that each was made for; None of ways that ask for none.
        names: of each, where it comes from, for people ("photo.jpg"); empty where there is nothing to say.
    """

    images: Tensor
    asked: Tensor | None = None
    names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)


class Synthesis(Way[Setting, Made]):
    """A way of making images for a classifier.

    Subclasses take `setting` first and keyword-only options with the paper's defaults, and say in their docstring what
    each option is, in which units, and where the default comes from.

    Attributes:
        needs_learning_student: it is of no use without a student that learns at the same time.
    """

    needs_learning_student: ClassVar[bool] = False


class GrownSynthesis(Synthesis):
    """A way that adds pictures to a pool between the epochs of a student, which they may be made to puzzle.

    `make` gives what `grow` gives without a student, round after round, unless a subclass does otherwise.

    Attributes:
        reads_student: with its present options it looks at the student; otherwise all pictures may be made beforehand.
        warmup_rounds: rounds before the student's first epoch, without looking at it; one follows before every epoch.
    """

    reads_student: bool = True
    warmup_rounds: int = 0

    @abstractmethod
    def grow(self, student: VisionModel | None, round: int) -> Made:
        """One round's new pictures.

        Args:
            student: in whatever mode it is, which must come back; asked in evaluation mode, receives no gradient.
            round: counted from 0; with the setting's seed it decides all random numbers.
        """

    def make(self, count: int, done: int = 0) -> Iterator[Made]:
        """Round after round without a learning student; rounds whose pictures are done already are made again, and left out."""
        made, round = 0, 0
        while made < count:
            batch = self.grow(self.setting.student, round)
            round += 1
            first, last = max(done - made, 0), min(len(batch), count - made)
            made += len(batch)
            if first < last:
                asked = None if batch.asked is None else batch.asked[first:last]
                yield Made(batch.images[first:last], asked, batch.names[first:last])

    def state_dict(self) -> dict[str, Any]:
        """What the next round depends on (generators, optimisers, memory banks): tensors in plain containers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up again."""


class StreamedSynthesis(Synthesis):
    """A generator that is trained against a student, step by step, and draws fresh pictures for each of its steps.

    Attributes:
        student_steps: steps of the student for each call of `learn`.
    """

    student_steps: int = 1

    @abstractmethod
    def learn(self, student: VisionModel | None) -> None:
        """One round of the generator's updates; random numbers are torch's own, which the training sets for each step.

        Args:
            student: in whatever mode it is, which must come back; its parameters, gradients and buffers stay as they are.
        """

    @abstractmethod
    def draw(self, count: int) -> Tensor:
        """(count, 3, height, width) in [0, 1], without gradient, from torch's own random numbers."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Generator and optimiser: tensors in plain containers."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up again."""
