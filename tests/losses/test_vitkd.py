import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import ViTKD, ViTKDLoss
from limbeck.losses.vitkd import random_mask


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def silent(module: ViTKD) -> ViTKD:
    """The generator's output forced to zero."""
    torch.nn.init.zeros_(module.generator[2].weight)
    torch.nn.init.zeros_(module.generator[2].bias)
    return module


def test_known_value_of_mimicking() -> None:
    module = ViTKD(3, 3)
    own, other = torch.zeros(2, 2, 4, 3), torch.ones(2, 2, 4, 3)
    assert module.mimic(own.unbind(1), other.unbind(1)).item() == pytest.approx(7.2e-4, rel=1e-6)
    deep = torch.zeros(2, 4, 3)
    # With both deep tokens and the generator silent, nothing is added.
    assert silent(module)(own, other, deep, deep).item() == pytest.approx(7.2e-4, rel=1e-6)


@pytest.mark.parametrize("batch", [1, 5])
def test_known_value_of_generation(batch: int) -> None:
    module = silent(ViTKD(3, 3))
    loss = module.generate(features(batch, 196, 3, dtype=torch.float32), torch.ones(batch, 196, 3))
    assert loss.item() == pytest.approx(1.764e-3, rel=1e-6)


@pytest.mark.parametrize(
    ("own", "other", "count"), [(192, 384, 2_877_696), (384, 768, 11_506_176), (768, 1024, 21_239_808)]
)
def test_published_sizes(own: int, other: int, count: int) -> None:
    with torch.device("meta"):
        module = ViTKD(own, other)
    assert sum(p.numel() for p in module.parameters()) == count


def test_equal_widths_need_no_alignment_and_the_mask_token_starts_at_zero() -> None:
    module = ViTKD(6, 6)
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"mask_token", "generator"}
    assert torch.equal(module.mask_token, torch.zeros(1, 1, 6))


def test_mask_hides_exactly_half_and_differs_between_samples() -> None:
    mask = random_mask(torch.rand(16, 196), 0.5)
    assert mask.sum(1).tolist() == [98] * 16
    assert len({tuple(row) for row in mask.tolist()}) == 16


@pytest.mark.parametrize(("count", "ratio", "masked"), [(196, 0.5, 98), (49, 0.5, 25), (10, 0.9, 9), (10, 0.75, 8)])
def test_mask_keeps_the_tokens_of_least_noise(count: int, ratio: float, masked: int) -> None:
    noise = torch.rand(3, count)
    mask = random_mask(noise, ratio)
    assert mask.sum(1).tolist() == [masked] * 3
    for row, hidden in zip(noise, mask, strict=True):
        assert row[~hidden].max() < row[hidden].min()


def test_mask_is_drawn_anew_in_every_step_unless_noise_is_given() -> None:
    module = ViTKD(4, 4).double()
    own, other, noise = features(2, 9, 4), features(2, 9, 4, seed=1), torch.rand(2, 9)
    assert not torch.isclose(module.generate(own, other), module.generate(own, other))
    torch.testing.assert_close(module.generate(own, other, noise), module.generate(own, other, noise), rtol=0, atol=0)


