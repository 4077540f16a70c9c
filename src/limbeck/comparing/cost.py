"""What a method costs: time and memory as multiples of the control's, and how soon it reaches the control's final score.

All times are of training alone, without measuring and saving. Times of cells that ran beside each other on one machine
are of a machine that was shared; medians over the seeds keep a single disturbed run from telling the story.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limbeck.comparing.base import Outcome


@dataclass(frozen=True)
class Cost:
    """What a method's finished cells took.

    Attributes:
        seconds_per_epoch, peak_memory: medians over the seeds; None where no cell tells.
        time_ratio, memory_ratio: of them and the control's.
    """

    seconds_per_epoch: float | None
    peak_memory: float | None
    time_ratio: float | None = None
    memory_ratio: float | None = None


@dataclass(frozen=True)
class Reach:
    """When a method reached the control's final score.

    Attributes:
        score: that had to be reached, the control's mean after its last epoch.
        reached: how many of the `of` seeds measured it at any time.
        seconds: of training until then, the median over the seeds that did; None where none did.
        share: of the time that the control trained in all, its median.
    """

    score: float
    reached: int
    of: int
    seconds: float | None
    share: float | None


def cost(method: Sequence[Outcome], control: Sequence[Outcome]) -> Cost:
    """What a method takes, and how many times what the control takes."""
    own_time, base_time = (_median([o.seconds_per_epoch for o in cells]) for cells in (method, control))
    own_memory, base_memory = (_median([o.peak_memory for o in cells]) for cells in (method, control))
    return Cost(own_time, own_memory, _ratio(own_time, base_time), _ratio(own_memory, base_memory))


def reach(method: Sequence[Outcome], control: Sequence[Outcome]) -> Reach | None:
    """When a method first measured the control's final score; None where curves or scores are missing."""
    finals = [o.score for o in control if o.score is not None]
    curves = [o.curve for o in method if len(o.curve)]
    if not finals or not curves:
        return None
    score = float(np.mean(finals))
    times = [found for found in (seconds_to(curve, score) for curve in curves) if found is not None]
    seconds = _median(times)
    whole = _median([float(o.curve[-1, 0]) for o in control if len(o.curve)])
    return Reach(score, len(times), len(curves), seconds, _ratio(seconds, whole))


def seconds_to(curve: NDArray[np.float64], score: float) -> float | None:
    """The training time of the first measurement at or above a score; nothing is read between measurements.

    Args:
        curve: (M, 2) seconds and score.
        score: to be reached.
    """
    reached = np.flatnonzero(curve[:, 1] >= score - 1e-12)
    return float(curve[reached[0], 0]) if len(reached) else None


def mean_curve(outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
    """(M, 2) seconds and score, measurement by measurement the mean over the seeds, as far as all of them have come."""
    curves = [o.curve for o in outcomes if len(o.curve)]
    if not curves:
        return np.empty((0, 2))
    shortest = min(map(len, curves))
    return np.asarray(np.mean([curve[:shortest] for curve in curves], axis=0))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
