"""feature_kd: its formula, what it reads of each pair of models, and that it refuses to run before it has looked."""

import math

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import FeatureKD, build_losses, cosine_smooth_l1, parse_methods


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(own: list[float], other: list[float], cosine: float, smooth_l1: float) -> float:
    dot = sum(a * b for a, b in zip(own, other, strict=True))
    lengths = math.sqrt(sum(a * a for a in own)) * math.sqrt(sum(b * b for b in other))
    gaps = [abs(a - b) for a, b in zip(own, other, strict=True)]
    entries = sum(gap * gap / 2 if gap < 1 else gap - 0.5 for gap in gaps) / len(gaps)
    return cosine * (1 - dot / lengths) + smooth_l1 * entries


def test_it_is_one_less_the_cosine_and_smooth_l1() -> None:
    own, other = random(4, 5), 2 * random(4, 5, seed=1)
    expected = [slow(a, b, 0.9, 0.1) for a, b in zip(own.tolist(), other.tolist(), strict=True)]
    assert cosine_smooth_l1(own, other).tolist() == pytest.approx(expected, rel=1e-12)


def test_known_vectors() -> None:
    """(3, 4) and (4, 3): cosine 24/25, gaps of 1, each 1/2; a right angle: 1, gaps 2 and 2, each 1.5."""
    own = torch.tensor([[3.0, 4.0], [2.0, 0.0], [1.0, -7.0]], dtype=torch.float64)
    other = torch.tensor([[4.0, 3.0], [0.0, 2.0], [1.0, -7.0]], dtype=torch.float64)
    assert cosine_smooth_l1(own, other).tolist() == pytest.approx([0.9 / 25 + 0.05, 0.9 + 0.15, 0.0], abs=1e-9)


def test_the_gradient_is_the_students_alone_and_right() -> None:
    own, other = random(3, 4).requires_grad_(), random(3, 4, seed=1).requires_grad_()
    cosine_smooth_l1(own, other).sum().backward()
    assert other.grad is None and own.grad is not None
    assert torch.autograd.gradcheck(lambda x: cosine_smooth_l1(x, other.detach()), (own,))


