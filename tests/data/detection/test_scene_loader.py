"""Batches of scenes: the same whatever the workers, resumable, shared out among ranks, movable to a device."""

from typing import Any

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data._utils.pin_memory import pin_memory

from limbeck.data.detection.base import SceneSource
from limbeck.data.detection.door import open_scenes
from limbeck.data.detection.loader import make_scene_train_loader, make_scene_val_loader
from limbeck.data.detection.options import SceneViewOptions
from limbeck.data.loader import ResumableLoader
from limbeck.detection import Pictures, Resize, Target

OPTIONS = SceneViewOptions(scale_jitter=(0.5, 2.0), short_sides=(40, 56), color_jitter=0.3)
Batches = list[dict[str, Any]]


def source(count: int = 14) -> SceneSource:
    return open_scenes(f"shapes(train={count}, val=1, size=48)").train


def loader(workers: int = 0, seed: int = 7) -> ResumableLoader:
    return make_scene_train_loader(
        source(), OPTIONS, Resize(48, 64), with_masks=True, batch_size=4, seed=seed, num_workers=workers
    )


def epoch_of(batches: ResumableLoader, epoch: int) -> Batches:
    batches.set_epoch(epoch)
    return list(batches)


def tensors(batch: dict[str, Any]) -> list[torch.Tensor]:
    found = [batch["pictures"].images, batch["index"]]
    for target in batch["targets"]:
        found += [target.boxes, target.labels, target.masks]
    return found


def same(first: Batches, second: Batches) -> bool:
    return len(first) == len(second) and all(
        a["original_sizes"] == b["original_sizes"]
        and a["pictures"].sizes == b["pictures"].sizes
        and all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
        for a, b in zip(first, second, strict=True)
    )


@pytest.fixture(scope="module")
def reference() -> list[Batches]:
    batches = loader()
    return [epoch_of(batches, epoch) for epoch in range(3)]


def test_a_batch_holds_padded_pictures_and_their_targets(reference: list[Batches]) -> None:
    assert [len(batches) for batches in reference] == [3] * 3  # 14 scenes, the last two left out
    for batch in reference[0]:
        pictures = batch["pictures"]
        assert isinstance(pictures, Pictures)
        assert pictures.images.shape[:2] == (4, 3) and not any(side % 32 for side in pictures.size)
        assert (pictures.images * ~pictures.inside()[:, None]).abs().sum() == 0
        assert batch["original_sizes"] == [(48, 48)] * 4
        for size, target in zip(pictures.sizes, batch["targets"], strict=True):
            assert isinstance(target, Target)
            assert target.masks.shape == (len(target), *size)


def test_batches_do_not_depend_on_workers_or_global_random_states(reference: list[Batches]) -> None:
    torch.manual_seed(99)
    batches = loader(workers=2)
    assert same(epoch_of(batches, 0), reference[0])
    assert same(epoch_of(batches, 1), reference[1])
    assert not same(epoch_of(loader(seed=8), 0), reference[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_gives_exactly_the_remaining_batches(reference: list[Batches], workers: int) -> None:
    stopped = loader(workers)
    stopped.set_epoch(1)
    next(iter(stopped))
    stopped.batches_done = 1
    resumed = loader(workers)
    resumed.load_state_dict(stopped.state_dict())
    resumed.set_epoch(1)
    assert same(list(resumed), reference[1][1:])
    assert same(epoch_of(resumed, 2), reference[2])


def test_ranks_see_every_scene_once_and_fillers_have_no_number() -> None:
    whole = source(7)
    numbers: list[int] = []
    for rank in range(3):
        batches = make_scene_val_loader(whole, Resize(32, 32), batch_size=2, rank=rank, world_size=3, num_workers=0)
        share = [number for batch in batches for number in batch["index"].tolist()]
        assert len(share) == 3
        numbers += share
    assert sorted(numbers) == [-1, -1, *range(7)]


def test_the_order_for_measuring_is_the_sources_own() -> None:
    whole = source(5)
    batches = list(make_scene_val_loader(whole, Resize(48, 48), batch_size=2, num_workers=0))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    targets = [target for batch in batches for target in batch["targets"]]
    for index, target in enumerate(targets):
        assert target.masks is None
        assert target.boxes.tolist() == whole.objects(index).boxes.tolist()


def test_pictures_of_one_size_are_not_padded() -> None:
    resize = Resize(30, 50, stretch=True)
    batch = next(iter(make_scene_val_loader(source(2), resize, batch_size=2, num_workers=0)))
    assert batch["pictures"].images.shape == (2, 3, 30, 50)
    assert batch["pictures"].inside().all()


def test_batches_move_to_a_device_and_into_pinned_memory(
    reference: list[Batches], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = reference[0][0]
    moved = move_data_to_device(batch, torch.device("meta"))
    assert {part.device.type for part in tensors(moved)} == {"meta"}
    assert moved["original_sizes"] == batch["original_sizes"]
    assert moved["pictures"].sizes == batch["pictures"].sizes
    asked: list[int] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: asked.append(id(tensor)) or tensor)
    pinned = pin_memory(batch)
    assert set(asked) == {id(part) for part in tensors(batch)}
    assert same([pinned], [batch])
    assert isinstance(pinned["targets"][0], Target) and isinstance(pinned["pictures"], Pictures)
