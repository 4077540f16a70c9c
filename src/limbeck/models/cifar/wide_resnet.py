"""Wide ResNets: depth 6n + 4, pre-activation blocks, three stages of 16k, 32k, 64k channels (Zagoruyko, 2016).

A stage's plain form is its raw sum, without norm or ReLU: that is what a student is read at. Its pre-activation form
is that sum through the batch norm which follows it - the first norm of the next stage, or the network's final one.
Each block here therefore owns the norm that *follows* its sum rather than the one before it (same parameters, same
function), and passes both forms on, so that reading the pre-activation form never runs a norm twice.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from limbeck.models.cifar.base import CifarNetwork, Tap, conv_norm
from limbeck.models.drop_path import drop_path_rates


def wide_resnet(
    name: str,
    num_classes: int,
    drop_path: float = 0.0,
    input_size: tuple[int, int] = (32, 32),
    *,
    depth: int,
    widening: int,
) -> CifarNetwork:
    """WRN-depth-widening, without dropout.

    Args:
        name: without the `limbeck:`.
        num_classes: K of the logits.
        drop_path: stochastic depth of the last block; earlier blocks have proportionally less.
        input_size: (height, width), multiples of 8.
        depth: 6n + 4 layers with weights.
        widening: k, the factor on 16, 32, 64 channels.
    """
    per_stage, remainder = divmod(depth - 4, 6)
    assert remainder == 0, "depth must be 6n + 4"
    assert per_stage > 0, "depth must be at least 10"
    rates = iter(drop_path_rates(drop_path, 3 * per_stage))
    channels = [16 * widening, 32 * widening, 64 * widening]
    stages: list[nn.Module] = []
    in_channels = 16
    for stage, out_channels in enumerate(channels):
        blocks: list[WideBlock] = []
        for block in range(per_stage):
            stride = 2 if stage > 0 and block == 0 else 1
            blocks.append(WideBlock(in_channels, out_channels, stride, next(rates)))
            in_channels = out_channels
        stages.append(WideStage(blocks))
    return CifarNetwork(
        name,
        num_classes,
        input_size,
        stem=WideStem(16),
        stages=stages,
        last=RectifiedLast(),
        channels=channels,
        strides=(1, 2, 4),
        final_channels=channels[-1],
        preactivation=True,
    )


class WideStem(nn.Module):
    """A 3x3 convolution, and the norm that follows it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.norm_after = nn.BatchNorm2d(channels)

    def forward(self, images: Tensor) -> Tap:
        """Images (B, 3, H, W) to the raw and the normed map."""
        raw = self.convolution(images)
        return Tap(raw, self.norm_after(raw))


class WideBlock(nn.Module):
    """ReLU, 3x3, norm, ReLU, 3x3, sum with the shortcut; then the norm that follows.

    Where the shape changes the shortcut is a 1x1 convolution of the activated input, else it is the raw input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv_norm(in_channels, out_channels, 3, stride=stride),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        )
        self.drop_path = StochasticDepth(drop_path, "row")
        self.projection = (
            None
            if stride == 1 and in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        )
        self.norm_after = nn.BatchNorm2d(out_channels)

    def forward(self, tap: Tap) -> Tap:
        """The raw sum, and the same through the norm that follows."""
        raw, normed = tap
        assert normed is not None
        activated = F.relu(normed)
        shortcut = raw if self.projection is None else self.projection(activated)
        total = shortcut + self.drop_path(self.branch(activated))
        return Tap(total, self.norm_after(total))


class WideStage(nn.Module):
    """Wide blocks in a row."""

    def __init__(self, blocks: Sequence[WideBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tap: Tap) -> Tap:
        """The last block's raw and normed sum."""
        for block in self.blocks:
            tap = block(tap)
        return tap


class RectifiedLast(nn.Module):
    """The final map: the deepest sum after the network's final norm, which its last block owns, and ReLU."""

    def forward(self, tap: Tap) -> Tensor:
        """The final map (B, C, H, W)."""
        assert tap.preactivation is not None
        return F.relu(tap.preactivation)
