"""What enters a network's BatchNorm layers, beside what had entered them in training: DeepInversion's and its heirs' clue.

A layer counts that keeps a running mean and variance and takes the batch as a whole: torch's BatchNorm layers, timm's
with an activation, and the frozen ones of torchvision and transformers, which are no `nn.BatchNorm2d`.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from limbeck.losses.precision import no_autocast
from limbeck.synthesis.priors.base import LayerStatistics


def batchnorm_layers(module: nn.Module) -> list[nn.Module]:
    """The layers that can be read, in the order in which they stand in the network."""
    return [layer for layer in module.modules() if _is_batchnorm(layer)]


@contextmanager
def reading_batchnorm(module: nn.Module) -> Iterator[list[LayerStatistics]]:
    """While it lasts, every forward pass of `module` fills the list anew, in the order in which its layers run.

    A layer that runs several times in a pass gives several entries. A pass is a call of the module itself or, where it
    has one, of its `read`; whoever runs only parts of it clears the list himself.

    Args:
        module: any network; its result stays as it is.
    """
    found: list[LayerStatistics] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(_statistics(layer, inputs[0]))

    with ExitStack() as stack:
        # First: the module may be such a layer itself.
        stack.enter_context(at_each_pass(module, found.clear))
        for layer in batchnorm_layers(module):
            stack.callback(layer.register_forward_pre_hook(note).remove)
        yield found


@contextmanager
def at_each_pass(module: nn.Module, tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` before each forward pass of a module, also one through its `read`, which no hook of torch's notices."""
    handle = module.register_forward_pre_hook(lambda *_: tell())
    read: Callable[..., Any] | None = getattr(module, "read", None)
    if read is not None:

        @functools.wraps(read)
        def told(*args: Any, **kwargs: Any) -> Any:
            tell()
            return read(*args, **kwargs)

        shadowed = module.__dict__.get("read")
        module.__dict__["read"] = told
    try:
        yield
    finally:
        handle.remove()
        if read is not None:
            del module.__dict__["read"]
            if shadowed is not None:
                module.__dict__["read"] = shadowed


def _is_batchnorm(layer: nn.Module) -> bool:
    # InstanceNorm may keep such buffers too, but of single images.
    return not isinstance(layer, _InstanceNorm) and all(
        isinstance(getattr(layer, name, None), Tensor) for name in ("running_mean", "running_var")
    )


def _statistics(layer: nn.Module, entering: Tensor) -> LayerStatistics:
    with no_autocast(entering):
        entering = entering if entering.dtype == torch.float64 else entering.float()
        axes = [axis for axis in range(entering.ndim) if axis != 1]
        variance, mean = torch.var_mean(entering, axes, correction=0)
    return LayerStatistics(mean, variance, layer.get_buffer("running_mean"), layer.get_buffer("running_var"))
