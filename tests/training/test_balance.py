"""Chosen shares of the pull: the formula, a real pair with a weight a thousand times off, and what is refused."""

import pytest
import torch
from torch import Tensor

from limbeck.distiller import Distiller
from limbeck.errors import UserError
from limbeck.gradients import Gradients
from limbeck.losses.names import parse_shares
from limbeck.models.cifar import create
from limbeck.training.balance import BOUND, Balancer, check_shares


def pair() -> Distiller:
    torch.manual_seed(0)
    models = create("resnet14", 5, input_size=(16, 16)), create("resnet8", 5, input_size=(16, 16))
    return Distiller(*models, "kd(weight=900.0)+reviewkd(weight=0.001)+manifold", task_weight=1.0).train()


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(16, 3, 16, 16, generator=generator), torch.arange(16) % 5


def measured(distiller: Distiller, lengths: dict[str, float]) -> Gradients:
    return Gradients(lengths, dict.fromkeys(lengths, 1.0), {})


def shares(distiller: Distiller, inputs: tuple[Tensor, Tensor]) -> dict[str, float]:
    norms = distiller.gradient_norms(*inputs)
    return {name: norm / sum(norms.values()) for name, norm in norms.items()}


def test_after_one_measurement_the_shares_are_what_was_asked_and_the_rest_keeps_its_proportions() -> None:
    distiller = pair()
    inputs = batch(0)
    before = shares(distiller, inputs)
    assert before["kd"] > 0.99
    balancer = Balancer(distiller, {"kd": 0.5, "reviewkd": 0.2})
    distiller.set_factors(balancer.factors(distiller.measure_gradients(*inputs)))
    after = shares(distiller, inputs)
    assert after["kd"] == pytest.approx(0.5, abs=1e-4)
    assert after["reviewkd"] == pytest.approx(0.2, abs=1e-4)
    assert after["task"] / after["manifold"] == pytest.approx(before["task"] / before["manifold"], rel=1e-3)


def test_while_the_student_learns_the_shares_stay_near_what_was_asked() -> None:
    distiller = pair()
    balancer = Balancer(distiller, {"kd": 0.5, "reviewkd": 0.3})
    optimizer = torch.optim.SGD([p for _, p in distiller.trained_parameters()], lr=0.01, momentum=0.9)
    seen = []
    for step in range(12):
        if step % 2 == 0:
            distiller.set_factors(balancer.factors(distiller.measure_gradients(*batch(step))))
        terms = distiller(*batch(100 + step))
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
        seen.append(shares(distiller, batch(200 + step)))  # images that were not measured
    last = {name: sum(share[name] for share in seen[-6:]) / 6 for name in seen[0]}
    assert last["kd"] == pytest.approx(0.5, abs=0.1)
    assert last["reviewkd"] == pytest.approx(0.3, abs=0.1)


def test_without_anything_else_shares_are_relative_and_the_whole_pull_is_kept() -> None:
    torch.manual_seed(0)
    models = create("resnet14", 5, input_size=(16, 16)), create("resnet8", 5, input_size=(16, 16))
    distiller = Distiller(*models, "kd+reviewkd", task_loss=None)
    balancer = Balancer(distiller, check_shares({"kd": 0.2, "reviewkd": 0.6}, distiller))
    factors = balancer.factors(measured(distiller, {"kd": 10.0, "reviewkd": 1.0}))
    pulls = {"kd": 0.9 * factors["kd"] * 10.0, "reviewkd": factors["reviewkd"] * 1.0}
    assert pulls["reviewkd"] / pulls["kd"] == pytest.approx(3)
    assert sum(pulls.values()) == pytest.approx(0.9 * 10 + 1)


def test_measurements_are_smoothed_in_their_logarithm_and_factors_are_bounded() -> None:
    distiller = pair()
    balancer = Balancer(distiller, {"kd": 0.5})
    lengths = {"task": 1.0, "kd": 1.0, "reviewkd": 0.0, "manifold": 0.0}
    first = balancer.factors(measured(distiller, lengths))["kd"]
    assert first * 900 == pytest.approx(1)
    second = balancer.factors(measured(distiller, lengths | {"kd": 10.0}))["kd"]
    assert second == pytest.approx(first * 10 ** -(1 - 0.7))
    tiny = Balancer(distiller, {"reviewkd": 0.5}).factors(measured(distiller, {"task": 1.0, "reviewkd": 1e-9}))
    assert tiny["reviewkd"] == BOUND


def test_a_term_without_gradient_keeps_its_factor() -> None:
    distiller = pair()
    balancer = Balancer(distiller, {"kd": 0.5, "reviewkd": 0.2})
    found = balancer.factors(measured(distiller, {"task": 3.0, "kd": 1.0, "reviewkd": 0.0}))
    assert "reviewkd" not in found
    assert found["kd"] * 900 == pytest.approx(0.5 * 3 / 0.3)
    assert Balancer(distiller, {"kd": 0.5}).factors(measured(distiller, {"task": 3.0, "kd": 0.0})) == {}


def test_warm_up_still_multiplies() -> None:
    torch.manual_seed(0)
    models = create("resnet14", 5, input_size=(16, 16)), create("resnet8", 5, input_size=(16, 16))
    distiller = Distiller(*models, "reviewkd(warmup_epochs=10)")
    distiller.set_factors({"reviewkd": 3.0})
    assert distiller.loss_weights.item() == 0
    distiller.set_epoch(5)
    assert distiller.loss_weights.item() == pytest.approx(1.5)
    distiller.set_epoch(20)
    assert distiller.current_weights == {"reviewkd": 3.0}


def test_the_state_is_plain_and_goes_on_where_it_was() -> None:
    distiller, other = pair(), pair()
    first = Balancer(distiller, {"kd": 0.5})
    distiller.set_factors(first.factors(measured(distiller, {"task": 3.0, "kd": 1.0})))
    second = Balancer(other, {"kd": 0.5})
    second.load_state_dict(first.state_dict())
    assert other.current_weights == distiller.current_weights
    new = measured(distiller, {"task": 2.0, "kd": 4.0})
    assert first.factors(new) == second.factors(new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kd", "cannot be read"),
        ("kd=half", "cannot be read"),
        ("kd=0", "cannot be read"),
        ("kd=-0.1", "cannot be read"),
        ("kd=0.5,kd=0.1", "names kd twice"),
        ("kd=0.7,vitkd=0.4", r"add up to 1\.1"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_shares(text)


def test_shares_are_read_and_checked_against_the_method() -> None:
    assert parse_shares("kd=0.5, kd#2=0.25") == {"kd": 0.5, "kd#2": 0.25}
    distiller = pair()
    assert check_shares({"kd": 0.5}, distiller) == {"kd": 0.5}
    with pytest.raises(UserError, match=r"names vitkd.*The terms are kd, reviewkd, manifold"):
        check_shares({"vitkd": 0.5}, distiller)
    with pytest.raises(UserError, match=r"names task.*keeps what the others leave"):
        check_shares({"task": 0.5}, distiller)
    with pytest.raises(UserError, match=r"100 % of the pull, and nothing is left for task, manifold"):
        check_shares({"kd": 0.5, "reviewkd": 0.5}, distiller)
    silent = Distiller(distiller.teacher, distiller.student, "kd(weight=0.0)")
    with pytest.raises(UserError, match="kd, whose weight is 0"):
        check_shares({"kd": 0.5}, silent)
