"""pkd, cwd, fitnets and mgd: their formulas, and how they pair and align the levels of two models."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import (
    CWD,
    MGD,
    PKD,
    FitNets,
    MGDLoss,
    build_losses,
    cwd_loss,
    fitnets_loss,
    parse_methods,
    pkd_loss,
)
from limbeck.losses.fitnets import HintRegressor
from limbeck.models.cifar import create

Loss = Callable[[Tensor, Tensor], Tensor]
PURE: dict[str, Loss] = {"pkd": pkd_loss, "cwd": cwd_loss, "fitnets": fitnets_loss}
CLASSES = {"pkd": PKD, "cwd": CWD, "fitnets": FitNets, "mgd": MGDLoss}


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def slow_pkd(student: Tensor, teacher: Tensor) -> float:
    channels = student.shape[1]
    total = 0.0
    for c in range(channels):
        s, t = student[:, c].flatten().tolist(), teacher[:, c].flatten().tolist()
        mean_s, mean_t = sum(s) / len(s), sum(t) / len(t)
        covariance = sum((a - mean_s) * (b - mean_t) for a, b in zip(s, t, strict=True))
        squares = sum((a - mean_s) ** 2 for a in s) * sum((b - mean_t) ** 2 for b in t)
        total += 1 - covariance / math.sqrt(squares)
    return total / channels


def slow_cwd(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> float:
    batch, channels = student.shape[:2]
    total = 0.0
    for b in range(batch):
        for c in range(channels):
            s, t = (m[b, c].flatten().div(temperature).exp().tolist() for m in (student, teacher))
            for a, d in zip(s, t, strict=True):
                total += d / sum(t) * math.log((d / sum(t)) / (a / sum(s)))
    return temperature**2 * total / (batch * channels)


def slow_fitnets(student: Tensor, teacher: Tensor) -> float:
    squares = [(a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)]
    return sum(squares) / len(squares)


@pytest.mark.parametrize(("name", "slow"), [("pkd", slow_pkd), ("cwd", slow_cwd), ("fitnets", slow_fitnets)])
def test_equals_a_slow_loop_on_maps_that_are_not_square(name: str, slow: Callable[[Tensor, Tensor], float]) -> None:
    student, teacher = 2 * features(3, 4, 2, 5) + 1, features(3, 4, 2, 5, seed=1)
    assert PURE[name](student, teacher).item() == pytest.approx(slow(student, teacher), rel=1e-10)


@pytest.mark.parametrize("name", PURE)
def test_equal_maps_cost_nothing_and_others_something(name: str) -> None:
    maps = features(2, 3, 4, 4)
    assert PURE[name](maps, maps).item() == pytest.approx(0, abs=1e-12)
    assert PURE[name](maps, features(2, 3, 4, 4, seed=1)) > 0.01


@pytest.mark.parametrize("name", PURE)
def test_gradients_match_finite_differences_and_the_teacher_has_none(name: str) -> None:
    student, teacher = features(2, 2, 2, 3).requires_grad_(), features(2, 2, 2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: PURE[name](s, teacher), (student,))
    PURE[name](student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("name", ["cwd", "fitnets"])
def test_a_batch_costs_the_mean_of_its_images(name: str) -> None:
    student, teacher = features(5, 3, 4, 2), features(5, 3, 4, 2, seed=1)
    alone = [PURE[name](student[i : i + 1], teacher[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(PURE[name](student, teacher), torch.stack(alone).mean())


@pytest.mark.parametrize("name", PURE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted_before_the_formula(name: str, dtype: torch.dtype) -> None:
    # Squares of 300 are beyond float16's 65504.
    student, teacher = (300 * features(2, 3, 8, 8, seed=seed).to(dtype) for seed in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = PURE[name](student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), PURE[name](student.double(), teacher.double()), rtol=1e-5, atol=0)


def test_pkd_known_values() -> None:
    maps = features(2, 3, 4, 4)
    assert pkd_loss(-maps, maps).item() == pytest.approx(2)
    ramp, bump = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3), torch.tensor([1.0, -2.0, 1.0]).view(1, 1, 1, 3)
    assert pkd_loss(ramp, bump).item() == pytest.approx(1)
    assert pkd_loss(ramp, torch.tensor([0.0, 0.0, 1.0]).view(1, 1, 1, 3)).item() == pytest.approx(1 - math.sqrt(3) / 2)


def test_pkd_ignores_each_channels_scale_and_offset_in_both_maps() -> None:
    student, teacher = features(2, 3, 4, 4), features(2, 3, 4, 4, seed=1)
    scale, offset = torch.tensor([0.01, 3.0, 700.0]).view(3, 1, 1), torch.tensor([-5.0, 0.0, 40.0]).view(3, 1, 1)
    expected = pkd_loss(student, teacher)
    torch.testing.assert_close(pkd_loss(scale * student + offset, teacher), expected)
    torch.testing.assert_close(pkd_loss(student, scale * teacher + offset), expected)
    assert not torch.isclose(pkd_loss(-scale * student, teacher), expected)


def test_pkd_gradient_is_orthogonal_to_scale_and_offset_of_each_channel() -> None:
    student = features(2, 3, 4, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(pkd_loss(student, features(2, 3, 4, 4, seed=1)), student)
    assert gradient.abs().max() > 1e-4
    torch.testing.assert_close(gradient.sum((0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close((gradient * student).sum((0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-10)


def test_pkd_reads_the_whole_batch_but_not_its_size() -> None:
    student, teacher = features(4, 3, 2, 2), features(4, 3, 2, 2, seed=1)
    value = pkd_loss(student, teacher)
    torch.testing.assert_close(pkd_loss(student.repeat(3, 1, 1, 1), teacher.repeat(3, 1, 1, 1)), value)
    halves = torch.stack([pkd_loss(s, t) for s, t in zip(student.split(2), teacher.split(2), strict=True)])
    assert not torch.isclose(halves.mean(), value)


def test_pkd_of_constant_channels_is_finite_with_finite_gradients() -> None:
    varying = features(2, 1, 2, 2, dtype=torch.float32)
    constant = torch.full_like(varying, 3.0)
    for student, teacher, value in [(varying, constant, 0.5), (constant, varying, 0.5), (constant, constant, 0.0)]:
        own = student.clone().requires_grad_()
        loss = pkd_loss(own, teacher)
        loss.backward()
        assert loss.item() == pytest.approx(value, abs=1e-6)
        assert own.grad.isfinite().all()


def test_pkd_refuses_a_single_value_per_channel() -> None:
    with pytest.raises(UserError, match="pkd standardises each channel"):
        pkd_loss(torch.zeros(1, 4, 1, 1), torch.zeros(1, 4, 1, 1))
    assert pkd_loss(features(2, 4, 1, 1), features(2, 4, 1, 1)).item() == pytest.approx(0, abs=1e-9)


def test_cwd_known_value() -> None:
    student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([0.0, math.log(3)]).view(1, 1, 1, 2)
    # The teacher's channel is (1/4, 3/4), the student's (1/2, 1/2).
    assert cwd_loss(student, teacher).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-6)


def test_cwd_ignores_a_constant_added_to_each_channel_of_each_image() -> None:
    student, teacher = features(2, 3, 4, 4), features(2, 3, 4, 4, seed=1)
    offset = 50 * features(2, 3, 1, 1, seed=2)
    torch.testing.assert_close(cwd_loss(student + offset, teacher), cwd_loss(student, teacher))
    torch.testing.assert_close(cwd_loss(student, teacher + offset), cwd_loss(student, teacher))


def test_cwd_temperature() -> None:
    student, teacher = features(2, 3, 4, 4), features(2, 3, 4, 4, seed=1)
    value = cwd_loss(student, teacher, 2.5).item()
    assert value == pytest.approx(slow_cwd(student, teacher, 2.5), rel=1e-10)
    assert value == pytest.approx(2.5**2 * cwd_loss(student / 2.5, teacher / 2.5).item(), rel=1e-10)
    # For large τ, half the mean squared difference of the maps centred in each channel.
    centred = (student - teacher) - (student - teacher).mean((2, 3), keepdim=True)
    assert cwd_loss(student, teacher, 1e4).item() == pytest.approx(centred.square().mean().item() / 2, rel=1e-3)


def test_cwd_gradient_is_the_difference_of_the_distributions() -> None:
    student, teacher = features(2, 3, 4, 4).requires_grad_(), features(2, 3, 4, 4, seed=1)
    (gradient,) = torch.autograd.grad(cwd_loss(student, teacher, 2.0), student)
    difference = (student / 2).flatten(2).softmax(2) - (teacher / 2).flatten(2).softmax(2)
    torch.testing.assert_close(gradient.flatten(2), 2.0 / 6 * difference.detach())


def silent(module: MGD) -> MGD:
    """The generator's output forced to zero."""
    torch.nn.init.zeros_(module.generator[2].weight)
    torch.nn.init.zeros_(module.generator[2].bias)
    return module


