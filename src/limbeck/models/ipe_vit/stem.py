"""The shared low-level stem: images to one map, through the first stages of a mobile network.

That convolutions should do the low-level work is the IPE paper's argument; that its branches share a stem, and this stem
(the first four stages of MobileNetV3-Large, arXiv:1905.02244), is inferred.
"""

from typing import Literal, NamedTuple

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from limbeck.errors import UserError
from limbeck.models.ipe_vit.convolutions import Activation, InvertedResidual, depthwise, rounded_width, separable

StemKind = Literal["mobilenetv3", "separable"]


class Row(NamedTuple):
    """One inverted residual of the stem at width 1."""

    kernel: int
    stride: int
    expansion: float
    squeeze: bool
    channels: int


# By the halving of the image that each stage ends in; the image is halved once before them.
STAGES: tuple[tuple[Row, ...], ...] = (
    (Row(3, 1, 1, False, 16),),
    (Row(3, 2, 4, False, 24), Row(3, 1, 3, False, 24)),
    (Row(5, 2, 3, True, 40), Row(5, 1, 3, True, 40)),
    (Row(3, 2, 6, False, 80), Row(3, 1, 2.5, False, 80), Row(3, 1, 6, True, 112)),
)
FIRST_CHANNELS = 16
STRIDES = (2, 4, 8, 16)
RELU_STAGES = 2


class Stem(nn.Module):
    """Images to maps at four depths, each with half the grid of the one before it.

    Args:
        in_chans: channels of the images.
        width: multiplies every number of channels.
        stride: of the last map. 16 halves the image at every stage; 8, 4 and 2 leave out the first one, two or three
            halvings, for small images.
        kind: `mobilenetv3` as in the table above; `separable` has one depthwise and one pointwise convolution in place of
            each inverted residual, and no squeeze-and-excitation.

    Raises:
        UserError: the width or the stride is out of range.
    """

    def __init__(
        self, in_chans: int = 3, *, width: float = 1.0, stride: int = 16, kind: StemKind = "mobilenetv3"
    ) -> None:
        super().__init__()
        if stride not in STRIDES:
            raise UserError(f"stem_stride is {stride}; it must be one of {', '.join(map(str, STRIDES))}.")
        if not width > 0:
            raise UserError(f"width is {width}; it multiplies the stem's channels and must be above 0.")
        if kind not in ("mobilenetv3", "separable"):
            raise UserError(f"stem is {kind!r}; it must be 'mobilenetv3', 'separable' or 'patchify'.")
        kept = STRIDES.index(stride) + 1
        halves = [index >= len(STRIDES) - kept for index in range(len(STRIDES))]
        channels = rounded_width(FIRST_CHANNELS * width)
        self.conv_stem = Conv2dNormActivation(
            in_chans, channels, 3, 2 if halves[0] else 1, activation_layer=nn.Hardswish
        )
        stages: list[nn.Module] = []
        self.channels: list[int] = []
        for index, rows in enumerate(STAGES):
            activation = nn.ReLU if index < RELU_STAGES else nn.Hardswish
            units: list[nn.Module] = []
            for row in rows:
                out_channels = rounded_width(row.channels * width)
                step = row.stride if halves[index] else 1
                units.append(_unit(kind, row, channels, out_channels, step, activation))
                channels = out_channels
            stages.append(nn.Sequential(*units))
            self.channels.append(channels)
        self.stages = nn.ModuleList(stages)
        self.strides = [2 ** sum(halves[: index + 1]) for index in range(len(STAGES))]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to one map per stage; `channels` and `strides` say of what size."""
        maps = []
        current = self.conv_stem(images)
        for stage in self.stages:
            current = stage(current)
            maps.append(current)
        return maps


def _unit(
    kind: StemKind, row: Row, in_channels: int, out_channels: int, stride: int, activation: Activation
) -> nn.Module:
    if kind == "separable":
        return separable(in_channels, out_channels, depthwise(in_channels, row.kernel, stride), activation)
    return InvertedResidual(
        in_channels,
        out_channels,
        expansion=row.expansion,
        spatial=lambda hidden: depthwise(hidden, row.kernel, stride),
        keeps_grid=stride == 1,
        squeeze=row.squeeze,
        activation=activation,
    )
