"""Losses on the distributions of box sides: corner_kd and ld."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, distance_box_iou

from limbeck.errors import UserError
from limbeck.losses import LD, CornerKD, build_losses, corner_kd_loss, ld_loss, parse_methods, valuable_region
from limbeck.losses.box_overlap import corner_form
from limbeck.losses.matching import match_truths, padded_truths

BINS = 7


def random(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kl(s: Tensor, t: Tensor, temperature: float) -> float:
    p, q = ([math.exp(v / temperature) for v in x.tolist()] for x in (t, s))
    p, q = ([v / sum(x) for v in x] for x in (p, q))
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.fixture
def facts(detector):
    return detector("dfine", scores="sigmoid", corner_bins=BINS, corner_scale=(0.5, 4.0))


def test_corner_kd_equals_a_slow_loop() -> None:
    own, other, weight = random(5, 4, BINS), random(5, 4, BINS, seed=1), torch.tensor([0.9, 0.1, 0.5, 0.2, 0.7])
    matched = torch.tensor([True, False, True, False, False])
    groups = {True: [], False: []}
    for q in range(5):
        for side in range(4):
            groups[bool(matched[q])].append(weight[q].item() * kl(own[q, side], other[q, side], 5.0))
    roots = {k: math.sqrt(len(v)) for k, v in groups.items()}
    expected = sum(roots[k] * sum(v) / len(v) for k, v in groups.items()) / sum(roots.values())
    assert corner_kd_loss(own, other, weight, matched).item() == pytest.approx(expected, rel=1e-6)


def test_corner_kd_of_one_kind_only_is_its_mean() -> None:
    own, other, weight = random(3, 4, BINS), random(3, 4, BINS, seed=1), torch.ones(3)
    all_of_them = torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(
        corner_kd_loss(own, other, weight, all_of_them), corner_kd_loss(own, other, weight, ~all_of_them)
    )
    none = corner_kd_loss(own[:0], other[:0], weight[:0], all_of_them[:0])
    assert none.item() == 0


def test_corner_kd_does_not_depend_on_a_constant_added_to_a_side() -> None:
    own, other, weight, matched = (
        random(3, 4, BINS),
        random(3, 4, BINS, seed=1),
        torch.ones(3),
        torch.tensor([True] * 3),
    )
    torch.testing.assert_close(
        corner_kd_loss(own + random(3, 4, 1, seed=2), other, weight, matched),
        corner_kd_loss(own, other, weight, matched),
    )


def test_corner_kd_follows_the_matching_and_weighs_objects_by_overlap(facts, answers, shuffled, targets) -> None:
    own, objects = answers(facts, 6), targets(2, 0)
    student = shuffled(own)
    with torch.no_grad():
        changed = replace(own.predictions[0], corners=own.predictions[0].corners + random(2, 6, 4, BINS, seed=4))
    teacher = replace(own, predictions=(changed,))
    layer, answer = own.predictions[0], changed
    truths = padded_truths(objects, own.sizes, torch.arange(4))
    found = match_truths(layer.logits.detach(), layer.boxes.detach(), truths, "sigmoid")
    weight, matched = layer.logits.sigmoid().amax(-1).detach(), torch.zeros(2, 6, dtype=torch.bool)
    for i, q, g in zip(found.image.tolist(), found.own.tolist(), found.other.tolist(), strict=True):
        boxes = (corner_form(x)[None] for x in (layer.boxes[i, q].detach(), truths.boxes[i, g].double()))
        weight[i, q], matched[i, q] = box_iou(*boxes)[0, 0], True
    assert matched.sum() == 2
    corners = [x.flatten(0, 1) for x in (layer.corners, answer.corners)]
    expected = corner_kd_loss(*corners, weight.flatten(), matched.flatten())
    torch.testing.assert_close(CornerKD(facts, facts)(student, teacher, objects), expected)
    without = corner_kd_loss(*corners, layer.logits.sigmoid().amax(-1).flatten(), torch.zeros(12, dtype=torch.bool))
    torch.testing.assert_close(CornerKD(facts, facts)(student, teacher), without)
    torch.testing.assert_close(CornerKD(facts, facts)(student, teacher, targets(0, 0)), without)


@pytest.mark.parametrize("method", ["corner_kd", "ld"])
def test_order_of_queries_and_minimum(method: str, facts, answers, shuffled, targets) -> None:
    (built,) = build_losses(parse_methods(method), facts, facts)
    own, other, objects = answers(facts, 6, layers=2), answers(facts, 8, layers=2, seed=1), targets(3, 1)
    value = built.module(own, other, objects)
    assert value > 0
    torch.testing.assert_close(built.module(shuffled(own), other, objects), value)
    torch.testing.assert_close(built.module(own, shuffled(other), objects), value)
    last = replace(own, predictions=own.predictions[-1:])
    assert built.module(last, shuffled(last), objects).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("method", ["corner_kd", "ld"])
def test_gradients_extremes_and_half_precision(method: str, facts, answers, targets) -> None:
    (built,) = build_losses(parse_methods(method), facts, facts)
    objects = targets(2, 3)
    own, other = answers(facts, dtype=torch.bfloat16), answers(facts, seed=1, dtype=torch.bfloat16)
    loss = built.module(own, other, objects)
    assert loss.dtype == torch.float32
    loss.backward()
    assert own.predictions[-1].corners.grad.abs().sum() > 0
    assert other.predictions[-1].corners.grad is None
    assert own.predictions[-1].logits.grad is None and own.predictions[-1].boxes.grad is None  # weights only

    wild = replace(own.predictions[0], corners=(1e4 * own.predictions[0].corners.detach().float()).requires_grad_())
    loss = built.module(replace(own, predictions=(wild,)), other, objects)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(wild.corners.grad).all()


def test_ld_equals_a_slow_loop_with_the_mean_over_bins() -> None:
    own, other, weight = random(3, 4, BINS), random(3, 4, BINS, seed=1), torch.tensor([0.2, 0.0, 1.0])
    expected = sum(weight[q].item() * kl(own[q, s], other[q, s], 10.0) / BINS for q in range(3) for s in range(4))
    assert ld_loss(own, other, weight).item() == pytest.approx(expected / 4, rel=1e-6)
    assert ld_loss(own, other, weight, divisor=16.0).item() == pytest.approx(expected / 16, rel=1e-6)


def test_valuable_region_equals_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    corner, truth_corner = (torch.rand(n, 2, generator=generator).double() * 60 for n in (40, 3))
    boxes = torch.cat([corner, corner + 5 + 40 * torch.rand(40, 2, generator=generator)], dim=1)
    truths = torch.cat([truth_corner, truth_corner + 30], dim=1)
    region = valuable_region(boxes, truths)
    expected = [0.0] * 40
    for truth in truths:
        overlap, distance = box_iou(boxes, truth[None])[:, 0], distance_box_iou(boxes, truth[None])[:, 0]
        middle = [((b[:2] + b[2:]) / 2 - (truth[:2] + truth[2:]) / 2).norm().item() for b in boxes]
        nearest = sorted(range(40), key=middle.__getitem__)[:9]
        mean = sum(overlap[i].item() for i in nearest) / 9
        threshold = mean + math.sqrt(sum((overlap[i].item() - mean) ** 2 for i in nearest) / 8)
        for i in range(40):
            if 0.25 * threshold <= distance[i] < threshold:
                expected[i] = max(expected[i], overlap[i].item())
    torch.testing.assert_close(region, torch.tensor(expected, dtype=torch.float64))
    assert 0 < (region > 0).sum() < 40


def test_valuable_region_of_nothing_is_empty() -> None:
    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    assert valuable_region(box, box[:0]).tolist() == [0.0]
    assert valuable_region(box[:0], box).shape == (0,)
    assert valuable_region(box, box).tolist() == [0.0]  # it answers for the object: not below the threshold


def test_ld_is_the_mean_over_pictures_and_empty_without_objects(facts, answers, targets) -> None:
    own, other, objects = answers(facts), answers(facts, seed=1), targets(2, 3)
    loss = LD(facts, facts)
    apart = [
        loss(
            *(
                replace(
                    x,
                    sizes=x.sizes[i : i + 1],
                    predictions=tuple(
                        type(p)(*(None if v is None else v[i : i + 1] for v in vars(p).values())) for p in x.predictions
                    ),
                )
                for x in (own, other)
            ),
            objects[i : i + 1],
        )
        for i in range(2)
    ]
    torch.testing.assert_close(loss(own, other, objects), sum(apart) / 2)
    assert loss(own, other, targets(0, 0)).item() == 0
    assert loss(own, other, objects) > LD(facts, facts, valuable=0.0)(own, other, objects)


def test_defaults_and_refusals(facts, detector) -> None:
    corner, ld = CornerKD(facts, facts), LD(facts, facts)
    assert (corner.temperature, corner.default_weight, corner.needs_labels) == (5.0, 1.5, False)
    assert (ld.temperature, ld.default_weight, ld.needs_labels) == (10.0, 0.25, True)
    for loss in (CornerKD, LD):
        with pytest.raises(UserError, match=r"the teacher detr gives one number a side.*query_kd"):
            loss(facts, detector())
        with pytest.raises(UserError, match=r"7 bins of scale \(0.25, 4.0\).*has 7 of \(0.5, 4.0\)"):
            loss(facts, replace(facts, corner_scale=(0.25, 4.0)))
        with pytest.raises(UserError, match="9 bins"):
            loss(facts, replace(facts, corner_bins=9))
        with pytest.raises(UserError, match="must be above 0"):
            loss(facts, facts, temperature=0.0)
    with pytest.raises(UserError, match="must not be negative"):
        LD(facts, facts, valuable=-1.0)


def test_ld_without_labels_is_refused(facts, answers) -> None:
    with pytest.raises(UserError, match="true boxes"):
        LD(facts, facts)(answers(facts), answers(facts))
