import pytest
import torch

from limbeck.errors import UserError
from limbeck.synthesis.asked_classes import asked_classes, checked_classes


def test_whole_cycles_ask_for_each_class_equally_often() -> None:
    assert asked_classes(range(7), 14, 21, seed=3).bincount(minlength=7).tolist() == [3] * 7


def test_any_stretch_is_balanced() -> None:
    for first in range(10):
        counts = asked_classes(range(4), first, 10, seed=0).bincount(minlength=4)
        assert counts.max() - counts.min() <= 2
        assert counts.min() >= 1


def test_batches_join_to_one_row() -> None:
    row = asked_classes(range(10), 0, 40, seed=5)
    parts = [asked_classes(range(10), first, 8, seed=5) for first in range(0, 40, 8)]
    assert torch.equal(row, torch.cat(parts))


def test_orders_differ_between_cycles_and_seeds() -> None:
    first, second = asked_classes(range(50), 0, 100, seed=0).split(50)
    assert not torch.equal(first, second)
    assert not torch.equal(first, asked_classes(range(50), 0, 50, seed=1))


def test_only_the_chosen_classes_are_asked_for() -> None:
    assert set(asked_classes((2, 9), 0, 6, seed=0).tolist()) == {2, 9}


@pytest.mark.parametrize("classes", [(), (3, 3), (10,), (-1,)])
def test_impossible_classes_are_refused(classes: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="0 to 9"):
        checked_classes(classes, 10, "invert")
