"""Splits give each class its exact share and depend on the seed alone."""

import numpy as np
import pytest

from limbeck.data.npz import ArraySource
from limbeck.data.split import SubsetSource, proportional_counts, random_subset, stratified_split
from limbeck.errors import UserError

LABELS = np.repeat([0, 1, 2, 3], [100, 40, 10, 2]).astype(np.int64)
NAMES = ("a", "b", "c", "d")


def test_each_class_gives_its_exact_share_and_no_image_is_lost() -> None:
    train, val, notes = stratified_split(LABELS, 0.1, 0, NAMES)
    assert np.bincount(LABELS[val]).tolist() == [10, 4, 1, 1]
    assert sorted([*train, *val]) == list(range(len(LABELS)))
    assert notes == []


def test_the_seed_decides() -> None:
    first, again, other = (stratified_split(LABELS, 0.1, seed, NAMES)[1] for seed in (3, 3, 4))
    assert first.tolist() == again.tolist() != other.tolist()


def test_a_single_image_stays_in_training_and_is_mentioned() -> None:
    train, val, notes = stratified_split(np.array([0, 0, 0, 1]), 0.5, 0, ("cat", "dodo"))
    assert 3 in train
    assert 3 not in val
    assert len(notes) == 1
    assert "'dodo'" in notes[0]


def test_nothing_can_be_held_out_of_single_images() -> None:
    with pytest.raises(UserError, match="single image"):
        stratified_split(np.array([0, 1]), 0.5, 0, ("a", "b"))


def test_a_large_share_still_leaves_an_image_to_learn_from() -> None:
    train, _, _ = stratified_split(np.array([0, 0, 1, 1]), 0.99, 0, ("a", "b"))
    assert np.bincount(np.array([0, 0, 1, 1])[train]).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("counts", "total", "shares"),
    [([100, 100], 10, [5, 5]), ([900, 100], 100, [90, 10]), ([1000, 1, 1], 10, [8, 1, 1]), ([5, 3, 2], 10, [5, 3, 2])],
)
def test_shares_are_proportional_with_at_least_one(counts: list[int], total: int, shares: list[int]) -> None:
    assert proportional_counts(np.array(counts), total).tolist() == shares


def test_subset_has_the_exact_size_and_shares() -> None:
    chosen = random_subset(LABELS, 76, len(LABELS), 0)
    assert len(set(chosen)) == 76
    assert np.bincount(LABELS[chosen]).tolist() == [50, 20, 5, 1]
    assert chosen.tolist() != random_subset(LABELS, 76, len(LABELS), 1).tolist()
    assert len(set(random_subset(None, 5, 9, 0))) == 5


def test_subset_smaller_than_the_classes_is_refused() -> None:
    with pytest.raises(UserError, match="is 3, fewer than the 4 classes"):
        random_subset(LABELS, 3, len(LABELS), 0)


def test_a_subset_of_a_subset_reads_the_right_images() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    whole = ArraySource(images, np.arange(5), "five")
    subset = SubsetSource(SubsetSource(whole, np.array([4, 2, 0])), np.array([1, 0]))
    assert [subset.read(i).getpixel((0, 0))[0] for i in range(2)] == [2, 4]
    assert subset.labels is not None
    assert subset.labels.tolist() == [2, 4]
    assert subset.describe(0) == "five[2]"
    assert subset.in_memory


def test_a_spread_reaches_every_part_of_a_sorted_source() -> None:
    from limbeck.data.digits import open_digits
    from limbeck.data.split import spread

    source = open_digits().train
    some = spread(source, 10)
    assert len(some) == 10
    assert some.describe(0) == source.describe(0)
    assert some.describe(9) == source.describe(len(source) - 1)
    assert spread(source, 10_000) is source
