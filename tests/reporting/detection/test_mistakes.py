"""What is right and what is wrong: as COCO's evaluation has it, and by TIDE's kinds."""

import numpy as np
import pytest
from PIL import Image

from limbeck.data.detection.base import Objects, SceneSource
from limbeck.reporting.detection.mistakes import (
    BACKGROUND,
    BOTH,
    CROWD,
    DUPLICATE,
    FREE,
    MISPLACED,
    MISTAKEN,
    POOR_OVERLAP,
    TOO_UNSURE,
    UNSEEN,
    WRONG_CLASS,
    Truth,
    false_positives,
    judge,
    misses,
    operating_point,
    overlap,
)
from limbeck.reporting.detection.stored import collect
from limbeck.tasks.detection_scores import Detections, score


class Annotated(SceneSource):
    """Boxes without pictures."""

    has_masks = False

    def __init__(self, objects, side, class_names):
        self.all, self.side, self.class_names = objects, side, class_names

    def __len__(self):
        return len(self.all)

    def read(self, index):
        return Image.new("RGB", (self.side, self.side))

    def objects(self, index):
        return self.all[index]

    def image_id(self, index):
        return index

    def size(self, index):
        return self.side, self.side

    def describe(self, index):
        return str(index)


def boxes_in(random, count, side=100):
    corners = random.uniform(0, 0.7 * side, (count, 2))
    return np.concatenate([corners, corners + random.uniform(8, 0.3 * side, (count, 2))], axis=1).astype(np.float32)


def crowded(seed):
    """Ten images of three classes with some crowds, and detections around their objects and elsewhere."""
    random = np.random.default_rng(seed)
    scenes, found = [], []
    for _ in range(10):
        boxes = boxes_in(random, random.integers(1, 8))
        labels = random.integers(0, 3, len(boxes))
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        scenes.append(Objects(boxes, labels, random.random(len(boxes)) < 0.2, area))
        near = np.repeat(boxes, 3, axis=0) + random.normal(0, 3, (3 * len(boxes), 4)).astype(np.float32)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        guesses = np.concatenate([near, boxes_in(random, 5)])
        answers = np.concatenate([np.repeat(labels, 3), random.integers(0, 3, 5)])
        # Few distinct scores, so that ties occur.
        found.append(Detections(guesses, random.integers(1, 40, len(guesses)) / 40, answers))
    return Annotated(scenes, 100, ("ant", "bee", "cat")), found


@pytest.mark.parametrize("seed", range(4))
def test_what_is_right_is_what_cocos_evaluation_counts(seed):
    source, found = crowded(seed)
    stored = collect(source, found, None)
    official = score(source, found)
    assert any((judged.found == CROWD).any() for judged in stored.student.images)
    for label in range(3):
        rows = [(j.scores[j.labels == label], j.found[j.labels == label]) for j in stored.student.images]
        scores = np.concatenate([s for s, _ in rows]).astype(np.float64)
        right = np.concatenate([f for _, f in rows])
        scores, right = scores[right != CROWD], right[right != CROWD]
        right = (right[np.argsort(-scores, kind="stable")] >= 0).cumsum()
        precision, recall = right / np.arange(1, len(right) + 1), right / official.objects[label]
        best = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(recall, official.recall_points, side="left")
        curve = [best[place] if place < len(best) else 0.0 for place in places]
        assert np.allclose(curve, official.precision[label], atol=1e-9)


def one_image(*objects, crowd=()):
    boxes = np.array([box for _, box in objects], dtype=np.float32).reshape(-1, 4)
    labels = np.array([label for label, _ in objects], dtype=np.int64)
    return Truth(boxes, labels, np.array([place in crowd for place in range(len(objects))], dtype=bool))


def judged(truth, *detections):
    scores, labels, boxes = (np.array(column) for column in zip(*detections, strict=True))
    return judge(truth, boxes, labels, scores)


OBJECT = (10, 10, 50, 50)
SHIFTED = (10, 30, 50, 70)  # half of each: IoU 1/3
CLOSE = (10, 12, 50, 52)


