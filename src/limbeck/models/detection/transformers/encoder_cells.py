"""The cells of an encoder's maps, in one row: how a network with other maps can be told which of them is meant."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.detection import Size, Tokens


@dataclass(frozen=True)
class Cells:
    """Maps whose cells are numbered through, the first map's first, each map row by row.

    Attributes:
        grids: (height, width) of each map.
        strides: pixels per cell of each map.
    """

    grids: tuple[Size, ...]
    strides: tuple[int, ...]

    @staticmethod
    def of(grids: Sequence[Size], strides: Sequence[int]) -> "Cells":
        """As many maps as there are grids; each beyond the known strides is twice as coarse as the one before."""
        known = [int(stride) for stride in strides][: len(grids)]
        while len(known) < len(grids):
            known.append(2 * known[-1])
        return Cells(tuple((int(height), int(width)) for height, width in grids), tuple(known))

    def tokens(self, places: Tensor) -> Tokens:
        """The cells with the numbers `places`, (B, Q)."""
        level = torch.bucketize(places, self._starts(places)[1:], right=True)
        inner = places - self._starts(places)[level]
        width = places.new_tensor([width for _, width in self.grids])[level]
        return Tokens(places.new_tensor(self.strides)[level], inner // width, inner % width)

    def places(self, tokens: Tokens) -> Tensor:
        """The numbers of cells, (B, Q): the same cell, or where no map has its stride, that of the nearest at its place."""
        octaves = tokens.strides.new_tensor([math.log2(stride) for stride in self.strides], dtype=torch.float32)
        level = (tokens.strides.float().log2()[..., None] - octaves).abs().argmin(-1)
        ratio = tokens.strides / tokens.strides.new_tensor(self.strides)[level]
        height, width = tokens.rows.new_tensor(self.grids)[level].unbind(-1)
        rows, columns = (((side + 0.5) * ratio).floor().long() for side in (tokens.rows, tokens.columns))
        rows = torch.minimum(rows, height - 1)
        columns = torch.minimum(columns, width - 1)
        return self._starts(tokens.rows)[level] + rows * width + columns

    def _starts(self, like: Tensor) -> Tensor:
        counts = like.new_tensor([0, *(height * width for height, width in self.grids)])
        return counts.cumsum(0)[:-1]
