"""ResNets for 32-pixel images: depth 6n + 2, three stages of basic blocks (He et al., 2016, section 4.2).

`resnet8x4` and `resnet32x4` are the wider ones of the distillation literature: stem 32, stages 64, 128, 256.
Shortcuts are a 1x1 convolution and batch norm wherever the shape changes, as in that literature (not the paper's
zero-padding). A stage's pre-activation form is the sum of branch and shortcut in its last block.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from limbeck.models.cifar.base import CifarNetwork, PlainLast, PlainStem, Tap, conv_norm
from limbeck.models.drop_path import drop_path_rates


def cifar_resnet(
    name: str,
    num_classes: int,
    drop_path: float = 0.0,
    input_size: tuple[int, int] = (32, 32),
    *,
    depth: int,
    stem_channels: int = 16,
    channels: tuple[int, int, int] = (16, 32, 64),
) -> CifarNetwork:
    """A ResNet of `depth` = 6n + 2 layers.

    Args:
        name: without the `limbeck:`.
        num_classes: K of the logits.
        drop_path: stochastic depth of the last block; earlier blocks have proportionally less.
        input_size: (height, width), multiples of 8.
        depth: layers with weights, shortcuts not counted.
        stem_channels: of the first convolution.
        channels: of the three stages.
    """
    per_stage, remainder = divmod(depth - 2, 6)
    assert remainder == 0, "depth must be 6n + 2"
    assert per_stage > 0, "depth must be at least 8"
    rates = drop_path_rates(drop_path, 3 * per_stage)
    stages: list[nn.Module] = []
    in_channels = stem_channels
    for stage, out_channels in enumerate(channels):
        blocks: list[nn.Module] = []
        for block in range(per_stage):
            stride = 2 if stage > 0 and block == 0 else 1
            blocks.append(BasicBlock(in_channels, out_channels, stride, rates[stage * per_stage + block]))
            in_channels = out_channels
        stages.append(ResidualStage(blocks))
    return CifarNetwork(
        name,
        num_classes,
        input_size,
        stem=PlainStem(conv_norm(3, stem_channels, 3)),
        stages=stages,
        last=PlainLast(),
        channels=channels,
        strides=(1, 2, 4),
        final_channels=channels[-1],
        preactivation=True,
    )


class ResidualStage(nn.Module):
    """Residual blocks that return the sum before its ReLU; the ReLU between them is the stage's."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tap: Tap) -> Tap:
        """The last block's sum, with and without ReLU."""
        plain, total = tap
        for block in self.blocks:
            total = block(plain)
            # Not in place: the sum itself is what a teacher is read at.
            plain = F.relu(total)
        return Tap(plain, total)


class ResidualBlock(nn.Module):
    """Branch plus shortcut, without the ReLU that follows; the shortcut is a projection where the shape changes."""

    def __init__(self, branch: nn.Module, in_channels: int, out_channels: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.branch = branch
        self.drop_path = StochasticDepth(drop_path, "row")
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else conv_norm(in_channels, out_channels, 1, stride=stride, relu=False)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        total: Tensor = self.drop_path(self.branch(inputs)) + self.shortcut(inputs)
        return total


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, drop_path: float) -> None:
        branch = nn.Sequential(
            conv_norm(in_channels, out_channels, 3, stride=stride),
            conv_norm(out_channels, out_channels, 3, relu=False),
        )
        super().__init__(branch, in_channels, out_channels, stride, drop_path)
