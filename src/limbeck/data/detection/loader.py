"""Batches of scenes that depend on (seed, epoch, position) alone, as those of `limbeck.data.loader` do.

A batch holds `pictures` (`Pictures`), `targets` (a `Target` for each picture), `index` (B,) int64, and `original_sizes`, the
(height, width) of each image before it was resized.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from limbeck.data.detection.base import SceneSource
from limbeck.data.detection.options import SceneViewOptions
from limbeck.data.detection.views import SceneView, scene_eval_view, scene_train_view
from limbeck.data.loader import FILLER, EpochSampler, Item, ResumableLoader, process_options, stable_hash
from limbeck.detection import Resize, pad

SceneBatch = dict[str, Any]


class SceneViews(Dataset[SceneBatch]):
    """The views of a source's scenes, asked for as (epoch, index).

    An item holds `picture` (3, h, w), `target`, `index` and `original_size`. In the epoch `FILLER` the index is -1: such
    an item must not be measured.
    """

    def __init__(self, source: SceneSource, view: SceneView, seed: int) -> None:
        self.source = source
        self.view = view
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: Item) -> SceneBatch:
        epoch, index = item
        image = self.source.read(index)
        picture, target = self.view(image, self.source.objects(index), stable_hash(self.seed, epoch, index))
        return {
            "picture": picture,
            "target": target,
            "index": -1 if epoch == FILLER else index,
            "original_size": (image.height, image.width),
        }


def collate_scenes(items: Sequence[SceneBatch], divisor: int = 32) -> SceneBatch:
    """One batch of a list of items, padded to multiples of `divisor` pixels."""
    return {
        "pictures": pad([item["picture"] for item in items], divisor),
        "targets": [item["target"] for item in items],
        "index": torch.tensor([item["index"] for item in items]),
        "original_sizes": [item["original_size"] for item in items],
    }


def make_scene_train_loader(
    source: SceneSource,
    options: SceneViewOptions,
    resize: Resize,
    *,
    with_masks: bool,
    batch_size: int,
    seed: int = 0,
    num_workers: int | Literal["auto"] = "auto",
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool | None = None,
) -> ResumableLoader:
    """Shuffled batches of augmented training scenes.

    Args:
        source: scenes to learn from.
        options: of the training view.
        resize: as the detector asks for it; pictures stretched to one size are not padded.
        with_masks: give the targets masks.
        batch_size, seed, num_workers, rank, world_size, pin_memory: as for `limbeck.data.loader.make_train_loader`.

    Raises:
        UserError: options and resize contradict each other.
    """
    views = SceneViews(source, scene_train_view(options, resize, with_masks=with_masks), seed)
    sampler = EpochSampler(
        len(views),
        seed=seed,
        shuffle=True,
        rank=rank,
        world_size=world_size,
        batch_size=batch_size,
        drop_last=True,
    )
    processes = process_options(source, source.size(0), num_workers, pin_memory)
    return ResumableLoader(views, sampler, collate_fn=_collate(resize), **processes)


def make_scene_val_loader(
    source: SceneSource,
    resize: Resize,
    *,
    batch_size: int,
    with_masks: bool = False,
    num_workers: int | Literal["auto"] = "auto",
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool | None = None,
) -> DataLoader[SceneBatch]:
    """Batches of all scenes of a source in their own order, the last one possibly partial.

    Args:
        source: scenes to measure on, or to be labelled by a teacher.
        resize, with_masks: as for `make_scene_train_loader`.
        batch_size, num_workers, rank, world_size, pin_memory: as for `limbeck.data.loader.make_train_loader`; with
            several ranks, items with index -1 fill up the last batch and must be left out of the measurement.
    """
    views = SceneViews(source, scene_eval_view(resize, with_masks=with_masks), seed=0)
    sampler = EpochSampler(
        len(views),
        seed=0,
        shuffle=False,
        rank=rank,
        world_size=world_size,
        batch_size=batch_size,
        drop_last=False,
    )
    processes = process_options(source, source.size(0), num_workers, pin_memory)
    return DataLoader(views, batch_sampler=sampler, collate_fn=_collate(resize), **processes)


def _collate(resize: Resize) -> Any:
    """A detector of one fixed size must not be given another by padding."""
    return partial(collate_scenes, divisor=1 if resize.stretch else 32)
