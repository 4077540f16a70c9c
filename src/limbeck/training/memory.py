"""The most memory that a training held."""

import sys

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Begin to count anew where that is possible: on a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Bytes: of tensors on a GPU since the last reset; elsewhere of the whole process since it began.

    Args:
        device: where the training ran.

    Returns:
        None where the operating system does not say.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest
