"""What is kept of a detector's answers, and what a batch is written down as."""

import numpy as np
import torch

from limbeck.data.detection.door import open_scenes
from limbeck.detection import Found, Target, pad
from limbeck.tasks.detection import DetectionTask, compact
from limbeck.tasks.detection_scores import Detections


def found(labels: list[int]) -> Found:
    count = len(labels)
    boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0]]).repeat(count, 1)
    masks = torch.zeros(count, 8, 9, dtype=torch.bool)
    masks[:, :5, :5] = True
    return Found(boxes, torch.tensor(labels), torch.linspace(0.9, 0.1, count), masks)


def test_the_best_hundred_of_each_class_are_kept_in_order() -> None:
    labels = [0] * 150 + [1] * 30 + [0] * 20 + [2] * 120
    kept = compact(found(labels))
    assert [int((kept.labels == k).sum()) for k in range(3)] == [100, 30, 100]
    assert (np.diff(kept.scores) <= 0).all()
    assert kept.labels[:100].tolist() == [0] * 100
    assert kept.masks is not None and kept.masks[0]["size"] == [8, 9]


def test_nothing_found_is_nothing_kept() -> None:
    kept = compact(Found(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0)))
    assert len(kept.scores) == 0 and kept.boxes.shape == (0, 4) and kept.masks is None


def test_perfect_answers_have_full_ap_and_none_have_none() -> None:
    scenes = open_scenes("shapes(train=2, val=4, size=64)")
    truths = [scenes.val.objects(index) for index in range(len(scenes.val))]
    perfect = [
        Detections(truth.boxes, np.ones(len(truth), np.float32), truth.labels, truth.masks(64, 64)) for truth in truths
    ]
    task = DetectionTask(scenes.val, masks=True)
    measured = task.measure(perfect)
    assert measured["ap"] == measured["mask_ap"] == measured["ap50"] == 1.0
    nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), [])
    assert task.measure([nothing] * 4)["ap"] == 0.0


def test_a_bad_batch_can_be_written_down() -> None:
    pictures = pad([torch.rand(3, 20, 30), torch.rand(3, 32, 10)])
    none = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    some = Target(torch.rand(2, 4), torch.tensor([1, 0]))
    task = DetectionTask()
    tensors = task.tensors(pictures, [none, some])
    assert tensors["of"].tolist() == [1, 1] and tensors["labels"].tolist() == [1, 0]
    assert tensors["sizes"].tolist() == [[20, 30], [32, 10]]
    few, target = task.few(pictures, [none, some], 1)
    assert len(few) == 1 and target is not None and len(target) == 1
