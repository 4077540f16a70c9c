"""Placing, adding, pruning: closed forms on detections made by hand."""

import math

import pytest
import torch

from limbeck.detection import Found, Target
from limbeck.synthesis.detection.labels import adapt, balanced_labels, ellipses, match, merge, place, rescale

SIZE = (100, 100)


def target_of(*boxes: list[float], labels: list[int] | None = None, masks: bool = False) -> Target:
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    classes = torch.tensor(labels if labels is not None else [0] * len(boxes))
    return Target(corners, classes, ellipses(corners, SIZE) if masks else None)


def found_of(*entries: tuple[list[float], int, float], masks: bool = False) -> Found:
    """Boxes, labels and scores, best first; as masks the boxes' upper halves."""
    boxes = torch.tensor([box for box, _, _ in entries], dtype=torch.float32).reshape(-1, 4)
    drawn = torch.zeros(len(entries), *SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(drawn, boxes.int().tolist(), strict=True):
        mask[y1 : (y1 + y2) // 2, x1:x2] = True
    labels = torch.tensor([label for _, label, _ in entries], dtype=torch.int64)
    return Found(boxes, labels, torch.tensor([score for _, _, score in entries]), drawn if masks else None)


PLACED = [10.0, 10, 50, 50]
AWAY = [60.0, 60, 90, 90]


def test_placed_boxes_lie_inside_with_sides_of_a_fifth_to_four_fifths() -> None:
    torch.manual_seed(0)
    boxes = torch.cat([place(0, (60, 200), torch.device("cpu"), masks=False).boxes for _ in range(500)])
    shares = (boxes[:, 2:] - boxes[:, :2]) / torch.tensor([200.0, 60.0])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= torch.tensor([200.0, 60.0]) + 1e-4).all()
    assert (shares > 0.2 - 1e-5).all() and (shares < 0.8 + 1e-5).all()
    assert shares.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.03)


def test_every_class_is_placed_equally_often_whatever_the_batches_are() -> None:
    whole = balanced_labels(0, 35, 7, seed=3)
    assert all(whole.count(label) == 5 for label in range(7))
    assert all(sorted(whole[start : start + 7]) == list(range(7)) for start in range(0, 35, 7))
    assert whole == [label for first in range(0, 35, 5) for label in balanced_labels(first, 5, 7, seed=3)]
    assert whole != balanced_labels(0, 35, 7, seed=4)
    assert balanced_labels(4, 3, 1, seed=0) == [0, 0, 0]


def test_a_target_is_found_by_its_class_where_it_is() -> None:
    target = target_of(PLACED, PLACED, PLACED, AWAY, labels=[0, 1, 2, 0])
    found = found_of(([10, 10, 50, 48], 0, 0.9), (PLACED, 0, 0.5), ([10, 10, 50, 29], 1, 0.8), (AWAY, 1, 0.3))
    matched = match(target, found)
    assert matched.scores.tolist() == pytest.approx([0.9, 0, 0, 0])
    assert matched.rows.tolist() == [0, -1, -1, -1]
    assert match(target, found_of()).rows.tolist() == [-1] * 4


def test_confident_detections_elsewhere_become_targets() -> None:
    found = found_of((PLACED, 0, 0.9), (AWAY, 2, 0.21), ([60, 60, 90, 91], 1, 0.2), ([0, 60, 40, 100], 1, 0.19))
    adapted = adapt(target_of(PLACED), found, SIZE)
    # The third overlaps the second, which is surer; the fourth is not confident.
    assert adapted.boxes.tolist() == [PLACED, AWAY]
    assert adapted.labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("box", "is_new"),
    [
        ([10.0, 10, 50, 23.9], True),  # IoU 0.3475 with what is placed
        ([10.0, 10, 50, 24.1], False),  # 0.3525
        ([60.0, 60, 70, 69.9], False),  # covers 0.0099
        ([60.0, 60, 70, 70.1], True),
        ([0.0, 0, 100, 86], False),  # covers 0.86, and overlaps little
    ],
)
def test_new_objects_overlap_nothing_and_are_neither_tiny_nor_the_whole_picture(box: list[float], is_new: bool) -> None:
    found = found_of((PLACED, 0, 0.9), (box, 1, 0.8))
    assert (len(adapt(target_of(PLACED), found, SIZE)) == 2) == is_new


