"""MobileNetV2 at half width for 32-pixel images (Sandler et al., 2018).

Stride-2 stem of 16 channels, expansion 6, a last 1x1 convolution to 1280. The four levels are the linear bottleneck
outputs after block groups 2, 3, 5 and 7. As in the distillation literature's version, every unit has three
convolutions (also the first, whose expansion is 1), and activations are ReLU rather than the paper's ReLU6 (inferred).
"""

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from limbeck.models.cifar.base import CifarNetwork, PlainLast, PlainStage, PlainStem, conv_norm
from limbeck.models.drop_path import drop_path_rates

# (expansion, channels at half width, units, stride of the first unit), by the level that they end in
STAGES = (
    ((1, 8, 1, 1), (6, 12, 2, 1)),
    ((6, 16, 3, 2),),
    ((6, 32, 4, 2), (6, 48, 3, 1)),
    ((6, 80, 3, 2), (6, 160, 1, 1)),
)


def mobilenetv2_half(
    name: str, num_classes: int, drop_path: float = 0.0, input_size: tuple[int, int] = (32, 32)
) -> CifarNetwork:
    """MobileNetV2 with half the channels; arguments as in `cifar_resnet`."""
    rates = iter(drop_path_rates(drop_path, sum(units for groups in STAGES for _, _, units, _ in groups)))
    stages: list[nn.Module] = []
    in_channels = 16
    for groups in STAGES:
        blocks: list[nn.Module] = []
        for expansion, out_channels, units, first_stride in groups:
            for unit in range(units):
                stride = first_stride if unit == 0 else 1
                blocks.append(InvertedResidual(in_channels, out_channels, expansion, stride, next(rates)))
                in_channels = out_channels
        stages.append(PlainStage(nn.Sequential(*blocks)))
    return CifarNetwork(
        name,
        num_classes,
        input_size,
        stem=PlainStem(conv_norm(3, 16, 3, stride=2)),
        stages=stages,
        last=PlainLast(conv_norm(in_channels, 1280, 1)),
        channels=[groups[-1][1] for groups in STAGES],
        strides=(2, 4, 8, 16),
        final_channels=1280,
        preactivation=False,
    )


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1; the input is added where neither grid nor width changes."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, drop_path: float) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.branch = nn.Sequential(
            conv_norm(in_channels, hidden, 1),
            conv_norm(hidden, hidden, 3, stride=stride, groups=hidden),
            conv_norm(hidden, out_channels, 1, relu=False),
        )
        self.drop_path = StochasticDepth(drop_path, "row") if stride == 1 and in_channels == out_channels else None

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        outputs: Tensor = self.branch(inputs)
        return outputs if self.drop_path is None else inputs + self.drop_path(outputs)
