"""Batches that depend on (seed, epoch, position) alone.

A data set's items are asked for as (epoch, index), and the order and the views follow from hashes of the seed with
these numbers. The same batch therefore holds the same pixels whatever the number of worker processes, and a run that
stopped within an epoch goes on with exactly the batches it had not seen.
"""

import hashlib
import os
import struct
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from limbeck.data.base import DataSet, ImageSource
from limbeck.data.interleave import interleave
from limbeck.data.options import Size, ViewOptions
from limbeck.data.views import View, eval_view, train_view
from limbeck.errors import UserError

Item = tuple[int, int]
Batch = dict[str, Tensor]

# In this many small images in memory, worker processes cost more than they give.
SMALL_SET = 20_000
# The epoch in which a rank asks for an image only to have as many as the other ranks; see `EpochSampler`.
FILLER = -1


class ViewDataset(Dataset[Batch]):
    """The views of a source's images, asked for as (epoch, index).

    An item holds `image` (3, H, W) float32 in [0, 1], `label` and `index` (int64, 0-dimensional). The label is -1 for
    unlabelled images. In the epoch `FILLER` both label and index are -1: such an item must not be measured.
    """

    def __init__(self, source: ImageSource, view: View, seed: int) -> None:
        self.source = source
        self.view = view
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: Item) -> Batch:
        epoch, index = item
        image = self.view(self.source.read(index), stable_hash(self.seed, epoch, index))
        label = -1 if self.source.labels is None else int(self.source.labels[index])
        if epoch == FILLER:
            label, index = -1, -1
        return {"image": image, "label": torch.tensor(label), "index": torch.tensor(index)}


