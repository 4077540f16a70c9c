"""Every method between detectors of every family, and between families: two optimiser steps, or a refusal that says why.

`REFUSALS` and `MIXED` list all refusals there are; what is not listed is trained.
"""

import re
from dataclasses import dataclass, field

import pytest
import torch

pytest.importorskip("transformers", reason="the extra hf is not installed")

from tiny_detectors import FAMILIES, NAMES, PROPOSALS, pair, scene

from limbeck.detection import Pictures, Target
from limbeck.distiller import DetectionDistiller
from limbeck.errors import UserError
from limbeck.losses.catalogue import METHODS
from limbeck.models.detection.base import Detector

DETECTION = [name for name, info in METHODS.items() if "detection" in info.tasks]
TORCHVISION = (*PROPOSALS, "retinanet", "fcos", "ssdlite")
LEARNED = ("yolos", "detr", "lw_detr", "rf_detr")
"""Families whose queries are learned and belong to no cell."""
SEGMENTERS = ("mask2former", "maskformer", "eomt")

NO_FINAL = "levels and no final map"
NO_REGIONS = "judges none"
NO_BOX_QUERIES = "predicts otherwise"
NOT_ASKED = "cannot be asked about another's"
NO_CORNERS = "gives one number a side"
OTHER_BINS = "compares bin by bin"
MASKS_ON_BOXES = "whose masks are drawn on boxes"
NO_MASKS = "that predicts boxes only"
NO_CLASS = "have no class in common"

WITHOUT_BOX_QUERIES = dict.fromkeys((*TORCHVISION, *SEGMENTERS), NO_BOX_QUERIES)
NOT_D_FINE = WITHOUT_BOX_QUERIES | dict.fromkeys((*LEARNED, "rt_detr", "rt_detr_v2"), NO_CORNERS)
REFUSALS: dict[str, dict[str, str]] = {
    "vitkd": dict.fromkeys(set(FAMILIES) - {"yolos", "eomt"}, NO_FINAL),
    "roi_kd": dict.fromkeys(set(FAMILIES) - set(PROPOSALS), NO_REGIONS),
    "query_kd": WITHOUT_BOX_QUERIES,
    "shared_queries": WITHOUT_BOX_QUERIES | dict.fromkeys(LEARNED, NOT_ASKED),
    "corner_kd": NOT_D_FINE,
    "ld": NOT_D_FINE,
    "mask_kd": {"mask_rcnn": MASKS_ON_BOXES} | dict.fromkeys(set(FAMILIES) - {"mask_rcnn", *SEGMENTERS}, NO_MASKS),
}
"""Method, family of teacher and student, and what the refusal says."""