def test_equals_a_slow_loop() -> None:
    batch, height, width, own, other = 2, 2, 3, 4, 5
    count = height * width
    module = ViTKD(own, other, alpha=0.3, beta=0.7, mask_ratio=0.4).double()
    torch.nn.init.normal_(module.mask_token)
    s, t = features(batch, 2, count, own), features(batch, 2, count, other, seed=1)
    sd, td = features(batch, count, own, seed=2), features(batch, count, other, seed=3)
    noise = torch.rand(batch, count)
    mimicking = generation = 0.0
    for layer in range(2):
        align = module.align_shallow[layer]
        mimicking += ((s[:, layer] @ align.weight.T + align.bias - t[:, layer]) ** 2).sum().item()
    kept = 3  # the floor of 6 * 0.6
    for b in range(batch):
        order = noise[b].argsort().tolist()
        canvas = torch.empty(other, height, width, dtype=torch.float64)
        for place, n in enumerate(order):
            token = module.align_deep(sd[b, n]) if place < kept else module.mask_token[0, 0]
            canvas[:, n // width, n % width] = token
        conv1, _, conv2 = module.generator
        hidden = F.conv2d(canvas[None], conv1.weight, conv1.bias, padding=1).clamp(min=0)
        drawn = F.conv2d(hidden, conv2.weight, conv2.bias, padding=1)[0]
        for n in order[kept:]:
            generation += ((drawn[:, n // width, n % width] - td[b, n]) ** 2).sum().item()
    expected = 0.3 / batch * mimicking + 0.7 / (0.4 * batch) * generation
    assert module(s, t, sd, td, noise, (height, width)).item() == pytest.approx(expected, rel=1e-12)


def test_only_masked_positions_are_compared() -> None:
    module = ViTKD(4, 4).double()
    own, other, noise = features(2, 9, 4), features(2, 9, 4, seed=1), torch.rand(2, 9)
    visible = ~random_mask(noise, 0.5)
    changed = other + 100 * visible[..., None]
    torch.testing.assert_close(module.generate(own, changed, noise), module.generate(own, other, noise))


def test_gradcheck_of_inputs_and_parameters() -> None:
    module = ViTKD(2, 3, alpha=0.5, beta=0.5).double()
    torch.nn.init.normal_(module.mask_token)
    s, sd = features(2, 2, 4, 2).requires_grad_(), features(2, 4, 2, seed=1).requires_grad_()
    t, td = features(2, 2, 4, 3, seed=2).requires_grad_(), features(2, 4, 3, seed=3).requires_grad_()
    noise, weights = torch.rand(2, 4), dict(module.named_parameters())

    def loss(shallow: Tensor, deep: Tensor, *tensors: Tensor) -> Tensor:
        state = dict(zip(weights, tensors, strict=True))
        result: Tensor = torch.func.functional_call(module, state, (shallow, t, deep, td, noise))
        return result

    assert torch.autograd.gradcheck(loss, (s, sd, *weights.values()))
    module(s, t, sd, td, noise).backward()
    assert t.grad is None
    assert td.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_do_not_overflow(dtype: torch.dtype) -> None:
    module = silent(ViTKD(64, 64))
    own, other = torch.zeros(2, 2, 196, 64, dtype=dtype), torch.full((2, 2, 196, 64), 8.0, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(own, other, own[:, 0], other[:, 0])
    # The sums are 3.2 million and 0.8 million, beyond float16's 65504.
    expected = 3e-5 * 2 * 196 * 64 * 64 + 3e-6 / 0.5 * 98 * 64 * 64
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_method_reads_first_two_blocks_and_the_final_map(plain, make_outputs) -> None:
    student, teacher = plain(width=6, grid=14), plain(depth=24, width=8, grid=14)
    loss = ViTKDLoss(student, teacher).double()
    assert [(p.student, p.teacher) for p in loss.pairs] == [
        ("blocks.0", "blocks.0"),
        ("blocks.1", "blocks.1"),
        ("final", "final"),
    ]
    assert loss.notes == ()
    own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)

    def stacked(outputs) -> Tensor:
        return torch.stack([m.flatten(2).transpose(1, 2) for m in outputs.maps.values()], dim=1)

    deep = [outputs.final.flatten(2).transpose(1, 2) for outputs in (own, other)]
    torch.manual_seed(5)
    actual = loss(own, other)
    torch.manual_seed(5)
    torch.testing.assert_close(actual, loss.vitkd(stacked(own), stacked(other), *deep))


def test_method_meets_other_grids_widths_and_families(plain, pyramid, make_outputs) -> None:
    swin = pyramid(channels=(4, 6, 8), grids=(8, 4, 2), side=32)
    for student, teacher in [(plain(grid=4), plain(grid=5, width=6)), (swin, plain(width=6)), (plain(width=6), swin)]:
        loss = ViTKDLoss(student, teacher).double()
        assert loss.notes
        own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
        loss(own, other).backward()
        assert all(t.grad.abs().sum() > 0 for t in (*own.maps.values(), own.final))


def test_refuses_models_and_options_it_cannot_use(plain) -> None:
    with pytest.raises(UserError, match="has 1 levels and a final map"):
        ViTKDLoss(plain(depth=1), plain())
    with pytest.raises(UserError, match="mask_ratio is 1"):
        ViTKD(4, 4, mask_ratio=1.0)
    with pytest.raises(UserError, match="5 tokens do not fill a square"):
        ViTKD(4, 4).generate(torch.zeros(1, 5, 4), torch.zeros(1, 5, 4))
