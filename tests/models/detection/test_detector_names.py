"""Detectors' names are taken apart without torch, and what cannot be a name is said to be none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.errors import UserError
from limbeck.models.detection.names import parse_detector_name


def test_the_parts_of_names(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").touch()
    parsed = parse_detector_name("torchvision:faster_rcnn(backbone='timm:vit(depth=2)', anchor_sizes=((8,), (16,)))")
    assert (parsed.kind, parsed.name, parsed.weights) == ("torchvision", "faster_rcnn", None)
    assert parsed.options == {"backbone": "timm:vit(depth=2)", "anchor_sizes": [[8], [16]]}
    parsed = parse_detector_name(f"torchvision:fcos_resnet50_fpn@{tmp_path}/w.safetensors")
    assert (parsed.name, parsed.weights) == ("fcos_resnet50_fpn", tmp_path / "w.safetensors")
    parsed = parse_detector_name("hf:facebook/detr-resnet-50")
    assert (parsed.kind, parsed.name, parsed.options) == ("hf", "facebook/detr-resnet-50", {})
    parsed = parse_detector_name("hf:rt_detr(num_queries=30)")
    assert (parsed.kind, parsed.name, parsed.options) == ("hf", "rt_detr", {"num_queries": 30})
    (tmp_path / "model.json").write_text(json.dumps({"task": "detection", "rebuild": {}}))
    assert parse_detector_name(str(tmp_path)).kind == "run"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torchvision:faster_rcn", "Did you mean torchvision:faster_rcnn"),
        ("torchvision:fcos_resnet50", "torchvision:fcos_resnet50_fpn"),
        ("fasterrcnn_resnet50_fpn", "Did you mean torchvision:fasterrcnn_resnet50_fpn"),
        ("torchvision:", "no detector after"),
        ("limbeck:resnet8x4", "is not a detector's name"),
        ("torchvision:fcos(class_names=('a',))", "class_names is no option"),
        ("torchvision:fcos(short=300)", "load_detector's argument short"),
        ("torchvision:fcos(backbone=resnet18", "not closed"),
        ("torchvision:fcos(backbone=resnet18)x", "follows its options"),
    ],
)
def test_what_is_no_name(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_detector_name(text)


def test_files_and_folders_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        parse_detector_name("torchvision:fcos(backbone=resnet18)@nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        parse_detector_name("./nowhere")
    with pytest.raises(UserError, match="holds no model"):
        parse_detector_name(str(tmp_path))
    (tmp_path / "model.json").write_text(json.dumps({"rebuild": {"library": "timm"}}))
    with pytest.raises(UserError, match=r"faster_rcnn\(backbone="):
        parse_detector_name(str(tmp_path))


def test_torch_is_not_imported() -> None:
    code = "import sys, limbeck.models.detection.names; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
