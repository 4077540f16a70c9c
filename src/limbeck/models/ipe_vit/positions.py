"""Where each patch is, added to what it shows: one table for each branch, resized to the branch's grid.

The IPE paper compares settings and reports small differences; which ones is not known, these three are inferred.
"""

from collections.abc import Sequence

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.ipe_vit.embedding import Grid, resized_table
from limbeck.models.ipe_vit.options import PositionKind


class Positions(nn.Module):
    """A position for every patch.

    Args:
        dim: D.
        grids: (height, width) of each branch at the network's own input size.
        kind: `none`; `learned` from a normal distribution of 0.02; `sincos` fixed sines and cosines of each branch's
            own grid.

    Raises:
        UserError: `sincos` is asked for a width that is no multiple of 4.
    """

    def __init__(self, dim: int, grids: Sequence[Grid], kind: PositionKind = "learned") -> None:
        super().__init__()
        self.dynamic_size = False
        if kind == "sincos":
            if dim % 4:
                raise UserError(f"positions='sincos' needs a width that is a multiple of 4, not {dim}.")
            for index, (height, width) in enumerate(grids):
                table = build_sincos2d_pos_embed([height, width], dim)
                self.register_buffer(f"table_{index}", table.T.reshape(1, dim, height, width), persistent=False)
            self.tables = [f"table_{index}" for index in range(len(grids))]
        elif kind == "learned":
            self.pos_embed = nn.ParameterList(torch.zeros(1, dim, *grid) for grid in grids)
            for parameter in self.pos_embed:
                nn.init.trunc_normal_(parameter, std=0.02)
        self.kind = kind

    def forward(self, grids: Sequence[Grid]) -> Tensor | None:
        """(1, N, D) for all patches in the order of the branches; None if there are no positions."""
        if self.kind == "none":
            return None
        tables = self.pos_embed if self.kind == "learned" else [getattr(self, name) for name in self.tables]
        resized = [
            resized_table(table, grid, always=self.dynamic_size) for table, grid in zip(tables, grids, strict=True)
        ]
        return torch.cat([table.flatten(2) for table in resized], dim=2).transpose(1, 2)
