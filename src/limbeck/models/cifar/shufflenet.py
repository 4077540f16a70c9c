"""ShuffleNetV1 (Zhang et al., 2018; 3 groups) and ShuffleNetV2 1x (Ma et al., 2018) for 32-pixel images.

Both have a 1x1 stem of 24 channels and no max-pool, so their three levels lie at strides 2, 4, 8. V1 is read after
the ReLU that follows the concatenation or sum, V2 after the channel shuffle; neither has a pre-activation form.
V1's bottleneck is a quarter of what a unit's branch gives (for the first unit of a stage: of the channels that the
branch adds), and its depthwise convolution is followed by a ReLU, unlike in the paper: both are inferred from the
published parameter count and the distillation literature.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from limbeck.models.cifar.base import CifarNetwork, PlainLast, PlainStage, PlainStem, conv_norm, without_drop_path
from limbeck.models.drop_path import drop_path_rates


def shufflenetv1(
    name: str, num_classes: int, drop_path: float = 0.0, input_size: tuple[int, int] = (32, 32)
) -> CifarNetwork:
    """ShuffleNetV1 with 3 groups; arguments as in `cifar_resnet`."""
    channels, units, groups = (240, 480, 960), (4, 8, 4), 3
    rates = iter(drop_path_rates(drop_path, sum(units)))
    stages: list[nn.Module] = []
    in_channels = 24
    for out_channels, count in zip(channels, units, strict=True):
        # The first 1x1 convolution of the network is not grouped: 24 channels are too few.
        first_groups = 1 if in_channels == 24 else groups
        next(rates)  # a down unit concatenates, so it has no residual branch to drop
        blocks: list[nn.Module] = [GroupedDown(in_channels, out_channels, first_groups, groups)]
        blocks += [GroupedUnit(out_channels, groups, next(rates)) for _ in range(count - 1)]
        stages.append(PlainStage(nn.Sequential(*blocks)))
        in_channels = out_channels
    return CifarNetwork(
        name,
        num_classes,
        input_size,
        stem=PlainStem(conv_norm(3, 24, 1)),
        stages=stages,
        last=PlainLast(),
        channels=channels,
        strides=(2, 4, 8),
        final_channels=channels[-1],
        preactivation=False,
    )


def shufflenetv2(
    name: str, num_classes: int, drop_path: float = 0.0, input_size: tuple[int, int] = (32, 32)
) -> CifarNetwork:
    """ShuffleNetV2 1x; arguments as in `cifar_vgg`."""
    channels, units = (116, 232, 464), (3, 7, 3)
    stages: list[nn.Module] = []
    in_channels = 24
    for out_channels, count in zip(channels, units, strict=True):
        blocks: list[nn.Module] = [SplitDown(in_channels, out_channels)]
        blocks += [SplitUnit(out_channels) for _ in range(count)]
        stages.append(PlainStage(nn.Sequential(*blocks)))
        in_channels = out_channels
    return CifarNetwork(
        name,
        num_classes,
        input_size,
        stem=PlainStem(conv_norm(3, 24, 1)),
        stages=stages,
        last=PlainLast(conv_norm(in_channels, 1024, 1)),
        channels=channels,
        strides=(2, 4, 8),
        final_channels=1024,
        preactivation=False,
        notes=without_drop_path(name, drop_path),
    )


class ChannelShuffle(nn.Module):
    """Interleaves the channels of `groups` equal groups: channel j of group i becomes channel j * groups + i."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        outputs: Tensor = inputs.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        return outputs


class GroupedUnit(nn.Module):
    """V1's unit at one resolution: the branch is added to the input."""

    def __init__(self, channels: int, groups: int, drop_path: float) -> None:
        super().__init__()
        self.branch = _grouped_branch(channels, channels, 1, groups, groups)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return F.relu(inputs + self.drop_path(self.branch(inputs)))


class GroupedDown(nn.Module):
    """V1's unit that halves the grid: the branch supplies the channels that the average-pooled input lacks."""

    def __init__(self, in_channels: int, out_channels: int, first_groups: int, groups: int) -> None:
        super().__init__()
        self.branch = _grouped_branch(in_channels, out_channels - in_channels, 2, first_groups, groups)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / 2, W / 2)."""
        return F.relu(torch.cat([self.branch(inputs), self.shortcut(inputs)], dim=1))


class SplitUnit(nn.Module):
    """V2's unit at one resolution: the second half of the channels is transformed, then all are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = _split_branch(half, half, 1)
        self.shuffle = ChannelShuffle(2)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        kept, transformed = inputs.chunk(2, dim=1)
        outputs: Tensor = self.shuffle(torch.cat([kept, self.branch(transformed)], dim=1))
        return outputs


class SplitDown(nn.Module):
    """V2's unit that halves the grid: two branches of all channels, each giving half of the output."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.shortcut = nn.Sequential(
            conv_norm(in_channels, in_channels, 3, stride=2, groups=in_channels, relu=False),
            conv_norm(in_channels, half, 1),
        )
        self.branch = _split_branch(in_channels, half, 2)
        self.shuffle = ChannelShuffle(2)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / 2, W / 2)."""
        outputs: Tensor = self.shuffle(torch.cat([self.shortcut(inputs), self.branch(inputs)], dim=1))
        return outputs


def _grouped_branch(in_channels: int, out_channels: int, stride: int, first_groups: int, groups: int) -> nn.Sequential:
    bottleneck = out_channels // 4
    return nn.Sequential(
        conv_norm(in_channels, bottleneck, 1, groups=first_groups),
        ChannelShuffle(first_groups),
        conv_norm(bottleneck, bottleneck, 3, stride=stride, groups=bottleneck),
        conv_norm(bottleneck, out_channels, 1, groups=groups, relu=False),
    )


def _split_branch(in_channels: int, half: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        conv_norm(in_channels, half, 1),
        conv_norm(half, half, 3, stride=stride, groups=half, relu=False),
        conv_norm(half, half, 1),
    )
