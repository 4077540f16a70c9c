"""Random numbers that depend on where a run is, not on how it got there.

Before every step all generators are set from (seed, rank, epoch, batch). A run that was killed and resumed thus draws
what the uninterrupted run would have drawn, whatever was saved when, and no generator state has to be saved at all.
"""

import hashlib
import random

import numpy as np
import torch


def stable_seed(*parts: int | str) -> int:
    """A 63-bit seed from numbers and words, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_everything(*parts: int | str) -> None:
    """Set Python's, numpy's and torch's generators from the parts."""
    seed = stable_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
