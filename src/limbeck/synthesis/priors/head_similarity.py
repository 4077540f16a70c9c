"""MimiQ's prior: on real images the heads of a block look at the same structure.

Choi, Lee, Kim, Kim, Lee, Park, Lee, Lee, "MimiQ: Low-Bit Data-Free Quantization of Vision Transformers with Encouraging
Inter-Head Attention Similarity", AAAI 2025, arXiv:2407.20021.
"""

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.losses.precision import no_autocast
from limbeck.models.attention import Attention, attention_blocks, reading_attention
from limbeck.models.base import VisionModel
from limbeck.outputs import Request
from limbeck.synthesis.priors.attention_rows import among_patches, patch_scores, require_attention
from limbeck.synthesis.priors.base import Needs, Prior, Seen
from limbeck.synthesis.priors.recomputing import recomputed

_C1, _C2 = 0.01**2, 0.03**2
_CHUNK = 2**23
"""Values of attention rows that are held at a time."""


def structural_similarity(maps: Tensor) -> Tensor:
    """SSIM of every two of some maps, with their global moments:

        (2 μ_i μ_j + C1) (2 σ_ij + C2) / ((μ_i² + μ_j² + C1) (σ_i² + σ_j² + C2)),    C1 = 0.01², C2 = 0.03²

    Args:
        maps: (..., heads, N), in [0, 1].

    Returns:
        (..., heads, heads), 1 on the diagonal.
    """
    mean = maps.mean(-1, keepdim=True)
    centred = maps - mean
    covariance = centred @ centred.transpose(-2, -1) / maps.shape[-1]
    variance = covariance.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    means = mean @ mean.transpose(-2, -1)
    luminance = (2 * means + _C1) / (mean.square() + mean.square().transpose(-2, -1) + _C1)
    return luminance * (2 * covariance + _C2) / (variance + variance.transpose(-2, -1) + _C2)


def head_dissimilarity(scores: Tensor) -> Tensor:
    """Mean over pairs of unequal heads of 1 - SSIM², of each patch's query.

    A head's map is the query's row of scores, scaled to [0, 1] from its least to its largest value.

    The published mean also runs over the pairs of a head with itself, which are zero: it is (heads - 1) / heads times this
    one, which means the same for any number of heads.

    Args:
        scores: (B, heads, Q, N), heads > 1.

    Returns:
        (B, Q), from 0 where all heads agree to 1.
    """
    rows = scores.transpose(1, 2)
    low = rows.amin(-1, keepdim=True)
    # Rows that differ by rounding errors only are no structure, and shall not be blown up to one.
    spread = rows.amax(-1, keepdim=True) - low + 1e-4 * rows.detach().abs().mean(-1, keepdim=True) + 1e-8
    squares = structural_similarity((rows - low) / spread).square()
    heads = squares.shape[-1]
    unequal: Tensor = heads**2 - heads - (squares.sum((-2, -1)) - squares.diagonal(dim1=-2, dim2=-1).sum(-1))
    return unequal / (heads**2 - heads)


class HeadSimilarity(Prior):
    """Mean over blocks, images and patches of `head_dissimilarity`. Published weight 1.

    Blocks of a single head are left out. Windows count as images. Patches are taken in groups, and what they need is
    computed again in the backward pass, so that memory does not grow with heads times patches squared.

    Args:
        model: the teacher.

    Raises:
        UserError: the teacher has no attention that can be read; when called, no block of it has two heads.
    """

    needs = Needs(attention=True)

    def __init__(self, model: nn.Module) -> None:
        require_attention(model, "The similarity of heads")

    def __call__(self, seen: Seen) -> Tensor:
        """Lower where heads agree."""
        blocks = [one for one in among_patches(seen.attentions) if one.query.shape[1] > 1]
        if not blocks:
            raise UserError(
                "The similarity of heads compares the heads of a block, and every block of the teacher has one. Leave the term "
                "out (weight 0); psaq and invert work without it."
            )
        with no_autocast(seen.shown):
            return torch.stack([_block(one) for one in blocks]).mean()


def most_heads(model: VisionModel) -> int:
    """The largest number of heads among its attention blocks; 0 where no attention can be read."""
    if not attention_blocks(model):
        return 0
    blank = torch.zeros(1, 3, *model.facts.input_size, device=model.mean.device)
    with torch.no_grad(), reading_attention(model) as attentions:
        model.read(blank, Request())
    return max((attention.query.shape[1] for attention in attentions), default=0)


def _block(attention: Attention) -> Tensor:
    batch, heads, tokens, _ = attention.query.shape
    count = tokens - attention.prefix
    chunk = max(1, _CHUNK // (batch * heads * count))
    sums = [
        recomputed(_chunk_sum, attention, torch.arange(start, min(start + chunk, count)))
        for start in range(0, count, chunk)
    ]
    return torch.stack(sums).sum() / (batch * count)


def _chunk_sum(attention: Attention, queries: Tensor) -> Tensor:
    return head_dissimilarity(patch_scores(attention, queries.to(attention.query.device))).sum()
