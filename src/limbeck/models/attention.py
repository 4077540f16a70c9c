"""What attention blocks compute on the way, read from any network without changing its result.

Fused kernels never form an attention matrix. What goes into them is watched instead (`limbeck.models.dot_products`), and
the matrix is computed here when somebody asks for it.

Blocks are recognised by their parts, so that timm's, transformers', torchvision's and our own networks are read alike,
with rotary and relative positions, norms of queries and keys, and masks of shifted windows. Left out is what is no
attention among the patches of a picture: cross attention, attention of a class token alone, decoders, attention across
channels, and what is no softmax of a dot product (heads that are mixed before or after it, linear attention).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.models.dot_products import DotProduct, WatchingDotProducts, additive

_PROJECTIONS = (("qkv",), ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
_NOT_AMONG_PATCHES = frozenset(
    {
        "XCA",
        "CrossCovarianceAttn",
        "ChannelAttention",
        "ChannelAttentionV2",
        "FactorAttnConvRelPosEnc",
        "TalkingHeadAttn",
        "WindowAttentionGlobal",
        "BottleneckAttn",
        "HaloAttn",
        "MultiQueryAttention2d",
    }
)
"""Classes of timm with the parts of self-attention that compute something else: across channels, with mixed heads, ..."""
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
_PREFIX_TOKENS = (*_CLASS_TOKENS, "dist_token", "distillation_token", "reg_token", "register_tokens")
_SUFFIX_TOKENS = "detection_tokens"


@dataclass
class Attention:
    """One block's heads on one batch; the windows of windowed attention count as images.

    Attributes:
        query, key, value: (B, heads, N, d), as the dot product takes them (after norms and rotations of them).
        scale: factor of the dot product.
        prefix: tokens before the patches (class, distillation, registers; YOLOS's detection tokens, which stand behind
            them in the network, are moved here).
        grid: (rows, columns) of the patch tokens; None where they are no rectangle.
        bias: added to the scaled dot product, broadcastable to (B, heads, N, N); None without.
        has_class: the first token of the prefix is a class token.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    prefix: int = 0
    grid: tuple[int, int] | None = None
    bias: Tensor | None = None
    has_class: bool = True

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
        if self.prefix and self.has_class:
            return rows[:, :, 0].softmax(-1)
        return rows[:, :, self.prefix :].softmax(-1).mean(2)

    def patch_shares(self) -> Tensor:
        """(B, heads, patches): as `class_attention`, but shares of the whole, what goes to the tokens before them included.

        A head that looks past the patches so counts for little in a mean over heads.
        """
        if not (self.prefix and self.has_class):
            return self.scores()[:, :, self.prefix :].softmax(-1)[..., self.prefix :].mean(2)
        scores = (self.query[:, :, :1] * self.scale) @ self.key.transpose(-2, -1)
        if self.bias is not None:
            scores = scores + (self.bias if self.bias.shape[-2] == 1 else self.bias[..., :1, :])
        shares: Tensor = scores.softmax(-1)[:, :, 0, self.prefix :]
        return shares


def last_patch_shares(found: list[Attention]) -> Tensor:
    """`Attention.patch_shares` of the last block on the patches' grid, (B, heads, rows, columns).

    Args:
        found: from `reading_attention`, of a network for which `limbeck.models.kept_patches.cannot_rank_patches` gives None.
    """
    last = found[-1]
    assert last.grid is not None
    shares: Tensor = last.patch_shares().unflatten(-1, last.grid)
    return shares


def attention_blocks(module: nn.Module) -> list[nn.Module]:
    """The attention modules that can be read, in the order in which they stand in the network."""
    return [
        block
        for name, block in module.named_modules()
        if _is_attention(block) and not any("decoder" in part or "cross" in part for part in name.lower().split("."))
    ]


