"""The convolutional units of the stem and of the branches: inverted residual, squeeze-and-excitation, plain.

Inverted residual: Sandler et al., 2018, arXiv:1801.04381; squeeze-and-excitation: Hu et al., 2018, arXiv:1709.01507;
together with hard activations: Howard et al., 2019, arXiv:1905.02244. Numbers are inferred, not the IPE paper's.
"""

from collections.abc import Callable

from timm.layers.helpers import make_divisible
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

Activation = Callable[..., nn.Module]

SQUEEZE_RATIO = 0.25


def rounded_width(channels: float) -> int:
    """The nearest multiple of 8 that is at least 90 % of `channels`."""
    return int(make_divisible(channels, 8, round_limit=0.9))


class InvertedResidual(nn.Module):
    """1x1 expansion, a spatial step of each channel alone, squeeze-and-excitation, linear 1x1 projection.

    The input is added where the grid and the width stay.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        expansion: width of the spatial step over `in_channels`, rounded; 1 leaves the expansion out.
        spatial: from the expanded width to the module that does the spatial step, one channel at a time.
        keeps_grid: whether that module keeps height and width.
        squeeze: with squeeze-and-excitation.
        activation: after expansion and spatial step.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expansion: float,
        spatial: Callable[[int], nn.Module],
        keeps_grid: bool,
        squeeze: bool,
        activation: Activation = nn.Hardswish,
    ) -> None:
        super().__init__()
        hidden = rounded_width(in_channels * expansion) if expansion != 1 else in_channels
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(Conv2dNormActivation(in_channels, hidden, 1, activation_layer=activation))
        layers += [spatial(hidden), nn.BatchNorm2d(hidden), activation(inplace=True)]
        if squeeze:
            squeezed = rounded_width(hidden * SQUEEZE_RATIO)
            layers.append(SqueezeExcitation(hidden, squeezed, scale_activation=nn.Hardsigmoid))
        layers.append(Conv2dNormActivation(hidden, out_channels, 1, activation_layer=None))
        self.body = nn.Sequential(*layers)
        self.is_residual = keeps_grid and in_channels == out_channels

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, h, w)."""
        outputs: Tensor = self.body(inputs)
        return inputs + outputs if self.is_residual else outputs


def separable(in_channels: int, out_channels: int, spatial: nn.Module, activation: Activation | None) -> nn.Sequential:
    """A spatial step of each channel alone, then 1x1, both normalised: no expansion and no residual."""
    between = [] if activation is None else [activation(inplace=True)]
    return nn.Sequential(
        spatial,
        nn.BatchNorm2d(in_channels),
        *between,
        Conv2dNormActivation(in_channels, out_channels, 1, activation_layer=activation),
    )


def depthwise(channels: int, kernel: int, stride: int = 1, padding: int | None = None) -> nn.Conv2d:
    """A depthwise convolution without bias; the padding is half the kernel unless given."""
    padding = kernel // 2 if padding is None else padding
    return nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=False)


def init_convolutions(module: nn.Module) -> None:
    """He initialisation by fan-out, a depthwise filter's fan-out being its own (as in timm's mobile networks)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels // part.groups
            nn.init.normal_(part.weight, std=(2.0 / fan_out) ** 0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