def test_targets_that_are_not_found_are_forgotten() -> None:
    target = target_of(PLACED, AWAY, [0, 60, 40, 100], labels=[0, 1, 2])
    # The first at a low score, the second by another class, the third too far aside.
    found = found_of((AWAY, 0, 0.9), ([16, 60, 56, 100], 2, 0.15), (PLACED, 0, 0.06))
    adapted = adapt(target, found, SIZE)
    assert adapted.boxes.tolist() == [PLACED]
    assert adapted.labels.tolist() == [0]


def test_at_least_one_target_stays_the_one_that_is_nearest_to_being_found() -> None:
    target = target_of(PLACED, AWAY, labels=[0, 1])
    assert adapt(target, found_of(), SIZE).boxes.tolist() == [PLACED]
    assert adapt(target, found_of((AWAY, 0, 0.9)), SIZE).boxes.tolist() == [PLACED]
    assert adapt(target, found_of(([60, 60, 90, 74], 1, 0.04)), SIZE).boxes.tolist() == [AWAY]


def test_a_new_object_is_enough_for_the_old_ones_to_go() -> None:
    assert adapt(target_of(PLACED), found_of((AWAY, 1, 0.9)), SIZE).boxes.tolist() == [AWAY]


def test_masks_are_the_teachers_once_it_finds_the_target_and_ellipses_before() -> None:
    target = target_of(PLACED, [0, 60, 40, 100], masks=True)
    found = found_of(([10, 8, 50, 50], 0, 0.9), (AWAY, 1, 0.8), ([0, 60, 40, 99], 0, 0.7), masks=True)
    assert found.masks is not None and target.masks is not None
    found.masks[2] = False  # nothing that could be learned from
    adapted = adapt(target, found, SIZE)
    assert adapted.masks is not None
    within = torch.zeros(SIZE, dtype=torch.bool)
    within[10:29, 10:50] = True
    assert torch.equal(adapted.masks[0], within)  # the teacher's, rows 8 to 28, within the target's box
    assert torch.equal(adapted.masks[1], target.masks[1])
    assert torch.equal(adapted.masks[2], found.masks[1])


def test_merging_takes_the_teachers_box_and_score_and_keeps_what_it_does_not_find() -> None:
    target = target_of(PLACED, [0, 60, 40, 100], labels=[0, 1], masks=True)
    found = found_of(([10, 10, 50, 46], 0, 0.9), (AWAY, 2, 0.6), masks=True)
    merged = merge(target, found, SIZE)
    assert merged.boxes.tolist() == [[10, 10, 50, 46], [0, 60, 40, 100], AWAY]
    assert merged.labels.tolist() == [0, 1, 2]
    assert (
        merged.scores is not None and merged.masks is not None and found.masks is not None and target.masks is not None
    )
    assert merged.scores.tolist() == pytest.approx([0.9, 0, 0.6])
    assert torch.equal(merged.masks, torch.stack([found.masks[0], target.masks[1], found.masks[1]]))


def test_one_detection_stands_for_one_target() -> None:
    merged = merge(target_of([0, 0, 40, 40], [0, 12, 40, 52]), found_of(([0, 6, 40, 46], 0, 0.9)), SIZE)
    assert merged.boxes.tolist() == [[0, 6, 40, 46]]


def test_an_ellipse_covers_its_share_of_the_box_and_never_nothing() -> None:
    (mask,) = ellipses(torch.tensor([[20.0, 10, 80, 90]]), SIZE)
    assert mask.sum().item() / (60 * 80) == pytest.approx(math.pi / 4, abs=0.01)
    assert not mask[:10].any() and not mask[90:].any() and not mask[:, :20].any() and not mask[:, 80:].any()
    (thin,) = ellipses(torch.tensor([[20.1, 10, 20.2, 12]]), SIZE)
    assert thin.nonzero().tolist() == [[10, 20], [11, 20]]


def test_labels_of_another_size_cover_the_same_shares() -> None:
    target = target_of(PLACED, masks=True)
    larger = rescale(target, SIZE, (200, 300))
    assert larger.boxes.tolist() == [[30, 20, 150, 100]]
    assert larger.masks is not None and target.masks is not None
    assert torch.equal(larger.masks, target.masks.repeat_interleave(2, 1).repeat_interleave(3, 2))
    assert torch.equal(rescale(larger, (200, 300), SIZE).masks, target.masks)  # type: ignore[arg-type]
