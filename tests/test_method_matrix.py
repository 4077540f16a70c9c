"""Every method for classifiers across every crossing of kinds of networks: two steps, and what they changed."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.distiller import Distiller
from limbeck.errors import UserError
from limbeck.losses.catalogue import METHODS
from limbeck.models import VisionModel, load_model

VIT = "vit_tiny_patch16_224(patch_size=8, embed_dim={}, depth=4, num_heads=2)"
STUDENTS = {"CNN": "limbeck:resnet8", "ViT": VIT.format(16)}
TEACHERS = {"CNN": "limbeck:resnet14", "ViT": VIT.format(32)}
CROSSINGS = (("CNN", "CNN"), ("ViT", "ViT"), ("CNN", "ViT"), ("ViT", "CNN"))
CLASSIFIERS = [name for name, info in METHODS.items() if "classification" in info.tasks]
REFUSED = {"maskedkd": {("CNN", "CNN"), ("CNN", "ViT"), ("ViT", "CNN")}}
"""A convolutional network attends to no patch and cannot be shown some only."""
IMAGES, BATCH = 12, 6


@cache
def opened(name: str) -> VisionModel:
    torch.manual_seed(len(name))
    model = load_model(name, pretrained=False, num_classes=10, input_size=(32, 32))
    with torch.no_grad():
        for parameter in model.parameters():  # a head of zeros would hide what does not reach the network
            if parameter.max() == parameter.min():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(("student", "teacher"), CROSSINGS, ids=[f"{s}<-{t}" for s, t in CROSSINGS])
@pytest.mark.parametrize("method", CLASSIFIERS)
def test_two_steps_change_student_and_projectors_and_nothing_else(method: str, student: str, teacher: str) -> None:
    learner, guide = copy.deepcopy(opened(STUDENTS[student])), copy.deepcopy(opened(TEACHERS[teacher]))
    if (student, teacher) in REFUSED.get(method, ()):
        with pytest.raises(UserError, match=method):
            Distiller(guide, learner, method)
        return
    torch.manual_seed(0)
    distiller = Distiller(guide, learner, method, task_weight=0.0)
    distiller.set_epoch(1000)  # beyond every warm-up
    images, labels = torch.rand(IMAGES, 3, 32, 32), torch.arange(IMAGES) % 10
    distiller.expect_images(IMAGES)
    distiller.calibrate(lambda: images.split(BATCH))
    shown, known = images.clone(), labels.clone()
    taught = copied(guide.state_dict())
    trained = dict(distiller.trained_parameters())
    before = copied(trained)
    optimizer = torch.optim.SGD(trained.values(), lr=1e-3)
    distiller.train()
    for number in range(2):
        places = torch.arange(number * BATCH, (number + 1) * BATCH)
        terms = distiller(images[places], labels[places], places)
        assert set(terms) == {"task", method, "total"}
        optimizer.zero_grad()
        terms["total"].backward()
        assert all(p.grad is None for p in guide.parameters())
        optimizer.step()

    assert all(torch.isfinite(value).all() for value in trained.values())
    idle = [name for name in trained if name.startswith("losses.") and torch.equal(before[name], trained[name])]
    # Where batch norm follows a bias, the bias has no effect and moves by rounding errors only.
    assert all(name.endswith("bias") for name in idle), f"projectors did not learn: {idle}"
    of_student = [name for name in trained if name.startswith("student.")]
    moved = [name for name in of_student if not torch.equal(before[name], trained[name])]
    assert len(moved) >= 0.4 * len(of_student), f"the student hardly moved: {moved}"
    # Nothing else: neither the teacher with its buffers, nor what the models were shown.
    assert not guide.training
    assert equal(taught, guide.state_dict())
    assert torch.equal(images, shown)
    assert torch.equal(labels, known)
    assert {name.partition(".")[0] for name in distiller.state_dict()} <= {"student", "losses"}


@pytest.mark.parametrize("method", CLASSIFIERS)
def test_soft_labels_that_are_sure_say_what_class_indices_say(method: str) -> None:
    learner, guide = copy.deepcopy(opened(STUDENTS["ViT"])), copy.deepcopy(opened(TEACHERS["ViT"]))
    torch.manual_seed(0)
    distiller = Distiller(guide, learner, method)
    images, labels = torch.rand(BATCH, 3, 32, 32), torch.arange(BATCH)
    distiller.expect_images(BATCH)
    distiller.calibrate(lambda: [images])
    distiller.eval()
    sure, mixed = F.one_hot(labels, 10).float(), torch.rand(BATCH, 10).softmax(1)
    totals = []
    for target in (labels, sure, mixed):
        torch.manual_seed(1)
        totals.append(distiller(images, target, torch.arange(BATCH))["total"])
    assert torch.allclose(totals[0], totals[1], rtol=1e-5)
    assert torch.isfinite(totals[2])


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
