"""What any model says about a batch, and what it says about itself.

These types are all that losses, models, tasks and the trainer share; `limbeck.detection` adds those of detectors. Every
intermediate feature is a map (B, C, H, W): a vision transformer's patch tokens are a map on their grid, prefix tokens
already stripped.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

LevelKind = Literal["stage", "block", "fpn", "encoder"]


@dataclass(frozen=True)
class Level:
    """One place of a model at which a feature map can be read.

    Attributes:
        name: unique in its model, e.g. `stages.2` or `blocks.11`; the key in `Outputs.maps`.
        channels: C of the map.
        stride: input pixels per cell of the map, measured at the model's own input size.
        grid: (height, width) of the map at the model's own input size.
        kind: `stage` for a pyramid's level (the last map of one resolution), `block` for one of many
            equal-sized transformer blocks, `fpn` and `encoder` for detectors.
        preactivation: name under which the same level can be read before its last activation, where the
            model offers that; None elsewhere. Such a name is valid in a `Request` but is not listed as a level.
    """

    name: str
    channels: int
    stride: int
    grid: tuple[int, int]
    kind: LevelKind = "stage"
    preactivation: str | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What losses and tables may know of a model before it runs.

    Attributes:
        name: the name the user gave.
        num_classes: K of the logits; 0 of several teachers taken as one whose classes differ in number.
        input_size: (height, width) in pixels that the model resizes its images to.
        levels: shallow to deep.
        pooled_channels: D of the vector that enters the classifier.
        final: the last map after the model's final norm, as a Level (its name is `final`); None where the
            model has no such map.
        architecture: the name of the network itself where `name` is a run's folder; None where they are one.
        has_distillation_token: the network has a second head that is meant for a teacher's answers: on a distillation token
            beside the class token (DeiT), or on the vector that its classifier reads (LeViT).
        members: of several teachers taken as one, the facts of each; empty of a single network.
    """

    name: str
    num_classes: int
    input_size: tuple[int, int]
    levels: tuple[Level, ...]
    pooled_channels: int
    final: Level | None = None
    architecture: str | None = None
    has_distillation_token: bool = False
    members: tuple["ModelFacts", ...] = ()

    def level(self, name: str) -> Level:
        """The level called `name` (its plain or pre-activation name).

        Raises:
            KeyError: there is none.
        """
        for level in self.levels:
            if name in (level.name, level.preactivation):
                return level
        raise KeyError(f"{self.name} has no level {name!r}; it has {', '.join(level.name for level in self.levels)}")


@dataclass(frozen=True)
class Request:
    """What a model is asked for beside its logits.

    Attributes:
        levels: names of levels (or of their pre-activation forms), in any order.
        pooled: ask for the vector that enters the classifier.
        final: ask for the last map after the final norm.
        class_tokens: of a classifier with a class token, ask for it at each of `levels`.
        attention: of a plain vision transformer, ask how its last block attends to the patches.
        heads: of a network with a distillation head, ask for the logits of its two heads apart.
        members: of several teachers taken as one, what each of them is asked for; empty otherwise.
        predictions: of a detector, ask for its scores, boxes and masks before any of them are chosen.
        regions: of a two-stage detector, ask for its answers on its own proposals.
        read_regions: of a two-stage detector, ask for the way to ask it about others' proposals.
        queries: of a detector with encoder-chosen queries, ask for the way to ask it about given ones.
    """

    levels: tuple[str, ...] = ()
    pooled: bool = False
    final: bool = False
    class_tokens: bool = False
    attention: bool = False
    heads: bool = False
    members: tuple["Request", ...] = ()
    predictions: bool = False
    regions: bool = False
    read_regions: bool = False
    queries: bool = False

    @staticmethod
    def union(requests: Iterable["Request"]) -> "Request":
        """Everything that any of `requests` asks for, so that one forward pass serves all."""
        requests = tuple(requests)
        names = dict.fromkeys(name for request in requests for name in request.levels)
        return Request(
            tuple(names),
            pooled=any(r.pooled for r in requests),
            final=any(r.final for r in requests),
            class_tokens=any(r.class_tokens for r in requests),
            attention=any(r.attention for r in requests),
            heads=any(r.heads for r in requests),
            members=tuple(Request.union(of) for of in zip(*(r.members for r in requests if r.members), strict=True)),
            predictions=any(r.predictions for r in requests),
            regions=any(r.regions for r in requests),
            read_regions=any(r.read_regions for r in requests),
            queries=any(r.queries for r in requests),
        )


@runtime_checkable
class Features(Protocol):
    """What losses on feature maps read, of classifiers and detectors alike."""

    maps: dict[str, Tensor]
    final: Tensor | None


@dataclass
class Outputs:
    """What a classifier says about a batch of images; what was not asked for is absent.

    Attributes:
        logits: (B, K).
        pooled: (B, D), the vector that enters the classifier.
        maps: the requested feature maps by level name, each (B, C, H, W).
        final: (B, C, H, W), the last map after the final norm.
        class_tokens: the class token at the requested levels by level name, each (B, C); empty for networks without one.
        attention: (B, heads, h, w) of a plain vision transformer, how much the class token attends to each patch in the last
            block: its softmax over all tokens; without a class token the mean over the patches' own.
        class_logits, distilled_logits: (B, K) of a network with a distillation head, what its two heads say; `logits` is their
            mean.
        members: of several teachers taken as one, the outputs of each.
        numbers: (B,) int64, the images' places in the training set, for losses that remember images; the distiller sets it.
    """

    logits: Tensor
    pooled: Tensor | None = None
    maps: dict[str, Tensor] = field(default_factory=dict)
    final: Tensor | None = None
    class_tokens: dict[str, Tensor] = field(default_factory=dict)
    attention: Tensor | None = None
    class_logits: Tensor | None = None
    distilled_logits: Tensor | None = None
    members: tuple["Outputs", ...] = ()
    numbers: Tensor | None = None
