"""Pictures as 8-bit files hold them."""

from torch import Tensor


def to_pixels(images: Tensor) -> Tensor:
    """Pictures in [0, 1] as uint8, rounded; of the same shape, on the same device."""
    return images.detach().float().mul(255).round().clamp(0, 255).byte()