@pytest.mark.parametrize(
    ("label", "box", "kind", "explained"),
    [
        (0, (70, 70, 90, 90), BACKGROUND, None),
        (1, OBJECT, WRONG_CLASS, 0),
        (0, SHIFTED, POOR_OVERLAP, 0),
        (0, CLOSE, DUPLICATE, 0),
        (1, SHIFTED, BOTH, 0),
    ],
)
def test_each_kind_of_false_positive(label, box, kind, explained):
    truth = one_image((0, OBJECT))
    found = judged(truth, (0.9, 0, OBJECT), (0.6, label, box))
    assert found.found.tolist() == [0, FREE]
    (mistake,) = false_positives(7, truth, found, 0.5)
    assert (mistake.kind, mistake.object, mistake.image, mistake.row) == (kind, explained, 7, 1)
    assert mistake.score == pytest.approx(0.6)
    # Below the threshold it is no mistake.
    assert false_positives(7, truth, found, 0.7) == []


@pytest.mark.parametrize(
    ("detection", "kind", "explained"),
    [
        ((0.6, 0, (70, 70, 90, 90)), UNSEEN, None),
        ((0.6, 1, OBJECT), MISTAKEN, 0),
        ((0.6, 0, SHIFTED), MISPLACED, 0),
        ((0.2, 0, CLOSE), TOO_UNSURE, 0),
    ],
)
def test_each_kind_of_miss(detection, kind, explained):
    truth = one_image((0, OBJECT))
    (miss,) = misses(3, truth, judged(truth, detection), 0.5)
    assert (miss.kind, miss.detection, miss.image, miss.row, miss.area) == (kind, explained, 3, 0, 1600.0)


def test_the_overlap_is_that_with_the_object_that_explains_the_mistake():
    # Its own class below it by a third, another class by nearly all: TIDE asks for the own class first.
    truth = one_image((0, OBJECT), (1, (10, 31, 50, 70)))
    (mistake,) = false_positives(0, truth, judged(truth, (0.9, 0, SHIFTED)), 0.5)
    assert (mistake.kind, mistake.object) == (POOR_OVERLAP, 0)
    assert mistake.overlap == pytest.approx(1 / 3)


def test_crowds_are_neither_found_nor_missed_and_excuse_what_lies_in_them():
    truth = one_image((0, OBJECT), (0, (40, 0, 100, 100)), crowd={1})
    found = judged(truth, (0.9, 0, (60, 20, 80, 40)), (0.8, 0, OBJECT), (0.7, 1, (60, 20, 80, 40)))
    assert found.found.tolist() == [CROWD, 0, FREE]
    assert [mistake.kind for mistake in false_positives(0, truth, found, 0.0)] == [BACKGROUND]
    assert misses(0, truth, found, 0.0) == []


def test_overlap_is_symmetric_and_does_not_change_with_scale():
    random = np.random.default_rng(0)
    one, two = boxes_in(random, 5).astype(np.float64), boxes_in(random, 7).astype(np.float64)
    shares = overlap(one, two, np.zeros(7, dtype=bool))
    assert np.allclose(shares, overlap(two, one, np.zeros(5, dtype=bool)).T)
    assert np.allclose(shares, overlap(3 * one, 3 * two, np.zeros(7, dtype=bool)))
    assert np.allclose(np.diag(overlap(one, one, np.zeros(5, dtype=bool))), 1)


@pytest.mark.parametrize("seed", range(3))
def test_no_other_threshold_has_a_higher_f1(seed):
    source, found = crowded(seed)
    stored = collect(source, found, None)
    images, objects = stored.student.images, stored.objects

    def f1(threshold):
        rows = np.concatenate([judged.found[judged.scores >= threshold] for judged in images])
        rows = rows[rows != CROWD]
        return 2 * (rows >= 0).sum() / (len(rows) + objects)

    best = max(f1(threshold) for threshold in np.unique(np.concatenate([judged.scores for judged in images])))
    assert f1(stored.student.threshold) == pytest.approx(best)


def test_a_detector_that_finds_nothing_still_shows_its_surest_guesses():
    truth = one_image((0, OBJECT), (0, (60, 60, 90, 90)))
    found = judged(truth, (0.3, 1, OBJECT), (0.2, 1, OBJECT), (0.1, 1, OBJECT))
    assert operating_point([truth], [found]) == pytest.approx(0.2)
    empty = judge(truth, np.zeros((0, 4)), np.zeros(0), np.zeros(0))
    assert [miss.kind for miss in misses(0, truth, empty, operating_point([truth], [empty]))] == [UNSEEN, UNSEEN]