@dataclass(frozen=True)
class Mixed:
    """A pair of two families, with the methods that it is refused, and why."""

    student: str
    teacher: str
    refusals: dict[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = NAMES
    """The teacher's."""


QUERIES = ("query_kd", "shared_queries", "corner_kd", "ld")
NO_QUERIES = {"vitkd": NO_FINAL, **dict.fromkeys(QUERIES, NO_BOX_QUERIES), "mask_kd": NO_MASKS}
MAPS_ONLY = {**NO_QUERIES, "roi_kd": NO_REGIONS}
BOXES = {"vitkd": NO_FINAL, "roi_kd": NO_REGIONS, "mask_kd": NO_MASKS}
WITHOUT_CORNERS = {**BOXES, "corner_kd": NO_CORNERS, "ld": NO_CORNERS}
MATCHED_ONLY = {**WITHOUT_CORNERS, "shared_queries": NOT_ASKED}
MIXED = {
    "queries teach cells": Mixed("retinanet", "rt_detr", MAPS_ONLY),
    "a plain transformer teaches a pyramid": Mixed("faster_rcnn", "yolos", MAPS_ONLY),
    "five maps teach a plain transformer": Mixed("yolos", "retinanet", MAPS_ONLY),
    "a pyramid teaches one made of a transformer": Mixed("faster_rcnn on a vit", "faster_rcnn", NO_QUERIES),
    "three maps teach five": Mixed("fcos", "rt_detr_v2", MAPS_ONLY),
    "five maps teach six, from another stride on": Mixed("ssdlite", "retinanet", MAPS_ONLY),
    "masks teach boxes, of classes in another order": Mixed(
        "faster_rcnn", "mask_rcnn", NO_QUERIES, ("owl", "cat", "dog")
    ),
    "boxes teach masks, of more classes": Mixed(
        "mask_rcnn", "faster_rcnn", {**NO_QUERIES, "mask_kd": MASKS_ON_BOXES}, ("fish", "Owl", "cow", "dog")
    ),
    "no class is shared": Mixed("faster_rcnn", "mask_rcnn", {**NO_QUERIES, "roi_kd": NO_CLASS}, ("fish", "cow")),
    "sigmoid teaches softmax": Mixed("yolos", "rt_detr", MATCHED_ONLY),
    "softmax teaches sigmoid, of other classes": Mixed("rt_detr", "detr", MATCHED_ONLY, ("dog", "fish")),
    "no class of the queries is shared": Mixed(
        "rt_detr", "rt_detr_v2", {**BOXES, **dict.fromkeys(QUERIES, NO_CLASS)}, ("fish",)
    ),
    "distributions teach numbers": Mixed("rt_detr", "d_fine", WITHOUT_CORNERS),
    "three maps of queries teach two": Mixed("d_fine of two maps", "d_fine", BOXES),
    "two maps of queries teach three": Mixed("d_fine", "d_fine of two maps", BOXES, ("owl", "dog", "cat")),
    "other bins": Mixed("d_fine", "d_fine of other bins", {**BOXES, "corner_kd": OTHER_BINS, "ld": OTHER_BINS}),
    "one map teaches two": Mixed("lw_detr", "rf_detr", MATCHED_ONLY),
    "blocks teach a pixel decoder": Mixed(
        "mask2former",
        "eomt",
        {"vitkd": NO_FINAL, "roi_kd": NO_REGIONS, **dict.fromkeys(QUERIES, NO_BOX_QUERIES)},
        ("owl", "fish", "cat"),
    ),
    "queries with boxes and masks teach mask queries": Mixed(
        "mask2former",
        "rf_detr with masks",
        {"vitkd": NO_FINAL, "roi_kd": NO_REGIONS, **dict.fromkeys(QUERIES, NO_BOX_QUERIES)},
    ),
    "mask queries teach queries with boxes and masks": Mixed(
        "rf_detr with masks",
        "maskformer",
        {"vitkd": NO_FINAL, "roi_kd": NO_REGIONS, **dict.fromkeys(QUERIES, NO_BOX_QUERIES)},
    ),
    "boxes teach a segmenter": Mixed(
        "eomt", "yolos", {"roi_kd": NO_REGIONS, **dict.fromkeys(QUERIES, NO_BOX_QUERIES), "mask_kd": NO_MASKS}
    ),
    "a segmenter teaches masks on boxes": Mixed("mask_rcnn", "maskformer", {**MAPS_ONLY, "mask_kd": MASKS_ON_BOXES}),
}


@pytest.mark.parametrize("method", DETECTION)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_between_two_of_a_family_or_a_refusal(family: str, method: str) -> None:
    teacher, student = pair(family, family)
    reason = REFUSALS.get(method, {}).get(family)
    if reason is None:
        check_two_steps(teacher, student, method)
    else:
        check_refusal(teacher, student, method, reason)


@pytest.mark.parametrize("case", MIXED)
def test_two_steps_between_two_families_or_a_refusal(case: str) -> None:
    mixed = MIXED[case]
    teacher, student = pair(mixed.student, mixed.teacher, mixed.classes)
    for method, reason in mixed.refusals.items():
        check_refusal(teacher, student, method, reason)
    check_two_steps(teacher, student, "+".join(method for method in DETECTION if method not in mixed.refusals))


def test_the_tables_name_methods_and_families() -> None:
    assert set(REFUSALS) <= set(DETECTION)
    assert {method for mixed in MIXED.values() for method in mixed.refusals} <= set(DETECTION)
    assert set().union(*REFUSALS.values()) <= set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_objects_and_one_without_targets_can_be_learned_from(family: str) -> None:
    teacher, student = pair(family, family)
    accepted = [method for method in DETECTION if family not in REFUSALS.get(method, {})]
    pictures, targets = scene()
    check_step(DetectionDistiller(teacher, student, "+".join(accepted)), pictures, [nothing(t) for t in targets])
    unlabelled = "+".join(method for method in accepted if not METHODS[method].needs_labels)
    distiller = DetectionDistiller(teacher, student, unlabelled, supervised=False)
    assert "task" not in check_step(distiller, pictures, None)


def check_refusal(teacher: Detector, student: Detector, method: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"{method} .*{re.escape(reason)}" if reason != NO_CLASS else reason):
        DetectionDistiller(teacher, student, method)


def nothing(target: Target) -> Target:
    assert target.masks is not None
    return Target(target.boxes[:0], target.labels[:0], target.masks[:0])


def check_step(distiller: DetectionDistiller, pictures: Pictures, targets: list[Target] | None) -> set[str]:
    """The names of the terms, all of them finite and with finite gradients."""
    torch.manual_seed(0)
    terms = distiller.train()(pictures, targets)
    assert {name for name, value in terms.items() if not value.isfinite()} == set()
    distiller.zero_grad()
    terms["total"].backward()
    gradients = {name: p.grad for name, p in distiller.trained_parameters() if p.grad is not None}
    assert [name for name, gradient in gradients.items() if not gradient.isfinite().all()] == []
    assert any(gradient.any() for gradient in gradients.values())
    return set(terms)


def check_two_steps(teacher: Detector, student: Detector, methods: str) -> None:
    torch.manual_seed(0)
    distiller = DetectionDistiller(teacher, student, methods).train()
    trained = dict(distiller.trained_parameters())
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    first = next(name for name, parameter in trained.items() if parameter.ndim == 4)
    optimizer = torch.optim.Adam(trained.values(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        terms = distiller(*scene())
        assert {name for name, value in terms.items() if not value.isfinite()} == set()
        expected = [weight * terms[name] for name, weight in distiller.current_weights.items()]
        torch.testing.assert_close(terms["total"], distiller.task_weight * terms["task"] + sum(expected))
        # Each term itself, not only the labels beside it, teaches the student from its first convolution on.
        for name in distiller.loss_names:
            (gradient,) = torch.autograd.grad(terms[name], trained[first], retain_graph=True)
            assert gradient.isfinite().all(), name
            assert gradient.abs().sum() > 0, name
        terms["total"].backward()
        assert [name for name, p in trained.items() if name.startswith("losses.") and p.grad is None] == []
        assert [name for name, p in trained.items() if p.grad is not None and not p.grad.isfinite().all()] == []
        optimizer.step()
    assert not torch.equal(trained[first], before[first])
    for loss in range(len(distiller.losses)):
        names = [name for name in trained if name.startswith(f"losses.{loss}.")]
        assert not names or not all(torch.equal(trained[name], before[name]) for name in names)
