"""Input sizes beside a model's own: which are tried and verified, and what a network answers at them.

A file with a dynamic size takes images as they are, so its reference is the network on the normalised images, without
the resize to the model's own size that `VisionModel.forward` starts with. Convolutions take any size; a network whose
positions or windows are made for one grid says so itself when it is run at another, and is then refused.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.models.weights import bare_network
from limbeck.outputs import Request

Size = tuple[int, int]

FIXED_SIZE_INSTEAD = (
    "Leave dynamic_size out: the file then takes {height}x{width} pixels. A network's size is chosen when it is trained, "
    "with --input_size of limbeck train or --student_size of limbeck distill, or when it is opened, with input_size of "
    "load_model."
)


def size_step(model: VisionModel) -> int:
    """Pixels between the sizes that are tried: the stride of the model's coarsest map (a transformer's patch)."""
    strides = [level.stride for level in model.facts.levels]
    # Without a map to ask, 32 is what most networks shrink their images by, and 8 what those for small images do.
    return max(strides) if strides else (32 if min(model.facts.input_size) >= 64 else 8)


def other_sizes(model: VisionModel) -> list[Size]:
    """At least two sizes in pixels that are not the model's own: about half of it, one and a half times it, and both mixed."""
    step = size_step(model)
    small = [max(step, step * round(side / 2 / step)) for side in model.facts.input_size]
    large = [step * math.ceil(1.5 * side / step) for side in model.facts.input_size]
    sizes = [(small[0], small[1]), (large[0], large[1]), (small[0], large[1])]
    return [size for size in dict.fromkeys(sizes) if size != model.facts.input_size]


def traced_size(model: VisionModel) -> Size:
    """A size to trace at: neither side the model's own or the other's, which code may compare with and branch on."""
    step = size_step(model)
    next_larger = step * (max(model.facts.input_size) // step + 1)
    return next_larger, next_larger + step


def allow_any_size(model: VisionModel) -> None:
    """Tell a network with a switch for it (a boolean attribute `dynamic_size`) to follow the size of its images.

    Args:
        model: changed in place, so give an inference copy.
    """
    network = bare_network(model)
    if isinstance(getattr(network, "dynamic_size", None), bool):
        network.dynamic_size = True  # type: ignore[assignment]


def logits_as_given(model: VisionModel, images: Tensor) -> Tensor:
    """Logits (B, K) of images (B, 3, H, W) in [0, 1], normalised and not resized."""
    return model.read((images - model.mean) / model.std, Request()).logits


def resized(images: Tensor, size: Size, model: VisionModel) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] at another size, resized as the model does for its own."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode=model.interpolation, align_corners=False, antialias=True).clamp(0, 1)


@torch.no_grad()
def require_any_size(model: VisionModel) -> None:
    """Run an inference copy at the other sizes.

    Raises:
        UserError: it cannot take one of them; the message has the network's own words.
    """
    for height, width in other_sizes(model):
        images = torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(0))
        try:
            logits_as_given(model, images)
        # The network's own code decides what it raises.
        except Exception as error:
            words = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
            raise not_any_size(model, f"at {height}x{width} pixels the network fails ({words})") from error


def not_any_size(model: VisionModel, reason: str) -> UserError:
    """The error for a model that can only be exported at a fixed size."""
    height, width = model.facts.input_size
    return UserError(
        f"{model.facts.name} cannot be exported with a dynamic size: {reason}. Its positions, windows or last layers "
        f"are most likely made for {height}x{width} pixels. Nothing was written. "
        f"{FIXED_SIZE_INSTEAD.format(height=height, width=width)}"
    )
