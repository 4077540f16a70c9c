"""A detector's file finds what the detector finds, says how to use it, and is refused where it does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import limbeck
from limbeck.data.detection.door import open_scenes
from limbeck.detection import Found, Pictures
from limbeck.errors import UserError
from limbeck.exporting.detection.frame import Frame, Inside, taken_out
from limbeck.exporting.detection.matching import pair
from limbeck.exporting.detection.onnx import export_detector_onnx
from limbeck.exporting.detection.verify import DetectorVerification, require_detector, verify_detector_onnx
from limbeck.exporting.verify import ExportMismatchError
from limbeck.models.detection.door import load_detector, save_detector
from limbeck.tasks.detection import DetectionTask
from limbeck.verbs.detection.preparation import scene_batches

SHAPES = "shapes(train=1, val=3, size=96)"
CLASSES = ("circle", "square", "triangle", "star", "cross")
HEADS = {"decoder_layers": 1, "decoder_ffn_dim": 16}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 4,
    "hidden_sizes": [4, 4, 8, 8],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
DETR: dict[str, Any] = {
    **HEADS,
    "backbone_config": {**RESNET, "out_features": ["stage4"]},
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 6,
}
RT_DETR: dict[str, Any] = {
    **HEADS,
    "backbone_config": {
        **RESNET,
        "model_type": "rt_detr_resnet",
        "hidden_sizes": [4, 8, 8, 8],
        "out_indices": [2, 3, 4],
    },
    "encoder_hidden_dim": 16,
    "d_model": 16,
    "encoder_in_channels": [8, 8, 8],
    "decoder_in_channels": [16, 16, 16],
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 7,
}
RT_DETR_V2 = {**RT_DETR, "decoder_layers": 2}
D_FINE = {**RT_DETR_V2, "decoder_n_points": [3, 3, 3], "lqe_hidden_dim": 8, "top_prob_values": 2, "max_num_bins": 8}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPS: dict[str, Any] = {
    **HEADS,
    "d_model": 16,
    "c2f_num_blocks": 1,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "num_queries": 5,
    "group_detr": 2,
}
LW_VIT = {**VIT, "model_type": "lw_detr_vit", "image_size": 64, "pretrain_image_size": 64, "num_windows": 4}
RF_VIT = {**VIT, "model_type": "rf_detr_dinov2", "image_size": 64, "patch_size": 16, "num_windows": 2}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "yolos": (
        "yolos",
        {**VIT, "intermediate_size": 32, "image_size": [64, 64], "num_detection_tokens": 5},
    ),
    "detr": ("detr", DETR),
    "rt_detr": ("rt_detr", RT_DETR),
    "rt_detr_v2": ("rt_detr_v2", RT_DETR_V2),
    "d_fine": ("d_fine", D_FINE),
    "lw_detr": (
        "lw_detr",
        {
            **GROUPS,
            "backbone_config": {**LW_VIT, "window_block_indices": [0], "out_indices": [1, 2]},
            "projector_scale_factors": [2.0, 0.5],
        },
    ),
    "rf_detr": (
        "rf_detr",
        {
            **GROUPS,
            "architectures": ["RfDetrForInstanceSegmentation"],
            "backbone_config": {**RF_VIT, "out_indices": [1, 2]},
            "intermediate_size": 16,
        },
    ),
    "mask2former": (
        "mask2former",
        {
            "backbone_config": {**RESNET, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
            "feature_size": 32,
            "mask_feature_size": 24,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 32,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "num_attention_heads": 2,
            "dim_feedforward": 32,
            "num_queries": 7,
        },
    ),
    "eomt": (
        "eomt",
        {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "mlp_ratio": 2,
            "image_size": 96,
            "patch_size": 16,
            "num_blocks": 1,
            "num_queries": 7,
            "num_register_tokens": 1,
        },
    ),
}
MOBILE = "backbone=mobilenet_v3_small"
TORCHVISION = {
    "faster_rcnn": f"torchvision:faster_rcnn({MOBILE}, fpn_channels=16, head_channels=16)",
    "mask_rcnn": f"torchvision:mask_rcnn({MOBILE}, fpn_channels=16, head_channels=16, mask_channels=8)",
    "retinanet": "torchvision:retinanet(backbone=resnet18, fpn_channels=8)",
    "fcos": f"torchvision:fcos({MOBILE}, fpn_channels=64)",
    "ssdlite": f"torchvision:ssdlite({MOBILE}, extra_channels=[32, 16, 16, 8])",
}


def detector(family: str) -> Any:
    """A small detector that has opinions."""
    torch.manual_seed(0)
    if family in TORCHVISION:
        made: Any = load_detector(TORCHVISION[family], class_names=CLASSES, short=96, long=96)
        _settle_norms(made)
        if family in ("retinanet", "fcos"):
            head = made.network.head.classification_head.cls_logits
            nn.init.normal_(head.weight, std=2000.0 if family == "retinanet" else 0.5)
            nn.init.constant_(head.bias, -2.0)
            # Boxes that are whole anchors overlap by exactly the share from which on one of them is dropped.
            nn.init.normal_(made.network.head.regression_head.bbox_reg.bias, std=0.3)
        elif family == "ssdlite":
            for block in made.network.head.classification_head.module_list:
                nn.init.normal_(block[-1].weight, std=0.5)
        else:
            nn.init.normal_(made.network.roi_heads.box_predictor.cls_score.weight, std=1.0)
        return made
    pytest.importorskip("transformers", reason="the extra hf is not installed")
    from limbeck.models.detection.transformers import create

    model_type, options = TRANSFORMERS[family]
    made = create(model_type, text=f"hf:{model_type}", class_names=CLASSES, options=options, short=96, long=96)
    with torch.no_grad():
        for name, parameter in made.network.named_parameters():
            if not name.endswith((".up", ".reg_scale")):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def _settle_norms(made: Any) -> None:
    """Norms that have seen pictures, without which a deep random network says the same of all of them."""
    norms = [module for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    with torch.no_grad():
        maps = list(made.network.backbone.train()(torch.randn(8, 3, 96, 96)).values())
        if norms and hasattr(made.network, "head"):
            made.network.head.train()(maps)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def verified(path: Path, made: Any, **how: Any) -> DetectorVerification:
    scenes = open_scenes(SHAPES)
    task = DetectionTask(scenes.val, masks=made.facts.has_masks)
    batches = scene_batches(scenes.val, Frame.of(made).resize, 2, 0)
    return verify_detector_onnx(path, made, batches, task.measure, **how)


def outputs(path: Path, images: Tensor) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))


@pytest.fixture(scope="module")
def retinanet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    made = detector("retinanet")
    return made, export_detector_onnx(made, tmp_path_factory.mktemp("retinanet") / "retinanet.onnx")


@pytest.mark.parametrize("family", [*TORCHVISION, *TRANSFORMERS])
def test_the_file_finds_what_the_detector_finds(family: str, tmp_path: Path) -> None:
    made = detector(family).train()
    path = export_detector_onnx(made, tmp_path / "made.onnx")
    assert made.training
    verification = verified(path, made)
    require_detector(verification)
    assert verification.sure_detections > 0
    assert verification.max_box_difference < 0.01
    assert verification.max_score_difference < 1e-4
    assert verification.scores_torch == verification.scores_onnx
    size = made.facts.input_size
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(5))
    (expected,) = made.eval().detect(Pictures(images, (size,)), [size])
    found = outputs(path, images)
    assert {name: part.dtype.name for name, part in found.items()} == {
        "boxes": "float32",
        "scores": "float32",
        "labels": "int64",
        **({"masks": "bool"} if made.facts.has_masks else {}),
    }
    np.testing.assert_allclose(found["scores"], expected.scores.numpy(), atol=1e-4)
    assert len(found["boxes"]) == len(found["labels"]) == len(expected.boxes)
    if made.facts.has_masks:
        assert expected.masks is not None
        assert found["masks"].shape == expected.masks.shape
    assert b"site-packages" not in path.read_bytes()


def test_the_normalisation_is_in_the_graph(retinanet: tuple[Any, Path]) -> None:
    made, path = retinanet
    size = made.facts.input_size
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(6))
    transform = made.network.transform
    normalised = (images - torch.tensor(transform.image_mean)[:, None, None]) / torch.tensor(transform.image_std)[
        :, None, None
    ]
    (found,) = type(made).detect(_unnormalising(made), Pictures(normalised, (size,)), [size])
    np.testing.assert_allclose(outputs(path, images)["scores"], found.scores.numpy(), atol=1e-5)


def _unnormalising(made: Any) -> Any:
    """A copy that takes pictures that somebody has normalised."""
    import copy

    changed = copy.deepcopy(made)
    changed.network.transform.image_mean = [0.0, 0.0, 0.0]
    changed.network.transform.image_std = [1.0, 1.0, 1.0]
    return changed


def test_the_metadata_say_how_to_use_it(retinanet: tuple[Any, Path]) -> None:
    made, path = retinanet
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    values = session.get_modelmeta().custom_metadata_map
    assert json.loads(values["class_names"]) == list(CLASSES)
    assert json.loads(values["input_size"]) == [96, 96]
    assert json.loads(values["dynamic_size"]) is False
    assert json.loads(values["padding_colour"]) == pytest.approx(made.network.transform.image_mean)
    assert values["task"] == "detection"
    assert values["licence"] == made.provenance.licence
    assert values["source"] == made.provenance.source
    assert "upper left" in values["resize"]
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type, entry.shape) == ("images", "tensor(float)", [1, 3, 96, 96])
    assert {output.name: output.shape for output in session.get_outputs()} == {
        "boxes": ["found", 4],
        "scores": ["found"],
        "labels": ["found"],
    }


@pytest.mark.parametrize(
    ("part", "change", "fault"),
    [
        ("regression_head.bbox_reg.bias", lambda values: values + 0.5, "a box differs|found by one only"),
        ("classification_head.cls_logits.bias", lambda values: values - 0.2, "a score differs"),
    ],
)
def test_a_changed_file_is_refused(
    part: str, change: Callable[[Any], Any], fault: str, retinanet: tuple[Any, Path], tmp_path: Path
) -> None:
    made, path = retinanet
    graph = onnx.load(path)
    (constant,) = [tensor for tensor in graph.graph.initializer if tensor.name.endswith(part)]
    values = change(onnx.numpy_helper.to_array(constant)).astype(np.float32)
    constant.CopyFrom(onnx.numpy_helper.from_array(values, constant.name))
    onnx.save(graph, tmp_path / "changed.onnx")
    verification = verified(tmp_path / "changed.onnx", made)
    assert not verification.passed
    with pytest.raises(ExportMismatchError, match=fault):
        require_detector(verification)


def test_a_tolerance_is_what_boxes_may_differ_by(retinanet: tuple[Any, Path]) -> None:
    made, path = retinanet
    assert verified(path, made, tolerance=1.0).tolerance == 1.0
    assert not verified(path, made, tolerance=0.0).passed
    with pytest.raises(UserError, match="at least 0"):
        verified(path, made, tolerance=-1.0)


def test_another_detectors_file_is_refused(retinanet: tuple[Any, Path]) -> None:
    other = load_detector(TORCHVISION["retinanet"], class_names=CLASSES, short=64, long=64)
    with pytest.raises(UserError, match="exported from it"):
        verified(retinanet[1], other)


def test_a_detector_that_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    made = detector("retinanet")
    made._features = lambda images: {"0": torch.linalg.eigvals(images.tensors[0, 0]).real}
    with pytest.raises(UserError, match="cannot be exported to ONNX"):
        export_detector_onnx(made, tmp_path / "made.onnx")
    assert not list(tmp_path.iterdir())


def test_a_picture_lies_in_the_upper_left_corner_and_comes_out_again() -> None:
    frame = Frame((60, 80), stretch=False, antialias=True, colour=(0.1, 0.2, 0.3))
    assert frame.resize.size(100, 50) == (60, 30)
    assert frame.resize.size(50, 100) == (40, 80)
    assert Inside(60, 80).size(3000, 1) == (60, 1)
    whole = frame.put(torch.ones(3, 60, 30))
    assert (whole[:, :, :30] == 1).all()
    torch.testing.assert_close(whole[:, :, 30:], torch.tensor([0.1, 0.2, 0.3])[:, None, None].expand(3, 60, 50))
    masks = torch.zeros(1, 60, 80, dtype=torch.bool)
    masks[0, 6:12, 3:30] = True
    inner = Found(torch.tensor([[3.0, 6.0, 30.0, 12.0]]), torch.tensor([1]), torch.tensor([0.5]), masks)
    outer = taken_out(inner, (60, 30), (120, 60))
    assert outer.boxes.tolist() == [[6, 12, 60, 24]]
    expected = torch.zeros(1, 120, 60, dtype=torch.bool)
    expected[0, 12:24, 6:60] = True
    assert outer.masks is not None
    assert torch.equal(outer.masks, expected)


def test_a_stretching_detector_gets_its_pictures_stretched() -> None:
    frame = Frame((60, 80), stretch=True, antialias=False, colour=(0.0, 0.0, 0.0))
    assert frame.resize.size(7, 1000) == (60, 80)
    assert not frame.resize.antialias


def _found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Found:
    return Found(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels), torch.tensor(scores))


def test_counterparts_are_found_wherever_they_stand() -> None:
    one = _found([[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]], [0, 1, 0], [0.9, 0.8, 0.7])
    other = _found([[50, 50, 60, 61], [0, 0, 10, 10], [0, 0, 10, 10]], [0, 1, 0], [0.72, 0.79, 0.9])
    pairs = pair(one, other, far=5.0)
    assert pairs.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert pairs.box_differences.tolist() == [0, 0, 1]
    assert pairs.score_differences.tolist() == pytest.approx([0, 0.01, 0.02], abs=1e-6)
    assert len(pairs.alone) == 0


def test_what_has_no_counterpart_is_alone() -> None:
    one = _found([[0, 0, 10, 10], [0, 0, 10, 10]], [0, 0], [0.9, 0.4])
    pairs = pair(one, _found([[0, 0, 10, 10], [30, 0, 40, 10]], [0, 0], [0.9, 0.6]), far=5.0)
    assert pairs.scores.tolist() == pytest.approx([0.9])
    assert sorted(pairs.alone.tolist()) == pytest.approx([0.4, 0.6])
    assert len(pair(one, _found([], [], []), far=5.0).alone) == 2


def test_the_verb_exports_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_detector(detector("ssdlite"), tmp_path / "ssd")
    path = limbeck.export(str(tmp_path / "ssd"), data=SHAPES)
    assert path == tmp_path / "ssd" / "export" / "ssd.onnx"
    record = json.loads(path.with_name("ssd.onnx.json").read_text())
    assert record["passed"] is True
    assert record["images"] == 3
    assert record["file_bytes"] == path.stat().st_size
    assert set(record["scores_torch"]) == {"ap", "ap50", "ap75"}
    assert "onnxruntime" in capsys.readouterr().out


@pytest.mark.parametrize("more", [{"dynamic_size": True}, {"quantize": "int8"}])
def test_what_detectors_do_not_have_yet_is_said(more: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="not for detectors yet"):
        limbeck.export(TORCHVISION["ssdlite"], data=SHAPES, **more)


def test_a_detector_that_finds_nothing_proves_nothing(tmp_path: Path) -> None:
    save_detector(load_detector(TORCHVISION["retinanet"], class_names=CLASSES, short=64, long=64), tmp_path / "fresh")
    with pytest.raises(UserError, match="finds nothing"):
        limbeck.export(str(tmp_path / "fresh"), data=SHAPES)


def test_masks_score_through_the_file(tmp_path: Path) -> None:
    made = detector("mask_rcnn")
    verification = verified(export_detector_onnx(made, tmp_path / "masks.onnx"), made)
    assert set(verification.scores_onnx) >= {"ap", "mask_ap"}
    assert verification.mean_mask_iou == pytest.approx(1.0, abs=1e-3)
