import numpy as np
import pytest

from limbeck.reporting.calibration import expected_calibration_error, reliability, softmax


def with_confidence(confidences):
    """Two-class probabilities whose top answer is class 0 with these confidences (all above one half)."""
    top = np.asarray(confidences)
    return np.stack([top, 1 - top], axis=1)


def test_a_model_right_as_often_as_it_claims_has_no_error():
    # Four groups; in each, exactly the claimed share of answers is right.
    confidences = np.repeat([0.6, 0.7, 0.8, 0.9], 10)
    labels = np.concatenate([np.r_[np.zeros(right), np.ones(10 - right)] for right in (6, 7, 8, 9)]).astype(int)
    assert expected_calibration_error(with_confidence(confidences), labels) == pytest.approx(0, abs=1e-12)


def test_known_value():
    # Bin (0.8, 1]: 3 images at 0.9, one right: |1/3 - 0.9|; bin (0.6, 0.8]: 1 image at 0.7, right: |1 - 0.7|.
    diagram = reliability(with_confidence([0.9, 0.9, 0.9, 0.7]), np.array([0, 1, 1, 0]), bins=5)
    assert diagram.error == pytest.approx(3 / 4 * (0.9 - 1 / 3) + 1 / 4 * 0.3)
    assert diagram.counts.tolist() == [0, 0, 0, 1, 3]
    assert diagram.accuracy[3:] == pytest.approx([1, 1 / 3])
    assert np.isnan(diagram.accuracy[:3]).all()


def test_with_one_bin_the_error_is_mean_confidence_less_accuracy():
    rng = np.random.default_rng(0)
    probabilities, labels = softmax(rng.normal(size=(200, 7)) * 3), rng.integers(0, 7, 200)
    gap = probabilities.max(1).mean() - (probabilities.argmax(1) == labels).mean()
    assert expected_calibration_error(probabilities, labels, bins=1) == pytest.approx(abs(gap))


def test_bins_are_closed_on_the_right_and_lose_no_image():
    diagram = reliability(with_confidence([0.6, 0.6 + 1e-9, 1.0]), np.zeros(3, int), bins=5)
    assert diagram.counts.tolist() == [0, 0, 1, 1, 1]


def test_order_of_images_and_of_classes_does_not_matter():
    rng = np.random.default_rng(1)
    probabilities, labels = softmax(rng.normal(size=(100, 5))), rng.integers(0, 5, 100)
    images, classes = rng.permutation(100), rng.permutation(5)
    permuted = expected_calibration_error(probabilities[images][:, classes], np.argsort(classes)[labels[images]])
    assert permuted == pytest.approx(expected_calibration_error(probabilities, labels))


def test_softmax_ignores_a_common_shift_and_does_not_overflow():
    logits = np.array([[0.0, np.log(3.0)], [1000.0, 1000.0 + np.log(3.0)]])
    assert softmax(logits) == pytest.approx(np.array([[0.25, 0.75], [0.25, 0.75]]))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="labels"):
        reliability(np.ones((3, 2)) / 2, np.zeros(4, int))
