"""Losses, gradients, random numbers, maps and detections are the library's own; nothing is run that nobody asked for."""

import copy
import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from limbeck.detection import Pictures, Target, pad
from limbeck.errors import UserError
from limbeck.models.detection.door import load_detector
from limbeck.outputs import Request

FAMILIES = {
    "faster_rcnn": "torchvision:faster_rcnn(backbone=mobilenet_v3_small, fpn_channels=16, head_channels=16)",
    "mask_rcnn": "torchvision:mask_rcnn(backbone=mobilenet_v3_small, fpn_channels=16, head_channels=16, mask_channels=8)",
    "retinanet": "torchvision:retinanet(backbone=resnet18, fpn_channels=8)",
    "fcos": "torchvision:fcos(backbone=mobilenet_v3_small, fpn_channels=32)",
    "ssdlite": "torchvision:ssdlite(backbone=mobilenet_v3_small, extra_channels=[32, 16, 16, 8])",
}
CLASSES = ("cat", "dog", "bird")
TWO_STAGE = ("faster_rcnn", "mask_rcnn")
DENSE = ("retinanet", "fcos", "ssdlite")


@functools.cache
def loaded(family: str) -> Any:
    torch.manual_seed(0)
    made: Any = load_detector(FAMILIES[family], class_names=CLASSES, short=96, long=128)
    # Fresh heads say the same of every class; louder ones have opinions.
    if family in ("retinanet", "fcos"):
        head = made.network.head.classification_head.cls_logits
        nn.init.normal_(head.weight, std=2000.0)
        nn.init.zeros_(head.bias)
    elif family != "ssdlite":
        nn.init.normal_(made.network.roi_heads.box_predictor.cls_score.weight, std=1.0)
    return made


def detector(family: str) -> Any:
    return copy.deepcopy(loaded(family))


def pictures(family: str, seed: int = 1) -> Pictures:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(90, 120), (90, 120)] if family == "ssdlite" else [(70, 96), (64, 100)]
    return pad([torch.rand(3, *size, generator=generator) for size in sizes])


def targets(of: Pictures) -> list[Target]:
    """Two objects in the first picture, none in the second."""
    masks = torch.zeros(2, *of.sizes[0], dtype=torch.bool)
    masks[0, 5:40, 6:45] = True
    masks[1, 30:60, 20:70] = True
    boxes = torch.tensor([[6.0, 5.0, 45.0, 40.0], [20.0, 30.0, 70.0, 60.0]])
    nothing = Target(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, *of.sizes[1], dtype=torch.bool)
    )
    return [Target(boxes, torch.tensor([2, 0]), masks), nothing]


def library(made: Any) -> Any:
    """A copy of the detector's network whose own forward takes images as they are."""
    network = copy.deepcopy(made.network)
    network.transform.resize = lambda image, target=None: (image, target)
    return network


