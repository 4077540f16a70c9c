"""Which class each picture is asked for, in turn, so that every class is asked for equally often.

Classes drawn independently leave a batch with many pictures of one class and none of another; here all are dealt out
before any comes again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.training.randomness import stable_seed


def asked_classes(classes: Sequence[int], first: int, count: int, seed: int) -> Tensor:
    """The classes of pictures number `first` to `first + count` of an endless row.

    The row is one random order of all classes after another, each drawn anew; any `n` neighbours hold each class
    between floor(n / K) - 1 and ceil(n / K) + 1 times, whole cycles exactly equally often.

    Args:
        classes: those to ask for, K of them.
        first: place in the row of the first, counted from 0.
        count: how many.
        seed: of the orders.

    Returns:
        (count,) int64 on the CPU.
    """
    chosen = torch.as_tensor(list(classes), dtype=torch.int64)
    size = len(chosen)
    cycles = range(first // size, -(-(first + count) // size))
    orders = [_order(size, seed, cycle) for cycle in cycles]
    start = first - cycles.start * size
    return chosen[torch.cat(orders)[start : start + count]] if orders else chosen[:0]


def _order(size: int, seed: int, cycle: int) -> Tensor:
    generator = torch.Generator().manual_seed(stable_seed("asked classes", seed, cycle))
    return torch.randperm(size, generator=generator)


def checked_classes(classes: Sequence[int] | None, num_classes: int, name: str) -> tuple[int, ...]:
    """The classes to ask for; None is all of them.

    Raises:
        UserError: one is not among the teacher's, stands there twice, or there is none.
    """
    if classes is None:
        return tuple(range(num_classes))
    wrong = [one for one in classes if not 0 <= one < num_classes]
    if wrong or not classes or len(set(classes)) < len(classes):
        raise UserError(
            f"{name}: classes is {list(classes)}; it must name some of the teacher's classes by their numbers, "
            f"0 to {num_classes - 1}, each once."
        )
    return tuple(classes)
