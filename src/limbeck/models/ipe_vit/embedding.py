"""Irregular patch embedding: one map read by parallel branches of different strides, each giving patches of its own scale.

Chen et al., "Exploring and Improving Mobile Level Vision Transformers", arXiv:2108.13015: three branches of inverted
residual and squeeze-and-excitation blocks that differ in stride give 7x7, 4x4 and 1x1 patches at 224 pixels. That much is
the paper's; kernels, expansion and the shared stem before the branches are inferred.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from limbeck.errors import UserError
from limbeck.models.ipe_vit.convolutions import InvertedResidual, depthwise, separable
from limbeck.models.ipe_vit.options import BranchBlock, GlobalReduction

Grid = tuple[int, int]

KERNEL = 5
EXPANSION = 4


class Scale(NamedTuple):
    """How a branch gets from the stem's map to its grid; a stride of 0 means one patch for the whole map."""

    stride: int
    padding: int


# A kernel of 5 so that a stride of 4 skips no row or column.
SCALES: dict[str, Scale] = {
    "uniform": Scale(1, 2),
    "square": Scale(2, 3),
    "fine": Scale(2, 2),
    "mid": Scale(4, 2),
    "global": Scale(0, 0),
}
"""Branches by name: 14x14, 8x8, 7x7, 4x4 and 1x1 patches of a 14x14 map."""


def parse_branches(text: str) -> tuple[str, ...]:
    """Names of branches joined by `+`, coarsest first.

    Raises:
        UserError: a name is unknown or repeated.
    """
    names = [part.strip() for part in text.split("+")]
    unknown = [name for name in names if name not in SCALES]
    if unknown or len(set(names)) != len(names):
        fault = f"{unknown[0]!r} is no branch" if unknown else "a branch is named twice"
        raise UserError(f"branches is {text!r}: {fault}. Join different ones of {', '.join(SCALES)} with +.")
    return tuple(sorted(names, key=list(SCALES).index, reverse=True))


def branch_scale(name: str, *, halved: bool = False) -> Scale:
    """How a branch reads its map; on a map that was halved for all branches, with half its stride.

    Raises:
        UserError: the branch cannot read a halved map.
    """
    scale = SCALES[name]
    if not halved:
        return scale
    if name not in ("fine", "mid", "global"):
        raise UserError(f"branch_map='halved' leaves nothing for the branch {name!r}; join fine, mid and global.")
    return Scale(scale.stride // 2, scale.padding)


def halving(channels: int) -> nn.Module:
    """The inverted residual and squeeze-and-excitation that halves the stem's map for all branches."""
    return InvertedResidual(
        channels,
        channels,
        expansion=EXPANSION,
        spatial=lambda hidden: depthwise(hidden, 3, 2),
        keeps_grid=False,
        squeeze=True,
    )


def branch_grid(name: str, grid: Grid, *, halved: bool = False) -> Grid:
    """The grid of a branch's patches, from that of the map it reads."""
    scale = branch_scale(name, halved=halved)
    if not scale.stride:
        return 1, 1
    height, width = ((side + 2 * scale.padding - KERNEL) // scale.stride + 1 for side in grid)
    return height, width


class Branch(nn.Module):
    """One scale: a map to patches of `dim` channels on their grid.

    Args:
        name: a key of `SCALES`.
        in_channels: of the map.
        dim: width of the patches.
        grid: (height, width) of the map at the network's own input size.
        block: `ir_se` the paper's; `ir` without squeeze-and-excitation; `plain` one dense convolution; `separable` one
            depthwise and one pointwise convolution.
        reduction: of the global branch. `full`: depthwise with one weight for every place of the map; `pool`: depthwise 3x3
            and the average of all places.
        expansion: of the inverted residual.
        halved: whether the map was halved for all branches.
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        dim: int,
        grid: Grid,
        *,
        halved: bool = False,
        block: BranchBlock = "ir_se",
        reduction: GlobalReduction = "full",
        expansion: float = EXPANSION,
    ) -> None:
        super().__init__()
        scale = branch_scale(name, halved=halved)

        def spatial(channels: int) -> nn.Module:
            if scale.stride:
                return depthwise(channels, KERNEL, scale.stride, scale.padding)
            if reduction == "pool":
                return nn.Sequential(depthwise(channels, 3), nn.AdaptiveAvgPool2d(1))
            return WholeMap(channels, grid)

        self.body: nn.Module
        if block == "plain" and scale.stride:
            self.body = Conv2dNormActivation(
                in_channels, dim, KERNEL, scale.stride, scale.padding, activation_layer=None
            )
        elif block in ("plain", "separable"):
            # A dense kernel over the whole map would have more weights than the rest of the network.
            self.body = separable(in_channels, dim, spatial(in_channels), None)
        else:
            self.body = InvertedResidual(
                in_channels,
                dim,
                expansion=expansion,
                spatial=spatial,
                keeps_grid=scale.stride == 1,
                squeeze=block == "ir_se",
            )

    def forward(self, map_: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, h, w)."""
        patches: Tensor = self.body(map_)
        return patches


class WholeMap(nn.Module):
    """Depthwise convolution whose kernel is the whole map: (B, C, H, W) to (B, C, 1, 1).

    On another grid than its own the kernel is resized, keeping its sum, so that any image size can be read.

    Args:
        channels: C.
        grid: (height, width) of the kernel.
    """

    def __init__(self, channels: int, grid: Grid) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels, *grid))
        self.dynamic_size = False
        # As any depthwise convolution: see `init_convolutions`.
        nn.init.normal_(self.weight, std=(2.0 / (grid[0] * grid[1])) ** 0.5)

    def forward(self, map_: Tensor) -> Tensor:
        """The weighted sum over all places of each channel."""
        weight = resized_table(self.weight, (map_.shape[2], map_.shape[3]), always=self.dynamic_size, keep_sum=True)
        return (map_ * weight.to(map_.dtype)).sum((2, 3), keepdim=True)


def resized_table(table: Tensor, grid: Grid, *, always: bool = False, keep_sum: bool = False) -> Tensor:
    """A learned table (1, C, H, W) on another grid, bicubically; itself on its own.

    Args:
        table: the values.
        grid: (height, width) wanted.
        always: resize without asking whether it is needed, for graphs whose size is not yet known.
        keep_sum: scale so that a constant table keeps its sum.
    """
    own = (table.shape[2], table.shape[3])
    # One value is the same on every grid, and a bicubic kernel of one value need not be asked.
    if own == (1, 1) and not keep_sum:
        return table.expand(-1, -1, *grid)
    if not always and own == tuple(grid):
        return table
    scaled = F.interpolate(table, grid, mode="bicubic", align_corners=False)
    return scaled * (own[0] * own[1] / (grid[0] * grid[1])) if keep_sum else scaled