def library_inputs(made: Any, of: Pictures, wanted: list[Target]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    first = 1 if made.facts.scores == "softmax" else 0
    images = [image[:, :h, :w] for image, (h, w) in zip(of.images, of.sizes, strict=True)]
    dictionaries: list[dict[str, Tensor]] = []
    for target in wanted:
        assert target.masks is not None
        dictionaries.append(
            {"boxes": target.boxes, "labels": target.labels + first, "masks": target.masks.to(torch.uint8)}
        )
    return images, dictionaries


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_gradients_and_random_numbers_are_the_librarys(family: str) -> None:
    made = detector(family)
    network = library(made)
    of = pictures(family)
    torch.manual_seed(3)
    losses = made(of, targets(of), Request(levels=("fpn.1",), regions=True, predictions=True)).losses
    state = torch.get_rng_state()
    sum(losses.values()).backward()
    torch.manual_seed(3)
    expected = network(*library_inputs(made, of, targets(of)))
    assert torch.equal(state, torch.get_rng_state())
    sum(expected.values()).backward()
    assert list(losses) == list(expected)
    for name in losses:
        assert torch.equal(losses[name], expected[name]), name
    for (name, ours), theirs in zip(made.network.named_parameters(), network.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad), name
    for (name, ours), theirs in zip(made.network.named_buffers(), network.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("family", FAMILIES)
def test_it_finds_what_the_library_finds(family: str) -> None:
    made = detector(family).eval()
    network = library(made)
    of = pictures(family)
    sizes = list(of.sizes)
    found = made.detect(of, sizes)
    with torch.no_grad():
        expected = network(library_inputs(made, of, targets(of))[0])
    first = 1 if made.facts.scores == "softmax" else 0
    assert sum(len(one.labels) for one in found) > 10
    for ours, theirs, size in zip(found, expected, sizes, strict=True):
        assert torch.equal(ours.boxes, theirs["boxes"])
        assert torch.equal(ours.labels, theirs["labels"] - first)
        assert torch.equal(ours.scores, theirs["scores"])
        assert (ours.scores.diff() <= 0).all()
        if family == "mask_rcnn":
            assert ours.masks is not None and ours.masks.shape == (len(ours.labels), *size)
            assert torch.equal(ours.masks, theirs["masks"][:, 0] > 0.5)
        else:
            assert ours.masks is None


def test_detections_are_scaled_to_the_asked_size_and_modes_are_kept() -> None:
    made = detector("mask_rcnn").train()
    made.network.backbone.eval()
    of = pictures("mask_rcnn")
    small = made.detect(of, of.sizes)
    large = made.detect(of, [(2 * h, 3 * w) for h, w in of.sizes])
    for one, other, (height, width) in zip(small, large, of.sizes, strict=True):
        torch.testing.assert_close(one.boxes * torch.tensor([3, 2, 3, 2]), other.boxes)
        assert other.masks is not None and other.masks.shape[1:] == (2 * height, 3 * width)
    assert made.training and made.network.rpn.training and not made.network.backbone.training


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_what_the_heads_read_and_padding_is_0(family: str) -> None:
    made = detector(family).eval()
    of = pictures(family)
    names = tuple(level.name for level in made.facts.levels)
    maps = made(of, request=Request(levels=names)).maps
    images = library(made).transform(library_inputs(made, of, targets(of))[0])[0].tensors
    expected = made.network.backbone(images)
    assert list(maps) == list(names)
    for name, theirs in zip(names, expected.values(), strict=True):
        rows, columns = theirs.shape[-2:]
        assert torch.equal(maps[name][..., :rows, :columns], theirs)
        assert maps[name][..., rows:, :].abs().sum() == maps[name][..., columns:].abs().sum() == 0
        level = made.facts.level(name)
        assert level.kind == "fpn" and level.channels == theirs.shape[1]
        assert theirs.shape[-1] == -(-images.shape[-1] // level.stride)
    strides = [level.stride for level in made.facts.levels]
    assert all(later == 2 * earlier for earlier, later in itertools.pairwise(strides))


class _Untouchable(nn.Module):
    def forward(self, *_: object) -> None:
        raise AssertionError("this was not asked for")


@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_is_asked_for_is_run(family: str) -> None:
    made = detector(family)
    for name in ("rpn", "roi_heads", "head"):
        if hasattr(made.network, name):
            setattr(made.network, name, _Untouchable())
    outputs = made(pictures(family), request=Request(levels=("fpn.0",)))
    assert list(outputs.maps) == ["fpn.0"] and not outputs.losses and not outputs.predictions
    made.network.backbone = _Untouchable()
    assert made(pictures(family)).maps == {}
    with pytest.raises(AssertionError, match="not asked for"):
        made(pictures(family), request=Request(levels=("fpn.0",)))
    with pytest.raises(KeyError, match="no level"):
        made(pictures(family), request=Request(levels=("fpn.9",)))


@pytest.mark.parametrize("family", TWO_STAGE)
def test_it_answers_about_its_own_regions_as_it_did(family: str) -> None:
    made = detector(family)
    made.network.backbone.eval()
    of = pictures(family)
    outputs = made(of, targets(of), Request(regions=True, read_regions=True))
    regions = outputs.regions
    again = outputs.read_regions(regions)
    count = sum(len(boxes) for boxes in regions.boxes)
    assert regions.logits.shape == (count, len(CLASSES) + 1)
    assert regions.deltas.shape == (count, len(CLASSES), 4)
    assert torch.equal(again.logits, regions.logits) and torch.equal(again.deltas, regions.deltas)
    if family == "mask_rcnn":
        assert torch.equal(again.mask_logits, regions.mask_logits)
        assert regions.mask_logits.shape[:2] == (sum(map(len, regions.mask_boxes)), len(CLASSES))
        assert len(regions.mask_boxes[1]) == 0
    else:
        assert regions.mask_boxes is None and again.mask_logits is None
    # The loss is that of these very answers: background is last.
    columns = torch.tensor([len(CLASSES), *range(len(CLASSES))])
    logits, _ = made.network.roi_heads.box_predictor(
        made.network.roi_heads.box_head(
            made.network.roi_heads.box_roi_pool(
                made.network.backbone(library(made).transform(library_inputs(made, of, [])[0])[0].tensors),
                list(regions.boxes),
                list(of.sizes),
            )
        )
    )
    torch.testing.assert_close(regions.logits[:, columns], logits)


def test_regions_without_targets_are_its_proposals_in_either_mode() -> None:
    made = detector("mask_rcnn")
    for mode in (True, False):
        outputs = made.train(mode)(pictures("mask_rcnn"), request=Request(regions=True, read_regions=True))
        assert outputs.regions is not None and len(outputs.regions.logits) == sum(map(len, outputs.regions.boxes)) > 0
        assert not outputs.losses and outputs.regions.mask_boxes is None


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_can_be_had_in_evaluation_mode(family: str) -> None:
    made = detector(family).eval()
    of = pictures(family)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    losses = made(of, targets(of)).losses
    assert losses and all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())


@pytest.mark.parametrize("family", DENSE)
def test_predictions_decode_to_what_is_detected(family: str) -> None:
    made = detector(family).eval()
    of = pictures(family)
    (predictions,) = made(of, request=Request(predictions=True)).predictions
    found = made.detect(of, of.sizes)
    for logits, shares, ours, (height, width) in zip(
        predictions.logits, predictions.boxes, found, of.sizes, strict=True
    ):
        boxes = box_convert(shares, "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        boxes = torch.stack([boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], -1).flatten(1)
        scores = logits.softmax(-1)[:, :-1] if made.facts.scores == "softmax" else logits.sigmoid()
        best = ours.boxes[0]
        nearest = (boxes - best).abs().sum(-1).argmin()
        torch.testing.assert_close(boxes[nearest], best, atol=1e-3, rtol=1e-4)
        if family != "fcos":  # whose score is multiplied by the centerness
            torch.testing.assert_close(scores[nearest, ours.labels[0]], ours.scores[0])


def test_masks_are_needed_by_who_learns_from_them() -> None:
    of = pictures("mask_rcnn")
    boxes_only = [Target(target.boxes, target.labels) for target in targets(of)]
    with pytest.raises(UserError, match="learns from masks"):
        detector("mask_rcnn")(of, boxes_only)
    assert detector("faster_rcnn")(of, boxes_only).losses


def test_facts_say_how_it_predicts() -> None:
    facts = {family: detector(family).facts for family in FAMILIES}
    assert {family: fact.scores for family, fact in facts.items()} == {
        "faster_rcnn": "softmax",
        "mask_rcnn": "softmax",
        "retinanet": "sigmoid",
        "fcos": "sigmoid",
        "ssdlite": "softmax",
    }
    assert [family for family, fact in facts.items() if fact.family == "two_stage"] == list(TWO_STAGE)
    assert [family for family, fact in facts.items() if fact.has_masks] == ["mask_rcnn"]
    assert all(fact.class_names == CLASSES and fact.num_classes == 3 for fact in facts.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_lie_over_the_padded_pictures_whatever_the_network_was_shown(family: str) -> None:
    made = detector(family).eval()
    of = pad([torch.rand(3, 100, 72)])
    names = tuple(level.name for level in made.facts.levels)
    outputs = made(of, request=Request(names))
    assert outputs.size == of.size == (128, 96)
    for level in made.facts.levels:
        rows, columns = outputs.maps[level.name].shape[-2:]
        assert abs(rows - 128 / level.stride) <= 1 and abs(columns - 96 / level.stride) <= 1


@pytest.mark.parametrize("family", TWO_STAGE)
def test_what_was_seen_first_changes_no_later_answer(family: str) -> None:
    fresh, used = detector(family).eval(), detector(family).eval()
    used.detect(pad([torch.rand(3, 40, 300)]), [(40, 300)])  # padded to more than half again its height
    of = pictures(family)
    for one, other in zip(fresh.detect(of, of.sizes), used.detect(of, of.sizes), strict=True):
        assert torch.equal(one.boxes, other.boxes) and torch.equal(one.scores, other.scores)