def test_half_precision_is_promoted() -> None:
    own, other = random(2, 3).bfloat16(), random(2, 3, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert cosine_smooth_l1(own, other).dtype == torch.float32


def by_hand(loss: FeatureKD, own_vectors: Tensor, teacher_vectors: Tensor, seen: Tensor, part: int) -> float:
    """One part for a linear head, from the teacher's vectors (B, N, C) and those that were looked at, in explicit loops."""
    layer = loss.heads[part].layers[0]
    seen = seen.flatten(0, -2)
    mean = [sum(column) / len(column) for column in seen.T.tolist()]
    std = [
        math.sqrt(sum((x - m) ** 2 for x in column) / len(column))
        for m, column in zip(mean, seen.T.tolist(), strict=True)
    ]
    values = []
    for own_image, other_image in zip(own_vectors, teacher_vectors, strict=True):
        own, other = [], []
        for vector in own_image:
            own += [(row @ vector.to(row.dtype) + b).item() for row, b in zip(layer.weight, layer.bias, strict=True)]
        for vector in other_image.tolist():
            other += [(x - m) / s for x, m, s in zip(vector, mean, std, strict=True)]
        values.append(slow(own, other, 0.9, 0.1))
    return sum(values) / len(values)


def test_the_method_is_both_parts_on_standardised_features(plain, make_outputs) -> None:
    student, teacher = plain(width=4), plain(width=6)
    (built,) = build_losses(parse_methods("feature_kd(pooled=2, dense=0.5)"), student, teacher)
    loss = built.module.double()
    assert (built.weight, loss.default_task_weight, loss.needs_labels) == (1.0, 1.0, False)
    assert [(pair.student, pair.teacher) for pair in loss.pairs] == [("pooled", "pooled"), ("final", "final")]
    seen = [make_outputs(teacher, loss.teacher_request, seed=seed) for seed in (5, 6)]
    loss.calibrate(iter(seen))
    own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
    pooled = by_hand(
        loss, own.pooled.unsqueeze(1), other.pooled.unsqueeze(1), torch.cat([o.pooled for o in seen]).unsqueeze(1), 0
    )
    maps = [o.final.flatten(2).transpose(1, 2) for o in (own, other, *seen)]
    dense = by_hand(loss, maps[0], maps[1], torch.cat(maps[2:]), 1)
    assert loss(own, other).item() == pytest.approx(2 * pooled + 0.5 * dense, rel=1e-6)


@pytest.mark.parametrize("standardise", ["channel", "phi_s", "off"])
def test_a_student_that_answers_the_standardised_features_has_no_loss(standardise: str, plain, make_outputs) -> None:
    facts = plain(width=6)
    loss = FeatureKD(facts, facts, standardise=standardise).double()
    other = make_outputs(facts, loss.teacher_request)
    if loss.calibration_images:
        loss.calibrate([other])
    with torch.no_grad():
        for head in loss.heads:
            head.layers[0].weight.copy_(torch.eye(6))
            head.layers[0].bias.zero_()
        pooled, patches = (s(f) for s, f in zip(loss.standardisers, loss._teacher_features(other), strict=True))
        own = make_outputs(facts, loss.student_request, seed=1)
        own.pooled, own.final = pooled, patches.transpose(1, 2).reshape(other.final.shape)
        assert abs(float(loss(own, other))) < 1e-9
        own.pooled = -own.pooled
        assert float(loss(own, other)) > 0.5


def test_parts_of_weight_0_are_left_out(plain, make_outputs) -> None:
    facts = plain()
    pooled, dense = FeatureKD(facts, facts, dense=0.0), FeatureKD(facts, facts, pooled=0.0)
    assert (pooled.student_request.pooled, pooled.student_request.final) == (True, False)
    assert (dense.student_request.pooled, dense.student_request.final) == (False, True)
    assert len(pooled.heads) == len(dense.heads) == 1
    for loss in (pooled, dense):
        # Whatever else another loss asked for is not read.
        both = FeatureKD(facts, facts)
        own, other = make_outputs(facts, both.student_request), make_outputs(facts, both.teacher_request, seed=1)
        loss.calibrate([other])
        assert loss(own, other) > 0


def test_without_a_final_map_the_last_levels_meet_and_grids_are_resized(plain, pyramid, make_outputs) -> None:
    from dataclasses import replace

    student, teacher = replace(pyramid(), final=None), plain(grid=4)
    loss = FeatureKD(student, teacher)
    assert [(pair.student, pair.teacher) for pair in loss.pairs][1] == ("stages.2", "blocks.11")
    assert loss.notes == ("feature_kd: student stages.2 (2x2) is resized to teacher blocks.11 (4x4).",)
    own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
    loss.calibrate([other])
    loss(own, other).backward()
    assert own.maps["stages.2"].grad.abs().min() > 0
    assert other.maps["blocks.11"].grad is None and other.pooled.grad is None
    with pytest.raises(UserError, match=r"vit offers none.*dense=0"):
        FeatureKD(student, replace(teacher, levels=(), final=None))
    FeatureKD(student, replace(teacher, levels=(), final=None), dense=0.0)


def test_it_says_what_to_do_before_it_has_looked(plain, make_outputs) -> None:
    facts = plain()
    loss = FeatureKD(facts, facts)
    own, other = make_outputs(facts, loss.student_request), make_outputs(facts, loss.teacher_request, seed=1)
    with pytest.raises(UserError, match=r"distiller.calibrate\(batches\).*standardise=off"):
        loss(own, other)
    with pytest.raises(UserError, match="given 0 features"):
        loss.calibrate([])
    assert loss.calibration_images == 2048
    assert FeatureKD(facts, facts, standardise="off").calibration_images == 0
    assert FeatureKD(facts, facts, standardise="off")(own, other) > 0


def test_what_was_measured_is_in_the_state(plain, make_outputs) -> None:
    facts = plain()
    first, second, third = (FeatureKD(facts, facts, standardise="phi_s") for _ in range(3))
    own, other = make_outputs(facts, first.student_request), make_outputs(facts, first.teacher_request, seed=1)
    first.calibrate([other])
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second(own, other), first(own, other))
    third.load_state_dict(FeatureKD(facts, facts, standardise="phi_s").state_dict())
    with pytest.raises(UserError, match="calibrate"):
        third(own, other)


def test_soft_labels_and_none_are_not_read(plain, make_outputs) -> None:
    facts = plain()
    loss = FeatureKD(facts, facts)
    own, other = make_outputs(facts, loss.student_request), make_outputs(facts, loss.teacher_request, seed=1)
    loss.calibrate([other])
    expected = loss(own, other)
    for target in (torch.tensor([0, 4, 2]), torch.rand(3, 5).softmax(1)):
        assert torch.equal(loss(own, other, target), expected)


def test_an_mlp_head(plain) -> None:
    student, teacher = plain(width=4), plain(width=6)
    assert [p.shape for p in FeatureKD(student, teacher, head="mlp", dense=0.0).heads.parameters()] == [
        (6, 4), (6,), (6, 6), (6,)
    ]  # fmt: skip
    assert FeatureKD(student, teacher, head="mlp", hidden=9).heads[0].layers[0].out_features == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("pooled=-1", "pooled is -1"),
        ("pooled=0, dense=0", "both 0"),
        ("cosine=0, smooth_l1=0", "both 0"),
        ("calibration_images=0", "calibration_images is 0"),
        ("head=mlp, hidden=0", "hidden is 0"),
        ("standardise=batch", "standardise is 'batch'; it must be one of 'channel', 'phi_s', 'off'"),
    ],
)
def test_wrong_options_are_named(options: str, message: str, plain) -> None:
    with pytest.raises(UserError, match=message):
        build_losses(parse_methods(f"feature_kd({options})"), plain(), plain())
