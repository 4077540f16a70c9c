import itertools

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, complete_box_iou, distance_box_iou, generalized_box_iou

from limbeck.detection import Target
from limbeck.losses.box_overlap import corner_form, diou, giou, iou, shares_of
from limbeck.losses.matching import assign, match_queries, padded_truths, pair_cost


def boxes(*shape: int, seed: int = 0) -> Tensor:
    centre, size = torch.rand(*shape, 4, generator=torch.Generator().manual_seed(seed)).double().chunk(2, dim=-1)
    return torch.cat([centre, 0.05 + size / 2], dim=-1)


def test_overlaps_equal_torchvisions() -> None:
    a, b = corner_form(boxes(7)), corner_form(boxes(5, seed=1))
    for ours, theirs in ((iou, box_iou), (giou, generalized_box_iou), (diou, distance_box_iou)):
        torch.testing.assert_close(ours(a[:, None], b[None]), theirs(a, b))
    assert not torch.allclose(diou(a[:, None], b[None]), complete_box_iou(a, b))


def test_boxes_without_area_have_finite_overlaps_and_gradients() -> None:
    a = torch.zeros(3, 4, requires_grad=True)
    b = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [0.5, 0.5, 0.5, 1.0]])
    for overlap in (iou, giou, diou):
        value = overlap(a, b)
        (gradient,) = torch.autograd.grad(value.sum(), a)
        assert torch.isfinite(value).all() and torch.isfinite(gradient).all()


def test_pixels_become_shares() -> None:
    pixels = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    torch.testing.assert_close(shares_of(pixels, (100, 50)), torch.tensor([[0.4, 0.4, 0.4, 0.4]]))


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (2, 4), (4, 2)])
def test_the_assignment_is_the_best_of_all(rows: int, columns: int) -> None:
    cost = torch.rand(3, rows, columns).double()
    match = assign(cost, torch.ones(3, columns))
    count = min(rows, columns)
    for image in range(3):
        mine = match.image == image
        assert mine.sum() == count
        total = cost[image][match.own[mine], match.other[mine]].sum()
        best = min(
            sum(cost[image][r, c] for r, c in zip(chosen, places, strict=True))
            for chosen in itertools.permutations(range(rows), count)
            for places in itertools.combinations(range(columns), count)
        )
        torch.testing.assert_close(total, best)
        assert len(set(match.own[mine].tolist())) == len(set(match.other[mine].tolist())) == count


def test_what_weighs_most_is_served_first() -> None:
    """Two teacher queries want the one student query; a cheap but empty one may not take it."""
    cost = torch.tensor([[[0.9, 0.1]]])
    assert assign(cost, torch.tensor([[1.0, 0.01]])).other.tolist() == [0]
    assert assign(cost, torch.tensor([[1.0, 1.0]])).other.tolist() == [1]
    assert assign(cost, torch.tensor([[0.04, 0.01]]), least=0.05).other.tolist() == []


def test_costs_that_are_no_numbers_do_not_stop_the_assignment() -> None:
    cost = torch.tensor([[[float("nan"), 1.0], [float("inf"), float("nan")]]])
    match = assign(cost, torch.ones(1, 2))
    assert (match.own.tolist(), match.other.tolist()) == ([0, 1], [1, 0])


def test_cost_is_detrs() -> None:
    scores, own, other = torch.rand(2, 3, 4).double(), boxes(2, 3), boxes(2, 5, seed=1)
    labels = torch.tensor([[0, 3, -1, 1, 2], [1, 1, 0, -1, 3]])
    cost = pair_cost(scores, own, labels, other)
    for b, q, m in itertools.product(range(2), range(3), range(5)):
        expected = 5 * (own[b, q] - other[b, m]).abs().sum()
        expected += 2 * (
            1 - generalized_box_iou(corner_form(own[b, q : q + 1]), corner_form(other[b, m : m + 1]))[0, 0]
        )
        if labels[b, m] >= 0:
            expected -= scores[b, q, labels[b, m]]
        torch.testing.assert_close(cost[b, q, m], expected)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_shuffled_queries_are_found_again(kind: str) -> None:
    logits, places = 3 * torch.randn(2, 6, 4), boxes(2, 6).float()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    match = match_queries(logits[:, order], places[:, order], logits, places, torch.ones(2, 6), kind)
    torch.testing.assert_close(order[match.own], match.other)


def test_truths_are_padded_and_unknown_classes_have_no_label() -> None:
    targets = [
        Target(torch.tensor([[0.0, 0.0, 10.0, 20.0], [5.0, 5.0, 10.0, 10.0]]), torch.tensor([1, 0])),
        Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    ]
    truths = padded_truths(targets, [(20, 10), (30, 30)], torch.tensor([-1, 0]))
    assert truths.labels.tolist() == [[0, -1], [-1, -1]]
    assert truths.real.tolist() == [[1, 1], [0, 0]]
    torch.testing.assert_close(truths.boxes[0, 0], torch.tensor([0.5, 0.5, 1.0, 1.0]))
