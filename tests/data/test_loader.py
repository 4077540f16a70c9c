"""A batch depends on (seed, epoch, position) alone: not on workers, on a resume, or on global random states."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.base import DataSet
from limbeck.data.decode import BadImageError
from limbeck.data.door import open_data
from limbeck.data.loader import EpochSampler, ResumableLoader, make_train_loader, make_val_loader, stable_hash
from limbeck.data.npz import ArraySource
from limbeck.data.options import ViewOptions
from limbeck.errors import UserError

OPTIONS = ViewOptions(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5, color_jitter=0.3)


def small_set(train: int = 22, val: int = 10) -> DataSet:
    rng = np.random.default_rng(0)
    train_source, val_source = (
        ArraySource(rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8), rng.integers(0, 3, n), name)
        for n, name in ((train, "train"), (val, "val"))
    )
    return DataSet("small", train_source, val_source, ("a", "b", "c"), (8, 8))


def loader(workers: int = 0, seed: int = 7, **options: int) -> ResumableLoader:
    return make_train_loader(small_set(), OPTIONS, 8, batch_size=4, seed=seed, num_workers=workers, **options)


def epoch_of(batches: ResumableLoader, epoch: int) -> list[dict[str, torch.Tensor]]:
    batches.set_epoch(epoch)
    return list(batches)


def same(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> bool:
    return len(a) == len(b) and all(torch.equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in x)


@pytest.fixture(scope="module")
def reference() -> dict[int, list[dict[str, torch.Tensor]]]:
    batches = loader()
    return {epoch: epoch_of(batches, epoch) for epoch in range(3)}


def test_batches_do_not_depend_on_the_number_of_workers(reference: dict[int, list[dict[str, torch.Tensor]]]) -> None:
    batches = loader(workers=2)
    assert same(epoch_of(batches, 0), reference[0])
    assert same(epoch_of(batches, 1), reference[1])


def test_batches_do_not_depend_on_global_random_states(reference: dict[int, list[dict[str, torch.Tensor]]]) -> None:
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    assert same(epoch_of(loader(), 1), reference[1])


def test_epochs_and_seeds_differ(reference: dict[int, list[dict[str, torch.Tensor]]]) -> None:
    orders = [[batch["index"].tolist() for batch in reference[epoch]] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert not same(epoch_of(loader(seed=8), 0), reference[0])
    views = {int(i): image for batch in reference[0] for i, image in zip(batch["index"], batch["image"], strict=True)}
    again = {int(i): image for batch in reference[1] for i, image in zip(batch["index"], batch["image"], strict=True)}
    shared = views.keys() & again.keys()
    assert sum(torch.equal(views[i], again[i]) for i in shared) <= 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [1, 4])
def test_resuming_gives_exactly_the_remaining_batches(
    reference: dict[int, list[dict[str, torch.Tensor]]], workers: int, done: int
) -> None:
    stopped = loader(workers)
    stopped.set_epoch(1)
    iterator = iter(stopped)
    for _ in range(done):
        next(iterator)
    stopped.batches_done = done  # as the trainer does, however far the workers have run ahead
    state = stopped.state_dict()
    assert state == {"epoch": 1, "batches_done": done}
    resumed = loader(workers)
    resumed.load_state_dict(state)
    resumed.set_epoch(1)  # Lightning names the epoch again
    assert len(resumed) == 5
    assert resumed.state_dict() == state
    assert same(list(resumed), reference[1][done:])
    assert len(resumed) == 5
    assert same(epoch_of(resumed, 2), reference[2])
    assert same(list(resumed), reference[2])


def test_the_end_of_an_epoch_is_the_start_of_the_next(reference: dict[int, list[dict[str, torch.Tensor]]]) -> None:
    finished = loader()
    finished.batches_done = 5
    assert finished.state_dict() == {"epoch": 1, "batches_done": 0}
    finished.set_epoch(1)
    assert finished.batches_done == 0
    resumed = loader()
    resumed.load_state_dict({"epoch": 1, "batches_done": 0})
    assert same(list(resumed), reference[1])


def test_a_place_in_one_epoch_is_void_in_another(reference: dict[int, list[dict[str, torch.Tensor]]]) -> None:
    moved = loader()
    moved.load_state_dict({"epoch": 1, "batches_done": 3})
    assert same(epoch_of(moved, 2), reference[2])


def test_the_last_partial_batch_is_dropped_unless_it_is_the_only_one() -> None:
    assert [len(batch["index"]) for batch in loader()] == [4] * 5  # 22 images
    single = make_train_loader(small_set(train=3), OPTIONS, 8, batch_size=4)
    assert len(single) == 1
    assert [sorted(batch["index"].tolist()) for batch in single] == [[0, 1, 2]]


@pytest.mark.parametrize("length", [1, 2, 12, 13, 14])
@pytest.mark.parametrize("batch_size", [2, 3, 50])
def test_ranks_share_out_the_images(length: int, batch_size: int) -> None:
    for shuffle in (True, False):
        ranks = [
            EpochSampler(
                length, seed=3, shuffle=shuffle, batch_size=batch_size, drop_last=False, rank=rank, world_size=3
            )
            for rank in range(3)
        ]
        per_rank = [[item for batch in sampler for item in batch] for sampler in ranks]
        assert {len(items) for items in per_rank} == {-(-length // 3)}
        assert {len(list(sampler)) for sampler in ranks} == {len(ranks[0])}
        items = [item for items in per_rank for item in items]
        assert {index for _, index in items} == set(range(length))
        if shuffle:
            assert {epoch for epoch, _ in items} == {0}
        else:
            assert sorted(index for epoch, index in items if epoch == 0) == list(range(length))


def test_fillers_are_not_measured_and_every_validation_image_is_once() -> None:
    seen: list[int] = []
    fillers = 0
    data = small_set(val=10)
    assert data.val is not None
    assert data.val.labels is not None
    for rank in range(4):
        for batch in make_val_loader(data, OPTIONS, 8, batch_size=2, rank=rank, world_size=4):
            for index, label in zip(batch["index"].tolist(), batch["label"].tolist(), strict=True):
                fillers += index == -1
                if index >= 0:
                    assert label == data.val.labels[index]
                    seen.append(index)
                else:
                    assert label == -1
    assert sorted(seen) == list(range(10))
    assert fillers == 2


def test_validation_shows_the_very_pixels_in_order() -> None:
    data = small_set()
    assert isinstance(data.val, ArraySource)
    batches = list(make_val_loader(data, OPTIONS, 8, batch_size=4))
    images = torch.cat([batch["image"] for batch in batches])
    assert torch.equal(images, torch.from_numpy(data.val.images).permute(0, 3, 1, 2) / 255)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(10))
    assert batches[0]["label"].dtype == torch.int64


def test_unlabelled_images_have_label_minus_one(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    data = open_data(str(tmp_path))
    (batch,) = make_train_loader(data, OPTIONS, 8, batch_size=3, num_workers=0)
    assert batch["label"].tolist() == [-1, -1, -1]
    assert sorted(batch["index"].tolist()) == [0, 1, 2]
    with pytest.raises(UserError, match="no labelled validation images"):
        make_val_loader(data, OPTIONS, 8, batch_size=3)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_one_clean_sentence_from_any_process(tmp_path: Path, workers: int) -> None:
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"junk")
    batches = make_train_loader(open_data(str(tmp_path)), OPTIONS, 8, batch_size=1, num_workers=workers)
    with pytest.raises(BadImageError) as error:
        list(batches)
    assert str(error.value).startswith(f"The image {tmp_path / 'b.png'} (4 bytes) cannot be decoded")
    assert "Traceback" not in str(error.value)
    assert "\n" not in str(error.value)


def test_workers_are_automatic() -> None:
    small, large = small_set(), small_set()
    large.native_size = (500, 500)
    assert make_train_loader(small, OPTIONS, 8, batch_size=4).num_workers == 0
    assert 1 <= make_train_loader(large, OPTIONS, 8, batch_size=4).num_workers <= 8


def test_hash_is_the_same_on_every_machine() -> None:
    assert stable_hash(0, 0, 0) == stable_hash(0, 0, 0) != stable_hash(0, 0, 1) != stable_hash(0, 1, 0)
    assert 0 <= stable_hash(1, 2, 3) < 2**63


def test_digits_are_the_fixed_split_of_the_real_set() -> None:
    data = open_data("digits", seed=5, val_fraction=0.5)
    assert data.val is not None
    assert (len(data.train), len(data.val)) == (1438, 359)
    assert data.record["val_files"] == open_data("digits").record["val_files"]
    assert data.train.read(0).size == (8, 8)
    levels = {value for i in range(50) for value in np.asarray(data.train.read(i)).ravel().tolist()}
    assert levels == {round(level * 255 / 16) for level in range(17)}
    for counts in data.record["class_counts"].values():
        assert max(counts.values()) - min(counts.values()) <= 10


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_impossible_fractions_are_refused(fraction: float) -> None:
    with pytest.raises(UserError, match=f"val_fraction is {fraction}"):
        open_data("digits", val_fraction=fraction)
