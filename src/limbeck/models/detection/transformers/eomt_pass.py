"""The pass of EoMT (Encoder-only Mask Transformer, 2503.19108) taken apart, so that it can stop early and show its blocks.

The library's own forward shows neither what the earlier blocks predict nor the terms of its loss. This is the same
computation on the network's own modules, drawing the same random numbers, with two differences: it ends where nothing
more is asked for, and position embeddings are stretched to pictures of another size than the network was made for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.detection import Size


@dataclass
class EomtReading:
    """What the pass computed.

    Attributes:
        blocks: (B, C, h, w) patch tokens after the blocks that were asked for, by number.
        final: (B, C, h, w) patch tokens after the last norm; None unless asked for.
        predictions: class logits (B, Q, K + 1) and mask logits (B, Q, H, W), before each block that the queries have
            joined and masks are attended with, and at the end; empty unless asked for.
    """

    blocks: dict[int, Tensor] = field(default_factory=dict)
    final: Tensor | None = None
    predictions: list[tuple[Tensor, Tensor]] = field(default_factory=list)


def read(network: Any, pixels: Tensor, *, blocks: Sequence[int], final: bool, predictions: bool) -> EomtReading:
    """Run the blocks up to the last one that is needed.

    Args:
        network: transformers' `EomtForUniversalSegmentation` or `EomtDinov3ForUniversalSegmentation`.
        pixels: (B, 3, H, W), normalised; height and width multiples of the patch size.
        blocks: numbers of the blocks whose patch tokens are returned.
        final: return the patch tokens after the last norm.
        predictions: return what the queries say.
    """
    reading = EomtReading()
    patch = network.config.patch_size
    grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
    tokens, extra = _embed(network, pixels, grid)
    first_joint = len(network.layers) - network.config.num_blocks
    count = len(network.layers) if final or predictions else max(blocks, default=-1) + 1
    attention: Tensor | None = None
    for number, block in enumerate(network.layers[:count]):
        if number == first_joint:
            queries = network.query.weight[None].expand(len(tokens), -1, -1)
            tokens = torch.cat((queries, tokens), 1)
        if number >= first_joint:
            share = network.attn_mask_probs[number - first_joint]
            if network.training or share > 0:
                normed = network.layernorm(tokens)
                masks = _masks(network, normed, grid)
                if predictions:
                    reading.predictions.append((_classes(network, normed), masks))
                attention = _attention(network, masks, grid, share, tokens)
        tokens = block(tokens, attention, **extra)
        if number in blocks:
            reading.blocks[number] = _patches(tokens, grid)
    if final or predictions:
        normed = network.layernorm(tokens)
        reading.final = _patches(normed, grid) if final else None
        if predictions:
            masks = _masks(network, normed, grid)
            reading.predictions.append((_classes(network, normed), masks))
    return reading


def _embed(network: Any, pixels: Tensor, grid: Size) -> tuple[Tensor, dict[str, Any]]:
    """Tokens, and what each block takes beside them."""
    embeddings = network.embeddings
    if hasattr(network, "rope_embeddings"):
        tokens = network.dropout(embeddings(pixels))
        return tokens, {"position_embeddings": network.rope_embeddings(pixels.to(tokens.dtype))}
    if grid == tuple(network.grid_size):
        return embeddings(pixels), {}
    patches = embeddings.patch_embeddings(pixels)
    patches = patches + _stretched(embeddings.position_embeddings.weight, network.grid_size, grid)
    prefix = torch.cat((embeddings.cls_token, embeddings.register_tokens), 1).expand(len(pixels), -1, -1)
    return embeddings.dropout(torch.cat((prefix, patches), 1)), {}


def _stretched(positions: Tensor, own: Size, grid: Size) -> Tensor:
    """(h * w, C) position embeddings of the grid `own`, interpolated bicubically to another."""
    maps = positions.T.reshape(1, -1, *own)
    return F.interpolate(maps, grid, mode="bicubic", align_corners=False, antialias=True).flatten(2)[0].T


def _patches(tokens: Tensor, grid: Size) -> Tensor:
    """The last h * w tokens as a map; prefix and query tokens stand before them."""
    return tokens[:, -grid[0] * grid[1] :].transpose(1, 2).reshape(len(tokens), -1, *grid)


def _classes(network: Any, normed: Tensor) -> Tensor:
    logits: Tensor = network.class_predictor(normed[:, : network.config.num_queries])
    return logits


def _masks(network: Any, normed: Tensor, grid: Size) -> Tensor:
    queries = network.mask_head(normed[:, : network.config.num_queries])
    return torch.einsum("bqc, bchw -> bqhw", queries, network.upscale_block(_patches(normed, grid)))


def _attention(network: Any, masks: Tensor, grid: Size, share: Tensor, tokens: Tensor) -> Tensor:
    """(B, heads, N, N) added to the attention logits: queries see the patches in their masks only, a share of them."""
    batch, length, _ = tokens.shape
    queries, start = network.config.num_queries, length - grid[0] * grid[1]
    allowed = torch.ones(batch, length, length, dtype=torch.bool, device=tokens.device)
    allowed[:, :queries, start:] = F.interpolate(masks, grid, mode="bilinear").flatten(2) > 0
    thinned: Tensor = network._disable_attention_mask(
        allowed, prob=share, num_query_tokens=queries, encoder_start_tokens=start, device=tokens.device
    )
    allowed = thinned[:, None].expand(-1, network.config.num_attention_heads, -1, -1)
    # Each of the two networks has its own "minus infinity", and its own type.
    if hasattr(network, "rope_embeddings"):
        return allowed.to(tokens.dtype).masked_fill(~allowed, torch.finfo(tokens.dtype).min)
    return allowed.float().masked_fill(~allowed, -1e9)
