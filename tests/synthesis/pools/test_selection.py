"""Scores in closed form, and a choice whose quotas are exact."""

import math

import numpy as np
import pytest
import torch

from limbeck.synthesis.pools.selection import (
    attention_probe_score,
    flatness,
    relative_blocks,
    select,
    unsureness,
)


def test_unsureness_is_cross_entropy_with_the_answer_itself() -> None:
    logits = torch.randn(5, 7, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(logits, logits.argmax(1), reduction="none")
    torch.testing.assert_close(unsureness(logits), expected)
    torch.testing.assert_close(unsureness(torch.zeros(1, 7)), torch.tensor([math.log(7)]))
    torch.testing.assert_close(unsureness(logits + 100), expected)
    assert unsureness(torch.tensor([[1000.0, 0.0]])) == 0


def test_flatness_lies_between_one_patch_and_all() -> None:
    torch.testing.assert_close(flatness(torch.eye(9)), torch.full((9,), 1 / 3))
    torch.testing.assert_close(flatness(torch.full((2, 9), 0.2)), torch.ones(2))
    attention = torch.rand(4, 9)
    torch.testing.assert_close(flatness(attention), flatness(attention / attention.sum(1, keepdim=True)))


def test_score_is_the_weighted_sum() -> None:
    score = attention_probe_score(torch.tensor([2.0]), torch.tensor([[0.5], [0.25]]))
    torch.testing.assert_close(score, torch.tensor([0.9 * 2 + 0.05 * 0.75]))


def test_blocks_at_the_same_relative_depth() -> None:
    assert [relative_blocks(depth) for depth in (12, 24, 6, 2, 1)] == [(3, 7), (6, 14), (1, 3), (0, 1), (0, 0)]


def test_quotas_are_exact_where_every_class_has_enough() -> None:
    random = np.random.default_rng(0)
    scores, predicted = random.random(300), np.repeat(np.arange(5), 60)[random.permutation(300)]
    chosen = select(scores, predicted, 50)
    assert np.bincount(predicted[chosen]).tolist() == [10] * 5
    for label in range(5):
        own = np.flatnonzero(predicted == label)
        best = own[np.argsort(scores[own])[:10]]
        assert set(best) == set(chosen[predicted[chosen] == label])


def test_what_division_leaves_over_goes_to_the_best_next_images() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.0, 0.9, 1.0])
    predicted = np.array([0, 0, 0, 1, 1, 1])
    assert select(scores, predicted, 3).tolist() == [0, 1, 3]
    assert select(scores, predicted, 1).tolist() == [3]
    # With fewer images than classes, no class comes twice.
    assert select(np.array([0.0, 0.1, 0.5, 0.9]), np.array([0, 0, 1, 2]), 2).tolist() == [0, 2]


def test_what_poor_classes_leave_over_is_shared_by_the_others() -> None:
    counts = np.array([617, 5, 401, 105, 21, 29, 85, 11, 4672, 54])
    predicted = np.repeat(np.arange(10), counts)
    # The commonest class has the best scores, and gets no more than any other rich one.
    scores = np.random.default_rng(0).random(len(predicted)) + (predicted != 8)
    chosen = np.bincount(predicted[select(scores, predicted, 500)], minlength=10)
    assert chosen.tolist() == [76, 5, 76, 76, 21, 29, 76, 11, 76, 54]
    chosen = np.bincount(predicted[select(scores, predicted, 501)], minlength=10)
    assert chosen.tolist() == [76, 5, 76, 76, 21, 29, 76, 11, 77, 54]


def test_one_class_chooses_by_the_score_alone() -> None:
    scores = np.random.default_rng(1).random(40)
    chosen = select(scores, np.full(40, 6), 11)
    assert chosen.tolist() == sorted(np.argsort(scores)[:11].tolist())


@pytest.mark.parametrize("count", [1, 7, 33, 90, 91, 500])
def test_the_choice_does_not_depend_on_the_pools_order(count: int) -> None:
    random = np.random.default_rng(2)
    scores, predicted = random.random(90), random.integers(0, 4, 90)
    order = random.permutation(90)
    chosen = select(scores, predicted, count)
    assert sorted(order[select(scores[order], predicted[order], count)].tolist()) == chosen.tolist()
    assert len(chosen) == min(count, 90)
