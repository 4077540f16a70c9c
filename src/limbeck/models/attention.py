"""What attention blocks compute on the way, read from any network without changing its result.

Fused kernels never form an attention matrix. The projections around them are ordinary modules, whose inputs and outputs
give queries, keys and values, from which the matrix is computed here when somebody asks for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class Attention:
    """One block's heads on one batch; the windows of windowed attention count as images.

    Attributes:
        query, key, value: (B, heads, N, d), as the dot product takes them (after norms and rotations of them).
        scale: factor of the dot product.
        prefix: tokens before the patches (class, distillation, registers).
        grid: (rows, columns) of the patch tokens; None where they are no rectangle.
        bias: added to the scaled dot product, broadcastable to (B, heads, N, N); None without.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    prefix: int = 0
    grid: tuple[int, int] | None = None
    bias: Tensor | None = None

    def scores(self) -> Tensor:
        """(B, heads, N, N) before the softmax: queries in rows, keys in columns."""
        scores = (self.query * self.scale) @ self.key.transpose(-2, -1)
        return scores if self.bias is None else scores + self.bias

    def mixed(self) -> Tensor:
        """(B, heads, N, d): attention times values, before the output projection."""
        return self.scores().softmax(-1) @ self.value

    def class_attention(self) -> Tensor:
        """(B, heads, patches): how the class token attends to the patches, renormalised over them.

        Without a class token, the mean over all patches' queries.
        """
        rows = self.scores()[..., self.prefix :]
        if self.prefix:
            return rows[:, :, 0].softmax(-1)
        return rows.softmax(-1).mean(2)


def attention_blocks(module: nn.Module) -> list[nn.Module]:
    """The attention modules that can be read, in the order in which they stand in the network."""
    raise NotImplementedError


@contextmanager
def reading_attention(module: nn.Module) -> Iterator[list[Attention]]:
    """While it lasts, every forward pass of `module` fills the list anew, shallow to deep."""
    raise NotImplementedError
    yield []
