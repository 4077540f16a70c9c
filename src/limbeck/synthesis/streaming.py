"""Training on pictures that a generator draws for each step, while it learns from the student what to draw."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from limbeck.data.loader import Batch, EpochSampler, Item, ResumableLoader
from limbeck.models.base import VisionModel
from limbeck.synthesis.base import StreamedSynthesis
from limbeck.tasks.classification import ClassificationTask


class StreamedTask(ClassificationTask):
    """Classification whose training pictures are drawn when they are needed.

    Args:
        synthesis: draws them.
        student: what learns from them, and what the generator learns from.
        drawn: pictures of each batch that are drawn; the others come from the loader.
        with_labels: also say the teacher's first answers, for losses that read labels.
        options: of `ClassificationTask`, its number of classes first.
    """

    def __init__(
        self,
        num_classes: int,
        synthesis: StreamedSynthesis,
        student: VisionModel,
        *,
        drawn: int,
        with_labels: bool,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, **options)
        self.synthesis = synthesis
        self.student = student
        self.drawn = drawn
        self.with_labels = with_labels
        self.steps = 0

    def learn_from(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Let the generator learn where its turn has come, and draw; mixed as any pictures."""
        device = batch["image"].device
        with torch.autocast(device.type, enabled=False):
            if self.steps % self.synthesis.student_steps == 0:
                self.synthesis.learn(self.student)
            self.steps += 1
            images = self.synthesis.draw(self.drawn)
        if batch["image"].shape[-1] > 1:
            images = torch.cat([batch["image"], _resized(images, batch["image"])])
        target = torch.full((len(images),), -1, device=device)
        if self.with_labels:
            with torch.no_grad():
                target = self.synthesis.setting.teacher(images).logits.argmax(1)
        return super().learn_from({"image": images, "label": target})

    def state_dict(self) -> dict[str, Any]:
        """The generator, and whose turn it is."""
        return {"steps": self.steps, "synthesis": self.synthesis.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up again."""
        self.steps = int(state["steps"])
        self.synthesis.load_state_dict(state["synthesis"])


def _resized(images: Tensor, others: Tensor) -> Tensor:
    """Pictures at the size of others, so that they can stand in one batch."""
    if images.shape[-2:] == others.shape[-2:]:
        return images
    return torch.nn.functional.interpolate(
        images, others.shape[-2:], mode="bicubic", align_corners=False, antialias=True
    ).clamp(0, 1)


class Steps(Dataset[Batch]):
    """Nothing but numbers: one for each picture that will be drawn."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: Item) -> Batch:
        return {"image": torch.zeros(3, 1, 1), "label": torch.tensor(-1), "index": torch.tensor(item[1])}


def make_step_loader(length: int, *, batch_size: int) -> ResumableLoader:
    """Empty batches, as many as `length` pictures make; a partial one at the end is left out."""
    sampler = EpochSampler(length, seed=0, shuffle=False, batch_size=batch_size, drop_last=True)
    return ResumableLoader(Steps(length), sampler, num_workers=0)
