"""What a method does to each class, held against the control, with how much of it noise explains.

A class's gain is the mean over the seeds of the difference of its scores. Its standard error joins two parts: over seeds, the
variance of the classes' gains between seeds, averaged over all classes, since a few seeds tell little about any single one;
over images, as in `intervals`, from the class's own images. (Their sum counts twice what is particular to one seed and one
image, and so is a little too large.) Detectors have no differences image by image: their error covers the seeds alone.
A gain stands out when its p-value, by Holm over the classes, is below 0.05: with a hundred classes the largest gain is
otherwise always impressive.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from limbeck.comparing.base import Outcome
from limbeck.comparing.intervals import holm, over_images

Covers = Literal["seeds and images", "seeds alone", "images alone", "nothing"]

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class ClassGains:
    """A method's gains over the control, class by class; NaN for classes without anything to measure.

    Attributes:
        names: of the K classes.
        gains: (K,) differences of scores.
        errors: (K,) their standard errors; NaN where there is nothing to tell them from.
        p: (K,) two-sided, of no difference, adjusted by Holm.
        images: (K,) of each class; None of detectors.
        covers: what kind of chance the errors count.
    """

    names: tuple[str, ...]
    gains: NDArray[np.float64]
    errors: NDArray[np.float64]
    p: NDArray[np.float64]
    images: NDArray[np.int64] | None
    covers: Covers

    @property
    def stand_out(self) -> NDArray[np.bool_]:
        """(K,) whether a gain or loss is more than noise explains."""
        return np.nan_to_num(self.p, nan=1.0) < SIGNIFICANT


def class_gains(method: Sequence[Outcome], control: Sequence[Outcome]) -> ClassGains | None:
    """A method's gains over the control.

    Args:
        method, control: finished cells of the same seeds in the same order.

    Returns:
        None where the classes' scores are missing or the two do not have the same classes.
    """
    pairs = list(zip(method, control, strict=True))
    names = tuple(method[0].class_scores) if method else ()
    if not names or any(tuple(outcome.class_scores) != names for pair in pairs for outcome in pair):
        return None
    by_seed = np.array([[a.class_scores[n] - b.class_scores[n] for n in names] for a, b in pairs])
    gains = by_seed.mean(0)
    seed_variance = float(np.nanmean(by_seed.var(0, ddof=1))) / len(pairs) if _can_vary(by_seed) else 0.0
    image_errors, images = _over_images(pairs, len(names))
    errors = np.sqrt(seed_variance + (image_errors**2 if image_errors is not None else np.zeros(len(names))))
    errors = np.where(np.isfinite(gains) & (errors > 0), errors, np.nan)
    covers = _covers(len(pairs) > 1 and seed_variance > 0, image_errors is not None)
    return ClassGains(names, gains, errors, _adjusted(gains, errors), images, covers)


def _can_vary(by_seed: NDArray[np.float64]) -> bool:
    return len(by_seed) > 1 and bool(np.isfinite(by_seed).any())


def _over_images(
    pairs: Sequence[tuple[Outcome, Outcome]], classes: int
) -> tuple[NDArray[np.float64] | None, NDArray[np.int64] | None]:
    labels = pairs[0][0].labels
    if labels is None:
        return None, None
    differences = []
    for a, b in pairs:
        if a.right is None or b.right is None or len(a.right) != len(labels) or len(b.right) != len(labels):
            return None, None
        differences.append(a.right.astype(np.float64) - b.right)
    mean = np.mean(differences, axis=0)
    errors = np.full(classes, np.nan)
    for place in range(classes):
        found = over_images(mean[labels == place])
        errors[place] = math.nan if found is None else found.error
    return errors, np.bincount(labels, minlength=classes)[:classes]


def _adjusted(gains: NDArray[np.float64], errors: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.full(len(gains), np.nan)
    known = np.flatnonzero(np.isfinite(errors))
    if len(known):
        p[known] = holm((2 * ndtr(-np.abs(gains[known]) / errors[known])).tolist())
    return p


def _covers(seeds: bool, images: bool) -> Covers:
    if seeds:
        return "seeds and images" if images else "seeds alone"
    return "images alone" if images else "nothing"
