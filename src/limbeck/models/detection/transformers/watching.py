"""Seeing what a submodule takes and gives while the library's own forward runs.

The library's forward is what defines the losses, so it is never rewritten here; what it computes on the way and does not
return is seen by a hook that lives for one pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def watched(module: nn.Module | None) -> Iterator[dict[str, Any]]:
    """A dictionary that holds the keyword arguments (`given`) and the result (`result`) of the module's last call.

    Args:
        module: what to watch; None watches nothing.
    """
    seen: dict[str, Any] = {}
    if module is None:
        yield seen
        return

    def remember(_: nn.Module, __: tuple[Any, ...], given: dict[str, Any], result: Any) -> None:
        seen.update(given=given, result=result)

    handle = module.register_forward_hook(remember, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
