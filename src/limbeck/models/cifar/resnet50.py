"""ResNet-50 for 32-pixel images: bottlenecks [3, 4, 6, 3] behind a 3x3 stem without pooling (He et al., 2016).

Four stages of 256, 512, 1024, 2048 channels at strides 1, 2, 4, 8. The stride sits on the 3x3 convolution
(inferred; the parameter count does not depend on it).
"""

from torch import nn

from limbeck.models.cifar.base import CifarNetwork, PlainLast, PlainStem, conv_norm
from limbeck.models.cifar.resnet import ResidualBlock, ResidualStage
from limbeck.models.drop_path import drop_path_rates

EXPANSION = 4


def cifar_resnet50(
    name: str, num_classes: int, drop_path: float = 0.0, input_size: tuple[int, int] = (32, 32)
) -> CifarNetwork:
    """ResNet-50 with a stem for small images; arguments as in `cifar_resnet`."""
    widths, depths = (64, 128, 256, 512), (3, 4, 6, 3)
    rates = iter(drop_path_rates(drop_path, sum(depths)))
    stages: list[nn.Module] = []
    in_channels = 64
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        blocks: list[nn.Module] = []
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            blocks.append(Bottleneck(in_channels, width, stride, next(rates)))
            in_channels = width * EXPANSION
        stages.append(ResidualStage(blocks))
    return CifarNetwork(
        name,
        num_classes,
        input_size,
        stem=PlainStem(conv_norm(3, 64, 3)),
        stages=stages,
        last=PlainLast(),
        channels=[width * EXPANSION for width in widths],
        strides=(1, 2, 4, 8),
        final_channels=in_channels,
        preactivation=True,
    )


class Bottleneck(ResidualBlock):
    """1x1 down to `width`, 3x3, 1x1 up to four times `width`, and a shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int, drop_path: float) -> None:
        branch = nn.Sequential(
            conv_norm(in_channels, width, 1),
            conv_norm(width, width, 3, stride=stride),
            conv_norm(width, width * EXPANSION, 1, relu=False),
        )
        super().__init__(branch, in_channels, width * EXPANSION, stride, drop_path)
