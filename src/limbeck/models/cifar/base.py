"""What our own networks for small images share: the walk over stages, the pooling and the classifier.

Every stage turns a `Tap` into a `Tap`, so that the two forms in which distillation reads a stage - as the next
stage sees it, and before its last activation - are by-products of the one forward pass. Nothing is hooked and
nothing is computed for a tap's sake.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.base import Provenance, VisionModel
from limbeck.models.drop_path import drop_path_rates
from limbeck.outputs import Level, ModelFacts, Outputs, Request

CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)
CIFAR100_STD = (0.2673, 0.2564, 0.2762)


class Tap(NamedTuple):
    """What leaves a stage.

    Attributes:
        plain: (B, C, H, W), the map that a student is read at.
        preactivation: (B, C, H, W), the map that a teacher is read at; None where the network has no such form.
    """

    plain: Tensor
    preactivation: Tensor | None = None


class CifarNetwork(VisionModel):
    """A convolutional classifier for small images, read at its stages.

    Args:
        name: of the network, without the `limbeck:` of its model name.
        num_classes: K of the logits.
        input_size: (height, width) in pixels, each a positive multiple of 8.
        stem: images to the first `Tap`.
        stages: shallow to deep, each a module from `Tap` to `Tap`.
        last: the deepest `Tap` to the final map, after its activation.
        channels: of each stage's map.
        strides: input pixels per cell of each stage's map.
        final_channels: of the final map, hence of the pooled vector.
        preactivation: whether the stages give their pre-activation form.
        notes: sentences for the user, kept in the provenance.

    Raises:
        UserError: the number of classes or the input size is impossible.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        input_size: tuple[int, int],
        *,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        last: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int],
        final_channels: int,
        preactivation: bool,
        notes: Sequence[str] = (),
    ) -> None:
        assert len(stages) == len(channels) == len(strides)
        if num_classes < 1:
            raise UserError(f"limbeck:{name} was asked for {num_classes} classes; a classifier needs at least 1.")
        height, width = input_size
        if height < 8 or width < 8 or height % 8 or width % 8:
            raise UserError(
                f"limbeck:{name} was asked for images of {height}x{width} pixels; its input height and width must be "
                f"positive multiples of 8, such as 32x32 (the size these networks were published for)."
            )
        super().__init__(CIFAR100_MEAN, CIFAR100_STD)
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.last = last
        self.classifier = nn.Linear(final_channels, num_classes)
        self.facts = ModelFacts(
            name=f"limbeck:{name}",
            num_classes=num_classes,
            input_size=(height, width),
            levels=tuple(
                Level(
                    name=f"stages.{index}",
                    channels=channels[index],
                    stride=strides[index],
                    grid=_grid(input_size, strides[index]),
                    preactivation=f"stages.{index}.pre" if preactivation else None,
                )
                for index in range(len(stages))
            ),
            pooled_channels=final_channels,
            final=Level("final", final_channels, strides[-1], _grid(input_size, strides[-1])),
        )
        self.provenance = Provenance(licence="Apache-2.0", notes=list(notes))
        self.rebuild = {
            "library": "limbeck",
            "name": name,
            "num_classes": num_classes,
            "input_size": [height, width],
        }
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        """One pass over (B, 3, *input_size) inputs, keeping only the requested maps.

        Raises:
            KeyError: a requested level is not one of this network's.
        """
        maps: dict[str, Tensor] = {}
        tap: Tap = self.stem(inputs)
        for level, stage in zip(self.facts.levels, self.stages, strict=True):
            tap = stage(tap)
            if level.name in request.levels:
                maps[level.name] = tap.plain
            if level.preactivation in request.levels and tap.preactivation is not None:
                maps[level.preactivation] = tap.preactivation
        if any(name not in maps for name in request.levels):
            unknown = next(name for name in request.levels if name not in maps)
            raise KeyError(f"{self.facts.name} has no level {unknown!r}")
        final: Tensor = self.last(tap)
        # The published networks pool with a fixed window, which at 32 pixels covers the whole map; so does this.
        pooled = F.adaptive_avg_pool2d(final, 1).flatten(1)
        return Outputs(
            logits=self.classifier(pooled),
            pooled=pooled if request.pooled else None,
            maps=maps,
            final=final if request.final else None,
        )


class PlainStem(nn.Module):
    """A stem without a pre-activation form: `body` maps images to the first stage's input."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Tap:
        """Images (B, 3, H, W) to the first stage's input."""
        return Tap(self.body(images))


class PlainStage(nn.Module):
    """A stage that is read after its last unit only: `body` maps a map to a map."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, tap: Tap) -> Tap:
        """The stage's map; its pre-activation form is None."""
        return Tap(self.body(tap.plain))


class PlainLast(nn.Module):
    """The final map from the deepest stage's plain map, through `body` (such as a last 1x1 convolution) if any."""

    def __init__(self, body: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body or nn.Identity()

    def forward(self, tap: Tap) -> Tensor:
        """The final map (B, C, H, W)."""
        final: Tensor = self.body(tap.plain)
        return final


def conv_norm(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """A convolution without bias that keeps the grid up to its stride, batch norm, and a ReLU unless declined."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    if relu:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def without_drop_path(name: str, drop_path: float) -> list[str]:
    """The note, if one is due, that a network without residual branches cannot drop any."""
    drop_path_rates(drop_path, 1)
    return [f"limbeck:{name} has no residual branches, so drop_path={drop_path} has no effect"] if drop_path else []


def _grid(input_size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Cells of a map: every halving in these networks rounds up (a 2x2 max-pool only ever meets even grids)."""
    return -(-input_size[0] // stride), -(-input_size[1] // stride)
