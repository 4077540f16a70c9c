"""Statistics gathered batch by batch, and features of equal variance: by channel, and by PHI-S at any width."""

import copy

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.feature_scale import Moments, Standardiser, fit_all
from limbeck.losses.phi_s import equalising_rotation, hadamard, phi_s_rotation

WIDTHS = (1, 2, 3, 5, 6, 7, 12, 14, 15, 16, 20, 28, 44, 49, 52, 100, 192, 130)


def features(count: int = 600, width: int = 6, seed: int = 0) -> Tensor:
    """Correlated, far from the origin, one channel a hundred times as large."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    found = torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + 50
    found[:, 0] *= 100
    return found


@pytest.mark.parametrize("whole", [True, False])
def test_moments_of_batches_are_those_of_all(whole: bool) -> None:
    given = features()
    moments = Moments(6, whole=whole)
    for batch in given.split([1, 99, 500]):
        moments.add(batch.reshape(-1, 1, 6))
    moments.add(given[:0])
    covariance = torch.cov(given.T, correction=0)
    assert moments.count == 600
    torch.testing.assert_close(moments.mean, given.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.covariance, covariance if whole else covariance.diagonal(), rtol=1e-10, atol=0)


def test_moments_do_not_cancel_far_from_the_origin() -> None:
    moments = Moments(1, whole=False)
    for batch in (1e8 + features(width=1)).split(100):
        moments.add(batch)
    torch.testing.assert_close(moments.covariance, features(width=1).var(0, correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("how", ["channel", "phi_s"])
@pytest.mark.parametrize("width", [5, 6, 8, 12, 40])
def test_every_channel_gets_mean_0_and_variance_1(how: str, width: int) -> None:
    given = features(width=width)
    standardiser = Standardiser(width, how, "mine").double()
    fit_all([standardiser], [[batch] for batch in given.split(70)])
    scaled = standardiser(given)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(width, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(scaled.var(0, correction=0), torch.ones(width, dtype=torch.float64), rtol=1e-8, atol=0)


def test_phi_s_keeps_proportions_and_can_be_undone() -> None:
    given = features(width=7)
    standardiser = Standardiser(7, "phi_s", "mine").double()
    fit_all([standardiser], [[given]])
    scaled = standardiser(given)
    back = scaled * standardiser.spread @ standardiser.rotation + standardiser.mean
    torch.testing.assert_close(back, given)
    # A rotation and one divisor: every distance shrinks alike.
    torch.testing.assert_close(torch.pdist(scaled[:20]) * standardiser.spread, torch.pdist(given[:20]))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_rotation_evens_out_any_variances_at_any_width(width: int) -> None:
    variances = torch.rand(width, generator=torch.Generator().manual_seed(width), dtype=torch.float64) ** 6
    for given in (variances, torch.ones_like(variances), torch.eye(width, dtype=torch.float64)[0]):
        rotation = equalising_rotation(given)
        one = torch.eye(width, dtype=torch.float64)
        torch.testing.assert_close(rotation @ rotation.T, one, rtol=0, atol=1e-12)
        diagonal = (rotation @ torch.diag(given) @ rotation.T).diagonal()
        torch.testing.assert_close(diagonal, given.mean().expand(width), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 64, 96, 160, 192, 320, 384, 576, 640, 768, 1024])
def test_hadamard_matrices_have_entries_of_one_size(order: int) -> None:
    matrix = hadamard(order)
    assert matrix is not None
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, order**-0.5), rtol=1e-12, atol=0)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(order, dtype=torch.float64), rtol=0, atol=1e-12)


def test_small_hadamard_matrices() -> None:
    signs = (hadamard(4) * 2).round().int().tolist()
    assert signs == [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    assert all(hadamard(order) is None for order in (3, 5, 6, 10, 14, 15, 100))


def test_phi_s_of_a_deficient_covariance_is_finite() -> None:
    covariance = torch.zeros(6, 6, dtype=torch.float64)
    covariance[2, 2] = 3.0
    rotation, scale = phi_s_rotation(covariance)
    assert float(scale) == pytest.approx(0.5**0.5)
    torch.testing.assert_close((rotation @ covariance @ rotation.T).diagonal(), torch.full((6,), 0.5).double())


def test_a_channel_that_hardly_stirs_does_not_explode() -> None:
    given = features(width=3)
    given[:, 1] = 7.0
    standardiser = Standardiser(3, "channel", "mine").double()
    fit_all([standardiser], [[given]])
    later = given[:1].clone()
    later[:, 1] += float(given.std(0, correction=0).mean()) / 10
    assert float(standardiser(later)[0, 1]) == pytest.approx(10.0)


def test_what_cannot_be_measured_is_refused() -> None:
    standardiser = Standardiser(3, "channel", "mine")
    with pytest.raises(UserError, match="mine was given 0 features"):
        fit_all([standardiser], [])
    with pytest.raises(UserError, match="not finite"):
        fit_all([standardiser], [[torch.full((4, 3), float("nan"))]])
    assert not standardiser.ready


def test_state_and_copies_remember_that_they_are_ready() -> None:
    given = features(width=4).float()
    first = Standardiser(4, "channel", "mine")
    fit_all([first], [[given]])
    second = Standardiser(4, "channel", "mine")
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(given), first(given)) and torch.equal(copy.deepcopy(first)(given), first(given))
    assert first(given.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("how", ["channel", "phi_s"])
@pytest.mark.parametrize("rows", [1, 20])
def test_features_that_do_not_vary_are_refused(how: str, rows: int) -> None:
    standardiser = Standardiser(4, how, "feature_kd")
    moments = standardiser.moments()
    moments.add(torch.full((rows, 4), 3.7))
    with pytest.raises(UserError, match="feature_kd"):
        standardiser.fit(moments)
