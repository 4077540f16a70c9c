"""Detectors are opened with any backbone, saved, and made again; a classifier's run can be where one starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from limbeck.detection import Resize, Target, pad
from limbeck.errors import UserError
from limbeck.models.detection.door import class_names_of, load_detector, rebuild, save_detector
from limbeck.models.door import load_model, save_model
from limbeck.outputs import Request

TINY = "torchvision:mask_rcnn(backbone=mobilenet_v3_small, fpn_channels=8, head_channels=8, mask_channels=8)"
CLASSES = ("cat", "dog", "bird")


def opened(name: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return load_detector(name, **{"class_names": CLASSES, "short": 96, "long": 128, **arguments})


def batch() -> tuple[Any, list[Target]]:
    pictures = pad([torch.rand(3, 96, 120), torch.rand(3, 80, 96)])
    box = torch.tensor([[5.0, 6.0, 60.0, 70.0]])
    masks = [torch.ones(1, *size, dtype=torch.bool) for size in pictures.sizes]
    return pictures, [Target(box, torch.tensor([1]), mask) for mask in masks]


def test_a_saved_detector_comes_back(tmp_path: Path) -> None:
    made = opened(TINY)
    save_detector(made, tmp_path)
    again: Any = load_detector(str(tmp_path))
    assert again.facts.class_names == CLASSES == class_names_of(str(tmp_path))
    assert again.resize == made.resize and again.rebuild == made.rebuild
    assert again.facts.levels == made.facts.levels and "mask_rcnn" in again.facts.architecture
    for (name, ours), theirs in zip(again.state_dict().items(), made.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert load_detector(str(tmp_path), short=64, long=80).resize.short == 64
    record = json.loads((tmp_path / "model.json").read_text())
    assert record["task"] == "detection" and record["class_names"] == list(CLASSES)
    assert rebuild(record["rebuild"]).facts.name.startswith("torchvision:mask_rcnn(")
    with pytest.raises(UserError, match="holds a detector"):
        load_model(str(tmp_path))
    with pytest.raises(UserError, match="is a run"):
        load_detector(str(tmp_path), backbone="resnet18")
    (tmp_path / "student.safetensors").write_bytes((tmp_path / "student.safetensors").read_bytes()[:-8] + bytes(8))
    with pytest.raises(UserError, match="SHA-256 differs"):
        load_detector(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        (
            TINY,
            {
                "roi_heads.box_predictor.cls_score.weight": (1, 1),
                "roi_heads.box_predictor.bbox_pred.weight": (1, 4),
                "roi_heads.mask_predictor.mask_fcn_logits.weight": (1, 1),
            },
        ),
        (
            "torchvision:retinanet(backbone=mobilenet_v3_small, fpn_channels=8)",
            {"head.classification_head.cls_logits.bias": (9, 1)},
        ),
        (
            "torchvision:fcos(backbone=mobilenet_v3_small, fpn_channels=32)",
            {"head.classification_head.cls_logits.weight": (1, 1)},
        ),
    ],
    ids=["mask_rcnn", "retinanet", "fcos"],
)
def test_known_classes_keep_their_rows(name: str, heads: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    made = opened(name)
    for tensor in made.network.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1)
    save_detector(made, tmp_path)
    # As many classes as before, so that no shape tells that they are others.
    other: Any = load_detector(str(tmp_path), class_names=("bird", "horse", "cat"))
    before, after = made.network.state_dict(), other.network.state_dict()
    first = int(made.facts.scores == "softmax")
    for key, (anchors, each) in heads.items():
        shape = (anchors, len(CLASSES) + first, each, -1)
        old, new = before[key].reshape(shape), after[key].reshape(shape)
        assert torch.equal(new[:, first + 0], old[:, first + 2])
        assert torch.equal(new[:, first + 2], old[:, first + 0])
        assert torch.equal(new[:, 0], old[:, 0]) == bool(first)
        assert not torch.equal(new[:, first + 1], old[:, first + 1])
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    assert {key.rpartition(".")[0] for key in changed} == {key.rpartition(".")[0] for key in heads}
    assert any("2 of them kept" in note for note in other.provenance.notes)


@pytest.mark.parametrize(
    ("family", "backbone", "strides"),
    [
        ("faster_rcnn", "resnet18", (4, 8, 16, 32, 64)),
        ("faster_rcnn", "shufflenet_v2_x0_5", (4, 8, 16, 32, 64)),
        ("faster_rcnn", "timm:resnet10t", (4, 8, 16, 32, 64)),
        ("retinanet", "timm:mobilenetv3_small_050", (8, 16, 32, 64, 128)),
        ("fcos", "limbeck:ipe_vit_75m", (8, 16, 32, 64, 128)),
        ("faster_rcnn", "timm:vit_tiny_patch16_224(depth=2, embed_dim=48)", (4, 8, 16, 32, 64)),
        ("retinanet", "limbeck:deit_shrunk_75m(depth=2)", (8, 16, 32, 64, 128)),
        ("ssdlite", "timm:mobilenetv3_small_050", (16, 32, 64, 128, 256, 512)),
    ],
)
def test_backbones_of_any_library(family: str, backbone: str, strides: tuple[int, ...], tmp_path: Path) -> None:
    width = {"ssdlite": "extra_channels=[16, 16, 16, 16]"}.get(family, "fpn_channels=32")
    made = opened(f"torchvision:{family}(backbone={backbone!r}, {width})")
    assert tuple(level.stride for level in made.facts.levels) == strides
    pictures, targets = batch()
    if made.resize.stretch:
        pictures = pad([torch.rand(3, 96, 128), torch.rand(3, 96, 128)])
    names = tuple(level.name for level in made.facts.levels)
    outputs = made(pictures, targets, Request(levels=names))
    height, width_of = outputs.size
    for level in made.facts.levels:
        rows, columns = outputs.maps[level.name].shape[2:]
        assert (rows, columns) == (-(-height // level.stride), -(-width_of // level.stride))
    sum(outputs.losses.values()).backward()
    # No parameter is trained that nothing depends on.
    idle = [name for name, p in made.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    save_detector(made, tmp_path)
    again: Any = load_detector(str(tmp_path))
    with torch.no_grad():
        theirs = made.eval()(pictures, request=Request(levels=names)).maps
        ours = again.eval()(pictures, request=Request(levels=names)).maps
    assert all(torch.equal(ours[name], theirs[name]) for name in names)


@pytest.mark.parametrize("classifier", ["torchvision:mobilenet_v3_small", "limbeck:ipe_vit_75m", "timm:resnet10t"])
def test_a_classifiers_run_is_where_it_starts(classifier: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = load_model(classifier, num_classes=4, pretrained=False)
    save_model(model, tmp_path / "distilled")
    theirs = model.network.state_dict()
    name = "torchvision:faster_rcnn(fpn_channels=8, head_channels=8)"
    made = opened(name, backbone=str(tmp_path / "distilled"), pretrained=False)
    body = made.network.backbone.body
    ours = body.state_dict()
    suffixes = {key.removeprefix("chain.").removeprefix("network."): tensor for key, tensor in ours.items()}
    prefix = "features." if classifier == "torchvision:mobilenet_v3_small" else ""
    assert suffixes and all(torch.equal(tensor, theirs[prefix + key]) for key, tensor in suffixes.items())
    # As torchvision does with weights, its norms are frozen, and so are the stages before the last three.
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    fixed = [p for p in body.parameters() if not p.requires_grad]
    assert fixed and any(p.requires_grad for p in body.parameters())
    assert any("distilled" in note for note in made.provenance.notes)
    save_detector(made, tmp_path / "detector")
    again: Any = load_detector(str(tmp_path / "detector"))
    assert torch.equal(again.network.backbone.body.state_dict()[next(iter(ours))], next(iter(ours.values())))
    flags = [[p.requires_grad for p in one.parameters()] for one in (made, again)]
    assert flags[0] == flags[1]
    trained = opened(
        "torchvision:faster_rcnn(fpn_channels=8, norm=batch, trainable_layers=0)", backbone=str(tmp_path / "distilled")
    )
    assert not any(p.requires_grad for p in trained.network.backbone.body.parameters())
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in trained.network.backbone.body.modules())


def test_published_weights_of_a_backbone_are_asked_of_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.models import torchvision_models

    asked = []

    def fetch(weights: Any, text: str) -> Any:
        asked.append(str(weights))
        return load_model("torchvision:mobilenet_v3_small", pretrained=False).network.state_dict()  # type: ignore[operator, union-attr]

    monkeypatch.setattr(torchvision_models, "fetch_weights", fetch)
    made = opened("torchvision:fcos(backbone=mobilenet_v3_small, backbone_pretrained=True, fpn_channels=32)")
    assert asked == ["MobileNet_V3_Small_Weights.IMAGENET1K_V1"]
    assert made.rebuild["options"]["norm"] == "frozen" and made.provenance.source.startswith("backbone: ")


def test_a_families_file_says_whether_its_norms_are_frozen(tmp_path: Path) -> None:
    for norm in ("frozen", "batch"):
        made = opened(TINY.replace(", fpn", f", norm={norm}, fpn", 1))
        save_detector(made, tmp_path / norm, stem="w")
        again = opened(f"{TINY}@{tmp_path / norm / 'w.safetensors'}")
        assert again.rebuild["options"]["norm"] == norm
        assert again.state_dict().keys() == made.state_dict().keys()
        assert again.provenance.licence == "unknown"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("torchvision:faster_rcnn", {}, "names no backbone"),
        ("torchvision:faster_rcnn(backbone=resnet18)", {"backbone": "resnet50"}, "Leave one of them out"),
        ("torchvision:faster_rcnn(backbone=resnet18)", {"class_names": None}, "Give class names"),
        ("torchvision:faster_rcnn(backbone=resnet18, fpn_chanels=8)", {}, "Did you mean fpn_channels"),
        ("torchvision:faster_rcnn(backbone=resnet18, fpn_channels=0)", {}, "must be a positive number"),
        ("torchvision:faster_rcnn(backbone=resnet18, norm=group)", {}, "auto, frozen or batch"),
        (
            "torchvision:faster_rcnn(backbone=mobilenet_v3_small, anchor_sizes=[[8]])",
            {},
            "there are 5 maps, at strides 4",
        ),
        ("torchvision:fcos(backbone=mobilenet_v3_small, fpn_channels=48)", {}, "multiple of 32"),
        ("torchvision:ssdlite(backbone='timm:vit_tiny_patch16_224(depth=2)')", {}, "maps of a single stride"),
        ("torchvision:faster_rcnn(backbone=vit_b_16)", {}, "timm's take any"),
        ("torchvision:faster_rcnn(backbone='limbeck:resnet8x4')", {}, "cannot be the backbone"),
        ("torchvision:faster_rcnn(backbone='hf:google/vit')", {}, "cannot be the backbone"),
        ("torchvision:faster_rcnn(backbone=resnet_18)", {}, "resnet18"),
        ("torchvision:fcos(backbone=mobilenet_v3_small, fpn_channels=32, trainable_layers=5)", {}, "has 4 stages"),
        ("torchvision:ssd300_vgg16", {"backbone": "resnet18"}, "its own backbone"),
        ("torchvision:ssdlite320_mobilenet_v3_large(trainable_layers=9)", {"pretrained": False}, "has 1 of them"),
    ],
)
def test_what_cannot_be_opened(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(name, **arguments)


def test_options_shape_the_network() -> None:
    made = opened(
        "torchvision:mask_rcnn(backbone=mobilenet_v3_small, fpn_channels=16, head_channels=24, mask_channels=12, "
        "anchor_sizes=[[8], [16], [32], [64], [128]])"
    )
    heads = made.network.roi_heads
    assert heads.box_head.fc6.weight.shape == (24, 16 * 49)
    assert heads.mask_predictor.mask_fcn_logits.weight.shape[:2] == (4, 12)
    assert made.network.rpn.anchor_generator.sizes == ((8,), (16,), (32,), (64,), (128,))
    assert {level.channels for level in made.facts.levels} == {16}
    assert made.facts.input_size == (96, 96)


def test_names_that_mean_no_class_are_not_taken_for_classes() -> None:
    name = "hf:yolos(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 32])"
    with pytest.raises(UserError, match=r"cannot have classes called 'background'"):
        load_detector(name, class_names=("background", "cat"))
    assert load_detector(name, class_names=("Background story", "cat")).facts.class_names == ("Background story", "cat")


def test_a_run_shown_another_shorter_side_keeps_its_proportion(tmp_path: Path) -> None:
    made = load_detector(
        "torchvision:fcos(backbone=mobilenet_v3_small, fpn_channels=32)", class_names=("a",), short=64, long=96
    )
    save_detector(made, tmp_path)
    assert load_detector(str(tmp_path), short=96).resize == Resize(96, 144, antialias=False)
    assert load_detector(str(tmp_path)).resize == Resize(64, 96, antialias=False)
