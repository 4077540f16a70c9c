"""Every batch of several groups holds each group's share within one image; nothing is lost, and nothing else changes."""

import numpy as np
import pytest
import torch

from limbeck.data.base import DataSet
from limbeck.data.interleave import batch_counts
from limbeck.data.loader import EpochSampler, make_train_loader
from limbeck.data.npz import ArraySource
from limbeck.data.options import ViewOptions
from limbeck.data.split import SubsetSource


def groups_of(*sizes: int) -> np.ndarray:
    """Groups with numbers that are not 0, 1, 2, in blocks, as a folder lists them."""
    return np.repeat(np.arange(len(sizes)) * 3 + 2, sizes)


def sampler(groups: np.ndarray | None, length: int | None = None, **options: int) -> EpochSampler:
    length = len(groups) if length is None else length
    return EpochSampler(length, seed=5, shuffle=True, drop_last=False, groups=groups, **{"batch_size": 8, **options})


def indices(batches: EpochSampler, epoch: int = 0) -> list[list[int]]:
    batches.set_epoch(epoch)
    return [[index for _, index in batch] for batch in batches]


@pytest.mark.parametrize("sizes", [(50, 50), (90, 10), (70, 20, 11), (3, 1, 1, 200), (64, 64), (33, 32, 31)])
@pytest.mark.parametrize("world_size", [1, 3])
def test_every_batch_holds_each_groups_share_within_one(sizes: tuple[int, ...], world_size: int) -> None:
    groups = groups_of(*sizes)
    shares = np.array(sizes) / len(groups)
    for epoch in range(4):
        ranks = [indices(sampler(groups, rank=rank, world_size=world_size), epoch) for rank in range(world_size)]
        for batch in (batch for rank in ranks for batch in rank[: len(groups) // (8 * world_size)]):
            counts = np.array([(groups[batch] == group).sum() for group in np.unique(groups)])
            assert counts.sum() == 8
            assert (np.abs(counts - 8 * shares) < 1).all()
        seen = [index for rank in ranks for batch in rank for index in batch]
        assert set(seen) == set(range(len(groups)))
        assert len(seen) == -(-len(groups) // world_size) * world_size


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_rows_and_columns_of_the_counts_are_exact(batch_size: int) -> None:
    sizes = torch.tensor([101, 57, 30, 4])
    whole = 192 // batch_size
    for seed in range(5):
        counts = batch_counts(sizes, batch_size, whole, torch.Generator().manual_seed(seed))
        assert (counts.sum(1) == batch_size).all()
        assert ((counts - batch_size * sizes / 192).abs() < 1).all()
        assert ((counts.sum(0) - whole * batch_size * sizes / 192).abs() < 1).all()
        assert (counts.sum(0) <= sizes).all()


def test_the_only_batch_of_each_rank_is_even_too() -> None:
    groups = groups_of(6, 6)
    for rank in range(2):
        (batch,) = indices(sampler(groups, rank=rank, world_size=2))
        assert sorted(groups[batch].tolist()) == [2, 2, 2, 5, 5, 5]


def test_epochs_differ_and_places_in_a_batch_are_random() -> None:
    groups = groups_of(80, 80)
    first, second = indices(sampler(groups), 0), indices(sampler(groups), 1)
    assert first != second
    assert first == indices(sampler(groups), 0)
    assert sorted(map(sorted, first)) != sorted(map(sorted, second))
    # Were the groups apart within a batch, an image would always be mixed with one of the other group.
    mirrored = [groups[batch] == groups[batch][::-1] for batch in first + second]
    assert 0.2 < np.mean(mirrored) < 0.8


def test_each_groups_images_keep_their_random_order() -> None:
    groups = groups_of(40, 24)
    plain = [index for batch in indices(sampler(None, 64, batch_size=64)) for index in batch]
    mixed = [index for batch in indices(sampler(groups, batch_size=1)) for index in batch]
    for group in (2, 5):
        assert [i for i in mixed if groups[i] == group] == [i for i in plain if groups[i] == group]


def test_one_group_or_none_or_no_shuffling_changes_nothing() -> None:
    plain = indices(sampler(None, 37))
    assert indices(sampler(np.full(37, 4))) == plain
    still = EpochSampler(37, seed=0, shuffle=False, batch_size=8, drop_last=False, groups=groups_of(20, 17))
    assert [i for batch in indices(still) for i in batch] == list(range(37))


def test_orders_without_groups_are_those_of_always() -> None:
    # As recorded before there were any groups: runs that were started then can be resumed.
    assert indices(sampler(None, 10, batch_size=4)) == [[2, 1, 9, 0], [3, 7, 5, 6], [8, 4]]


def test_a_sampler_goes_on_where_it_was_stopped() -> None:
    groups = groups_of(30, 10, 5)
    whole = indices(sampler(groups), 3)
    resumed = sampler(groups)
    resumed.set_epoch(3)
    resumed.start_batch = 2
    assert [[index for _, index in batch] for batch in resumed] == whole[2:]


def mixed_set() -> DataSet:
    rng = np.random.default_rng(0)
    source = ArraySource(rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), rng.integers(0, 3, 40), "mixed")
    source.groups = np.repeat([0, 1], [30, 10])
    return DataSet("mixed", source, None, ("a", "b", "c"), (8, 8))


def test_a_loader_mixes_the_groups_of_its_source_with_any_workers() -> None:
    data = mixed_set()
    epochs = [
        list(make_train_loader(data, ViewOptions(), 8, batch_size=8, seed=1, num_workers=workers)) for workers in (0, 2)
    ]
    assert all(torch.equal(a[key], b[key]) for a, b in zip(*epochs, strict=True) for key in a)
    assert [(batch["index"] >= 30).sum().item() for batch in epochs[0]] == [2] * 5


def test_a_subset_keeps_its_images_groups() -> None:
    source = mixed_set().train
    subset = SubsetSource(SubsetSource(source, np.arange(25, 40)), np.array([0, 5, 9]))
    assert subset.groups is not None
    assert subset.groups.tolist() == [0, 1, 1]
    assert SubsetSource(ArraySource(np.zeros((2, 2, 2), np.uint8), np.zeros(2, int), "x"), np.array([1])).groups is None
