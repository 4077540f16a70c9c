"""ofa_kd: its formula, what γ does, where a student is left, and what the exits are made of."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.losses import OFAKD, build_losses, kd_loss, ofa_loss, parse_methods
from limbeck.losses.ofa_kd import AttentionExit, ConvolutionalExit
from limbeck.outputs import Level, Outputs


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_softmax(logits: list[float], temperature: float) -> list[float]:
    top = max(logits)
    powers = [math.exp((value - top) / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def slow(student: Tensor, teacher: Tensor, target: Tensor, gamma: float, temperature: float = 1.0) -> float:
    total = 0.0
    for own, other, truth in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True):
        s, t = slow_softmax(own, temperature), slow_softmax(other, temperature)
        for c in range(len(s)):
            true = 1.0 if c == truth else 0.0
            total -= ((t[c] + true) ** gamma - true) * math.log(s[c])
    return total / len(student)


@pytest.mark.parametrize("gamma", [1.0, 1.1, 1.5, 2.0])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_it_is_the_published_formula(gamma: float, temperature: float) -> None:
    student, teacher, target = random(4, 5), random(4, 5, seed=1), torch.tensor([0, 4, 2, 2])
    expected = slow(student, teacher, target, gamma, temperature)
    assert float(ofa_loss(student, teacher, target, gamma, temperature)) == pytest.approx(expected, rel=1e-12)


def test_known_vectors() -> None:
    """T = (3/4, 1/4), S = (1/2, 1/2), true class 0, γ = 2: ((7/4)² - 1 + 1/16) · log 2."""
    student, teacher = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    loss = ofa_loss(student, teacher, torch.tensor([0]), gamma=2.0)
    assert float(loss) == pytest.approx((49 / 16 - 1 + 1 / 16) * math.log(2), rel=1e-12)


def test_at_gamma_1_it_is_the_cross_entropy_of_kd_whatever_the_label() -> None:
    student, teacher = random(4, 5).requires_grad_(), random(4, 5, seed=1)
    soft = F.softmax(teacher, dim=1)
    entropy = -(soft * soft.log()).sum(1).mean()
    for target in (torch.tensor([0, 4, 2, 2]), torch.tensor([1, 1, 1, 1])):
        loss = ofa_loss(student, teacher, target)
        torch.testing.assert_close(loss, F.cross_entropy(student, soft))
        torch.testing.assert_close(loss, kd_loss(student, teacher, temperature=1.0) + entropy)
        gradients = [torch.autograd.grad(of, student)[0] for of in (loss, kd_loss(student, teacher, temperature=1.0))]
        torch.testing.assert_close(*gradients)


def test_a_larger_gamma_draws_the_student_to_the_true_class() -> None:
    teacher, target = random(4, 5, seed=1), torch.tensor([0, 4, 2, 2])
    shares = []
    for gamma in (1.0, 1.25, 1.5, 2.0):
        belief = (F.softmax(teacher, 1) + F.one_hot(target, 5)) ** gamma - F.one_hot(target, 5)
        optimum = belief / belief.sum(1, keepdim=True)
        student = optimum.log().requires_grad_()
        (gradient,) = torch.autograd.grad(ofa_loss(student, teacher, target, gamma), student)
        assert float(gradient.abs().max()) < 1e-12
        shares.append(optimum.gather(1, target.unsqueeze(1)).mean().item())
    assert shares == sorted(shares) and shares[-1] > shares[0] + 0.05


def test_of_a_soft_label_the_likeliest_class_is_the_true_one() -> None:
    student, teacher = random(3, 5), random(3, 5, seed=1)
    soft = torch.tensor([[0.6, 0.4, 0, 0, 0], [0, 0, 0.3, 0.7, 0], [0.05, 0.05, 0.05, 0.05, 0.8]])
    torch.testing.assert_close(
        ofa_loss(student, teacher, soft, 1.5), ofa_loss(student, teacher, torch.tensor([0, 3, 4]), 1.5)
    )


def test_the_gradient_is_the_students_alone_right_and_finite_at_extremes() -> None:
    student, teacher, target = random(3, 4).requires_grad_(), random(3, 4, seed=1).requires_grad_(), torch.arange(3)
    ofa_loss(student, teacher, target, 1.5).backward()
    assert teacher.grad is None and student.grad is not None
    assert torch.autograd.gradcheck(lambda s: ofa_loss(s, teacher.detach(), target, 1.5), student)
    extreme = torch.tensor([[-1e4, 1e4, 0.0, 0.0]], requires_grad=True)
    loss = ofa_loss(extreme, -extreme.detach(), torch.tensor([0]), 1.5)
    loss.backward()
    assert loss.isfinite() and extreme.grad is not None and extreme.grad.isfinite().all()


def test_half_precision_is_promoted() -> None:
    student, teacher, target = random(3, 5).float(), random(3, 5, seed=1).float(), torch.arange(3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ofa_loss(student.bfloat16(), teacher.bfloat16(), target, 1.5)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ofa_loss(student, teacher, target, 1.5), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("depth", "places"),
    [
        (12, (1, 3, 9, 11)),
        (24, (3, 7, 19, 23)),
        (6, (0, 1, 4, 5)),
        (5, (0, 1, 3, 4)),
        (4, (0, 1, 2, 3)),
        (2, (0, 1)),
    ],
)
def test_a_transformer_is_left_at_the_published_shares_of_its_depth(depth: int, places: tuple[int, ...], plain) -> None:
    loss = OFAKD(plain(depth=depth), plain())
    assert loss.exit_names == tuple(f"blocks.{place}" for place in places)
    assert loss.matches_blocks


def test_the_exits_of_a_transformer(plain) -> None:
    """3, 2, 1 and 1 blocks of 4 heads on about 7x7 patches; a width that 4 does not divide is rounded up."""
    loss = OFAKD(plain(width=10, grid=14), plain())
    assert [len(leave.blocks) for leave in loss.exits] == [3, 2, 1, 1]
    assert all(isinstance(leave, AttentionExit) and leave.merged == (2, 2) for leave in loss.exits)
    assert all(block.self_attn.num_heads == 4 for leave in loss.exits for block in leave.blocks)
    assert loss.exits[0].head.in_features == 12
    for grid, merged in (((14, 14), (2, 2)), ((37, 37), (5, 5)), ((4, 10), (1, 1)), ((7, 28), (1, 4))):
        leave = AttentionExit(Level("blocks.0", 8, 16, grid, "block"), 1, 5)
        assert leave.merged == merged
        seen: list[torch.Size] = []
        leave.blocks.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].shape))
        assert leave(torch.rand(2, 8, *grid)).shape == (2, 5)
        assert seen[0][1] == math.ceil(grid[0] / merged[0]) * math.ceil(grid[1] / merged[1])


def test_the_exits_of_a_convolutional_network(pyramid) -> None:
    """As many halvings as lead to the last stage's grid, doubling the width up to the last stage's."""
    loss = OFAKD(pyramid(channels=(4, 8, 16, 20, 24), grids=(16, 8, 4, 2, 1), side=16), pyramid())
    assert loss.exit_names == ("stages.1", "stages.2", "stages.3", "stages.4")
    assert all(isinstance(leave, ConvolutionalExit) for leave in loss.exits)
    assert [len(leave.layers) for leave in loss.exits] == [3, 2, 1, 0]
    assert [leave.head.in_features for leave in loss.exits] == [24, 24, 24, 24]
    for leave, (channels, side) in zip(loss.exits, ((8, 8), (16, 4), (20, 2), (24, 1)), strict=True):
        given = torch.rand(2, channels, side, side)
        assert leave.layers(given).shape[2:] == (1, 1)
        assert leave(given).shape == (2, 5)
        depthwise = [layer for layer in leave.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]
        assert all(layer.groups == layer.in_channels and layer.stride == (2, 2) for layer in depthwise)
    last = loss.exits[-1]
    given = torch.rand(2, 24, 1, 1)
    torch.testing.assert_close(last(given), last.head(given.mean((2, 3))))
    odd = OFAKD(pyramid(channels=(4, 6), grids=(7, 4), side=28), pyramid())
    assert [len(leave.layers) for leave in odd.exits] == [1, 0]


@pytest.mark.parametrize("family", ["plain", "pyramid"])
def test_the_method_is_the_weighted_sum_over_head_and_exits(family: str, plain, pyramid, make_outputs) -> None:
    student, teacher = (plain(), pyramid()) if family == "plain" else (pyramid(), plain())
    loss = OFAKD(student, teacher, gamma=1.5, temperature=2.0, head_weight=0.5, exit_weight=0.25).double().eval()
    own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
    assert loss.teacher_request.levels == ()
    target = torch.tensor([0, 4, 2])
    expected = 0.5 * slow(own.logits, other.logits, target, 1.5, 2.0)
    for name, leave in zip(loss.exit_names, loss.exits, strict=True):
        expected += 0.25 * slow(leave(own.maps[name]), other.logits, target, 1.5, 2.0)
    value = loss(own, other, target)
    assert value.item() == pytest.approx(expected, rel=1e-10)
    value.backward()
    assert other.logits.grad is None
    assert all(of.grad is not None and of.grad.any() for of in (own.logits, *own.maps.values()))
    idle = [name for name, p in loss.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_defaults_and_levels_by_name(plain) -> None:
    (built,) = build_losses(parse_methods("ofa_kd"), plain(), plain())
    loss = built.module
    assert (built.weight, loss.default_task_weight) == (1.0, 1.0)
    assert (loss.gamma, loss.temperature, loss.head_weight, loss.exit_weight) == (1.0, 1.0, 1.0, 1.0)
    assert loss.notes == ("ofa_kd: early exits of the student at blocks.1, blocks.3, blocks.9, blocks.11.",)
    (built,) = build_losses(parse_methods("ofa_kd(levels=['blocks.2'])"), plain(), plain())
    assert built.module.exit_names == ("blocks.2",)


def test_what_it_cannot_do_is_refused(plain, pyramid, detector, make_outputs) -> None:
    facts = plain()
    for text, message in (
        ("gamma=0.9", "gamma is 0.9; it must be at least 1"),
        ("temperature=0.0", "temperature is 0"),
        ("exit_weight=-1.0", "exit_weight is -1"),
        ("levels=['blocks.12']", "no level 'blocks.12'"),
        ("levels=[]", "levels is an empty list"),
    ):
        with pytest.raises(UserError, match=message):
            build_losses(parse_methods(f"ofa_kd({text})"), facts, facts)
    with pytest.raises(UserError, match="ofa_kd compares what classifiers say"):
        OFAKD(detector(), detector())
    with pytest.raises(UserError, match="has 7 classes and"):
        OFAKD(facts, plain(num_classes=7))
    loss = OFAKD(facts, facts)
    with pytest.raises(UserError, match="reads the label of every image"):
        loss(make_outputs(facts, loss.student_request), make_outputs(facts, loss.teacher_request))
    small = pyramid(channels=(4, 8), grids=(2, 1), side=8)
    loss = OFAKD(small, small).double()
    own = make_outputs(small, loss.student_request, batch=1)
    with pytest.raises(UserError, match="this batch has 1 image, whose map ends as 1x1"):
        loss(own, Outputs(own.logits.detach()), torch.tensor([0]))
    assert loss.eval()(own, Outputs(own.logits.detach()), torch.tensor([0])).isfinite()
