"""Schedules and weight decay are what their formulas say."""

import math

import pytest
import torch
from torch import nn

from limbeck.models.cifar import create
from limbeck.recipe import TrainRecipe
from limbeck.training.optimisers import lr_factor, make_optimizer, make_scheduler


def recipe(**options: object) -> TrainRecipe:
    defaults: dict[str, object] = {
        "lr": 0.1,
        "weight_decay": 0.01,
        "decay_norms": False,
        "warmup_epochs": 0.0,
        "step_epochs": [60.0],
        "epochs": 100,
    }
    return TrainRecipe(model="m", data="d", **{**defaults, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("epoch", "factor"), [(0, 1.0), (50, 0.505), (100, 0.01), (25, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 4)))]
)
def test_cosine(epoch: float, factor: float) -> None:
    assert lr_factor(recipe(schedule="cosine"), epoch) == pytest.approx(factor)


def test_warm_up_is_linear_and_meets_the_schedule() -> None:
    warm = recipe(schedule="cosine", warmup_epochs=10.0)
    assert lr_factor(warm, 0) == pytest.approx(1e-3)
    assert lr_factor(warm, 5) == pytest.approx(0.5005)
    assert lr_factor(warm, 10) == pytest.approx(1.0)
    assert lr_factor(warm, 100) == pytest.approx(0.01)


def test_the_published_step_schedule() -> None:
    published = recipe(schedule="step", step_epochs=[150.0, 180.0, 210.0], epochs=240)
    observed = [lr_factor(published, epoch) for epoch in (0, 149.9, 150, 180, 210, 239)]
    assert observed == pytest.approx([1, 1, 0.1, 0.01, 0.001, 0.001])


def test_the_rate_moves_with_every_update() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = make_scheduler(optimizer, recipe(schedule="cosine", epochs=10), updates_per_epoch=4)
    for _ in range(20):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * lr_factor(recipe(epochs=10), 5))


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
@pytest.mark.parametrize("decay_norms", [True, False])
def test_weight_decay_spares_vectors_unless_asked(name: str, decay_norms: bool) -> None:
    model = create("resnet8", 10)
    optimizer = make_optimizer(model.named_parameters(), recipe(optimizer=name, decay_norms=decay_norms))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] > 0) == (decay_norms or parameter.ndim > 1)
