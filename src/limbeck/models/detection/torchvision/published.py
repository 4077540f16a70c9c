"""torchvision's own detectors, made as torchvision makes them for its published weights of COCO."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from limbeck.detection import ScoreKind
from limbeck.errors import UserError
from limbeck.models.detection.backbones import freeze_norms
from limbeck.models.detection.torchvision.classes import Slots

Stages = list[list[nn.Module]]


@dataclass(frozen=True)
class Recipe:
    """How torchvision makes a network for its weights.

    Attributes:
        stages: the backbone's modules, shallow to deep.
        trainable: stages, counted from the deepest, that torchvision trains.
        frozen_eps: of its frozen batch norms; None where they are trained.
        scores: how its class logits become scores.
    """

    stages: Callable[[Any], Stages]
    trainable: int
    frozen_eps: float | None = None
    scores: ScoreKind = "softmax"


def _resnet(network: Any) -> Stages:
    body = network.backbone.body
    return [[body.conv1, body.bn1], [body.layer1], [body.layer2], [body.layer3], [body.layer4]]


def _mobilenet(network: Any) -> Stages:
    return _split(list(network.backbone.body.values()), lambda block: getattr(block, "_is_cn", False))


def _vgg(network: Any) -> Stages:
    # The layers behind conv4_3 stand in the first added block.
    layers = [*network.backbone.features, *list(network.backbone.extra[0])[:-1]]
    return _split(layers, lambda layer: isinstance(layer, nn.MaxPool2d), last=False)


def _whole(network: Any) -> Stages:
    return [[network.backbone.features]]


def _split(blocks: list[nn.Module], starts: Callable[[nn.Module], bool], *, last: bool = True) -> Stages:
    """Stages that begin at the first block, at those that `starts` names, and, with `last`, at the last block."""
    stages: Stages = []
    for index, block in enumerate(blocks):
        if index == 0 or starts(block) or (last and index == len(blocks) - 1):
            stages.append([])
        stages[-1].append(block)
    return stages


RECIPES = {
    "fasterrcnn_resnet50_fpn": Recipe(_resnet, 3, 0.0),
    "fasterrcnn_resnet50_fpn_v2": Recipe(_resnet, 3),
    "fasterrcnn_mobilenet_v3_large_fpn": Recipe(_mobilenet, 3, 1e-5),
    "fasterrcnn_mobilenet_v3_large_320_fpn": Recipe(_mobilenet, 3, 1e-5),
    "maskrcnn_resnet50_fpn": Recipe(_resnet, 3, 0.0),
    "maskrcnn_resnet50_fpn_v2": Recipe(_resnet, 3),
    "retinanet_resnet50_fpn": Recipe(_resnet, 3, 0.0, "sigmoid"),
    "retinanet_resnet50_fpn_v2": Recipe(_resnet, 3, None, "sigmoid"),
    "fcos_resnet50_fpn": Recipe(_resnet, 3, 1e-5, "sigmoid"),
    "ssd300_vgg16": Recipe(_vgg, 4),
    "ssdlite320_mobilenet_v3_large": Recipe(_whole, 1),
}


def weights_of(name: str) -> Any:
    """torchvision's newest weights of a published name."""
    return torchvision.models.get_model_weights(name).DEFAULT


def slots_of(name: str) -> Slots:
    """The slots of a published name's weights."""
    return Slots.published(weights_of(name).meta["categories"], RECIPES[name].scores)


def settle(name: str, options: dict[str, Any], *, weighty: bool, frozen: bool) -> dict[str, Any]:
    """What `auto` means.

    Args:
        name: torchvision's.
        options: `norm` and `trainable_layers`.
        weighty: the network starts from weights.
        frozen: these are of a network whose batch norms are frozen.
    """
    recipe = RECIPES[name]
    settled = dict(options)
    if options["norm"] == "auto":
        settled["norm"] = "frozen" if frozen and recipe.frozen_eps is not None else "batch"
    if options["trainable_layers"] == "auto":
        settled["trainable_layers"] = recipe.trainable if weighty else None
    return settled


def make(name: str, num_slots: int) -> nn.Module:
    """The network with random weights, all of it trainable.

    Args:
        name: torchvision's.
        num_slots: its `num_classes`.
    """
    made: nn.Module = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=num_slots)
    return made


def fix(network: nn.Module, name: str, *, frozen: bool, trainable: int | None, text: str) -> nn.Module:
    """Fix a network's batch norms and its backbone's shallow stages.

    Args:
        network: as made by `make`; changed in place.
        name: torchvision's.
        frozen: its backbone's batch norms keep their statistics and scales.
        trainable: stages, counted from the deepest, that stay trainable; None is all.
        text: the name the user gave, for messages.
    """
    recipe = RECIPES[name]
    stages = recipe.stages(network)
    if trainable is not None and not 0 <= trainable <= len(stages):
        raise UserError(f"{text} has trainable_layers={trainable}; its backbone has {len(stages)} of them.")
    for stage in stages[: 0 if trainable is None else len(stages) - trainable]:
        for module in stage:
            for parameter in module.parameters():
                parameter.requires_grad_(False)
    if frozen:
        body: Any = network.backbone
        freeze_norms(body.body if hasattr(body, "body") else body)
        for module in body.modules():
            if isinstance(module, FrozenBatchNorm2d) and recipe.frozen_eps is not None:
                module.eps = recipe.frozen_eps
    return network
