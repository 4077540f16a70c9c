"""The detection distiller's promises: the library's own training, a frozen teacher of which only what is needed is run."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="the extra hf is not installed")

from tiny_detectors import opened, pair, scene

from limbeck.distiller import DetectionDistiller
from limbeck.errors import UserError
from limbeck.models.detection.base import Detector

SILENT = {
    "faster_rcnn": "pkd(weight=0.0)+roi_kd(weight=0.0)",
    "retinanet": "pkd(weight=0.0)+fgd(weight=0.0)",
    "yolos": "pkd(weight=0.0)+query_kd(weight=0.0)",
    "rt_detr": "pkd(weight=0.0)+shared_queries(weight=0.0)",
}
"""Methods without weight, with all that they ask of both models; one family of each way of predicting."""
ON_MAPS = "reviewkd+manifold+fitnets+pkd+cwd+mgd+fgd"
BEYOND_MAPS = {
    "faster_rcnn": ("rpn", "roi_heads"),
    "mask_rcnn": ("rpn", "roi_heads"),
    "retinanet": ("anchor_generator", "head"),
    "fcos": ("anchor_generator", "head"),
    "ssdlite": ("anchor_generator", "head"),
    "detr": ("model.decoder", "class_labels_classifier", "bbox_predictor"),
    "rt_detr": ("model.decoder", "model.enc_output", "model.enc_score_head"),
    "rt_detr_v2": ("model.decoder", "model.enc_output", "model.enc_score_head"),
    "d_fine": ("model.decoder", "model.enc_output", "model.enc_score_head"),
    "lw_detr": ("model.decoder", "class_embed", "bbox_embed"),
    "rf_detr": ("model.decoder", "class_embed", "bbox_embed"),
    "mask2former": ("model.transformer_module", "class_predictor"),
    "maskformer": ("model.transformer_module", "class_predictor", "mask_embedder"),
    # Masks decide what the tokens of its last blocks attend to.
    "eomt": ("class_predictor",),
}
"""Parts of the teacher that lie behind what its heads or decoder read."""


class Broken(nn.Module):
    """A part that must not be run."""

    def forward(self, *given: Any, **named: Any) -> Tensor:
        raise AssertionError("this part was run")


def librarys_loss(detector: Detector) -> Tensor:
    """What the library's own training forward says of the same pictures and targets."""
    network: Any = detector.network
    pictures, targets = scene()
    if hasattr(network, "transform"):
        network.transform.resize = lambda image, target=None: (image, target)
        first = 1 if detector.facts.scores == "softmax" else 0
        images = [image[:, :h, :w] for image, (h, w) in zip(pictures.images, pictures.sizes, strict=True)]
        losses = network(images, [{"boxes": each.boxes, "labels": each.labels + first} for each in targets])
        return torch.stack([*losses.values()]).sum()
    height, width = pictures.size
    labels = []
    for target in targets:
        x1, y1, x2, y2 = (target.boxes / torch.tensor([width, height] * 2)).unbind(-1)
        boxes = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], -1)
        labels.append({"class_labels": target.labels, "boxes": boxes})
    pixels = (pictures.images - detector.mean) / detector.std * pictures.inside()[:, None]
    loss: Tensor = network(pixel_values=pixels, labels=labels).loss
    return loss


@pytest.mark.parametrize("family", SILENT)
def test_without_weight_total_gradients_and_random_numbers_are_the_librarys(family: str) -> None:
    teacher, student = pair(family, family)
    alone = copy.deepcopy(student).train()
    distiller = DetectionDistiller(teacher, student, SILENT[family], task_weight=1.0).train()
    torch.manual_seed(3)
    terms = distiller(*scene())
    terms["total"].backward()
    assert all(terms[name] > 0 for name in distiller.loss_names)
    torch.manual_seed(3)
    expected = librarys_loss(alone)
    expected.backward()
    assert torch.equal(terms["total"], terms["task"])
    # transformers adds its terms up one by one.
    rounding = {"yolos": 1e-6, "rt_detr": 1e-6}.get(family, 0.0)
    torch.testing.assert_close(terms["total"], expected, rtol=rounding, atol=0)
    for (name, ours), theirs in zip(student.network.named_parameters(), alone.network.parameters(), strict=True):
        found, wanted = (p.new_zeros(1) if p.grad is None else p.grad for p in (ours, theirs))
        close = torch.isclose(found.expand_as(ours), wanted.expand_as(ours), rtol=1e2 * rounding, atol=10 * rounding)
        assert close.all(), name
    for (name, ours), theirs in zip(student.network.named_buffers(), alone.network.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("family", SILENT)
def test_a_step_leaves_the_teacher_as_it_was_whoever_switched_it(family: str) -> None:
    teacher, student = pair(family, family)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    distiller = DetectionDistiller(teacher, student, SILENT[family].replace("weight=0.0", "weight=1.0")).train()
    teacher.train()
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1, weight_decay=0.1)
    distiller(*scene())["total"].backward()
    optimizer.step()
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert all(key.startswith(("student.", "losses.")) for key in distiller.state_dict())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in distiller.parameters()}


