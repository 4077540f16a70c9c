"""Adaptive patch fusion: from all patches to the one vector that is classified.

Chen et al., arXiv:2108.13015: weights shared by all images times weights that fully connected layers make from each
image. That the product weighs a sum over the patches, and the three readings of "from each image", are inferred.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.ipe_vit.embedding import Grid, resized_table
from limbeck.models.ipe_vit.options import Reading, Squash


class PatchFusion(nn.Module):
    """The weighted sum of N patches x_i (D,):

        y = sum_i g_i * a_i(X) * x_i

    g is learned and starts at 1 / N; a starts at 1, so that y starts as the average of the patches.

    Args:
        dim: D.
        grids: (height, width) of each branch at the network's own input size, in the order of the patches.
        use_global: with g; otherwise g is 1 / N for good.
        use_adaptive: with a; otherwise a is 1 for good.
        reading: what the adaptive weights are made from. `token`: each patch for itself, D -> D/4 -> 1; `token_se`: the
            mean of every patch over its channels, N -> N/4 -> N; `pooled`: the mean patch, D -> D/4 -> N. The latter
            two know N and can read no image with more or fewer patches.
        squash: a = 2 sigmoid(s), or a = N softmax(s) over the patches.
        renormalise: divide the weights by their sum.
    """

    def __init__(
        self,
        dim: int,
        grids: Sequence[Grid],
        *,
        use_global: bool = True,
        use_adaptive: bool = True,
        reading: Reading = "token",
        squash: Squash = "sigmoid",
        renormalise: bool = False,
    ) -> None:
        super().__init__()
        self.reading, self.squash, self.renormalise = reading, squash, renormalise
        self.tokens = sum(height * width for height, width in grids)
        self.dynamic_size = False
        self.global_weights = (
            nn.ParameterList(torch.full((1, 1, *grid), 1 / self.tokens) for grid in grids) if use_global else None
        )
        self.adaptive: nn.Sequential | None = None
        if use_adaptive:
            inputs = self.tokens if reading == "token_se" else dim
            outputs = 1 if reading == "token" else self.tokens
            last = nn.Linear(max(inputs // 4, 1), outputs)
            self.adaptive = nn.Sequential(nn.Linear(inputs, max(inputs // 4, 1)), nn.GELU(), last)

    def init_weights(self) -> None:
        """Make y the plain average: the last layer of the adaptive part gives zeros."""
        if self.adaptive is not None:
            last = self.adaptive[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, tokens: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(B, N, D) patches, on these grids, to (B, D)."""
        weights = self.weights(tokens, grids).to(tokens.dtype)
        return (weights.unsqueeze(1) @ tokens).squeeze(1)

    def weights(self, tokens: Tensor, grids: Sequence[Grid]) -> Tensor:
        """How much each patch counts, (B, N); their sum need not be 1 unless they are renormalised."""
        count = tokens.shape[1]
        weights: Tensor
        if self.global_weights is None:
            weights = tokens.new_full((1, count), 1.0) / count
        else:
            resized = [
                resized_table(table, grid, always=self.dynamic_size)
                for table, grid in zip(self.global_weights, grids, strict=True)
            ]
            # On other grids there are more or fewer patches to share the same sum.
            weights = torch.cat([table.flatten(1) for table in resized], dim=1) * (self.tokens / count)
        if self.adaptive is not None:
            weights = weights * self._adaptive_weights(tokens)
        if self.renormalise:
            weights = weights / weights.sum(1, keepdim=True)
        return weights.expand(tokens.shape[0], -1)

    def _adaptive_weights(self, tokens: Tensor) -> Tensor:
        assert self.adaptive is not None
        if self.reading == "token":
            scores = self.adaptive(tokens).squeeze(2)
        else:
            if tokens.shape[1] != self.tokens:
                raise UserError(
                    f"fusion={self.reading!r} was made for {self.tokens} patches and the image gives {tokens.shape[1]}. "
                    "Make the network for this input size, or use fusion='token'."
                )
            scores = self.adaptive(tokens.mean(2 if self.reading == "token_se" else 1))
        weights: Tensor = 2 * scores.sigmoid() if self.squash == "sigmoid" else scores.softmax(1) * tokens.shape[1]
        return weights
