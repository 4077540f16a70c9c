"""A pool of pictures that grows between the epochs of the student that learns from it.

Each round's pictures are written to the run's folder as they come, so that a checkpoint holds only how many rounds there
are, and what the next one depends on.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from limbeck.data.base import DataSet, ImageSource
from limbeck.data.loader import EpochSampler, ResumableLoader, ViewDataset, stable_hash
from limbeck.data.options import ViewOptions
from limbeck.data.views import train_view
from limbeck.errors import UserError
from limbeck.files import atomic_write
from limbeck.models.base import VisionModel
from limbeck.synthesis.base import GrownSynthesis
from limbeck.synthesis.pixels import to_pixels
from limbeck.tasks.classification import ClassificationTask


class PoolSource(ImageSource):
    """Pictures in memory, more with each round, labelled by the teacher; perhaps after others that were there before.

    Args:
        before: pictures that were made beforehand; None without.
    """

    in_memory = True

    def __init__(self, before: ImageSource | None = None) -> None:
        self.before = before
        self.images: list[NDArray[np.uint8]] = []
        start = before.labels if before is not None else np.zeros(0, np.int64)
        assert start is not None
        self.labels: NDArray[np.int64] | None = start

    def add(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """Take in (N, height, width, 3) pictures."""
        self.images.extend(images)
        assert self.labels is not None
        self.labels = np.concatenate([self.labels, labels])

    @property
    def count_before(self) -> int:
        """How many were made beforehand."""
        return 0 if self.before is None else len(self.before)

    def __len__(self) -> int:
        return self.count_before + len(self.images)

    def read(self, index: int) -> Image.Image:
        """The picture as 8-bit RGB."""
        if self.before is not None and index < self.count_before:
            return self.before.read(index)
        return Image.fromarray(self.images[index - self.count_before])

    def describe(self, index: int) -> str:
        """Which one it is."""
        if self.before is not None and index < self.count_before:
            return self.before.describe(index)
        return f"synthetic picture {index - self.count_before}"


class PoolSampler(EpochSampler):
    """Epochs of one length over a pool of any size, each a draw of its own.

    Args:
        source: the pool.
        length: pictures in an epoch.
        seed, batch_size: as for `EpochSampler`.
        share_before: share of each epoch drawn from the pictures made beforehand; the batches hold it evenly.
    """

    def __init__(
        self, source: PoolSource, length: int, *, seed: int, batch_size: int, share_before: float = 0.0
    ) -> None:
        super().__init__(length, seed=seed, shuffle=True, batch_size=batch_size, drop_last=True)
        self.source = source
        self.share_before = share_before

    def _order(self) -> Tensor:
        generator = torch.Generator().manual_seed(stable_hash(self.seed, self.epoch, -1))
        before = round(self.share_before * self.length)
        parts = [
            _draw(0, self.source.count_before, before, generator),
            _draw(self.source.count_before, len(self.source), self.length - before, generator),
        ]
        # Evenly between each other: the k-th of n takes the place (k + u) / n.
        places = [(torch.arange(len(part)) + torch.rand((), generator=generator)) / len(part) for part in parts]
        return torch.cat(parts)[torch.cat(places).argsort(stable=True)]


def _draw(start: int, stop: int, count: int, generator: torch.Generator) -> Tensor:
    """So many of the numbers from `start` to `stop`, each as often as any other or once more."""
    if count == 0:
        return torch.zeros(0, dtype=torch.long)
    rounds = -(-count // (stop - start))
    drawn = torch.cat([torch.randperm(stop - start, generator=generator) for _ in range(rounds)])
    return start + drawn[:count]


class GrowingPool:
    """A pool and what makes its rounds, each of which is kept in a file.

    Args:
        synthesis: makes the rounds.
        source: the pictures.
        student: the network that learns.
        folder: where the rounds are kept.
        say: tells the user about each round.

    Attributes:
        rounds: how many there are in the pool.
    """

    def __init__(
        self,
        synthesis: GrownSynthesis,
        source: PoolSource,
        *,
        student: VisionModel,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self.synthesis = synthesis
        self.source = source
        self.student = student
        self.folder = folder
        self.say = say
        self.rounds = 0

    def grow_for(self, epoch: int) -> None:
        """Add the rounds that are due before an epoch, counted from 0."""
        while self.rounds < self.synthesis.warmup_rounds + epoch + 1:
            self._grow()

    def state_dict(self) -> dict[str, Any]:
        """How many rounds there are, and what the next one depends on."""
        return {"rounds": self.rounds, "synthesis": self.synthesis.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read the rounds again that the pool had.

        Raises:
            UserError: a round's file is missing.
        """
        assert self.rounds == 0
        self.synthesis.load_state_dict(state["synthesis"])
        for number in range(int(state["rounds"])):
            file = self._file(number)
            if not file.is_file():
                raise UserError(f"{file} is missing, so the run cannot be resumed: it holds pictures the student had.")
            with np.load(file) as arrays:
                self.source.add(arrays["images"], arrays["labels"])
        self.rounds = int(state["rounds"])

    def _grow(self) -> None:
        warming = self.rounds < self.synthesis.warmup_rounds
        made = self.synthesis.grow(None if warming else self.student, self.rounds)
        images = to_pixels(made.images)
        labels = teacher_labels(self.synthesis.setting.teacher, images.float() / 255).numpy()
        pixels = images.permute(0, 2, 3, 1).cpu().numpy()
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._file(self.rounds)) as file:
            asked = np.full(len(labels), -1) if made.asked is None else made.asked.cpu().numpy()
            np.savez(file, images=pixels, labels=labels, asked=asked)
        self.source.add(pixels, labels)
        self.rounds += 1
        losses = ", ".join(f"{name} {value:.3g}" for name, value in self.synthesis.log().items())
        self.say(f"Round {self.rounds}: {len(labels)} new pictures, {len(self.source)} in the pool ({losses}).")

    def _file(self, number: int) -> Path:
        return self.folder / f"round_{number:05d}.npz"


