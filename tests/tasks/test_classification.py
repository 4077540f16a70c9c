"""Mixing, the supervised loss and the measurements, against their definitions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from limbeck.tasks.classification import ClassificationTask, agreement, measure


def test_smoothing_applies_to_hard_and_mixed_labels_alike() -> None:
    task = ClassificationTask(5, label_smoothing=0.1)
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3])
    soft = F.one_hot(target, 5).double()
    expected = -(0.9 * soft + 0.1 / 5).mul(logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(task.loss(logits, target), expected)
    torch.testing.assert_close(task.loss(logits, soft), expected)


@pytest.mark.parametrize("count", [6, 5])
def test_mixup_mixes_images_and_labels_with_the_same_share(count: int) -> None:
    task = ClassificationTask(count, mixup=0.8)
    # Image i is the constant i; its label is i, so the mixed label tells the mixed image.
    images = torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    original = images.clone()
    np.random.seed(0)
    mixed, labels = task.mix(images, torch.arange(count))
    assert torch.equal(images, original), "the batch itself is left alone"
    torch.testing.assert_close(labels.sum(1), torch.ones(count))
    torch.testing.assert_close(mixed[:, 0, 0, 0], labels @ torch.arange(count).float())
    assert not torch.equal(mixed, original)


def test_mixing_is_off_by_default_and_keeps_unlabelled_targets() -> None:
    images, target = torch.rand(4, 3, 4, 4), torch.tensor([0, 1, 2, 3])
    same, labels = ClassificationTask(4).mix(images, target)
    assert same is images
    assert labels is target
    unlabelled = torch.full((4,), -1)
    mixed, labels = ClassificationTask(4, mixup=1.0).mix(images, unlabelled)
    assert torch.equal(labels, unlabelled)
    assert mixed.shape == images.shape


def test_measurements_follow_their_definitions() -> None:
    logits = np.log(np.array([[0.7, 0.1, 0.05, 0.05, 0.05, 0.03, 0.02], [0.1, 0.6, 0.1, 0.1, 0.05, 0.03, 0.02]]))
    measured = measure(logits, np.array([0, 6]))
    assert measured.accuracy == 0.5
    assert measured.top5 == 0.5
    assert measured.nll == pytest.approx(-(np.log(0.7) + np.log(0.02)) / 2, rel=1e-5)
    assert measured.calibration_error == pytest.approx((abs(1 - 0.7) + abs(0 - 0.6)) / 2, rel=1e-5)
    assert measure(logits[:, :3], np.array([0, 1])).top5 is None


def test_agreement_counts_equal_first_answers() -> None:
    assert agreement(np.eye(4), np.eye(4)[[0, 1, 3, 2]]) == 0.5
