"""The methods on feature maps, between detectors: pairs by stride, pictures of any size, published settings."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import (
    CWD,
    FGD,
    KD,
    NKD,
    PKD,
    FitNets,
    Manifold,
    MGDLoss,
    ReviewKDLoss,
    ViTKDLoss,
    cwd_loss,
    pkd_loss,
)
from limbeck.outputs import Features

ON_LEVELS = {"pkd": PKD, "cwd": CWD, "fitnets": FitNets, "mgd": MGDLoss, "reviewkd": ReviewKDLoss, "manifold": Manifold}


def pairs_of(loss) -> list[tuple[str, str]]:
    return [(pair.student, pair.teacher) for pair in loss.pairs]


def test_outputs_of_detectors_are_features(detector, seen) -> None:
    facts = detector()
    assert isinstance(seen(facts, PKD(facts, facts).student_request), Features)


@pytest.mark.parametrize("name", ON_LEVELS)
@pytest.mark.parametrize("kind", ["fpn", "encoder", "stage", "block"])
def test_any_detector_may_teach_any_other_on_pictures_of_any_size(name: str, kind: str, detector, seen) -> None:
    student = detector("small", (8, 16, 32, 64), channels=6, size=(64, 64))
    teacher = detector(
        "large", (16,) * 5 if kind == "block" else (4, 8, 16, 32), channels=8, kind=kind, size=(800, 1333)
    )
    for own, other in ((student, teacher), (teacher, student)):
        loss = ON_LEVELS[name](own, other).double()
        for pair in loss.pairs:
            assert own.level(pair.student).stride == other.level(pair.teacher).stride
        assert any("left out" in note for note in loss.notes)
        # Equal strides give equal grids, whatever sizes the facts were measured at.
        assert not any("resized" in note or "compared on" in note for note in loss.notes if name != "manifold")
        for size in ((96, 160), (72, 200)):
            seen_by_student = seen(own, loss.student_request, size)
            value = loss(seen_by_student, seen(other, loss.teacher_request, size, seed=1))
            value.backward()
            assert value.isfinite()
            assert all(maps.grad.abs().sum() > 0 for maps in seen_by_student.maps.values())


@pytest.mark.parametrize("name", ON_LEVELS)
def test_maps_without_a_shared_stride_are_resized_and_that_is_said(name: str, detector, seen) -> None:
    student, teacher = detector(strides=(8, 16, 32)), detector(strides=(14, 28))
    loss = ON_LEVELS[name](student, teacher).double()
    assert "the nearest are paired" in loss.notes[0]
    assert loss(seen(student, loss.student_request), seen(teacher, loss.teacher_request)).isfinite()


def test_pkd_takes_the_four_finest_shared_levels_and_cwd_all(detector, seen) -> None:
    student, teacher = detector(strides=(4, 8, 16, 32, 64)), detector(strides=(4, 8, 16, 32, 64), size=(320, 320))
    every = [(f"p{i}", f"p{i}") for i in range(5)]
    pkd, cwd = PKD(student, teacher), CWD(student, teacher)
    assert pairs_of(pkd) == every[:4]
    assert pairs_of(PKD(student, teacher, num_levels=2)) == every[:2]
    assert pairs_of(PKD(student, teacher, pairs=every)) == every
    assert pairs_of(cwd) == every
    assert (pkd.default_weight, cwd.default_weight, cwd.temperature) == (6.0, 10.0, 1.0)
    assert pkd.notes == cwd.notes == ()
    own, other = seen(student, cwd.student_request), seen(teacher, cwd.teacher_request, seed=1)
    maps = [(own.maps[name], other.maps[name]) for name, _ in every]
    torch.testing.assert_close(pkd(own, other), sum(pkd_loss(s, t) for s, t in maps[:4]))
    torch.testing.assert_close(cwd(own, other), sum(cwd_loss(s, t) for s, t in maps))


@pytest.mark.parametrize(
    ("family", "alpha", "ratio"),
    [("two_stage", 5e-7, 0.45), ("dense", 2e-5, 0.65), ("queries", 2e-5, 0.65), ("mask_queries", 2e-5, 0.65)],
)
def test_mgd_masks_positions_as_published_for_the_kind_of_detector(
    family: str, alpha: float, ratio: float, detector
) -> None:
    student, teacher = detector(strides=(8, 16)), detector(strides=(4, 8, 16), family=family)
    loss = MGDLoss(student, teacher)
    assert pairs_of(loss) == [("p0", "p1"), ("p1", "p2")]
    assert [(level.mask, level.alpha, level.mask_ratio) for level in loss.mgd] == [("position", alpha, ratio)] * 2
    (level, _) = MGDLoss(student, teacher, mask="channel").mgd
    assert (level.mask, level.alpha, level.mask_ratio) == ("channel", 7e-5, 0.15)
    (level, _) = MGDLoss(student, teacher, alpha=1.0, mask_ratio=0.5).mgd
    assert (level.mask, level.alpha, level.mask_ratio) == ("position", 1.0, 0.5)
    yolos = detector(strides=(16,) * 12, kind="block", family=family)
    assert pairs_of(MGDLoss(yolos, yolos)) == [("p11", "p11")]


def slow_reviewkd(loss: ReviewKDLoss, own: list[Tensor], other: list[Tensor]) -> float:
    """The chain from the coarsest level up, maps pooled by loops."""
    total, residual = 0.0, None
    for index in reversed(range(len(own))):
        fusion = loss.reviewkd.fusions[index]
        x = F.conv2d(own[index], fusion.reduce[0].weight)
        x = normalised(x)
        if residual is not None:
            height, width = x.shape[2:]
            rows = [i * residual.shape[2] // height for i in range(height)]
            columns = [i * residual.shape[3] // width for i in range(width)]
            residual = residual[:, :, rows][:, :, :, columns]
            logits = F.conv2d(torch.cat([x, residual], 1), fusion.attention.weight, fusion.attention.bias)
            gates = 1 / (1 + torch.exp(-logits))
            x = x * gates[:, :1] + residual * gates[:, 1:]
        residual = x
        output = normalised(F.conv2d(x, fusion.output[0].weight, padding=1))
        level, weight, weights = (output - other[index]).square().mean().item(), 1.0, 1.0
        height, width = output.shape[2:]
        for side in (4, 2, 1):
            if side < height:
                weight /= 2
                weights += weight
                squares = []
                for i in range(side):
                    for j in range(side):
                        down = slice(i * height // side, -(-(i + 1) * height // side))
                        across = slice(j * width // side, -(-(j + 1) * width // side))
                        squares.append((output - other[index])[:, :, down, across].mean((2, 3)) ** 2)
                level += weight * torch.stack(squares).mean().item()
        total += level / weights
    return total


def normalised(x: Tensor) -> Tensor:
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt()


def test_reviewkd_on_pyramids_that_are_not_square_equals_a_slow_formulation(detector, seen) -> None:
    student = detector(strides=(4, 8, 16, 32, 64), channels=6, size=(64, 64))
    teacher = detector(strides=(8, 16, 32, 64), channels=8, size=(128, 96))
    loss = ReviewKDLoss(student, teacher).double()
    assert pairs_of(loss) == [(f"p{i + 1}", f"p{i}") for i in range(4)]
    assert not loss.student_request.pooled
    assert loss.reviewkd.fusions[3].attention is None
    # Grids 9x23, 5x12, 3x6 and 2x3: the residual's cells are no whole multiple of the next map's.
    own, other = seen(student, loss.student_request, (72, 184)), seen(teacher, loss.teacher_request, (72, 184), seed=1)
    assert [tuple(maps.shape[2:]) for maps in other.maps.values()] == [(9, 23), (5, 12), (3, 6), (2, 3)]
    expected = slow_reviewkd(loss, list(own.maps.values()), list(other.maps.values()))
    assert loss(own, other).item() == pytest.approx(expected, rel=1e-9)


def test_reviewkd_of_five_levels_of_256_channels_has_the_published_size(detector) -> None:
    facts = detector(strides=(4, 8, 16, 32, 64), channels=256)
    with torch.device("meta"):
        loss = ReviewKDLoss(facts, facts)
    assert loss.reviewkd.mid_channels == 256
    assert sum(p.numel() for p in loss.parameters()) == 3_286_024
    assert (loss.default_weight, loss.default_warmup_epochs, loss.notes) == (1.0, 0.0, ())


@pytest.mark.parametrize(("own", "other", "middle"), [(96, 256, 256), (256, 96, 96), (512, 512, 256)])
def test_reviewkds_middle_width_follows_the_teacher_up_to_256(own: int, other: int, middle: int, detector) -> None:
    with torch.device("meta"):
        assert ReviewKDLoss(detector(channels=own), detector(channels=other)).reviewkd.mid_channels == middle


def test_reviewkd_refuses_to_normalise_one_picture_over_one_cell(detector, seen) -> None:
    facts = detector(strides=(8, 64))
    loss = ReviewKDLoss(facts, facts).double()
    maps = [seen(facts, loss.student_request, (64, 64), batch=1, seed=seed) for seed in (0, 1)]
    with pytest.raises(UserError, match="larger pictures or pairs without the coarsest level"):
        loss(*maps)
    larger = [seen(facts, loss.student_request, (64, 96), batch=1, seed=seed) for seed in (0, 1)]
    assert loss(*larger).isfinite()


def test_blocks_of_plain_detectors_are_read_as_those_of_classifiers(detector, seen) -> None:
    student = detector("yolos-tiny", (16,) * 6, channels=6, kind="block", family="queries", size=(64, 64))
    teacher = detector("yolos-base", (16,) * 12, channels=8, kind="block", family="queries", size=(800, 1344))
    assert pairs_of(PKD(student, teacher)) == [("p0", "p2"), ("p2", "p5"), ("p3", "p8"), ("p5", "p11")]
    assert len(Manifold(student, teacher).pairs) == 6
    for loss_class in (ViTKDLoss, Manifold, ReviewKDLoss):
        loss = loss_class(student, teacher).double()
        assert not any("resized" in note or "compared on" in note for note in loss.notes)
        own, other = (
            seen(student, loss.student_request, (80, 112)),
            seen(teacher, loss.teacher_request, (80, 112), seed=1),
        )
        loss(own, other).backward()
        assert all(maps.grad.abs().sum() > 0 for maps in own.maps.values())


@pytest.mark.parametrize("loss_class", [KD, NKD])
def test_losses_on_an_images_classes_refuse_detectors(loss_class, detector) -> None:
    with pytest.raises(UserError, match="yolo is a detector"):
        loss_class(detector("yolo"), detector("yolo"))


@pytest.mark.parametrize("loss_class", [*ON_LEVELS.values(), FGD])
def test_a_detector_without_levels_is_refused(loss_class, detector) -> None:
    with pytest.raises(UserError, match="compares feature maps, but bare offers none"):
        loss_class(detector(), detector("bare", strides=()))


def test_vitkd_refuses_a_detector_without_a_final_map(detector) -> None:
    with pytest.raises(UserError, match="detector has 3 levels and no final map"):
        ViTKDLoss(detector(), detector())
