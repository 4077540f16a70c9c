"""Every method for classifiers as one graph, forward and backward, with the numbers of eager mode."""

import copy

import pytest
import torch
from torch import Tensor

from limbeck.losses import METHODS, build_losses, parse_methods
from limbeck.losses.build import import_loss
from limbeck.outputs import Outputs

pytestmark = pytest.mark.compile


def compare(text: str, student, teacher, make_outputs, backend: str) -> None:
    (built,) = build_losses(parse_methods(text), student, teacher)
    loss = built.module
    own = make_outputs(student, loss.student_request, dtype=torch.float32)
    other = make_outputs(teacher, loss.teacher_request, seed=1, dtype=torch.float32)
    if loss.calibration_images:
        loss.calibrate([other])
    target = torch.tensor([0, 4, 2])
    loss.expect_images(5)
    own.numbers = torch.tensor([4, 0, 2])
    state = copy.deepcopy(loss.state_dict())
    features = (own.logits, own.pooled, own.final, *own.maps.values(), *own.class_tokens.values())
    inputs = [t for t in features if t is not None]

    def both(o: Outputs, t: Outputs, y: Tensor) -> Tensor:
        return loss(o, t, y)

    def run(function) -> tuple[Tensor, list[Tensor | None], list[Tensor]]:
        loss.load_state_dict(state)  # what it remembers or averages, as it was
        torch.manual_seed(3)
        value = function(own, other, target)
        gradients = list(torch.autograd.grad(value, [*inputs, *loss.parameters()], allow_unused=True))
        return value, gradients, [buffer.clone() for buffer in loss.buffers()]

    torch._dynamo.reset()
    value, gradients, buffers = run(torch.compile(both, fullgraph=True, backend=backend))
    expected, expected_gradients, expected_buffers = run(both)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(buffers, expected_buffers, rtol=1e-4, atol=1e-6)
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert (gradient is None) == (wanted is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5)


CLASSIFIERS = [
    name
    for name, info in METHODS.items()
    if "classification" in info.tasks and import_loss(parse_methods(name)[0]).compiles
]


@pytest.mark.parametrize(
    "text", [*CLASSIFIERS, "manifold(num_patches=8, full=1.0)", "manifold(on_grid_mismatch='merge')"]
)
@pytest.mark.parametrize("family", ["plain", "pyramid", "mixed"])
def test_one_graph_with_equal_numbers(text: str, family: str, plain, pyramid, make_outputs) -> None:
    vit, cnn = plain(depth=4), pyramid()
    student, teacher = {
        "plain": (vit, plain(depth=5, width=6)),
        "pyramid": (cnn, pyramid(channels=(5, 7, 9), grids=(8, 4, 2), preactivation=True)),
        "mixed": (cnn, vit),
    }[family]
    compare(text, student, teacher, make_outputs, "aot_eager")


def test_one_graph_through_inductor(plain, make_outputs) -> None:
    compare("manifold(random=0, full=1.0)", plain(depth=2), plain(depth=2, width=6), make_outputs, "inductor")
    compare("nkd", plain(depth=2), plain(depth=2), make_outputs, "inductor")


def test_one_graph_under_autocast(plain, make_outputs) -> None:
    (built,) = build_losses(parse_methods("vitkd"), plain(), plain(width=6))
    own = make_outputs(plain(), built.module.student_request, dtype=torch.bfloat16)
    other = make_outputs(plain(width=6), built.module.teacher_request, seed=1, dtype=torch.bfloat16)
    torch._dynamo.reset()
    compiled = torch.compile(lambda o, t: built.module(o, t), fullgraph=True, backend="aot_eager")
    values = []
    for function in (compiled, built.module):
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values.append(function(own, other))
    assert values[0].dtype == torch.float32
    torch.testing.assert_close(values[0], values[1], rtol=1e-2, atol=0)
