"""The shared low-level stem: images to one map, through the first stages of a mobile network.

That convolutions should do the low-level work is the IPE paper's argument; that its branches share a stem is inferred, and
so are both stems here. `mobilenetv3` (and its plain form `separable`) are the first four stages of MobileNetV3-Large,
arXiv:1905.02244. `residual` is our own: dense strided convolutions between stages of equal width, whose residual blocks
have no squeeze-and-excitation, and small images are reduced early, so that most of the work is done on few, wide cells.
"""

from typing import NamedTuple

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from limbeck.errors import UserError
from limbeck.models.ipe_vit.convolutions import Activation, InvertedResidual, depthwise, rounded_width, separable
from limbeck.models.ipe_vit.options import StemKind


class Row(NamedTuple):
    """One inverted residual of the MobileNetV3 stem at width 1."""

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
RELU_STAGES = 2

# (channels at width 1, residual blocks) of the same stages in the residual stem.
RESIDUAL_STAGES = ((32, 0), (48, 2), (96, 2), (160, 2))
RESIDUAL_EXPANSION = 3

STRIDES = (2, 4, 8, 16)
# Which of the four halvings stay for small images. The published stem leaves out the first ones, as networks for CIFAR do;
# the residual one the outer ones.
_HALVINGS = {
    "late": {2: (3,), 4: (2, 3), 8: (1, 2, 3), 16: (0, 1, 2, 3)},
    "early": {2: (1,), 4: (1, 2), 8: (1, 2, 3), 16: (0, 1, 2, 3)},
}


class Stem(nn.Module):
    """Images to maps at four depths.

    Args:
        in_chans: channels of the images.
        width: multiplies every number of channels.
        stride: of the last map. 16 halves the image at every stage; 8, 4 and 2 leave out one, two or three halvings, for
            small images.
        kind: `mobilenetv3` or `residual`, see above; `separable` has one depthwise and one pointwise convolution in place of
            each inverted residual of the first, and no squeeze-and-excitation.

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
        kept = _HALVINGS["early" if kind == "residual" else "late"][stride]
        steps = [2 if index in kept else 1 for index in range(len(STAGES))]
        channels = rounded_width((RESIDUAL_STAGES[0][0] if kind == "residual" else FIRST_CHANNELS) * width)
        self.conv_stem = Conv2dNormActivation(in_chans, channels, 3, steps[0], activation_layer=nn.Hardswish)
        stages: list[nn.Module] = []
        self.channels: list[int] = []
        self.strides: list[int] = []
        for index in range(len(STAGES)):
            # The first stage works on the grid that the first convolution leaves.
            step = steps[index] if index else 1
            if kind == "residual":
                stage, channels = _residual_stage(index, channels, width, step)
            else:
                stage, channels = _mobile_stage(kind, index, channels, width, step)
            stages.append(stage)
            self.channels.append(channels)
            self.strides.append((self.strides[-1] if index else steps[0]) * step)
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to one map per stage; `channels` and `strides` say of what size."""
        maps = []
        current = self.conv_stem(images)
        for stage in self.stages:
            current = stage(current)
            maps.append(current)
        return maps


def _mobile_stage(kind: StemKind, index: int, channels: int, width: float, step: int) -> tuple[nn.Sequential, int]:
    activation = nn.ReLU if index < RELU_STAGES else nn.Hardswish
    units: list[nn.Module] = []
    for row in STAGES[index]:
        out_channels = rounded_width(row.channels * width)
        units.append(_unit(kind, row, channels, out_channels, min(row.stride, step), activation))
        channels = out_channels
    return nn.Sequential(*units), channels


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


def _residual_stage(index: int, channels: int, width: float, step: int) -> tuple[nn.Sequential, int]:
    base, blocks = RESIDUAL_STAGES[index]
    out_channels = rounded_width(base * width)
    units: list[nn.Module] = []
    if index:
        units.append(Conv2dNormActivation(channels, out_channels, 3, step, activation_layer=nn.Hardswish))
    units += [
        InvertedResidual(
            out_channels,
            out_channels,
            expansion=RESIDUAL_EXPANSION,
            spatial=lambda hidden: depthwise(hidden, 3),
            keeps_grid=True,
            squeeze=False,
        )
        for _ in range(blocks)
    ]
    return nn.Sequential(*units), out_channels