@pytest.mark.parametrize("family", BEYOND_MAPS)
def test_for_methods_on_maps_neither_proposals_nor_decoder_nor_heads_of_the_teacher_are_run(family: str) -> None:
    teacher, student = pair(family, family)
    whole = DetectionDistiller(teacher, student, ON_MAPS)
    broken = copy.deepcopy(opened(family, "teacher"))
    for part in BEYOND_MAPS[family]:
        assert isinstance(broken.network.get_submodule(part), nn.Module)
        broken.network.set_submodule(part, Broken())
    found = DetectionDistiller(broken, student, ON_MAPS).teacher_step(scene()[0])
    expected = whole.teacher_step(scene()[0])
    assert found.maps.keys() == expected.maps.keys()
    assert found.maps
    assert all(torch.equal(map_, expected.maps[name]) for name, map_ in found.maps.items())
    assert not (found.losses or found.predictions or found.regions)


def test_for_regions_the_teacher_proposes_nothing() -> None:
    _, student = pair("mask_rcnn", "mask_rcnn")
    teacher: Any = copy.deepcopy(opened("mask_rcnn", "teacher"))
    teacher.network.rpn = Broken()
    assert DetectionDistiller(teacher, student, "roi_kd").train()(*scene())["roi_kd"] > 0


@pytest.mark.parametrize(("family", "methods"), [("faster_rcnn", "reviewkd+roi_kd"), ("rt_detr", "mgd+shared_queries")])
def test_measuring_gradient_norms_leaves_no_trace_and_is_right(family: str, methods: str) -> None:
    teacher, student = pair(family, family)
    distiller = DetectionDistiller(teacher, student, methods).train()
    tensors = [*distiller.parameters(), *distiller.buffers(), *teacher.buffers()]
    before = [tensor.clone() for tensor in tensors]
    torch.manual_seed(4)
    random_state = torch.get_rng_state()
    norms = distiller.gradient_norms(*scene())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))
    assert all(p.grad is None for p in (*distiller.parameters(), *teacher.parameters()))
    assert set(norms) == {"task", *distiller.loss_names}
    parameters = list(student.parameters())
    terms = distiller(*scene())
    for name, weight in {"task": distiller.task_weight, **distiller.current_weights}.items():
        gradients = torch.autograd.grad(terms[name], parameters, retain_graph=True, allow_unused=True)
        squares = torch.stack([gradient.square().sum() for gradient in gradients if gradient is not None])
        assert norms[name] == pytest.approx(weight * float(squares.sum().sqrt()), rel=1e-4)
        assert norms[name] > 0


def test_the_parts_of_the_supervised_loss_add_up_and_are_not_counted_twice() -> None:
    teacher, student = pair("retinanet", "retinanet")
    distiller = DetectionDistiller(teacher, student, "pkd(weight=2.0)", task_weight=0.5).train()
    terms = distiller(*scene())
    assert set(terms) == {"task", "task/classification", "task/bbox_regression", "pkd", "total"}
    torch.testing.assert_close(terms["task"], terms["task/classification"] + terms["task/bbox_regression"])
    torch.testing.assert_close(terms["total"], 0.5 * terms["task"] + 2 * terms["pkd"])


def test_detectors_are_not_compiled() -> None:
    with pytest.raises(UserError, match="not compiled"):
        DetectionDistiller(*pair("yolos", "yolos"), "pkd").compile()
