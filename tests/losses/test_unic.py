"""unic: teacher dropping and the ladder against loops, one teacher and several, and what is asked of each."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import UNIC, build_losses, drop_teachers, parse_methods
from limbeck.outputs import ModelFacts, Outputs, Request

SMALL = "hidden=5, last_hidden=7"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def several(*members: ModelFacts) -> ModelFacts:
    return ModelFacts("a + b", 0, (64, 64), (), 0, members=members)


def slow_drop(losses: list[list[float]], noise: list[list[float]], drop: float) -> list[float]:
    found = []
    for row, chances in zip(losses, noise, strict=True):
        kept = [row.index(max(row))]
        kept += [t for t in range(len(row)) if t != kept[0] and chances[t] >= drop]
        found.append(sum(row[t] for t in kept) / len(kept))
    return found


@pytest.mark.parametrize("drop", [0.0, 0.3, 0.5, 1.0])
def test_the_worst_teacher_is_kept_and_the_others_by_chance(drop: float) -> None:
    losses, noise = random(50, 4).abs(), torch.rand(50, 4, dtype=torch.float64)
    expected = slow_drop(losses.tolist(), noise.tolist(), drop)
    assert drop_teachers(losses, drop, noise).tolist() == pytest.approx(expected, rel=1e-12)


def test_dropping_none_is_the_mean_and_all_the_worst() -> None:
    losses = random(6, 3).abs()
    torch.testing.assert_close(drop_teachers(losses, 0.0), losses.mean(1))
    torch.testing.assert_close(drop_teachers(losses, 1.0), losses.amax(1))
    assert torch.equal(drop_teachers(losses[:, :1], 1.0), losses[:, 0])


def test_the_others_are_dropped_as_often_as_asked() -> None:
    """Worst loss 3, the other 1: the mean is 3 with probability p and 2 otherwise."""
    losses = torch.tensor([[3.0, 1.0]]).expand(20000, 2)
    for drop in (0.25, 0.5):
        assert float(drop_teachers(losses, drop).mean()) == pytest.approx(2 + drop, abs=0.02)


def test_teachers_of_equal_losses_leave_one_kept() -> None:
    assert drop_teachers(torch.ones(4, 3), 1.0).tolist() == [1.0] * 4


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def slow_mlp(layers: torch.nn.Module, x: list[float]) -> list[float]:
    def linear(layer: torch.nn.Linear, given: list[float]) -> list[float]:
        return [
            sum(w * g for w, g in zip(row, given, strict=True)) + b
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        ]

    return linear(layers[2], [gelu(value) for value in linear(layers[0], x)])


def slow_loss(own: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(own, other, strict=True))
    cosine = dot / math.sqrt(sum(a * a for a in own) * sum(b * b for b in other))
    gaps = [abs(a - b) for a, b in zip(own, other, strict=True)]
    return 0.5 * (1 - cosine) + 0.5 * sum(g * g / 2 if g < 1 else g - 0.5 for g in gaps) / len(gaps)


def slow_teacher(loss: UNIC, number: int, own: Outputs, other: Outputs, image: int) -> float:
    """The loss of one teacher and image, features not standardised, equal grids."""
    heads = loss.heads[number]
    names = [level.name for level in loss.below]

    def ladder(rungs: torch.nn.ModuleList, features: list[Tensor]) -> list[float]:
        parts = [slow_mlp(rung.layers, of.tolist()) for rung, of in zip(rungs, features, strict=True)]
        return [sum(values) for values in zip(*parts, strict=True)]

    vectors = [*(own.class_tokens[name][image] for name in names), own.pooled[image]]
    pooled = slow_loss(ladder(heads.pooled_ladder.rungs, vectors), other.pooled[image].tolist())
    patches = []
    height, width = own.final.shape[-2:]
    for row in range(height):
        for column in range(width):
            cells = [*(own.maps[name][image, :, row, column] for name in names), own.final[image, :, row, column]]
            patches.append(
                slow_loss(ladder(heads.patch_ladder.rungs, cells), other.final[image, :, row, column].tolist())
            )
    return (pooled + sum(patches) / len(patches)) / 2


def test_the_method_is_the_ladders_of_every_teacher(plain, make_outputs) -> None:
    student, first, second = plain(depth=3, width=4, grid=2), plain(width=5, grid=2), plain(width=6, grid=2)
    (built,) = build_losses(parse_methods(f"unic(standardise=off, drop=0, {SMALL})"), student, several(first, second))
    loss = built.module.double()
    assert (built.weight, loss.needs_labels, loss.calibration_images) == (1.0, False, 0)
    assert loss.student_request == Request(("blocks.0", "blocks.1"), pooled=True, final=True, class_tokens=True)
    assert loss.teacher_request == Request(members=(Request(pooled=True, final=True),) * 2)
    own = make_outputs(student, loss.student_request, batch=2)
    others = [
        make_outputs(of, Request(pooled=True, final=True), batch=2, seed=s) for s, of in ((1, first), (2, second))
    ]
    by_hand = [[slow_teacher(loss, t, own, others[t], image) for t in range(2)] for image in range(2)]
    together = Outputs(torch.zeros(2, 0), members=tuple(others))
    assert torch.stack(loss.teacher_losses(own, together), 1).flatten().tolist() == pytest.approx(
        [value for row in by_hand for value in row], rel=1e-9
    )
    assert loss(own, together).item() == pytest.approx(sum(map(sum, by_hand)) / 4, rel=1e-9)


def test_one_teacher_is_enough_and_dropping_has_no_effect(plain, make_outputs) -> None:
    student, teacher = plain(depth=2, width=4), plain(width=5)
    loss = UNIC(student, teacher, hidden=5, last_hidden=7, drop=1.0)
    alone = UNIC(student, several(teacher), hidden=5, last_hidden=7)
    alone.load_state_dict(loss.state_dict())
    own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
    loss.calibrate([other])
    alone.calibrate([Outputs(torch.zeros(3, 0), members=(other,))])
    assert torch.equal(loss(own, other), alone(own, Outputs(torch.zeros(3, 0), members=(other,))))
    assert [(pair.student, pair.teacher) for pair in loss.pairs] == [("pooled", "pooled"), ("final", "final")]
    assert alone.pairs == ()


@pytest.mark.parametrize("standardise", ["channel", "phi_s"])
def test_each_teacher_is_standardised_by_itself(standardise: str, plain, make_outputs) -> None:
    student, members = plain(depth=2), (plain(width=4), plain(width=8, grid=2))
    loss = UNIC(student, several(*members), standardise=standardise, hidden=5, last_hidden=7)
    others = tuple(
        make_outputs(of, asked, seed=s)
        for s, (of, asked) in enumerate(zip(members, loss.teacher_request.members, strict=True))
    )
    own, together = make_outputs(student, loss.student_request, seed=9), Outputs(torch.zeros(3, 0), members=others)
    with pytest.raises(UserError, match=r"unic standardises.*distiller.calibrate"):
        loss(own, together)
    loss.calibrate([together])
    torch.manual_seed(1)
    before = loss(own, together)
    # A teacher's scale and offset are nobody's business, its own or another's.
    louder = replace(others[0], pooled=3 * others[0].pooled + 1, final=0.1 * others[0].final - 2)
    together = Outputs(torch.zeros(3, 0), members=(louder, others[1]))
    loss.calibrate([together])
    torch.manual_seed(1)
    torch.testing.assert_close(loss(own, together), before, rtol=1e-4, atol=0)
    before.backward()
    assert own.pooled.grad is not None and own.maps["blocks.0"].grad.abs().max() > 0
    assert own.class_tokens["blocks.0"].grad.abs().max() > 0
    assert all(of.pooled.grad is None and of.final.grad is None for of in others)
    assert "to whose 2x2 cells the student's maps are resized" in loss.notes[2]


def test_pyramids_climb_their_stages_with_means_for_class_tokens(pyramid, plain, make_outputs) -> None:
    student, teacher = replace(pyramid(), final=None), plain(width=5)
    loss = UNIC(student, teacher, hidden=5, last_hidden=7, standardise="off")
    assert loss.student_request.levels == ("stages.0", "stages.1", "stages.2")
    own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
    without = loss(own, other)
    own.class_tokens |= {name: own.maps[name].mean((2, 3)) for name in ("stages.0", "stages.1")}
    assert torch.equal(loss(own, other), without)


def test_without_the_ladder_the_last_rung_stays(plain) -> None:
    loss = UNIC(plain(), plain(), ladder=False, hidden=5, last_hidden=7)
    assert loss.student_request == Request(pooled=True, final=True)
    assert len(loss.heads[0].pooled_ladder.rungs) == 1
    assert loss.heads[0].pooled_ladder.rungs[0].layers[0].out_features == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("drop=1.5", "drop is 1.5"),
        ("hidden=0", "hidden is 0"),
        ("cosine=0, smooth_l1=0", "both 0"),
        ("calibration_images=0", "calibration_images is 0"),
    ],
)
def test_wrong_options_are_named(options: str, message: str, plain) -> None:
    with pytest.raises(UserError, match=message):
        build_losses(parse_methods(f"unic({options})"), plain(), plain())


@pytest.mark.parametrize(
    "method", ["feature_kd", "patch_relation", "manifold", "vitkd", "reviewkd", "fitnets", "feature_kd(dense=0)"]
)
def test_several_teachers_are_refused_by_what_reads_one(method: str, plain) -> None:
    with pytest.raises(UserError, match=r"reads the features of one teacher, and there are 2: a \+ b. Take unic"):
        build_losses(parse_methods(method), plain(), several(plain(), plain()))


def test_logits_need_teachers_of_the_same_classes(plain) -> None:
    members = (plain("a", num_classes=5), plain("b", num_classes=7))
    with pytest.raises(UserError, match=r"kd reads .* classes differ: a has 5, b has 7; the student has 5"):
        build_losses(parse_methods("kd"), plain(), several(*members))
    (built,) = build_losses(parse_methods("kd"), plain(), replace(several(plain(), plain()), num_classes=5))
    assert built.name == "kd"
