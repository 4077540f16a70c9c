"""How a block's patches attend to each other, as the terms on attention read it: before the softmax, without bias."""

from collections.abc import Sequence

from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.attention import Attention, attention_blocks
from limbeck.synthesis.priors.precision import full


def patch_scores(attention: Attention, queries: Tensor | None = None) -> Tensor:
    """(B, heads, M, N): scaled dot products of patch queries (rows) with patch keys (columns), prefix tokens left out.

    A bias is no matter of the picture, and where it masks windows it would drown everything else.

    Args:
        attention: of N patches.
        queries: (M,) int64, those to compute; None is all N.
    """
    query, key = full(attention.query)[:, :, attention.prefix :], full(attention.key)[:, :, attention.prefix :]
    if queries is not None:
        query = query.index_select(2, queries)
    return (query * attention.scale) @ key.transpose(-2, -1)


def among_patches(attentions: Sequence[Attention]) -> list[Attention]:
    """The blocks in which at least two patches attend to each other; not those in which only the class token asks."""
    return [one for one in attentions if one.query.shape[2] == one.key.shape[2] >= one.prefix + 2]


def require_attention(model: nn.Module, term: str) -> None:
    """Refuse a network whose attention cannot be read.

    Raises:
        UserError: it has none.
    """
    if not attention_blocks(model):
        name = getattr(getattr(model, "facts", None), "name", type(model).__name__)
        raise UserError(
            f"{term} reads attention, and {name} has no attention blocks that can be read. For networks with BatchNorm use "
            "deepinversion, for others invert, which takes feature maps instead."
        )
