"""Every method between every family of vision model, in both roles: one training step, and both graphs compiled whole.

Each family meets a convolutional and a transformer partner, so that every crossing (CNN to CNN, CNN to ViT, ViT to
CNN, ViT to ViT) occurs in both directions. The partner and the family take images of different sizes.
"""

import copy
import os
from functools import cache
from itertools import cycle

import pytest
import torch
from torch import Tensor

from limbeck.distiller import Distiller
from limbeck.errors import UserError
from limbeck.losses.catalogue import METHODS as CATALOGUE
from limbeck.models import VisionModel, load_model

FAMILIES = {
    "deit": "deit_tiny_patch16_224",
    "deit-distilled": "deit_tiny_distilled_patch16_224",
    "cait": "cait_xxs24_224",
    "dinov2-registers": "vit_small_patch14_reg4_dinov2",
    "dinov3": "vit_small_patch16_dinov3",
    "swin": "swin_tiny_patch4_window7_224",
    "convnext": "convnext_atto",
    "resnet": "resnet18",
    "mobilenetv3": "mobilenetv3_small_050",
    "efficientformerv2": "efficientformerv2_s0",
    "tinyvit": "tiny_vit_5m_224",
    "fastvit": "fastvit_t8",
    "ipe-vit": "limbeck:ipe_vit_75m_32",
}
PLAIN = ("deit", "deit-distilled", "cait", "dinov2-registers", "dinov3")
PARTNERS = {"cnn": "limbeck:resnet8", "vit": "test_vit"}
METHODS = ("kd", "nkd", "reviewkd", "manifold", "manifold(intra=0.0,inter=0.0,random=0.0,full=1.0)", "vitkd")
PROJECTORS = ("reviewkd", "vitkd")
"""The methods that learn parameters of their own."""
LEVEL_METHODS = ("fitnets", "pkd", "cwd", "mgd")
"""The methods that compare pairs of levels alike and differ in the formula: one family of each kind shall do."""
WILD_METHODS = ("patch_attention", "noise_adaptation")
"""Those for images that nobody labelled; the second learns a matrix."""
COMPARED_METHODS = [
    name
    for name, info in CATALOGUE.items()
    if "classification" in info.tasks and name not in (*METHODS, *LEVEL_METHODS, *WILD_METHODS, "maskedkd")
]
"""The others, that people compare with, in one distiller. (`maskedkd` is for pairs of plain transformers only.)"""
LEVEL_FAMILIES = ("deit", "resnet", "swin", "ipe-vit")
ROLES = ("student", "teacher")
SIDES = {"limbeck:resnet8": 32, "vit_small_patch14_reg4_dinov2": 56, "crossvit_tiny_240": 240}
"""Pixels of the models that are not made for 64."""

WITHOUT_FINAL = {"pit_ti_224": 3, "crossvit_tiny_240": 6}
"""Models without one final map, since they end with several sequences or only with the class token; their levels."""


@cache
def opened(name: str) -> VisionModel:
    """A model of ten classes of which no parameter is idle (as those behind a zero head or a tiny layer scale are)."""
    side = SIDES.get(name, 64)
    torch.manual_seed(len(name))
    model = load_model(name, pretrained=False, num_classes=10, input_size=(side, side))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.max() == parameter.min():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def pair(family: str, role: str, partner: str) -> tuple[VisionModel, VisionModel]:
    """Teacher and student; the student is a copy that may be trained."""
    own, other = FAMILIES[family], PARTNERS[partner]
    teacher, student = (other, own) if role == "student" else (own, other)
    return opened(teacher), copy.deepcopy(opened(student)).requires_grad_(True)


def other_kind(family: str) -> str:
    """The partner that differs most: a CNN for a plain transformer, a transformer for everything else."""
    return "cnn" if family in PLAIN else "vit"


def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 3, 9, 3])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("partner", PARTNERS)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_trains_the_student_and_the_projectors_and_not_the_teacher(
    family: str, role: str, partner: str, method: str
) -> None:
    check_one_step(family, role, partner, method, projects=method in PROJECTORS)


@pytest.mark.parametrize("method", LEVEL_METHODS)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("family", LEVEL_FAMILIES)
def test_one_step_of_the_methods_that_compare_levels(family: str, role: str, method: str) -> None:
    check_one_step(family, role, other_kind(family), method, projects=True)


@pytest.mark.parametrize("method", WILD_METHODS)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("family", LEVEL_FAMILIES)
def test_one_step_of_the_methods_for_wild_images(family: str, role: str, method: str) -> None:
    check_one_step(family, role, other_kind(family), method, projects=method == "noise_adaptation")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_other_method_reaches_the_first_convolution(family: str, role: str) -> None:
    teacher, student = pair(family, role, other_kind(family))
    teacher_before = {name: value.clone() for name, value in teacher.state_dict().items()}
    methods = COMPARED_METHODS
    if (family, role) == (
        "tinyvit",
        "teacher",
    ):  # untrained, it gives one pooled vector whatever it is shown, and they refuse it
        methods = [name for name in methods if name not in ("feature_kd", "unic")]
    torch.manual_seed(0)
    distiller = Distiller(teacher, student, "+".join(methods)).train()
    images, labels = batch()
    distiller.expect_images(len(images))
    distiller.calibrate(lambda: [images])
    terms = distiller(images, labels, torch.arange(len(images)))
    first = next(p for p in student.parameters() if p.ndim == 4)
    for name in distiller.loss_names:
        assert terms[name].isfinite(), name
        (gradient,) = torch.autograd.grad(terms[name], first, retain_graph=True)
        assert gradient.isfinite().all() and gradient.any(), name
    terms["total"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, teacher_before[name]) for name, value in teacher.state_dict().items())


