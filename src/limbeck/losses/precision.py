"""The number format in which losses are computed: float32 or better, whatever the models ran in.

Softmaxes, Gram matrices and sums of squares over 10^5 elements lose their meaning in half precision (a
squared difference of cosines below 6e-8 is zero in float16, a sum above 65504 is infinite), so each formula
leaves autocast and promotes its inputs. Learned projectors are ordinary layers and stay under autocast.
"""

import torch
from torch import Tensor


def comparable(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in one dtype, float32 or float64, the teacher's cut off from its graph.

    Args:
        student: any floating tensor.
        teacher: any floating tensor, on the same device.

    Returns:
        The pair in float64 if either is float64, in float32 otherwise.
    """
    dtype = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    return student.to(dtype), teacher.detach().to(dtype)


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which operations on `tensor`'s device keep their inputs' dtype."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)
