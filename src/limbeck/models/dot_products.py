"""Watching dot-product attention while it is computed, fused or not, without changing a bit of it.

A fused kernel is one call whose arguments say everything. Without one, attention is a chain of calls: queries times
keys, perhaps a factor, perhaps a bias or a mask, a softmax, and its result times values; each link is recognised by the
very tensor that the link before returned. Either way queries and keys are seen as the product takes them, after whatever
norms and rotations the network has.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_PRODUCT = {"matmul", "__matmul__"}
_FACTOR = {"mul", "__mul__", "__rmul__", "__imul__", "mul_", "multiply"}
_DIVISOR = {"div", "__truediv__", "__itruediv__", "div_", "true_divide"}
_TERM = {"add", "__add__", "__radd__", "__iadd__", "add_"}
_SHAPE = {"view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten"}
_SAME = {"to", "float", "half", "type", "type_as", "contiguous", "clone", "dropout"}


@dataclass
class DotProduct:
    """One product as it was computed: softmax(scale · query @ keyᵀ + bias) @ value.

    Attributes:
        query, key, value: (..., N, d).
        scale: of the scores.
        bias: broadcastable to the scores (..., N, N); None without.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    bias: Tensor | None


@dataclass
class _Chain:
    """What is known between the first product and the second.

    Attributes:
        at: the tensor that the last link returned.
        terms: what was added.
        reshaped: terms were added to scores of another shape.
        unclear: something else was done, so that only the difference of the scores says what the bias is.
        bias, weighted: known after the softmax.
    """

    query: Tensor
    key: Tensor
    at: Tensor
    scale: float = 1.0
    terms: list[Any] = field(default_factory=list)
    reshaped: bool = False
    unclear: bool = False
    bias: Tensor | None = None
    weighted: bool = False


class WatchingDotProducts(TorchFunctionMode):
    """While it lasts, every attention that is computed in this thread is given to a function.

    Args:
        found: called with each product, in the order in which they are finished.
    """

    def __init__(self, found: Callable[[DotProduct], None]) -> None:
        super().__init__()
        self.found = found
        self._chain: _Chain | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call, and look at it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            self._fused(*args, **kwargs)
        elif name in _PRODUCT:
            self._product(args[0], args[1], result)
        elif name == "softmax":
            dim = kwargs["dim"] if "dim" in kwargs else args[1] if len(args) > 1 else None
            self._softmax(args[0] if args else kwargs["input"], dim, result)
        elif self._chain is not None and args:
            self._link(self._chain, name, args, result)
        return result

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        if is_causal:
            return  # no attention over a picture
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = additive(attn_mask.logical_not(), query.dtype)
        self.found(DotProduct(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale, attn_mask))

    def _product(self, left: Tensor, right: Tensor, result: Tensor) -> None:
        chain = self._chain
        if chain is not None and chain.weighted and left is chain.at:
            self._chain = None
            self.found(DotProduct(chain.query, chain.key, right, chain.scale, chain.bias))
        elif left.ndim == right.ndim and left.ndim >= 4 and result.shape[-1] == result.shape[-2]:
            self._chain = _Chain(left, right.transpose(-2, -1), result)

    def _softmax(self, scores: Tensor, dim: int | None, result: Tensor) -> None:
        chain = self._chain
        if chain is None:
            return
        over_keys = dim in (-1, scores.ndim - 1) and scores.shape[-2:] == (chain.query.shape[-2],) * 2
        if scores is not chain.at or chain.weighted or not over_keys:
            self._chain = None
            return
        if chain.unclear or (chain.terms and chain.reshaped):
            learns = chain.unclear or any(isinstance(term, Tensor) and term.requires_grad for term in chain.terms)
            with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
                chain.bias = scores - chain.scale * (chain.query @ chain.key.transpose(-2, -1))
        elif chain.terms:
            chain.bias = torch.as_tensor(sum(chain.terms[1:], chain.terms[0]), device=scores.device)
        chain.at, chain.weighted = result, True

    @staticmethod
    def _link(chain: _Chain, name: str, args: tuple[Any, ...], result: Any) -> None:
        if not any(argument is chain.at for argument in args[:2]):
            return
        other = next((argument for argument in args[:2] if argument is not chain.at), None)
        if name in _FACTOR or (name in _DIVISOR and args[0] is chain.at):
            _scale(chain, other, divides=name in _DIVISOR)
        elif name in _TERM:
            chain.terms.append(other)
        elif name in _SHAPE:
            chain.reshaped = True
        elif name not in _SAME:
            chain.unclear = True
            if name not in ("masked_fill", "masked_fill_", "sub", "__sub__", "where"):
                return  # another use of the scores, beside the chain
        chain.at = result


def _scale(chain: _Chain, factor: Any, *, divides: bool) -> None:
    """Take a factor of the scores into the scale, or into the queries where it differs from head to head."""
    if chain.terms or chain.weighted:
        chain.unclear = True
    elif isinstance(factor, int | float):
        chain.scale = chain.scale / factor if divides else chain.scale * factor
    elif isinstance(factor, Tensor) and not chain.reshaped and (factor.ndim == 0 or factor.shape[-1] == 1):
        chain.query = chain.query / factor if divides else chain.query * factor
    else:
        chain.unclear = True


def additive(left_out: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is True where nothing shall be read, as what is added to the scores: -inf there, 0 elsewhere."""
    return torch.zeros(left_out.shape, dtype=dtype, device=left_out.device).masked_fill_(left_out, float("-inf"))
