"""Classifiers cut down to what a detector reads of them: their maps at strides 4 to 32, shallow to deep.

A torchvision network is the chain of its children, run one after the other; a timm network (ours are timm's too) gives
its maps by `forward_intermediates`. A network whose maps all have one grid, such as a plain vision transformer, gives
its last one.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchvision
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.base import Provenance, VisionModel
from limbeck.models.detection.base import evaluating
from limbeck.models.door import load_model, rebuild
from limbeck.models.names import parse_model_name

STRIDES = (4, 8, 16, 32)
_PROBE = 128
_NOT_IN_CHAIN = ("avgpool", "classifier", "head", "heads", "fc", "dropout", "aux1", "aux2", "AuxLogits")
_ONE_SIZE = "torchvision's vision transformers take images of one size; timm's take any"
_FLEXIBLE = ({"dynamic_size": True}, {"dynamic_img_size": True}, {"strict_img_size": False})
"""What makes networks take images of any size, by their class's arguments."""


@dataclass(frozen=True)
class Backbone:
    """A backbone's network and what was read beside it.

    Attributes:
        body: the network, cut down.
        rebuild: plain values from which `open_recorded` makes the same body with random weights.
        mean, std: with which it wants its images normalised.
        provenance: of its weights; None where they are random.
    """

    body: "Body"
    rebuild: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    provenance: Provenance | None


class Body(nn.Module):
    """A network that returns its maps at some strides.

    Attributes:
        strides: of each map, rising; a single one if the network is plain.
        channels: of each map.
        plain: all of the network's maps have one grid.
    """

    strides: tuple[int, ...]
    channels: tuple[int, ...]
    plain = False

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps of (B, 3, H, W) normalised images, shallow to deep, each (B, C, h, w)."""
        raise NotImplementedError

    def stages(self) -> list[list[nn.Parameter]]:
        """Parameters by the first map that they influence, shallow to deep; those behind the last map are left out."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        found: list[list[nn.Parameter]] = []
        with evaluating(self), torch.enable_grad():
            for map_ in self(torch.rand((1, 3, _PROBE, _PROBE), generator=torch.Generator().manual_seed(0))):
                gradients = torch.autograd.grad(map_.sum(), parameters, retain_graph=True, allow_unused=True)
                found.append([p for p, g in zip(parameters, gradients, strict=True) if g is not None])
                reached = {id(parameter) for parameter in found[-1]}
                parameters = [parameter for parameter in parameters if id(parameter) not in reached]
        for parameter in parameters:
            # Behind the last map: training it would do nothing but confuse who counts gradients.
            parameter.requires_grad_(False)
        return found