@contextmanager
def reading_attention(module: nn.Module) -> Iterator[list[Attention]]:
    """While it lasts, every forward pass of `module` fills the list anew, shallow to deep.

    A pass begins with a call of `module`, or with a block that has been read already (so that methods of `module` other
    than its forward may be called). Nothing of it stays behind when it ends, by an exception too.

    Args:
        module: any network, bare or behind our interface.

    Yields:
        The list. It is empty where nothing can be read (see `attention_blocks`).
    """
    reading = _Reading(module)
    blocks = attention_blocks(module)
    with ExitStack() as stack:
        if blocks:
            stack.callback(module.register_forward_pre_hook(lambda *_: reading.begin()).remove)
            for part in module.modules():
                if isinstance(part, nn.Conv2d):
                    stack.callback(part.register_forward_hook(reading.note_map).remove)
        for block in blocks:
            if isinstance(block, nn.MultiheadAttention):
                hook = block.register_forward_pre_hook(reading.read_multihead, with_kwargs=True)
                stack.callback(hook.remove)
            else:
                stack.enter_context(_watched(block, reading))
        yield reading.found


class _Reading:
    """What is known of the pass that is running.

    Args:
        module: the network.
    """

    def __init__(self, module: nn.Module) -> None:
        self.found: list[Attention] = []
        tokens = {name.rpartition(".")[2]: value for name, value in module.named_parameters()}
        self._has_class = any(name in tokens for name in _CLASS_TOKENS)
        self._behind = tokens[_SUFFIX_TOKENS].shape[1] if _SUFFIX_TOKENS in tokens else 0
        counts = [tokens[name].shape[1] if tokens[name].ndim == 3 else 1 for name in _PREFIX_TOKENS if name in tokens]
        # timm's networks know it themselves; so do ours, in which coarser patches stand before the finest.
        own = [part.num_prefix_tokens for part in module.modules() if hasattr(part, "num_prefix_tokens")]
        self._prefix: int = own[0] if own and isinstance(own[0], int) else sum(counts)
        self._read: set[nn.Module] = set()
        self._grids: list[tuple[int, int]] = []
        self._batch = 0

    def begin(self) -> None:
        """Another pass."""
        self.found.clear()
        self._read.clear()
        self._grids.clear()
        self._batch = 0

    def start(self, block: nn.Module) -> None:
        """A block is about to run."""
        if block in self._read:
            grids, batch = self._grids, self._batch
            self.begin()
            # The convolutions of this pass have run before its first block.
            self._grids, self._batch = grids, batch
        self._read.add(block)

    def note_map(self, _: nn.Module, __: Any, output: Tensor) -> None:
        """A convolution has returned a map, whose cells may become the patches."""
        if output.ndim == 4:
            grid = (output.shape[-2], output.shape[-1])
            if grid in self._grids:
                self._grids.remove(grid)
            self._grids.append(grid)
            self._batch = output.shape[0]

    def take(self, block: nn.Module, product: DotProduct) -> None:
        """Keep what a block has computed, if it is attention among the tokens of pictures or windows."""
        query, key, value, bias = product.query, product.key, product.value, product.bias
        heads = _heads(block)
        if query.ndim == 5 and bias is None:
            # Windows in a dimension of their own, before or behind the heads.
            before = query.shape[2] == heads
            query, key, value = ((of if before else of.transpose(1, 2)).flatten(0, 1) for of in (query, key, value))
        elif query.ndim == 3 and heads is not None and query.shape[0] % heads == 0:
            # Images and heads in one dimension.
            query, key, value = (of.unflatten(0, (-1, heads)) for of in (query, key, value))
            bias = bias if bias is None or bias.ndim < 3 else bias.unflatten(0, (-1, heads))
        count = query.shape[-2]
        if query.ndim != 4 or key.shape[:-1] != query.shape[:-1] or value.shape[-2] != count:
            return
        prefix, grid = self._places(block, count, query.shape[0])
        if self._behind and prefix == self._prefix + self._behind:
            first, last = self._prefix, count - self._behind
            order = [*range(first), *range(last, count), *range(first, last)]
            query, key, value = (of[:, :, order] for of in (query, key, value))
            bias = bias if bias is None or bias.shape[-1] != count else bias[..., order]
            bias = bias if bias is None or bias.shape[-2] != count else bias[..., order, :]
        has_class = self._has_class and prefix > 0
        self.found.append(Attention(query, key, value, product.scale, prefix, grid, bias, has_class))

    def read_multihead(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """PyTorch's own block: its projections are no modules, and its fused form is one call for everything."""
        assert isinstance(block, nn.MultiheadAttention)
        self.start(block)
        product = _multihead(block, *args, **kwargs)
        if product is not None:
            self.take(block, product)

    def _places(self, block: nn.Module, count: int, batch: int) -> tuple[int, tuple[int, int] | None]:
        """Tokens before the patches, and the patches' grid, of `count` tokens."""
        window = _window(block)
        if window is not None and window[0] * window[1] == count:
            return 0, window
        prefix = self._prefix + self._behind
        for grid in reversed(self._grids):
            for before in (prefix, 0):
                if count == before + grid[0] * grid[1] and batch == self._batch:
                    return before, grid
        side = isqrt(count)
        if self._batch and batch > self._batch and side * side == count:
            return 0, (side, side)  # windows, whose module does not say how large they are
        return (prefix if prefix < count else 0), None


def _is_attention(block: nn.Module) -> bool:
    if isinstance(block, nn.MultiheadAttention):
        # Keys and values of its own (bias_k, add_zero_attn) would be tokens that nobody knows.
        return block.bias_k is None and not block.add_zero_attn
    kind = type(block).__name__
    return (
        _heads(block) is not None
        and kind not in _NOT_AMONG_PATCHES
        and "Cross" not in kind
        and any(all(isinstance(getattr(block, name, None), nn.Module) for name in names) for names in _PROJECTIONS)
    )


def _heads(block: nn.Module) -> int | None:
    found = (getattr(block, name, None) for name in ("num_heads", "num_attention_heads"))
    heads = next((heads for heads in found if isinstance(heads, int)), None)
    width, projection = getattr(block, "head_dim", None), getattr(block, "q_proj", None)
    if heads is None and isinstance(width, int) and isinstance(projection, nn.Linear):
        return projection.out_features // width
    return heads


@contextmanager
def _watched(block: nn.Module, reading: _Reading) -> Iterator[None]:
    """Watch a block whenever it runs; a wrapper and not two hooks, since no hook runs after every kind of exception."""
    original: Callable[..., Any] = block.forward
    is_wrapped = "forward" in vars(block)

    @wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        reading.start(block)
        with WatchingDotProducts(lambda product: reading.take(block, product)):
            return original(*args, **kwargs)

    block.forward = forward
    try:
        yield
    finally:
        if is_wrapped:
            block.forward = original
        else:
            del block.forward


def _window(block: nn.Module) -> tuple[int, int] | None:
    """(rows, columns) of the windows that a block says it attends in; Swin's in transformers ask a part of it."""
    for part in (block, getattr(block, "relative_position_bias", None)):
        size = getattr(part, "window_size", None)
        if isinstance(size, int):
            return size, size
        if isinstance(size, list | tuple) and len(size) == 2:
            return int(size[0]), int(size[1])
    return None


def _multihead(
    block: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    **_: Any,
) -> DotProduct | None:
    """What PyTorch's block is about to compute; None of attention to another sequence."""
    if query.ndim != 3 or key.shape != query.shape or value.shape != query.shape:
        return None
    tokens = [query, key, value] if block.batch_first else [of.transpose(0, 1) for of in (query, key, value)]
    # Of one embedding width, which equal shapes imply, the three weights are one parameter.
    biases: Any = (None,) * 3 if block.in_proj_bias is None else block.in_proj_bias.chunk(3)
    projected = [
        F.linear(of, weight, bias).unflatten(-1, (block.num_heads, -1)).transpose(1, 2)
        for of, weight, bias in zip(tokens, block.in_proj_weight.chunk(3), biases, strict=True)
    ]
    masks = []
    if attn_mask is not None:
        own = additive(attn_mask, query.dtype) if attn_mask.dtype == torch.bool else attn_mask
        masks.append(own if own.ndim == 2 else own.unflatten(0, (-1, block.num_heads)))
    if key_padding_mask is not None:
        padding = key_padding_mask
        padding = additive(padding, query.dtype) if padding.dtype == torch.bool else padding
        masks.append(padding[:, None, None])
    bias = torch.stack(torch.broadcast_tensors(*masks)).sum(0) if masks else None
    return DotProduct(projected[0], projected[1], projected[2], block.head_dim**-0.5, bias)
