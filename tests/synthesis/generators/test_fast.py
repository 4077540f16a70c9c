"""Fast-DFKD's meta-learning."""

import copy

import torch
from torch import Tensor, nn

from limbeck.synthesis.base import Setting
from limbeck.synthesis.generators.crops import random_shifts
from limbeck.synthesis.generators.fast import Fast, add_gradients, pull_towards
from limbeck.synthesis.generators.networks import ConvGenerator


def small(setting: Setting, **options: float | str | None) -> Fast:
    return Fast(setting, **{"latent": 8, "channels": 4, "g_steps": 3, "bn": 0.0, "adv": 0.0, "oh": 1.0, **options})  # type: ignore[arg-type]


def parameters(network: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def test_the_generator_takes_the_clones_gradients_as_the_slow_formulation_says(setting: Setting) -> None:
    way = small(setting)
    generator = way.networks["generator"]
    assert isinstance(generator, ConvGenerator)
    start = copy.deepcopy(generator)
    # A plain step of the generator, so that its change is the accumulated gradient itself.
    way.optimizers["meta"] = torch.optim.SGD(generator.parameters(), lr=1.0)
    way.grow(None, 0)

    asked = way.asked(0, 8)
    with way.seeded("fast", 0):
        z = torch.randn(8, 8).requires_grad_()
        clone = copy.deepcopy(start)
        of_clone = torch.optim.Adam(clone.parameters(), way.lr_g, (0.5, 0.999))
        of_z = torch.optim.Adam([z], way.lr_z, (0.5, 0.999))
        total = [torch.zeros_like(parameter) for parameter in clone.parameters()]
        for _ in range(3):
            logits = setting.teacher(random_shifts(clone(z))).logits
            loss = nn.functional.cross_entropy(logits, asked)
            gradients = torch.autograd.grad(loss, [*clone.parameters(), z])
            for sum_, parameter, gradient in zip(total, clone.parameters(), gradients[:-1], strict=True):
                sum_ += gradient
                parameter.grad = gradient
            z.grad = gradients[-1]
            of_clone.step()
            of_z.step()
    for before, after, sum_ in zip(start.parameters(), generator.parameters(), total, strict=True):
        torch.testing.assert_close(after, before - sum_)


def test_the_two_ways_of_meta_learning() -> None:
    torch.manual_seed(0)
    generator, clone = nn.Linear(2, 1), nn.Linear(2, 1)
    for parameter in clone.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    add_gradients(generator, clone)
    add_gradients(generator, clone)
    assert all((parameter.grad == 4).all() for parameter in generator.parameters())
    assert all((parameter.grad == 2).all() for parameter in clone.parameters())
    pull_towards(generator, clone)
    # A gradient step of 1/67 arrives at the clone.
    for own, moved in zip(generator.parameters(), clone.parameters(), strict=True):
        assert own.grad is not None
        torch.testing.assert_close(own - own.grad / 67, moved.detach())


def test_reptile_moves_towards_the_clone(setting: Setting) -> None:
    way = small(setting, meta="reptile")
    before = parameters(way.networks["generator"])
    way.grow(None, 0)
    after = parameters(way.networks["generator"])
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_generators_rate_is_that_of_all_steps_together(setting: Setting) -> None:
    assert small(setting, lr_g=2e-3, g_steps=5).optimizers["meta"].param_groups[0]["lr"] == 0.01


def test_what_is_learned_helps_the_next_batches(setting: Setting) -> None:
    learning, fixed = (small(setting, lr_g=5e-3, bn=1.0, bn_momentum=0.0) for _ in range(2))
    fixed.optimizers["meta"] = torch.optim.SGD(fixed.networks["generator"].parameters(), lr=0.0)
    losses: dict[Fast, list[float]] = {learning: [], fixed: []}
    for way, own in losses.items():
        for round in range(10):
            way.grow(None, round)
            own.append(way.log()["loss"])
    # The same latent vectors, crops and first round; then every one is better.
    assert losses[learning][0] == losses[fixed][0]
    assert all(a < b for a, b in zip(losses[learning][1:], losses[fixed][1:], strict=True))
    assert sum(losses[learning][5:]) < 0.95 * sum(losses[fixed][5:])


def test_the_first_layer_starts_anew_once(setting: Setting) -> None:
    kept, reset = small(setting, reset_round=None), small(setting, reset_round=1)
    for way in (kept, reset):
        # Without a step of the generator, what remains is the reset.
        way.optimizers["meta"] = torch.optim.SGD(way.networks["generator"].parameters(), lr=0.0)
        way.grow(None, 0)
    before = {name: p.clone() for name, p in reset.networks["generator"].named_parameters()}
    for way in (kept, reset):
        way.grow(None, 1)
    changed = {name for name, p in reset.networks["generator"].named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"project.weight", "project.bias"}
    assert all(torch.equal(p, before[name]) for name, p in kept.networks["generator"].named_parameters())