def check_one_step(family: str, role: str, partner: str, method: str, *, projects: bool) -> None:
    teacher, student = pair(family, role, partner)
    teacher_before = {name: value.clone() for name, value in teacher.state_dict().items()}
    torch.manual_seed(0)
    distiller = Distiller(teacher, student, method).train()
    trained = dict(distiller.trained_parameters())
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    assert any(name.startswith("losses.") for name in trained) == projects
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)

    terms = distiller(*batch())
    (term,) = (terms[name] for name in distiller.loss_names)
    (weight,) = distiller.loss_weights
    torch.testing.assert_close(terms["total"], distiller.task_weight * terms["task"] + weight * term)
    assert all(value.isfinite() for value in terms.values())
    # The term itself, not only the labels beside it, teaches the student from its first convolution on.
    first, weights = next((name, p) for name, p in trained.items() if p.ndim == 4)
    (gradient,) = torch.autograd.grad(term, weights, retain_graph=True)
    assert gradient.abs().sum() > 0

    terms["total"].backward()
    idle = [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert all(parameter.grad.isfinite().all() for parameter in trained.values())
    optimizer.step()
    assert [name for name, p in trained.items() if name.startswith("losses.") and torch.equal(p, before[name])] == []
    assert not torch.equal(weights, before[first])
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, teacher_before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", WITHOUT_FINAL)
def test_vitkd_alone_refuses_models_without_a_final_map(name: str, role: str, method: str) -> None:
    models = [copy.deepcopy(opened(which)) for which in ("limbeck:resnet8", name)]
    teacher, student = models if role == "student" else models[::-1]
    if method != "vitkd":
        assert Distiller(teacher, student, method)(*batch())["total"].isfinite()
        return
    with pytest.raises(UserError) as refused:
        Distiller(teacher, student, method)
    assert str(refused.value) == (
        f"vitkd reads the first two levels and the final map, but {name} has {WITHOUT_FINAL[name]} levels and no final "
        "map. Use another model, or another method (see `limbeck methods`)."
    )


@pytest.mark.parametrize("method", METHODS)
def test_methods_on_logits_alone_refuse_a_teacher_of_other_classes(method: str) -> None:
    teacher = load_model("test_vit", pretrained=False, num_classes=7, input_size=(64, 64))
    student = copy.deepcopy(opened("limbeck:resnet8"))
    if method not in ("kd", "nkd"):
        assert Distiller(teacher, student, method)(*batch())["total"].isfinite()
        return
    with pytest.raises(UserError, match=f"^{method} compares class by class, but the teacher test_vit has 7 classes"):
        Distiller(teacher, student, method)


def test_the_plain_families_are_those_read_by_blocks() -> None:
    for family, name in FAMILIES.items():
        assert {level.kind for level in opened(name).facts.levels} == {"block" if family in PLAIN else "stage"}


def compare_compiled(family: str, role: str, methods: str, backend: str) -> None:
    teacher, student = pair(family, role, other_kind(family))
    torch.manual_seed(0)
    eager = Distiller(teacher, student, methods).train()
    compiled = copy.deepcopy(eager)
    torch._dynamo.reset()
    compiled.compile(backend=backend)

    def step(distiller: Distiller) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(3)  # vitkd and mgd draw masks, manifold its patches
        terms = distiller(*batch())
        terms["total"].backward()
        gradients = [p.grad.flatten() for _, p in distiller.trained_parameters()]
        return {name: value.detach() for name, value in terms.items()}, torch.cat(gradients)

    expected, expected_gradient = step(eager)
    found, gradient = step(compiled)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert (gradient - expected_gradient).norm() < 1e-3 * expected_gradient.norm()


COMPILED = [family for family in FAMILIES if family != "deit-distilled"]
BOTH_ROLES = [(family, role) for family in COMPILED for role in ROLES]
"""The test suite takes them in turns; all with LIMBECK_ALL_FAMILIES=1."""


@pytest.mark.compile
@pytest.mark.parametrize(
    ("family", "role"),
    BOTH_ROLES if os.environ.get("LIMBECK_ALL_FAMILIES") else list(zip(COMPILED, cycle(ROLES), strict=False)),
)
def test_both_graphs_compile_whole_with_the_numbers_of_eager_mode(family: str, role: str) -> None:
    compare_compiled(family, role, "kd+nkd+reviewkd+manifold(full=1.0)+vitkd", "aot_eager")


@pytest.mark.compile
@pytest.mark.parametrize(
    ("family", "role", "method"), zip(LEVEL_FAMILIES, ROLES * 2, LEVEL_METHODS, strict=True), ids=LEVEL_METHODS
)
def test_the_methods_that_compare_levels_compile_whole(family: str, role: str, method: str) -> None:
    compare_compiled(family, role, method, "aot_eager")


@pytest.mark.compile
@pytest.mark.parametrize("family", ["deit", "dinov3"])
def test_the_methods_for_wild_images_compile_whole(family: str) -> None:
    compare_compiled(family, "student", "+".join(WILD_METHODS), "aot_eager")


@pytest.mark.compile
@pytest.mark.parametrize(
    ("family", "role", "methods"), [("resnet", "student", "nkd+vitkd"), ("deit", "teacher", "kd+manifold(full=1.0)")]
)
def test_inductor_gives_the_numbers_of_eager_mode(family: str, role: str, methods: str) -> None:
    with torch._inductor.config.patch(fallback_random=True):  # inductor's own random numbers are others than eager's
        compare_compiled(family, role, methods, "inductor")
