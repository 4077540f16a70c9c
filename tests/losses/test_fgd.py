import math

import pytest
import torch
from torch import Tensor

from limbeck.detection import Target
from limbeck.errors import UserError
from limbeck.losses import FGD, attention_loss, build_losses, focal_loss, object_masks, parse_methods
from limbeck.losses.fgd import FocalGlobal, GlobalContext, Settings, channel_attention, spatial_attention

SIZE = (48, 64)
SETTINGS = Settings(0.5, 0.3, 0.2, 0.1, 0.05)


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def target(*rows: tuple[float, float, float, float]) -> Target:
    return Target(boxes(*rows), torch.zeros(len(rows), dtype=torch.int64))


def slow_masks(own: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> tuple[list, list]:
    """Cell by cell: the area, in cells, of the smallest box that overlaps the cell."""
    (height, width), (rows, columns) = size, grid
    objects = [[0.0] * columns for _ in range(rows)]
    for y in range(rows):
        for x in range(columns):
            for x1, y1, x2, y2 in own.tolist():
                left, right = x1 * columns / width, x2 * columns / width
                top, bottom = y1 * rows / height, y2 * rows / height
                if left < x + 1 and right > x and top < y + 1 and bottom > y:
                    area = (math.ceil(right) - math.floor(left)) * (math.ceil(bottom) - math.floor(top))
                    objects[y][x] = max(objects[y][x], 1 / area)
    free = sum(value == 0 for row in objects for value in row)
    return objects, [[1 / free if value == 0 else 0.0 for value in row] for row in objects]


def slow_attention(maps: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Of one image (C, H, W)."""
    channels, height, width = maps.shape
    spatial, per_channel = torch.zeros(height, width).double(), torch.zeros(channels).double()
    for y in range(height):
        for x in range(width):
            spatial[y, x] = math.exp(sum(abs(v) for v in maps[:, y, x].tolist()) / channels / temperature)
    for c in range(channels):
        per_channel[c] = math.exp(sum(abs(v) for v in maps[c].flatten().tolist()) / (height * width) / temperature)
    return spatial / spatial.sum() * height * width, per_channel / per_channel.sum() * channels


def slow_context(block: GlobalContext, maps: Tensor) -> Tensor:
    """What is added to each channel of one image (C, H, W)."""
    weight, bias = block.attention.weight[0, :, 0, 0], block.attention.bias
    scores = torch.stack([weight @ maps[:, y, x] + bias[0] for y in range(maps.shape[1]) for x in range(maps.shape[2])])
    shares = scores.exp() / scores.exp().sum()
    pooled = (maps.flatten(1) * shares).sum(1)
    first, norm, _, second = block.bottleneck
    hidden = first.weight[:, :, 0, 0] @ pooled + first.bias
    hidden = (hidden - hidden.mean()) / (hidden.var(unbiased=False) + norm.eps).sqrt()
    hidden = (hidden * norm.weight[:, 0, 0] + norm.bias[:, 0, 0]).clamp(min=0)
    return second.weight[:, :, 0, 0] @ hidden + second.bias


def slow_fgd(module: FocalGlobal, student: Tensor, teacher: Tensor, own: list[Tensor], size: tuple[int, int]) -> float:
    by, total = module.settings, 0.0
    batch, channels, height, width = teacher.shape
    for b in range(batch):
        objects, background = slow_masks(own[b], size, (height, width))
        spatial_t, channels_t = slow_attention(teacher[b], by.temperature)
        spatial_s, channels_s = slow_attention(student[b], by.temperature)
        added = slow_context(module.teacher_context, teacher[b]) - slow_context(module.student_context, student[b])
        for y in range(height):
            for x in range(width):
                cell = by.alpha * objects[y][x] + by.beta * background[y][x]
                for c in range(channels):
                    error = (teacher[b, c, y, x] - student[b, c, y, x]).item()
                    total += cell * spatial_t[y, x].item() * channels_t[c].item() * error**2
                    total += by.lambda_ * (error + added[c].item()) ** 2
                total += by.gamma * abs(spatial_t[y, x] - spatial_s[y, x]).item()
        total += by.gamma * (channels_t - channels_s).abs().sum().item()
    return total / batch


def stirred(module: FocalGlobal) -> FocalGlobal:
    """Context blocks that do something, as after some training."""
    for block in (module.student_context, module.teacher_context):
        # Not the norm, so that some unit passes the ReLU in every image.
        for convolution in (block.bottleneck[0], block.bottleneck[3]):
            torch.nn.init.normal_(convolution.weight)
            torch.nn.init.normal_(convolution.bias)
    return module.double()


OWN = [boxes((3, 5, 30, 41), (8, 8, 16, 24), (60, 40, 64, 48)), boxes()]


def test_equals_a_slow_loop() -> None:
    student, teacher = 2 * features(2, 4, 6, 8), features(2, 4, 6, 8, seed=1)
    module = stirred(FocalGlobal(4, 4, SETTINGS))
    masks = object_masks(OWN, SIZE, (6, 8))
    assert module(student, teacher, *masks).item() == pytest.approx(
        slow_fgd(module, student, teacher, OWN, SIZE), rel=1e-6
    )


@pytest.mark.parametrize("grid", [(6, 8), (3, 4), (1, 1), (7, 5), (48, 64)])
def test_masks_equal_a_slow_loop_on_any_grid(grid: tuple[int, int]) -> None:
    objects, background = object_masks(OWN, SIZE, grid)
    for b, own in enumerate(OWN):
        expected = slow_masks(own, SIZE, grid)
        torch.testing.assert_close(objects[b], torch.tensor(expected[0]))
        torch.testing.assert_close(background[b], torch.tensor(expected[1]))


def test_the_smallest_box_wins_whatever_the_order() -> None:
    large, small = (0, 0, 64, 48), (16, 16, 32, 32)
    masks = [object_masks([boxes(*rows)], SIZE, (6, 8))[0][0] for rows in ((large, small), (small, large))]
    assert torch.equal(*masks)
    assert masks[0][2:4, 2:4].unique().tolist() == [0.25]
    assert masks[0][0, 0].item() == pytest.approx(1 / 48)


def test_borders_of_cells_belong_to_the_box_that_ends_there() -> None:
    objects, _ = object_masks([boxes((8, 8, 16, 16))], SIZE, (6, 8))
    assert objects.nonzero().tolist() == [[0, 1, 1]]
    # Pixels beyond 2**24 cannot be, sides at thirds can: 1/3 of 48 rows is 16 exactly.
    assert object_masks([boxes((0, 16, 64, 32))], SIZE, (3, 1))[0].nonzero().tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("box", [(0, 0, 0.01, 0.01), (63.99, 47.99, 64, 48), (10, 10, 10, 10), (-9, -9, 1, 1)])
def test_a_box_of_any_size_covers_a_cell(box: tuple[float, float, float, float]) -> None:
    objects, background = object_masks([boxes(box)], SIZE, (6, 8))
    assert objects.sum().item() == pytest.approx(1)
    assert (background > 0).sum().item() == 47


def test_each_object_and_the_background_weigh_one_in_every_image() -> None:
    apart = [boxes((0, 0, 8, 8), (16, 16, 40, 48)), boxes(), boxes((0, 0, 64, 48))]
    objects, background = object_masks(apart, SIZE, (6, 8))
    torch.testing.assert_close(objects.sum((1, 2)), torch.tensor([2.0, 0.0, 1.0]))
    torch.testing.assert_close(background.sum((1, 2)), torch.tensor([1.0, 1.0, 0.0]))
    assert ((objects > 0) ^ (background > 0))[:2].all()


def test_attention_is_one_on_average_and_ignores_signs() -> None:
    maps = features(2, 3, 4, 5)
    torch.testing.assert_close(spatial_attention(maps).mean((1, 2)), torch.ones(2).double())
    torch.testing.assert_close(channel_attention(maps).mean(1), torch.ones(2).double())
    assert torch.equal(spatial_attention(-maps), spatial_attention(maps))
    assert torch.equal(spatial_attention(torch.ones(1, 2, 3, 3)), torch.ones(1, 3, 3))


def test_permutations_of_channels_images_and_positions_change_nothing() -> None:
    student, teacher = features(3, 4, 6, 8), features(3, 4, 6, 8, seed=1)
    own = [*OWN, boxes((0, 0, 20, 20))]
    objects, _ = object_masks(own, SIZE, (6, 8))
    value = focal_loss(student, teacher, objects) + attention_loss(student, teacher)
    images, channels = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2])
    for change in (lambda m: m[:, channels], lambda m: m.flip(2, 3), lambda m: m.transpose(2, 3)):
        mask = change(objects[:, None].expand(-1, 4, -1, -1))[:, 0]
        moved = change(student), change(teacher)
        torch.testing.assert_close(focal_loss(*moved, mask) + attention_loss(*moved), value)
    shuffled, _ = object_masks([own[i] for i in images], SIZE, (6, 8))
    torch.testing.assert_close(
        focal_loss(student[images], teacher[images], shuffled) + attention_loss(student[images], teacher[images]), value
    )
    rows = object_masks([o.flip(0) for o in own], SIZE, (6, 8))[0]
    assert torch.equal(rows, objects)


def test_equal_maps_cost_nothing_at_the_start(detector, seen) -> None:
    facts = detector()
    loss = FGD(facts, facts, alpha=1.0, beta=1.0, gamma=1.0, lambda_=1.0).double()
    own = seen(facts, loss.student_request)
    assert loss(own, own, [target((0, 0, 30, 30)), target()]).item() == 0
    other = seen(facts, loss.teacher_request, seed=1)
    assert loss(own, other, [target((0, 0, 30, 30)), target()]).item() > 1


def test_the_context_starts_as_the_identity() -> None:
    assert torch.equal(GlobalContext(8)(features(2, 8, 3, 4, dtype=torch.float32)), torch.zeros(2, 8, 1, 1))


def test_gradients_match_finite_differences_and_the_teacher_has_none() -> None:
    module = stirred(FocalGlobal(3, 4, SETTINGS))
    student, teacher = features(2, 3, 2, 3).requires_grad_(), features(2, 4, 2, 3, seed=1).requires_grad_()
    masks, weights = object_masks(OWN, SIZE, (2, 3)), dict(module.named_parameters())

    def loss(maps: Tensor, *tensors: Tensor) -> Tensor:
        state = dict(zip(weights, tensors, strict=True))
        result: Tensor = torch.func.functional_call(module, state, (maps, teacher, *masks))
        return result

    assert torch.autograd.gradcheck(loss, (student, *weights.values()))
    module(student, teacher, *masks).backward()
    assert teacher.grad is None


def test_every_projector_and_map_learns_on_pictures_of_any_size(detector, seen) -> None:
    student, teacher = detector(strides=(8, 16, 32), channels=6), detector(strides=(4, 8, 16, 32, 64), size=(320, 320))
    loss = FGD(student, teacher).double()
    assert [(p.student, p.teacher) for p in loss.pairs] == [("p0", "p1"), ("p1", "p2"), ("p2", "p3")]
    for level in loss.focal_global:
        stirred(level)
    own, other = seen(student, loss.student_request, (72, 200)), seen(teacher, loss.teacher_request, (72, 200), seed=1)
    loss(own, other, [target((0, 0, 30, 30)), target()]).backward()
    assert all(maps.grad.abs().sum() > 0 for maps in own.maps.values())
    assert all(maps.grad is None for maps in other.maps.values())
    for name, parameter in loss.named_parameters():
        # The attention's bias moves no softmax.
        assert parameter.grad.abs().sum() > 0 or name.endswith("attention.bias"), name


def test_levels_weigh_as_asked(detector, seen) -> None:
    facts = detector()
    targets = [target((0, 0, 30, 30)), target()]

    def value(level_weights, pairs=None) -> float:
        torch.manual_seed(0)
        loss = FGD(facts, facts, level_weights=level_weights, pairs=pairs).double()
        request = FGD(facts, facts).student_request
        return loss(seen(facts, request), seen(facts, request, seed=1), targets).item()

    alone = [value("equal", [(f"p{i}", f"p{i}")]) for i in range(3)]
    assert value("equal") == pytest.approx(sum(alone), rel=1e-9)
    assert value([1.0, 2.0, 0.5]) == pytest.approx(alone[0] + 2 * alone[1] + 0.5 * alone[2], rel=1e-9)
    # 96x128 pictures have 12x16, 6x8 and 3x4 cells.
    assert value("cells") == pytest.approx(alone[0] / 16 + alone[1] / 4 + alone[2], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted_before_the_formula(dtype: torch.dtype) -> None:
    student, teacher = (300 * features(2, 4, 6, 8, seed=seed).to(dtype) for seed in (0, 1))
    objects, _ = object_masks(OWN, SIZE, (6, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = focal_loss(student, teacher, objects), attention_loss(student, teacher)
    expected = (
        focal_loss(student.double(), teacher.double(), objects),
        attention_loss(student.double(), teacher.double()),
    )
    for value, exact in zip(values, expected, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("name", "family", "published"),
    [
        ("torchvision:maskrcnn_resnet50_fpn", "two_stage", Settings(0.5, 5e-5, 2.5e-5, 5e-5, 5e-7)),
        ("torchvision:retinanet_resnet50_fpn", "dense", Settings(0.5, 1e-3, 5e-4, 5e-4, 5e-6)),
        ("torchvision:fcos_resnet50_fpn", "dense", Settings(0.8, 1.6e-3, 8e-4, 8e-4, 8e-6)),
        ("hf:rtdetr", "queries", Settings(0.5, 1e-3, 5e-4, 5e-4, 5e-6)),
    ],
)
def test_settings_follow_the_teacher_and_can_be_overridden(
    name: str, family: str, published: Settings, detector
) -> None:
    teacher = detector(name, family=family)
    loss = FGD(detector(), teacher)
    assert loss.settings == published
    assert bool(loss.notes) == (family == "queries")
    assert FGD(detector(), teacher, alpha=7.0).settings.alpha == 7
    assert FGD(detector(), teacher, alpha=7.0).settings.beta == published.beta
    assert FGD(detector(), detector("runs/a", architecture=name, family=family)).settings == published


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fgd(temperature=0)", "fgd: temperature is 0.0; it must be positive"),
        ("fgd(beta=-1)", "fgd: beta is -1.0; a weight must not be negative"),
        ("fgd(level_weights=[1, 2])", "it must hold 3 numbers"),
        ("fgd(level_weights=[1, 2, -3])", "none of them negative"),
        ("fgd(level_weights=size)", "level_weights is 'size'"),
    ],
)
def test_refused_options(text: str, message: str, detector) -> None:
    with pytest.raises(UserError, match=message):
        build_losses(parse_methods(text), detector(), detector())


def test_classifiers_are_refused(detector, pyramid) -> None:
    with pytest.raises(UserError, match="the student cnn is no detector"):
        FGD(pyramid(), detector())
