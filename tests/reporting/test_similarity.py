import numpy as np
import pytest

from limbeck.reporting.similarity import linear_cka


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 8)), rng.normal(size=(60, 5))


def test_features_are_alike_to_themselves(features):
    x, _ = features
    assert linear_cka(x, x) == pytest.approx(1)


def test_rotation_scale_and_shift_change_nothing(features):
    x, y = features
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))
    assert linear_cka(7.5 * x @ rotation + 3, y) == pytest.approx(linear_cka(x, y))
    assert linear_cka(x @ rotation, x) == pytest.approx(1)


def test_a_general_linear_map_does_change_it(features):
    x, y = features
    assert abs(linear_cka(x @ np.diag([100, 1, 1, 1, 1, 1, 1, 1]), y) - linear_cka(x, y)) > 1e-3


def test_it_is_symmetric_and_blind_to_the_order_of_images(features):
    x, y = features
    order = np.random.default_rng(2).permutation(60)
    assert linear_cka(y, x) == pytest.approx(linear_cka(x, y))
    assert linear_cka(x[order], y[order]) == pytest.approx(linear_cka(x, y))


def test_one_feature_each_gives_the_squared_correlation(features):
    x, y = features
    assert linear_cka(x[:, :1], y[:, :1]) == pytest.approx(np.corrcoef(x[:, 0], y[:, 0])[0, 1] ** 2)


def test_uncorrelated_features_are_unlike():
    x, y = np.array([[1.0], [1.0], [-1.0], [-1.0]]), np.array([[1.0], [-1.0], [1.0], [-1.0]])
    assert linear_cka(x, y) == 0


def test_both_forms_give_the_same_number():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(20, 19)), rng.normal(size=(20, 6))
    # Features that are always zero change nothing but which of the two forms is taken.
    widened = np.concatenate([x, np.zeros((20, 30))], axis=1)
    assert linear_cka(widened, y) == pytest.approx(linear_cka(x, y))


def test_constant_features_have_no_similarity():
    assert np.isnan(linear_cka(np.ones((5, 2)), np.arange(5.0)[:, None]))


def test_other_images_are_refused():
    with pytest.raises(ValueError, match="same N"):
        linear_cka(np.ones((4, 2)), np.ones((5, 2)))
