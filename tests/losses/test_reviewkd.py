import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import AttentionFusion, ReviewKD, ReviewKDLoss, hcl_loss


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(8, 8, 133.5833333333), (4, 4, 25.25), (2, 2, 3.0833333333), (1, 1, 0.0), (13, 21, 812.5555555556)],
)
def test_hcl_known_vectors(height: int, width: int, expected: float) -> None:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    teacher = (y + 2 * x).double()[None, None]
    assert hcl_loss(torch.zeros_like(teacher), teacher).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 3), (3, 9), (2, 6), (1, 4)])
def test_hcl_equals_a_slow_loop_that_pools_both_maps(height: int, width: int) -> None:
    student, teacher = features(2, 3, height, width), features(2, 3, height, width, seed=1)
    loss, weight, total = F.mse_loss(student, teacher).item(), 1.0, 1.0
    for side in (4, 2, 1):
        if side >= height:
            continue
        weight /= 2
        total += weight
        squares = []
        for i in range(side):
            for j in range(side):
                rows = slice(i * height // side, -(-(i + 1) * height // side))
                columns = slice(j * width // side, -(-(j + 1) * width // side))
                cells = [m[:, :, rows, columns].mean((2, 3)) for m in (student, teacher)]
                squares.append((cells[0] - cells[1]) ** 2)
        loss += weight * torch.stack(squares).mean().item()
    assert hcl_loss(student, teacher).item() == pytest.approx(loss / total, rel=1e-12)


def test_hcl_does_not_overflow_in_half_precision() -> None:
    student, teacher = torch.full((1, 2, 4, 4), 300.0).half(), torch.full((1, 2, 4, 4), -300.0).half()
    loss = hcl_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == 600.0**2  # beyond float16


TABLE = [
    # student channels, teacher channels, middle channels, parameters
    ((16, 32, 64, 64), (16, 32, 64, 64), 64, 114_278),
    ((64, 128, 256, 256), (64, 128, 256, 256), 256, 1_808_774),
    ((32, 64, 128, 128), (32, 64, 128, 128), 128, 453_830),
    ((16, 32, 64, 64), (32, 64, 128, 128), 64, 216_006),
    ((128, 256, 512, 512, 512), (128, 256, 512, 512, 512), 512, 9_847_560),
    ((128, 256, 512, 512, 512), (256, 512, 1024, 2048, 2048), 512, 28_140_040),
    ((12, 16, 48, 160, 1280), (128, 256, 512, 512, 512), 512, 9_640_712),
    ((12, 16, 48, 160, 1280), (256, 512, 1024, 2048, 2048), 512, 27_933_192),
    ((240, 480, 960, 960), (32, 64, 128, 128), 512, 2_984_646),
    ((240, 480, 960, 960), (64, 128, 256, 256), 512, 4_607_366),
    ((116, 232, 464, 1024), (64, 128, 256, 256), 512, 4_195_718),
    ((64, 128, 256, 512, 512), (64, 128, 256, 512, 512), 512, 7_552_904),
    ((256,) * 5, (256,) * 5, 256, 3_286_024),
]


@pytest.mark.parametrize(("own", "other", "middle", "count"), TABLE)
def test_published_sizes(own: tuple[int, ...], other: tuple[int, ...], middle: int, count: int) -> None:
    with torch.device("meta"):
        module = ReviewKD(own, other)
    assert module.mid_channels == middle
    assert parameters(module) == count


def test_published_size_with_given_middle_channels() -> None:
    with torch.device("meta"):
        module = ReviewKD((128, 256, 512, 1024, 1024), (256, 512, 1024, 2048, 2048), 256)
    assert parameters(module) == 14_338_056


def test_attention_weighs_the_student_by_its_first_map() -> None:
    fusion = AttentionFusion(3, 4, 5, fuse=True).double().eval()
    own, residual = features(2, 3, 6, 6), features(2, 4, 6, 6, seed=1)
    reduced = fusion.reduce(own)
    torch.nn.init.zeros_(fusion.attention.weight)
    torch.nn.init.zeros_(fusion.attention.bias)
    torch.testing.assert_close(fusion(own, residual, (6, 6))[1], 0.5 * reduced + 0.5 * residual, rtol=0, atol=1e-15)
    with torch.no_grad():
        fusion.attention.bias.copy_(torch.tensor([40.0, -40.0]))
    torch.testing.assert_close(fusion(own, residual, (6, 6))[1], reduced, rtol=0, atol=1e-15)


def test_fusion_returns_the_residual_on_the_teachers_grid_before_the_output_convolution() -> None:
    fusion = AttentionFusion(3, 4, 5, fuse=False).double().eval()
    assert fusion.attention is None
    own = features(2, 3, 2, 3)
    output, residual = fusion(own, None, (4, 6))
    # Nearest: each cell is repeated.
    reduced = fusion.reduce(own)
    assert torch.equal(residual, reduced.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(output, fusion.output(residual))


def test_convolutions_start_kaiming_uniform_with_slope_one() -> None:
    fusion = AttentionFusion(48, 32, 40, fuse=True)
    for weight, fan_in in [(fusion.reduce[0].weight, 48), (fusion.output[0].weight, 32 * 9)]:
        bound = (3 / fan_in) ** 0.5
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert weight.abs().max().item() <= bound


def test_chain_equals_the_recursion_written_out() -> None:
    """Three levels on unequal, non-square grids, deep to shallow by hand."""
    module = ReviewKD((3, 4, 5), (6, 7, 8)).double()
    own = [features(3, 3, 6, 8), features(3, 4, 3, 5, seed=1), features(3, 5, 1, 1, seed=2)]
    other = [features(3, 6, 9, 7, seed=3), features(3, 7, 3, 5, seed=4), features(3, 8, 1, 1, seed=5)]
    module.eval()
    loss, residual = 0.0, None
    for level in (2, 1, 0):
        fusion = module.fusions[level]
        x = fusion.reduce(own[level])
        if level < 2:
            r = F.interpolate(residual, x.shape[2:], mode="nearest")
            a = torch.sigmoid(fusion.attention(torch.cat([x, r], 1)))
            x = x * a[:, 0:1] + r * a[:, 1:2]
        x = F.interpolate(x, other[level].shape[2:], mode="nearest")
        residual = x
        loss += hcl_loss(fusion.output(x), other[level]).item()
    assert module(own, other).item() == pytest.approx(loss, rel=1e-12)


def test_shallow_teacher_levels_teach_deep_student_levels_and_not_the_reverse() -> None:
    module = ReviewKD((3, 4, 5), (6, 7, 8)).double()
    own = [features(3, c, s, s, seed=i).requires_grad_() for i, (c, s) in enumerate([(3, 8), (4, 4), (5, 1)])]
    reviewed = module.review(own, [(8, 8), (4, 4), (1, 1)])
    for level, output in enumerate(reviewed):
        gradients = torch.autograd.grad(output.square().sum(), own, retain_graph=True, allow_unused=True)
        assert [g is not None for g in gradients] == [i >= level for i in range(3)]


def test_gradcheck_of_inputs_and_parameters() -> None:
    module = ReviewKD((2, 3), (3, 2), 2).double()
    own = [features(3, 2, 3, 2).requires_grad_(), features(3, 3, 1, 1, seed=1).requires_grad_()]
    other = [features(3, 3, 5, 4, seed=2).requires_grad_(), features(3, 2, 1, 1, seed=3).requires_grad_()]
    weights = dict(module.named_parameters())

    def loss(*tensors: Tensor) -> Tensor:
        state = dict(zip(weights, tensors[2:], strict=True))
        result: Tensor = torch.func.functional_call(module, state, (list(tensors[:2]), other))
        return result

    assert torch.autograd.gradcheck(loss, (*own, *weights.values()))
    module(own, other).backward()
    assert all(teacher.grad is None for teacher in other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs(dtype: torch.dtype) -> None:
    module = ReviewKD((3, 5), (6, 8))
    own = [(100 * features(3, c, s, s)).to(dtype) for c, s in [(3, 6), (5, 1)]]
    other = [(100 * features(3, c, s, s, seed=1)).to(dtype) for c, s in [(6, 6), (8, 1)]]
    loss = module(own, other)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, module([m.float() for m in own], [m.float() for m in other]), rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = module(own, other)
    assert under_autocast.dtype == torch.float32
    torch.testing.assert_close(under_autocast, loss, rtol=0.02, atol=0)


def test_method_pairs_stages_in_order_and_reads_the_teacher_before_activation(pyramid, make_outputs) -> None:
    student, teacher = pyramid(preactivation=True), pyramid(channels=(5, 7, 9), preactivation=True)
    loss = ReviewKDLoss(student, teacher)
    assert [(p.student, p.teacher) for p in loss.pairs] == [(f"stages.{i}", f"stages.{i}.pre") for i in range(3)]
    post = ReviewKDLoss(student, teacher, taps="post")
    assert [p.teacher for p in post.pairs] == [f"stages.{i}" for i in range(3)]
    loss.double().eval()
    own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
    expected = loss.reviewkd(
        [*own.maps.values(), own.pooled.reshape(3, -1, 1, 1)], [*other.maps.values(), other.pooled.reshape(3, -1, 1, 1)]
    )
    torch.testing.assert_close(loss(own, other), expected)


def test_method_pairs_across_families(plain, pyramid, make_outputs) -> None:
    four = pyramid(channels=(4, 5, 6, 7), grids=(16, 8, 4, 2), side=16)
    vit = plain(depth=6)
    cases = [
        (pyramid(), four, [(0, 0), (1, 1), (2, 2)]),
        (four, vit, [(0, 0), (1, 2), (2, 3), (3, 5)]),
        (vit, pyramid(), [(1, 0), (3, 1), (5, 2)]),
        (vit, plain(depth=12), [(0, 2), (2, 5), (3, 8), (5, 11)]),
        (plain(depth=1), four, [(0, 3)]),
    ]
    for student, teacher, expected in cases:
        loss = ReviewKDLoss(student, teacher).double()
        found = [(int(p.student.split(".")[1]), int(p.teacher.split(".")[1])) for p in loss.pairs]
        assert found == expected
        own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
        loss(own, other).backward()
        assert all(m.grad.abs().sum() > 0 for m in own.maps.values())
        assert own.pooled.grad.abs().sum() > 0


def test_same_stage_count_pairs_in_order_even_where_strides_differ(pyramid) -> None:
    vgg = pyramid(channels=(4, 5, 6, 6), grids=(4, 2, 1, 1), side=8)
    resnet = pyramid(channels=(4, 5, 6, 7), grids=(8, 4, 2, 1), side=8)
    pairs = ReviewKDLoss(vgg, resnet).pairs
    assert [(p.student, p.teacher) for p in pairs] == [(f"stages.{i}", f"stages.{i}") for i in range(4)]


@pytest.mark.parametrize(
    ("teacher", "student", "weight", "warmup"),
    [
        ("limbeck:resnet56", "limbeck:resnet20", 0.6, 20),
        ("limbeck:resnet56@teacher.safetensors", "limbeck:resnet20", 0.6, 20),
        ("limbeck:resnet32x4", "limbeck:shufflenetv2", 8.0, 20),
        ("limbeck:resnet32x4", "limbeck:resnet8x4", 5.0, 20),
        ("limbeck:wrn_40_2", "limbeck:wrn_40_1", 5.0, 20),
        ("limbeck:vgg13", "limbeck:mobilenetv2_half", 1.0, 20),
        ("limbeck:resnet20", "limbeck:resnet56", 1.0, 0),
        ("runs/resnet56", "limbeck:resnet20", 1.0, 0),
        ("resnet56", "resnet20", 1.0, 0),
    ],
)
def test_published_weights_of_known_pairs(pyramid, teacher: str, student: str, weight: float, warmup: float) -> None:
    loss = ReviewKDLoss(pyramid(student), pyramid(teacher))
    assert (loss.default_weight, loss.default_warmup_epochs) == (weight, warmup)
    assert bool(loss.notes) == (teacher == "limbeck:vgg13")


def test_explicit_pairs_are_read_as_named(pyramid) -> None:
    facts = pyramid(preactivation=True)
    loss = ReviewKDLoss(facts, facts, pairs=[("stages.0", "stages.1"), ("stages.2.pre", "stages.2.pre")])
    assert loss.teacher_request.levels == ("stages.1", "stages.2.pre")
    assert loss.student_request.pooled
    assert parameters(loss) == parameters(ReviewKD((4, 8, 8), (6, 8, 8)))
    with pytest.raises(UserError, match="shallow to deep"):
        ReviewKDLoss(facts, facts, pairs=[("stages.1", "stages.1"), ("stages.0", "stages.0")])
    with pytest.raises(UserError, match="mid_channels is 0"):
        ReviewKDLoss(facts, facts, mid_channels=0)
    with pytest.raises(UserError, match="2 student and 1 teacher"):
        ReviewKD((1, 2), (1,))


def test_one_image_cannot_be_normalised_over_the_batch() -> None:
    module = ReviewKD((3, 4), (5, 6))
    own = [features(1, c, s, s, dtype=torch.float32) for c, s in [(3, 4), (4, 1)]]
    other = [features(1, c, s, s, dtype=torch.float32) for c, s in [(5, 4), (6, 1)]]
    with pytest.raises(UserError, match="at least two"):
        module(own, other)
    assert module.eval()(own, other).isfinite()
    # Without a 1x1 map there are cells enough to normalise over.
    larger = ReviewKD((3,), (5,))
    assert larger(own[:1], other[:1]).isfinite()
