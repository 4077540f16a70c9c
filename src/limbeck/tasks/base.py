"""What a training step and its measurement must know of a task."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

Batch = dict[str, Any]
"""What a loader gives; `index` (B,) numbers the images in their own order, -1 for one that only fills up a share."""


class Task(ABC):
    """Turns batches into what is learned from, and a model's answers into numbers.

    Attributes:
        main_score: the name, among `measure`'s values, of what decides which epoch is best; higher is better.
    """

    main_score: ClassVar[str]

    @abstractmethod
    def learn_from(self, batch: Batch) -> tuple[Any, Any]:
        """The inputs that both models are shown, and the target, of a training batch."""

    @abstractmethod
    def few(self, inputs: Any, target: Any, most: int) -> tuple[Any, Any]:
        """The first images of a batch, and their target."""

    @abstractmethod
    def tensors(self, inputs: Any, target: Any) -> dict[str, Tensor]:
        """A batch as tensors by name, to be written where it made the loss infinite; `images` is among them."""

    @abstractmethod
    def answers(self, model: nn.Module, batch: Batch) -> list[Any]:
        """What the model says about each image of a validation batch; on the CPU, small, picklable."""

    @abstractmethod
    def measure(self, answers: Sequence[Any]) -> dict[str, float]:
        """Numbers of the answers to all validation images, in the images' own order."""

    def state_dict(self) -> dict[str, Any]:
        """What the task itself has learned or counted, for the checkpoint: tensors in plain containers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up again."""
        assert not state