def remember(module: torch.nn.Module, kept: list[Tensor]) -> None:
    module.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach()))


@pytest.mark.parametrize("batch", [1, 5])
def test_mgd_is_a_sum_divided_by_the_batch_alone(batch: int) -> None:
    module = silent(MGD(3, 4, alpha=2e-5))
    loss = module(features(batch, 3, 6, 7, dtype=torch.float32), torch.full((batch, 4, 6, 7), 3.0))
    assert loss.item() == pytest.approx(2e-5 * 4 * 6 * 7 * 9, rel=1e-6)


@pytest.mark.parametrize("mask", ["channel", "position"])
def test_mgd_equals_a_slow_loop(mask: str) -> None:
    batch, own, other, height, width = 2, 3, 4, 3, 5
    module = MGD(own, other, alpha=0.3, mask_ratio=0.4, mask=mask).double()
    student, teacher = features(batch, own, height, width), features(batch, other, height, width, seed=1)
    noise = uniform(*((batch, other, 1, 1) if mask == "channel" else (batch, 1, height, width)))
    align, (first, _, second) = module.align.convolution, module.generator
    total = 0.0
    for b in range(batch):
        padded = torch.zeros(other, height + 2, width + 2, dtype=torch.float64)
        for y in range(height):
            for x in range(width):
                token = align.weight[:, :, 0, 0] @ student[b, :, y, x] + align.bias
                for c in range(other):
                    if noise[(b, c, 0, 0) if mask == "channel" else (b, 0, y, x)] >= 0.4:
                        padded[c, y + 1, x + 1] = token[c]
        for convolution in (first, second):
            output = torch.zeros_like(padded)
            for y in range(height):
                for x in range(width):
                    window = padded[:, y : y + 3, x : x + 3]
                    output[:, y + 1, x + 1] = (convolution.weight * window).sum((1, 2, 3)) + convolution.bias
            padded = output.clamp(min=0) if convolution is first else output
        total += (padded[:, 1:-1, 1:-1] - teacher[b]).square().sum().item()
    assert module(student, teacher, noise).item() == pytest.approx(0.3 / batch * total, rel=1e-10)