class GrowingLoader(ResumableLoader):
    """Batches of views of a pool, to which each epoch's first batch adds a round.

    Args:
        pool: what grows.
        sampler: over it.
        dataset: views of it.
    """

    def __init__(self, pool: GrowingPool, sampler: PoolSampler, dataset: ViewDataset) -> None:
        # The pool grows in this process; others would go on with what it was.
        super().__init__(dataset, sampler, num_workers=0, pin_memory=torch.cuda.is_available())
        self.pool = pool

    def __iter__(self) -> Any:
        self.pool.grow_for(self.epoch_sampler.epoch)
        return super().__iter__()


class GrowingTask(ClassificationTask):
    """Classification that keeps a pool's state in the checkpoint.

    (Lightning restores a loader's own state only where a run stopped within an epoch.)

    Args:
        num_classes: K.
        pool: whose state is kept.
        options: of `ClassificationTask`.
    """

    def __init__(self, num_classes: int, pool: GrowingPool, **options: Any) -> None:
        super().__init__(num_classes, **options)
        self.pool = pool

    def state_dict(self) -> dict[str, Any]:
        """The pool's."""
        return self.pool.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The pool's."""
        self.pool.load_state_dict(state)


@torch.no_grad()
def teacher_labels(teacher: VisionModel, images: Tensor, batch_size: int = 256) -> Tensor:
    """(N,) int64 on the CPU: the teacher's first answers to (N, 3, height, width) pictures."""
    parts: Sequence[Tensor] = images.split(batch_size)
    return torch.cat([teacher(part.to(teacher.mean.device)).logits.argmax(1).cpu() for part in parts])


def make_growing_loader(
    synthesis: GrownSynthesis,
    data: DataSet,
    options: ViewOptions,
    view_size: int,
    *,
    before: ImageSource | None,
    share_before: float,
    length: int,
    batch_size: int,
    seed: int,
    student: VisionModel,
    folder: Path,
    say: Callable[[str], None],
) -> GrowingLoader:
    """Batches of augmented pictures of a pool that grows by a round an epoch.

    Args:
        synthesis: makes the rounds.
        data: whose name and size decide the views.
        options, view_size: of the views.
        before, share_before: pictures made beforehand, and their share of each epoch.
        length: pictures that an epoch passes over.
        batch_size, seed: of the batches.
        student: the network that learns.
        folder: where the rounds are kept.
        say: tells the user about each round.
    """
    source = PoolSource(before)
    sampler = PoolSampler(source, length, seed=seed, batch_size=batch_size, share_before=share_before)
    views = ViewDataset(source, train_view(options, view_size, data.native_size, data.name), seed)
    return GrowingLoader(GrowingPool(synthesis, source, student=student, folder=folder, say=say), sampler, views)
