"""Which images of a pool are worth learning from: scores by the teacher, and a choice that is balanced over its classes.

Attention Probe (Wang et al., ICASSP 2022) scores an image by `attention_probe_score`, low being good. In the code that
its authors published, the switch that should turn the attention terms on turns them off; the formula here is the paper's.
"""

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]


def unsureness(logits: Tensor) -> Tensor:
    """v_out = CE(t, argmax t) = logsumexp(t) - max(t): 0 where the teacher is sure, log K where it knows nothing.

    Args:
        logits: (B, K).

    Returns:
        (B,).
    """
    return logits.logsumexp(1) - logits.amax(1)


def flatness(attention: Tensor) -> Tensor:
    """v = cos(a, uniform) = sum(a) / (|a| sqrt(P)): 1 for even attention, 1 / sqrt(P) for all of it on one patch.

    The cosine does not depend on the scale of a, so it is the same with the class token's own column cut off or
    renormalised away.

    Args:
        attention: (..., P), not negative.

    Returns:
        (...).
    """
    return F.cosine_similarity(attention, attention.new_ones(attention.shape[-1]), dim=-1)


def attention_probe_score(
    v_out: Tensor, v_blocks: Tensor, *, output_weight: float = 0.9, attention_weight: float = 0.05
) -> Tensor:
    """score = 0.90 v_out + 0.05 sum_k v_k; low is good.

    Args:
        v_out: (B,) of `unsureness`.
        v_blocks: (k, B) of `flatness`, one row for each block looked at.

    Returns:
        (B,).
    """
    return output_weight * v_out + attention_weight * v_blocks.sum(0)


def select(scores: NDArray[np.floating], predicted: Indices, count: int) -> Indices:
    """The images with the lowest scores, as evenly over the classes as the pool allows.

    First every class's best image is taken, then every class's second, and so on; where a round would give more than the
    count, its best-scored. So each class has its quota, `count // num_classes` of its best images, if the pool holds as
    many, and what poor classes leave over is shared evenly by the others. Among equal scores the first in the pool is
    taken.

    Args:
        scores: (N,), low is good.
        predicted: (N,) the teacher's class of each image; the same number everywhere chooses by the score alone.
        count: images to choose; all where there are no more.

    Returns:
        (min(count, N),) sorted indices.
    """
    by_score = np.argsort(scores, kind="stable")
    own = predicted[by_score]
    by_class = np.argsort(own, kind="stable")
    place = np.empty(len(own), dtype=np.int64)
    place[by_class] = np.arange(len(own)) - np.searchsorted(own[by_class], own[by_class])
    chosen: Indices = np.sort(by_score[np.argsort(place, kind="stable")[:count]]).astype(np.int64)
    return chosen


def relative_blocks(depth: int, blocks: tuple[int, ...] = (3, 7), of: int = 12) -> tuple[int, ...]:
    """The blocks, counted from 0, that lie as deep in a network of `depth` blocks as `blocks` do in one of `of`."""
    return tuple(block * depth // of for block in blocks)