class ChainBody(Body):
    """A torchvision classifier's children up to the last map.

    Args:
        network: any of `torchvision.models` but the vision transformer.
        wanted: strides to look for.
    """

    def __init__(self, network: nn.Module, wanted: tuple[int, ...] = STRIDES) -> None:
        super().__init__()
        self._channels_last = isinstance(network, torchvision.models.SwinTransformer)
        self.chain = nn.ModuleDict(_chain(network))
        self._ends: tuple[str, ...] = tuple(self.chain)
        with evaluating(self), torch.no_grad():
            maps = self(torch.zeros(1, 3, _PROBE, _PROBE))
        last = _last_at_each_stride(maps, wanted)
        names = list(self.chain)
        for name in names[last[-1][1] + 1 :]:
            del self.chain[name]
        self._ends = tuple(names[index] for _, index in last)
        self.strides = tuple(stride for stride, _ in last)
        self.channels = tuple(maps[index].shape[1] for _, index in last)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Body`."""
        maps, value = [], images
        for name, module in self.chain.items():
            value = module(value)
            if name in self._ends:
                maps.append(value.permute(0, 3, 1, 2) if self._channels_last else value)
        return maps


class TimmBody(Body):
    """A timm classifier up to the last map.

    Args:
        network: with `forward_intermediates`, for images of any size.
        wanted: strides to look for.
    """

    def __init__(self, network: Any, wanted: tuple[int, ...] = STRIDES) -> None:
        super().__init__()
        with evaluating(network), torch.no_grad():
            maps = network.forward_intermediates(
                torch.zeros(1, 3, _PROBE, _PROBE), intermediates_only=True, output_fmt="NCHW"
            )
        self.plain = len(maps) > 1 and all(map_.shape == maps[0].shape for map_ in maps)
        last = [(_stride(maps[-1]), len(maps) - 1)] if self.plain else _last_at_each_stride(maps, wanted)
        self._indices = [index for _, index in last]
        self.strides = tuple(stride for stride, _ in last)
        self.channels = tuple(maps[index].shape[1] for index in self._indices)
        if hasattr(network, "prune_intermediate_layers"):
            self._indices = list(network.prune_intermediate_layers(self._indices, prune_norm=True, prune_head=True))
        else:
            network.reset_classifier(0)
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Body`."""
        maps: list[Tensor] = self.network.forward_intermediates(
            images, indices=self._indices, norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return maps


def open_backbone(name: str, *, pretrained: bool, text: str) -> Backbone:
    """A classifier as a detector's backbone.

    Args:
        name: a torchvision classifier's name, `timm:NAME`, `limbeck:NAME`, or the folder of a classifier's run, whose
            weights it then starts from; with `@weights.safetensors` too.
        pretrained: with the weights that its library publishes under its name.
        text: the detector's name, for messages.

    Raises:
        FileNotFoundError: a named file or folder does not exist.
        UserError: the name is unknown, or the network has no maps that a detector could read.
    """
    bare = name.partition("@")[0].partition("(")[0].strip()
    if bare in torchvision.models.list_models(module=torchvision.models):
        name = f"torchvision:{name}"
    parsed = parse_model_name(name)
    if parsed.kind not in ("torchvision", "timm", "limbeck", "run"):
        raise _unusable(name, text, "it is neither torchvision's, timm's nor Limbeck's")
    if parsed.kind == "torchvision" and parsed.name.startswith("vit_"):
        raise _unusable(name, text, _ONE_SIZE)
    weighty = pretrained or parsed.kind == "run" or parsed.weights is not None
    model = load_model(name, pretrained=weighty)
    if not hasattr(model, "network"):
        raise _unusable(name, text, "it is made for images of 32 pixels")
    values = _for_any_size(model)
    if values != model.rebuild:
        # The same network for images of any size: its tensors have the same names and shapes.
        other = rebuild(values)
        if weighty:
            _network(other).load_state_dict(_network(model).state_dict())
        other.provenance = model.provenance
        model = other
    opened = open_recorded(values, model=model, name=name, text=text)
    return replace(opened, provenance=model.provenance if weighty else None)


def open_recorded(
    values: dict[str, Any], *, model: VisionModel | None = None, name: str = "", text: str = ""
) -> Backbone:
    """The body that `Backbone.rebuild` describes, with random weights.

    Args:
        values: that dictionary.
        model: the classifier, where it is already made; it is cut.
        name, text: the backbone's and the detector's names, for messages.
    """
    model = model or rebuild(values)
    network = _network(model)
    make: Callable[[Any], Body] = ChainBody if values["library"] == "torchvision" else TimmBody
    if isinstance(network, torchvision.models.VisionTransformer):
        raise _unusable(name, text, _ONE_SIZE)
    if make is TimmBody and not hasattr(network, "forward_intermediates"):
        raise _unusable(name, text, "it does not say what its maps are")
    try:
        body = make(network)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise _unusable(name, text, str(error).splitlines()[0]) from error
    return Backbone(body, values, tuple(model.mean.flatten().tolist()), tuple(model.std.flatten().tolist()), None)


def freeze(body: Body, trainable: int | None, *, norms: bool) -> Body:
    """Fix a body's batch norms, its shallowest stages, or both.

    Args:
        body: changed in place.
        trainable: stages, counted from the deepest, that stay trainable; None is all. The stem belongs to the first.
        norms: batch norms keep their statistics and scales.

    Returns:
        The body.

    Raises:
        UserError: it has fewer stages.
    """
    stages = body.stages()
    if trainable is not None and trainable > len(stages):
        raise UserError(f"trainable_layers is {trainable}, and the backbone has {len(stages)} stages.")
    for stage in stages[: 0 if trainable is None else len(stages) - trainable]:
        for parameter in stage:
            parameter.requires_grad_(False)
    return freeze_norms(body) if norms else body


def freeze_norms(module: Any) -> Any:
    """Fix a module's batch norms: they keep their statistics and scales."""
    return freeze_batch_norm_2d(module)


def _for_any_size(model: VisionModel) -> dict[str, Any]:
    """The values to rebuild a classifier for images of any size."""
    values = dict(model.rebuild)
    if values["library"] == "torchvision":
        return values
    arguments = inspect.signature(type(_network(model)).__init__).parameters
    for option in _FLEXIBLE:
        if next(iter(option)) in arguments:
            return values | {"options": values.get("options", {}) | option}
    return values


def _network(model: VisionModel) -> Any:
    return model.network


def _chain(network: Any) -> dict[str, nn.Module]:
    """A torchvision network's modules in the order in which they run, each on the one before."""
    for attribute in ("features", "layers"):
        if isinstance(getattr(network, attribute, None), nn.Sequential):
            return dict(getattr(network, attribute).named_children())
    if isinstance(network, torchvision.models.RegNet):
        return {"stem": network.stem, **dict(network.trunk_output.named_children())}
    if isinstance(network, torchvision.models.MaxVit):
        return {"stem": network.stem, **{f"block{i}": block for i, block in enumerate(network.blocks)}}
    return {name: child for name, child in network.named_children() if name not in _NOT_IN_CHAIN}


def _last_at_each_stride(maps: list[Tensor], wanted: tuple[int, ...]) -> list[tuple[int, int]]:
    """(stride, index) of the last map at each of the wanted strides."""
    last = {_stride(map_): index for index, map_ in enumerate(maps)}
    found = sorted((stride, index) for stride, index in last.items() if stride in wanted)
    if len(found) < 2:
        strides = ", ".join(map(str, sorted(last)))
        raise ValueError(
            f"it has maps at strides {strides}, and at least two of {', '.join(map(str, wanted))} are needed"
        )
    return found


def _stride(map_: Tensor) -> int:
    exact = _PROBE / map_.shape[-2]
    rounded = 2 ** round(torch.tensor(exact).log2().item())
    # Convolutions without padding lose a cell or two; patches of 14 pixels are another thing.
    return int(rounded) if 0.8 < exact / rounded < 1.25 else round(exact)


def _unusable(name: str, text: str, reason: str) -> UserError:
    return UserError(
        f"{name} cannot be the backbone of {text}: {reason}. Take a torchvision classifier (resnet50), timm:NAME, "
        "limbeck:ipe_vit_300m or the folder of a classifier's run."
    )
