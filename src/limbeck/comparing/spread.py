"""How much seeds scatter, told from all methods together: three seeds tell little about a single method, but ten methods of
three seeds tell a lot.

Scores are taken as a method's level plus a seed's level plus chance (a randomised block design with the seeds as blocks). The
residual variance of that fit, with (M - 1)(S - 1) degrees of freedom where no cell is missing, is the pooled spread;
the mean of n paired differences has the variance 2 / n times it. For two methods that is Student's paired t itself.
The price is the assumption that methods scatter alike, so it is guarded twice: a method that scatters clearly more than the
others (F test of what it adds to the residuals, Bonferroni over the methods, 1 %) is left out of the pool and judged by its own
paired differences; and within the pool a comparison never takes less than its own spread. In simulations with three seeds, a
chance of 5 % for any wrong verdict stays so where one of twelve methods scatters twice or three times as much as the others,
and grows to 9 % where it scatters six times as much.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc

from limbeck.comparing.intervals import Estimate, over_seeds, student

OUT_OF_LINE = 0.01

Scores = Mapping[str, Mapping[int, float]]
"""By method and seed."""


@dataclass(frozen=True)
class Pool:
    """The spread that methods share.

    Attributes:
        std: of one score around its method's and its seed's level.
        degrees: of freedom.
        methods: that share it; at least three.
    """

    std: float
    degrees: int
    methods: frozenset[str]


def pool_spread(scores: Scores, *, grain: float = 0.0) -> Pool | None:
    """The spread that the methods share, without those that are out of line.

    Args:
        scores: methods with a single seed tell nothing and are left out.
        grain: the smallest step of a score; the spread is no smaller than rounding to it makes it.

    Returns:
        None for fewer than three methods of two seeds.
    """
    kept = {method: by_seed for method, by_seed in scores.items() if len(by_seed) > 1}
    while len(kept) > 2:
        squares, degrees = _residuals(kept, grain)
        if degrees < 1:
            return None
        without = {m: _residuals({k: v for k, v in kept.items() if k != m}, grain) for m in kept}
        p = {m: _p_of_excess(squares, degrees, *found) for m, found in without.items()}
        worst = min(p, key=lambda method: p[method])
        if p[worst] * len(kept) >= OUT_OF_LINE:
            return Pool(math.sqrt(squares / degrees), degrees, frozenset(kept))
        del kept[worst]
    return None


def difference_over_seeds(
    values: Sequence[float], pair: tuple[str, str], pool: Pool | None, *, grain: float = 0.0
) -> Estimate | None:
    """The interval of the mean of a pair's differences, by the pooled spread where both methods share it, else by their own.

    Args:
        values: (n,) differences of the same seeds.
        pair: the two methods.
        pool: of the comparison.
        grain: as for `intervals.over_seeds`.

    Returns:
        None with fewer than two seeds.
    """
    own = over_seeds(values, grain=grain)
    if pool is None or not pool.methods.issuperset(pair) or len(values) < 2:
        return own
    error = max(own.error if own is not None else 0.0, pool.std * math.sqrt(2 / len(values)))
    return student(float(np.mean(values)), error, pool.degrees) if error > 0 else own


def _residuals(scores: Scores, grain: float) -> tuple[float, int]:
    """Sum of squares and degrees of freedom that method and seed levels leave over."""
    if len({tuple(sorted(by_seed)) for by_seed in scores.values()}) == 1:
        whole = np.array([[by_seed[seed] for seed in sorted(by_seed)] for by_seed in scores.values()])
        rest = whole - whole.mean(0) - whole.mean(1, keepdims=True) + whole.mean()
        squares, degrees = float((rest**2).sum()), (rest.shape[0] - 1) * (rest.shape[1] - 1)
        return max(squares, degrees * grain**2 / 12), degrees
    # With cells missing, the levels are found by least squares.
    cells = [(m, s, score) for m, (_, by_seed) in enumerate(scores.items()) for s, score in by_seed.items()]
    seeds = {seed: place for place, seed in enumerate(sorted({seed for _, seed, _ in cells}))}
    design = np.zeros((len(cells), len(scores) + len(seeds)))
    for row, (m, s, _) in enumerate(cells):
        design[row, m] = design[row, len(scores) + seeds[s]] = 1
    y: NDArray[np.float64] = np.array([score for *_, score in cells])
    levels, _, rank, _ = np.linalg.lstsq(design, y - y.mean(), rcond=None)
    left = y - y.mean() - design @ levels
    degrees = len(cells) - int(rank)
    return max(float(left @ left), degrees * grain**2 / 12), degrees


def _p_of_excess(squares: float, degrees: int, without: float, degrees_without: int) -> float:
    """The chance that a method adds so much to the residuals if it scatters like the others."""
    # Others that leave nothing over at all are no measure of what is usual.
    if degrees_without < 1 or degrees == degrees_without or without <= 1e-18:
        return 1.0
    excess = (squares - without) / (degrees - degrees_without)
    return float(fdtrc(degrees - degrees_without, degrees_without, excess / (without / degrees_without)))
