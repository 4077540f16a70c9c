"""Two classifiers on the same images: the images with their labels, and numbers about two sets of logits."""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import UserError


def labelled_batches(
    images: Iterable[Tensor] | Iterable[Mapping[str, Tensor]], labels: Iterable[Tensor] | None, max_images: int | None
) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """Images with their labels (-1 where there are none), at most `max_images` in all."""
    left = math.inf if max_images is None else max_images
    # Labels that run out before the images do are the caller's mistake, hence strict; without labels there is no end.
    pairs: Iterable[tuple[Tensor | Mapping[str, Tensor], Tensor | None]]
    pairs = zip(images, repeat(None)) if labels is None else zip(images, labels, strict=True)
    for entry, given in pairs:
        batch = entry if isinstance(entry, Tensor) else entry["image"]
        label = given if isinstance(entry, Tensor) else entry.get("label", given)
        if label is not None and len(label) != len(batch):
            raise UserError(f"A batch of {len(batch)} images came with {len(label)} labels; give one label per image.")
        count = int(min(left, len(batch)))
        truth = torch.full((count,), -1) if label is None else torch.as_tensor(label)[:count]
        left -= count
        if count:
            yield batch[:count].cpu().float(), truth.cpu().long().numpy()
        # Asking for one more batch would decode images for nothing.
        if left <= 0:
            return


def differences(
    expected: NDArray[np.float32], found: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Absolute differences (N, K), infinite where a logit is not finite; and which of the N images are finite."""
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(expected) & np.isfinite(found))
    every: NDArray[np.bool_] = np.asarray(finite.all(axis=1))
    difference = np.abs(np.where(finite, expected, 0).astype(np.float64) - np.where(finite, found, 0))
    return np.where(finite, difference, np.inf), every


def decided_flips(expected: NDArray[np.float32], found: NDArray[np.float32], limit: float) -> int:
    """Images, finite in both, with another first answer although the expected one leads by more than the limit."""
    finite = np.isfinite(expected).all(1) & np.isfinite(found).all(1)
    return int(((expected.argmax(1) != found.argmax(1)) & finite & (_margin(expected) > limit)).sum())


def accuracy(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    """Share of the labelled images whose first answer is the label; an image without finite logits has no answer."""
    labelled = truth >= 0
    right = (logits.argmax(1) == truth) & np.isfinite(logits).all(1)
    return float(right[labelled].mean())


def _margin(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far the first answer is ahead of the second (N,)."""
    if logits.shape[1] < 2:
        return np.full(len(logits), np.inf, dtype=np.float32)
    top = np.partition(logits, -2, axis=1)[:, -2:]
    margin: NDArray[np.float32] = top[:, 1] - top[:, 0]
    return margin
