"""Terms on attention whose intermediate results are computed again in the backward pass instead of being kept."""

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from limbeck.models.attention import Attention


def recomputed(function: Callable[..., Tensor], attention: Attention, *more: Any) -> Tensor:
    """`function(attention, *more)`, of which nothing but queries, keys and values is kept for the backward pass.

    Args:
        function: without random numbers.
        attention: one block's.
        more: further arguments.
    """

    def of_tensors(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return function(dataclasses.replace(attention, query=query, key=key, value=value), *more)

    result: Any = checkpoint(
        of_tensors, attention.query, attention.key, attention.value, use_reentrant=False, preserve_rng_state=False
    )
    assert isinstance(result, Tensor)
    return result
