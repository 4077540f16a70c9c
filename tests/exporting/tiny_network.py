"""A small classifier for the tests of exports, with layers that change between training and inference."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.models.base import Provenance, VisionModel
from limbeck.outputs import ModelFacts, Outputs, Request

SIDE = 16


class TinyNetwork(VisionModel):
    """Convolution, batch norm, ReLU, dropout, 4 x 4 pooling, linear."""

    def __init__(self, num_classes: int = 10, side: int = SIDE, width: int = 12) -> None:
        super().__init__((0.3, 0.4, 0.5), (0.2, 0.25, 0.5), "bilinear")
        self.convolution = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(16 * width, num_classes)
        self.facts = ModelFacts("tiny", num_classes, (side, side), (), 16 * width)
        self.provenance = Provenance(licence="CC0-1.0", source="closed form")
        self.rebuild = {}

    def pooled(self, inputs: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(F.relu(self.norm(self.convolution(inputs))), 4).flatten(1)

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        return Outputs(self.classifier(self.dropout(self.pooled(inputs))))


def tiny_network(num_classes: int = 10, side: int = SIDE, width: int = 12) -> TinyNetwork:
    torch.manual_seed(0)
    model = TinyNetwork(num_classes, side, width)
    with torch.no_grad():  # statistics that are not the identity, so that batch norm matters
        model.norm.running_mean.uniform_(-0.5, 0.5)
        model.norm.running_var.uniform_(0.5, 2.0)
    return model.eval()
