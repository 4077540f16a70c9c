"""Intervals for paired differences: over seeds and over images, which answer different questions.

Over seeds: had the runs been repeated with other seeds and measured on these very images, what would the mean difference be?
Student's t on the differences d_s of runs of the same seed, n - 1 degrees of freedom: the seeds are what was repeated.
(`spread` gives it more degrees of freedom where many methods are compared.)

Over images: had these very networks been measured on other images of the kind, what would the difference be? A normal
interval on each image's difference D_i in [-1, 1], averaged over the seeds, with Agresti and Min's adjustment for matched
pairs: half a pseudo-image in each of the four cells (both right, one, the other, neither), so that the interval keeps its
coverage, and its width, where the two hardly ever differ. For one seed that is their adjusted McNemar-type interval.

Source of the adjustment: A. Agresti, Y. Min, Simple improved confidence intervals for comparing matched proportions, Statistics
in Medicine 24 (2005); its use for means over several seeds is ours, as is the floor under the spread of `over_seeds`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri, stdtr, stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        mean: of the differences.
        error: its standard error.
        low, high: the interval at `CONFIDENCE`.
        p: two-sided, of no difference.
    """

    mean: float
    error: float
    low: float
    high: float
    p: float

    @property
    def half_width(self) -> float:
        """Half of the interval."""
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of no difference."""
        return self.low > 0 or self.high < 0


def over_seeds(values: ArrayLike, *, grain: float = 0.0) -> Estimate | None:
    """Student's t interval of the mean of n values, one for each seed.

    Args:
        values: (n,) differences, or scores.
        grain: the smallest step of a score: 1 / N for an accuracy over N images. The standard deviation is taken to be no
            smaller than the rounding of two scores makes it, grain / sqrt(6); else two seeds that agree to the image would
            claim certainty.

    Returns:
        None with fewer than two seeds, or without any spread to judge by.
    """
    found = np.asarray(values, dtype=np.float64)
    if len(found) < 2:
        return None
    spread = max(float(found.std(ddof=1)), grain / math.sqrt(6))
    if spread < 1e-12:
        return None
    return student(float(found.mean()), spread / math.sqrt(len(found)), len(found) - 1)


def student(mean: float, error: float, degrees: int) -> Estimate:
    """The interval and p-value by Student's t."""
    reach = float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * error
    p = 2 * float(stdtr(degrees, -abs(mean) / error))
    return Estimate(mean, error, mean - reach, mean + reach, p)


def over_images(differences: ArrayLike) -> Estimate | None:
    """The adjusted normal interval of the mean of the images' differences.

    Args:
        differences: (N,) in [-1, 1]: right minus right of the reference, averaged over the seeds.

    Returns:
        None without images. `mean` is the plain mean; the interval is centred on the adjusted one, sum / (N + 2).
    """
    found = np.asarray(differences, dtype=np.float64)
    if not len(found):
        return None
    count = len(found) + 2
    centre = float(found.sum()) / count
    variance = (float((found**2).sum()) + 1) / count - centre**2
    error = math.sqrt(variance / count)
    reach = float(ndtri((1 + CONFIDENCE) / 2)) * error
    p = 2 * float(ndtr(-abs(centre) / error))
    return Estimate(float(found.mean()), error, centre - reach, centre + reach, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order: below 0.05, the chance that any of them is wrong is below 5 %."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return [float(p) for p in adjusted]