@pytest.mark.parametrize(("mask", "ratio"), [("channel", 0.15), ("position", 0.65), ("position", 0.0)])
def test_mgd_masks_whole_channels_or_positions_at_its_rate(mask: str, ratio: float) -> None:
    module = silent(MGD(64, 64, mask_ratio=ratio, mask=mask))
    seen: list[Tensor] = []
    remember(module.generator, seen)
    ones = torch.ones(64, 64, 8, 8)
    module(ones, ones)
    module(ones, ones)
    kept = [maps[:, :, 0, 0] if mask == "channel" else maps[:, 0] for maps in seen]
    for maps, own in zip(seen, kept, strict=True):
        assert set(own.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(maps, (own[:, :, None, None] if mask == "channel" else own[:, None]).expand_as(maps))
        # 4096 draws: five standard deviations are at most 0.04.
        assert own.mean().item() == pytest.approx(1 - ratio, abs=5 * math.sqrt(ratio * (1 - ratio) / 4096))
    # Drawn anew for every step and every image.
    assert torch.equal(kept[0], kept[1]) == (ratio == 0)
    assert len({tuple(row.flatten().tolist()) for row in kept[0]}) == (64 if ratio else 1)


def test_mgd_gradcheck_of_inputs_and_parameters() -> None:
    module = MGD(2, 3, alpha=0.5, mask_ratio=0.4, mask="position").double()
    student, teacher = features(2, 2, 2, 3).requires_grad_(), features(2, 3, 2, 3, seed=1).requires_grad_()
    noise, weights = uniform(2, 1, 2, 3), dict(module.named_parameters())

    def loss(maps: Tensor, *tensors: Tensor) -> Tensor:
        state = dict(zip(weights, tensors, strict=True))
        result: Tensor = torch.func.functional_call(module, state, (maps, teacher, noise))
        return result

    assert torch.autograd.gradcheck(loss, (student, *weights.values()))
    module(student, teacher, noise).backward()
    assert teacher.grad is None


def test_mgd_in_half_precision_does_not_overflow() -> None:
    module = silent(MGD(64, 64, alpha=1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(torch.zeros(2, 64, 14, 14).half(), torch.full((2, 64, 14, 14), 8.0).half())
    assert loss.item() == pytest.approx(64 * 196 * 64, rel=1e-6)


def test_fitnets_regressor_has_the_published_16_8_thousand_parameters() -> None:
    teacher, student = (create(name, 100).facts for name in ("resnet32x4", "resnet8x4"))
    loss = FitNets(student, teacher)
    # 128 x 128 weights and 128 biases of the convolution, and two times 128 of the norm, at the second of three stages.
    assert [(p.student, p.teacher) for p in loss.pairs] == [(student.levels[1].name, teacher.levels[1].name)]
    assert sum(p.numel() for p in loss.parameters()) == 16_768


def test_fitnets_regressor_is_rectified_only_where_the_teachers_map_is(pyramid) -> None:
    student, teacher = pyramid(), pyramid(preactivation=True)
    maps = features(3, 6, 4, 4, dtype=torch.float32)

    def least(teacher_level: str, facts=teacher) -> float:
        (regressor,) = FitNets(student, facts, pairs=[("stages.1", teacher_level)]).regressors
        return regressor(maps).min().item()

    assert least("stages.1") == 0
    assert least("stages.1.pre") < 0
    assert least("stages.1", pyramid()) < 0


def test_fitnets_regressor_refuses_to_normalise_a_single_value() -> None:
    regressor = HintRegressor(3, 4, rectify=False)
    with pytest.raises(UserError, match="fitnets normalises each channel"):
        regressor(torch.zeros(1, 3, 1, 1))
    assert regressor.eval()(torch.zeros(1, 3, 1, 1)).shape == (1, 4, 1, 1)


def pairs_of(loss: PKD | CWD | FitNets | MGDLoss) -> list[tuple[str, str]]:
    return [(pair.student, pair.teacher) for pair in loss.pairs]


def test_levels_without_pairs(plain, pyramid) -> None:
    swin = pyramid("swin", channels=(4, 6, 8, 10), grids=(16, 8, 4, 2), side=64)
    cifar = pyramid("cifar", channels=(4, 6, 8), grids=(16, 8, 4), side=64)
    blocks = [f"blocks.{i}" for i in (2, 5, 8, 11)]
    for every in (PKD, CWD):
        assert pairs_of(every(plain(), plain())) == list(zip(blocks, blocks, strict=True))
        assert pairs_of(every(plain(), plain(), num_levels=1)) == [("blocks.11", "blocks.11")]
        assert pairs_of(every(cifar, swin)) == [(f"stages.{i}", f"stages.{i}") for i in range(3)]
        assert pairs_of(every(swin, plain(depth=24))) == [(f"stages.{i}", f"blocks.{6 * i + 5}") for i in range(4)]
        assert pairs_of(every(plain(depth=2), swin)) == [("blocks.0", "stages.2"), ("blocks.1", "stages.3")]
    assert pairs_of(FitNets(plain(), plain(depth=24))) == [("blocks.5", "blocks.11")]
    assert pairs_of(FitNets(cifar, swin)) == [("stages.1", "stages.1")]
    assert pairs_of(FitNets(swin, plain())) == [("stages.1", "blocks.5")]
    assert pairs_of(FitNets(plain(depth=1), swin)) == [("blocks.0", "stages.3")]
    assert pairs_of(MGDLoss(swin, plain())) == [("stages.3", "blocks.11")]
    assert pairs_of(MGDLoss(cifar, swin)) == [("stages.2", "stages.2")]


@pytest.mark.parametrize("name", CLASSES)
def test_several_pairs_are_summed_and_one_level_may_serve_two(name: str, pyramid, make_outputs) -> None:
    facts = pyramid()
    both = CLASSES[name](facts, facts, pairs=[("stages.0", "stages.1"), ("stages.2", "stages.1")]).double()
    assert (both.student_request.levels, both.teacher_request.levels) == (("stages.0", "stages.2"), ("stages.1",))
    own, other = make_outputs(facts, both.student_request), make_outputs(facts, both.teacher_request, seed=1)
    torch.manual_seed(1)
    total = both(own, other)
    torch.manual_seed(1)
    terms = []
    for index, (student_level, size) in enumerate([("stages.0", (4, 4)), ("stages.2", (4, 4))]):
        maps = own.maps[student_level]
        # 8x8 is averaged to the teacher's 4x4, 2x2 interpolated.
        if index == 0:
            maps = torch.nn.functional.avg_pool2d(maps, 2)
        else:
            maps = torch.nn.functional.interpolate(maps, size, mode="bilinear")
        terms.append(both.compare(index, maps, other.maps["stages.1"]))
    torch.testing.assert_close(total, torch.stack(terms).sum())


@pytest.mark.parametrize("name", CLASSES)
def test_projectors_exist_where_widths_differ_and_all_learn(name: str, plain, pyramid, make_outputs) -> None:
    wide = pyramid(channels=(5, 6, 9), grids=(8, 4, 2))
    wide = replace(wide, levels=tuple(replace(level, grid=(level.grid[0], 3)) for level in wide.levels))
    for student, teacher in [(plain(), plain(width=6)), (pyramid(), wide), (wide, plain(grid=3)), (plain(), wide)]:
        loss = CLASSES[name](student, teacher).double()
        widths = [(student.level(p.student).channels, teacher.level(p.teacher).channels) for p in loss.pairs]
        ones = [tuple(p.shape[1::-1]) for p in loss.parameters() if p.shape[2:] == (1, 1)]
        assert ones == [pair for pair in widths if pair[0] != pair[1] or name == "fitnets"]
        unequal = [p for p in loss.pairs if student.level(p.student).grid != teacher.level(p.teacher).grid]
        assert len(loss.notes) == len(unequal)
        own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
        loss(own, other).backward()
        assert all(maps.grad.abs().sum() > 0 for maps in own.maps.values())
        assert all(maps.grad is None for maps in other.maps.values())
        for parameter_name, parameter in loss.named_parameters():
            # A bias before a norm changes nothing: the gradient of the published one is rounding.
            if not (name == "fitnets" and parameter_name.endswith("convolution.bias")):
                assert parameter.grad.abs().max() > 1e-9, parameter_name


def test_published_weights(plain) -> None:
    losses = build_losses(
        parse_methods("fitnets+pkd+cwd+mgd+mgd(weight=2, alpha=1, warmup_epochs=3)"), plain(), plain()
    )
    assert [(loss.name, loss.weight) for loss in losses] == [
        ("fitnets", 100.0),
        ("pkd", 6.0),
        ("cwd", 10.0),
        ("mgd", 1.0),
        ("mgd#2", 2.0),
    ]
    assert [loss.warmup_epochs for loss in losses] == [0.0, 0.0, 0.0, 0.0, 3.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pkd(num_levels=0)", "pkd: num_levels is 0; it must be at least 1"),
        ("cwd(num_levels=-1)", "cwd: num_levels is -1; it must be at least 1"),
        ("cwd(temperature=0)", "cwd: temperature is 0.0; it must be positive"),
        ("mgd(mask_ratio=1)", "mgd: mask_ratio is 1.0; it must be at least 0 and below 1"),
        ("mgd(mask_ratio=-0.1)", "mgd: mask_ratio is -0.1"),
        ("mgd(alpha=-1)", "mgd: alpha is -1.0; it must not be negative"),
        ("mgd(alpha=much)", "alpha is 'much'; it must be a finite number or one of 'auto'"),
        ("mgd(mask=token)", "mask is 'token'; it must be one of 'auto', 'channel', 'position'"),
        *((f"{name}(pairs=[])", "pairs is an empty list") for name in CLASSES),
        *((f"{name}(pairs=[('blocks.1', 'blocks.99')])", "has no level 'blocks.99'") for name in CLASSES),
    ],
)
def test_refused_options(text: str, message: str, plain) -> None:
    with pytest.raises(UserError, match=message):
        build_losses(parse_methods(text), plain(), plain())


@pytest.mark.parametrize("name", CLASSES)
def test_models_without_levels_are_refused(name: str, plain) -> None:
    with pytest.raises(UserError, match=f"{name} compares feature maps, but vit offers none"):
        CLASSES[name](plain(), replace(plain(), levels=()))