class EpochSampler(Sampler[list[Item]]):
    """Batches of (epoch, index) for one of several ranks.

    Every rank gets the same number of images, filled up where the images cannot be shared out evenly: with repeated
    images when shuffling (for training), with items that are marked as fillers otherwise (for measuring).

    Args:
        length: number of images.
        seed: of the order; another order in each epoch.
        shuffle: else the images come in their own order.
        rank, world_size: this process and the number of processes.
        batch_size: images per batch and rank.
        drop_last: leave out the last, partial batch, unless it is the only one.
        groups: (length,) where each image comes from; when shuffling, every batch then holds each group's share of the
            images within one (see `interleave`). None, or one group: as if there were none.

    Attributes:
        epoch: set by `set_epoch`.
        start_batch: batches to leave out at the start of the next iteration.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        shuffle: bool,
        batch_size: int,
        drop_last: bool,
        rank: int = 0,
        world_size: int = 1,
        groups: NDArray[np.int64] | None = None,
    ) -> None:
        assert groups is None or len(groups) == length
        self.groups = None if groups is None or len(np.unique(groups)) < 2 else torch.from_numpy(groups)
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.epoch = 0
        self.start_batch = 0

    @property
    def sampler(self) -> "EpochSampler":
        """Itself: Lightning tells the epoch to a loader's `batch_sampler.sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; a place to go on from is forgotten when it belongs to another epoch."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.start_batch = 0

    def __len__(self) -> int:
        share = -(-self.length // self.world_size)
        whole, rest = divmod(share, self.batch_size)
        return whole if rest == 0 or (self.drop_last and whole) else whole + 1

    def __iter__(self) -> Iterator[list[Item]]:
        # The arguments are read now; a generator that read them from self would do so at its first batch.
        return self._batches(self._order(), self.epoch, self.start_batch)

    def _order(self) -> Tensor:
        """This rank's indices; the last one may be a repeated one."""
        order = torch.arange(self.length)
        if self.shuffle:
            generator = torch.Generator().manual_seed(stable_hash(self.seed, self.epoch, -1))
            order = torch.randperm(self.length, generator=generator)
            if self.groups is not None:
                order = interleave(order, self.groups, self.batch_size, self.world_size, generator)
        filled = -(-self.length // self.world_size) * self.world_size
        return order[torch.arange(self.rank, filled, self.world_size) % self.length]

    def _batches(self, order: Tensor, epoch: int, start_batch: int) -> Iterator[list[Item]]:
        last_is_filler = not self.shuffle and (len(order) - 1) * self.world_size + self.rank >= self.length
        for number in range(start_batch, len(self)):
            start = number * self.batch_size
            items = [(epoch, index) for index in order[start : start + self.batch_size].tolist()]
            if last_is_filler and start + len(items) == len(order):
                items[-1] = (FILLER, items[-1][1])
            yield items


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over an `EpochSampler` that can go on within an epoch.

    Call `set_epoch` before each epoch (Lightning does). The trainer sets `batches_done` after each step; the loader
    cannot count for itself, since worker processes run ahead of the training.

    Attributes:
        batches_done: batches of the present epoch that have been learned from.
    """

    batches_done: int

    def __init__(self, dataset: Dataset[Any], sampler: EpochSampler, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=sampler, **options)
        self.epoch_sampler = sampler
        self.batches_done = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        if epoch != self.epoch_sampler.epoch:
            self.batches_done = 0
        self.epoch_sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Where the training stands: the epoch and the batches done in it (none of the next, after the last)."""
        epoch, done = self.epoch_sampler.epoch, self.batches_done
        return {"epoch": epoch + 1, "batches_done": 0} if done >= len(self) else {"epoch": epoch, "batches_done": done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration give the remaining batches of that epoch; those after it are whole again."""
        self.epoch_sampler.epoch = int(state["epoch"])
        self.epoch_sampler.start_batch = self.batches_done = int(state["batches_done"])

    def __iter__(self) -> Any:
        # The sampler has read its place to go on from by now, which serves for this iteration only.
        iterator = super().__iter__()
        self.epoch_sampler.start_batch = 0
        return iterator


def make_train_loader(
    dataset: DataSet,
    options: ViewOptions,
    size: Size,
    *,
    batch_size: int,
    seed: int = 0,
    num_workers: int | Literal["auto"] = "auto",
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool | None = None,
) -> ResumableLoader:
    """Shuffled batches of augmented training images; of a source with groups, each batch holds their shares.

    Args:
        dataset: whose training images are used.
        options: of the training view.
        size: side, or (height, width), of the view in pixels.
        batch_size: images per batch and rank; a partial batch at the end of an epoch is left out, unless it is
            the only one.
        seed: of the order and the views.
        num_workers: processes; "auto" is 0 for small sets in memory, else one per processor, at most 8.
        rank, world_size: this process and the number of processes.
        pin_memory: copy batches to page-locked memory; None does so where there is a GPU.
    """
    view = train_view(options, size, dataset.native_size, dataset.name)
    sampler = EpochSampler(
        len(dataset.train),
        seed=seed,
        shuffle=True,
        rank=rank,
        world_size=world_size,
        batch_size=batch_size,
        drop_last=True,
        groups=dataset.train.groups,
    )
    views = ViewDataset(dataset.train, view, seed)
    return ResumableLoader(
        views, sampler, **process_options(dataset.train, dataset.native_size, num_workers, pin_memory)
    )


def make_val_loader(
    dataset: DataSet,
    options: ViewOptions,
    size: Size,
    *,
    batch_size: int,
    num_workers: int | Literal["auto"] = "auto",
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool | None = None,
) -> DataLoader[Batch]:
    """Batches of all validation images in their own order, the last one possibly partial.

    Args:
        dataset: whose validation images are used.
        options, size, batch_size, num_workers, rank, world_size, pin_memory: as for `make_train_loader`; with several
            ranks, items with label and index -1 fill up the last batch and must be left out of the measurement.

    Raises:
        UserError: the data set has no validation images.
    """
    if dataset.val is None:
        raise UserError(
            f"Data {dataset.name!r} has no labelled validation images to measure on. Add a val/ folder of class "
            "folders."
        )
    view = eval_view(options, size, dataset.native_size)
    sampler = EpochSampler(
        len(dataset.val),
        seed=0,
        shuffle=False,
        rank=rank,
        world_size=world_size,
        batch_size=batch_size,
        drop_last=False,
    )
    views = ViewDataset(dataset.val, view, seed=0)
    return DataLoader(
        views, batch_sampler=sampler, **process_options(dataset.val, dataset.native_size, num_workers, pin_memory)
    )


def stable_hash(*numbers: int) -> int:
    """A number of 63 bits that is the same in every process, on every machine."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def default_workers(source: ImageSource, native_size: tuple[int, int]) -> int:
    """0 for small sets in memory, where processes cost more than they give; else one per processor, at most 8."""
    small = source.in_memory and len(source) <= SMALL_SET and max(native_size) <= 64
    return 0 if small else min(8, _processors())


def process_options(
    source: ImageSource, native_size: tuple[int, int], num_workers: int | Literal["auto"], pin_memory: bool | None
) -> dict[str, Any]:
    """What a `DataLoader` is told about processes and memory; arguments as for `make_train_loader`."""
    workers = default_workers(source, native_size) if num_workers == "auto" else int(num_workers)
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": torch.cuda.is_available() if pin_memory is None else pin_memory,
    }


def _processors() -> int:
    """Processors that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
