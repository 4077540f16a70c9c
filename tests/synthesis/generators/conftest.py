"""A small network with everything that a generator must leave alone: BatchNorm, dropout, a part that is frozen."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from limbeck.models.base import VisionModel
from limbeck.outputs import Level, ModelFacts, Outputs, Request
from limbeck.synthesis.base import Setting


class SmallNetwork(VisionModel):
    """Two convolutions with BatchNorm, pooled, dropout and a classifier; random running statistics."""

    def __init__(self, seed: int, num_classes: int = 4, size: int = 16) -> None:
        super().__init__((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8)
            )
            self.dropout = nn.Dropout(0.5)
            self.classifier = nn.Linear(8, num_classes)
            for part in self.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.running_mean = torch.randn(8) * 0.1
                    part.running_var = torch.rand(8) + 0.5
            nn.init.normal_(self.classifier.weight)
        level = Level("last", 8, 4, (size // 4, size // 4))
        self.facts = ModelFacts("small", num_classes, (size, size), (level,), 8, level)

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        maps = self.body(inputs)
        pooled = maps.relu().mean((2, 3))
        asked = dict.fromkeys(request.levels, maps)
        return Outputs(self.classifier(self.dropout(pooled)), pooled if request.pooled else None, asked, maps)


@pytest.fixture
def setting() -> Setting:
    """Pictures of 16 x 16, eight at a time, for a teacher of four classes."""
    return Setting(SmallNetwork(seed=1), (16, 16), batch_size=8, seed=3)


@pytest.fixture
def student() -> SmallNetwork:
    """In training mode but for its first BatchNorm, with gradients from an earlier step."""
    student = SmallNetwork(seed=2).train()
    student.body[1].eval()
    for parameter in student.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    return student


@pytest.fixture
def snapshot() -> Callable[[nn.Module], list[object]]:
    """Everything about a network that learning could change, in a form that can be compared."""

    def take(model: nn.Module) -> list[object]:
        tensors = [(name, tensor.tolist()) for name, tensor in model.state_dict().items()]
        gradients = [
            (name, parameter.requires_grad, None if parameter.grad is None else parameter.grad.tolist())
            for name, parameter in model.named_parameters()
        ]
        hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()]
        return [tensors, gradients, [part.training for part in model.modules()], hooks]

    return take
