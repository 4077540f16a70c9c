"""The number format of the terms: float32 or better, since they are small differences."""

import torch
from torch import Tensor


def full(tensor: Tensor) -> Tensor:
    """The tensor in float64 where it is, in float32 otherwise; gradients pass."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
