"""Which method is truly best, and how sure that is: a ranking with probabilities, and how well one ranking foretells another.

The scores' means are drawn many times as they might have come out:
* over seeds, every mean moves by sum_s g_s (y_s - mean) / sqrt(n (n - 1)) / sqrt(chi2 / (n - 1)), with g standard normal and
  chi2 of n - 1 degrees of freedom, both shared by all methods: the multiplier bootstrap with Student's tails. For two methods
  with the same seeds, the share of draws in which one leads is what Student's t over the paired differences says;
  resampling three seeds would overstate it;
* over images, the means move by a normal vector with the covariance of the methods' answers image by image, divided by N.
What it does not count: that a short training on few images may favour other methods than a long one. Only holding such a
ranking against a full comparison (`rank_agreement`) tells that.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from limbeck.comparing.base import Outcome
from limbeck.errors import UserError

Covers = Literal["seeds and images", "seeds alone", "images alone", "nothing"]

CONTROL = "none"

# A method with a smaller chance of being the best is not worth a full run.
WORTH_A_RUN = 0.05

# Sentences name so many unsure neighbours; the page has all.
LISTED = 5

# All orders of so many methods are tried for a p-value; of more, this many random ones.
ALL_ORDERS_UPTO = 8
RANDOM_ORDERS = 20_000


@dataclass(frozen=True)
class Ranking:
    """A predicted order.

    Attributes:
        order: methods with a score, the best mean first.
        means: (M,) their means.
        best: (M,) the chance that each is the best one.
        right: (M - 1,) the chance that each is truly better than the next.
        ranks: (M, 2) first and last rank, from 1, of the middle 95 % of the draws.
        seeds: how many the method with the fewest has.
        covers: what kind of chance that counts.
        without_score: methods that have none.
    """

    order: list[str]
    means: NDArray[np.float64]
    best: NDArray[np.float64]
    right: NDArray[np.float64]
    ranks: NDArray[np.int64]
    seeds: int
    covers: Covers
    without_score: tuple[str, ...] = ()

    @property
    def promising(self) -> list[str]:
        """Methods that are worth a full run: those that may be the best, without `none`; the first one in any case."""
        methods = [method for method in self.order if method != CONTROL]
        chance = dict(zip(self.order, self.best, strict=True))
        if self.covers == "nothing":
            return methods
        return [method for place, method in enumerate(methods) if place == 0 or chance[method] >= WORTH_A_RUN]

    @property
    def sentences(self) -> list[str]:
        """The order and how sure it is, in plain words."""
        said = ["Predicted order: " + ", ".join(f"{m} ({100 * v:.1f} %)" for m, v in self._with_means()) + "."]
        if self.covers == "nothing":
            said.append("One seed and no answers image by image: how sure this order is cannot be told.")
        else:
            doubtful = [
                f"{a} before {b} ({chance_words(p)})"
                for (a, b), p in zip(itertools.pairwise(self.order), self.right, strict=True)
                if p < 0.95
            ]
            chances = sorted(zip(self.best, self.order, strict=True), reverse=True)
            likely = [f"{method} {chance_words(p)}" for p, method in chances if p >= 0.01]
            said.append(f"Chance of being the best: {', '.join(likely)}.")
            if doubtful:
                more = f" and {len(doubtful) - LISTED} more" if len(doubtful) > LISTED else ""
                said.append(
                    "Neighbours whose order is unsure, with the chance that it is right: "
                    f"{', '.join(doubtful[:LISTED])}{more}."
                )
            said.append(f"These chances count {_COUNTED[self.covers]}")
        said.append("No chance counts that a long training on all images may favour other methods than this one.")
        if self.without_score:
            said.append(f"Without a score, and so not ranked: {', '.join(self.without_score)}.")
        return said

    def _with_means(self) -> list[tuple[str, float]]:
        return list(zip(self.order, self.means.tolist(), strict=True))


_COUNTED: dict[Covers, str] = {
    "seeds and images": "other seeds and other validation images.",
    "seeds alone": "other seeds, but not other validation images.",
    "images alone": "other validation images only: with one seed, what the seed does is unknown, so they are too sure.",
    "nothing": "nothing.",
}


@dataclass(frozen=True)
class RankAgreement:
    """How well one ranking foretold another.

    Attributes:
        methods: that both have, in the full one's order.
        tau: Kendall's tau-b; 1 is the same order, -1 the reverse.
        spearman: Spearman's rank correlation.
        tau_p, spearman_p: the share of orders, had the first been shuffled, that would agree as well or better.
        regret: by how much the full run's best exceeds, in the full run, what the small one put first.
        tied: which of the two runs gave all methods the same score.

    Where one did, there is no order to agree with, and the numbers are None.
    """

    methods: tuple[str, ...]
    tau: float | None = None
    spearman: float | None = None
    tau_p: float | None = None
    spearman_p: float | None = None
    regret: float | None = None
    tied: Literal["short", "whole"] | None = None

    @property
    def sentence(self) -> str:
        """In plain words."""
        if self.tau is None or self.tau_p is None or self.regret is None:
            return (
                f"The {self.tied} runs told no methods apart: all {len(self.methods)} have the same score in them, so there is "
                "no order to hold against the other runs'."
            )
        sure = "more than chance explains" if self.tau_p < 0.05 else "which chance alone may do"
        cost = (
            "its first choice was the full run's best"
            if self.regret <= 0
            else f"its first choice was {100 * self.regret:.1f} points below the full run's best"
        )
        return (
            f"The small run's order of {len(self.methods)} methods agrees with the full one's at Kendall's tau {self.tau:.2f} "
            f"(p = {self.tau_p:.2g}, {sure}) and Spearman's rho {self.spearman:.2f}; {cost}."
        )


def predict_ranking(outcomes: Sequence[Outcome], *, draws: int = 20_000, seed: int = 0) -> Ranking:
    """The order of the methods, and how sure it is.

    Args:
        outcomes: cells; those without a score are left out.
        draws: how often the means are drawn.
        seed: of the draws.

    Raises:
        UserError: no method has a score.
    """
    scores = _scores(outcomes)
    if not scores:
        raise UserError(
            "There is no ranking: no cell has finished with a score. See the cells' log.txt for the reason."
        )
    order = sorted(scores, key=lambda method: -_mean(scores[method]))
    means = np.array([_mean(scores[method]) for method in order])
    rng = np.random.default_rng(seed)
    over_seeds = _seed_moves([scores[method] for method in order], draws, rng)
    over_images = _image_moves(outcomes, scores, order, draws, rng)
    drawn = np.broadcast_to(means, (draws, len(order))).copy()
    for moves in (over_seeds, over_images):
        if moves is not None:
            drawn += moves
    # Equal values share a place: each comes first in half of the draws.
    ranks = stats.rankdata(-drawn, axis=1)
    leads = drawn == drawn.max(1, keepdims=True)
    best = (leads / leads.sum(1, keepdims=True)).mean(0)
    ahead, behind = drawn[:, :-1], drawn[:, 1:]
    right = (ahead > behind).mean(0) + (ahead == behind).mean(0) / 2
    limits = np.quantile(ranks, [0.025, 0.975], axis=0).T
    return Ranking(
        order=order,
        means=means,
        best=best,
        right=right,
        ranks=np.stack([np.floor(limits[:, 0]), np.ceil(limits[:, 1])], axis=1).astype(np.int64),
        seeds=min(len(of) for of in scores.values()),
        covers=_covers(over_seeds is not None, over_images is not None),
        without_score=tuple(dict.fromkeys(o.method for o in outcomes if o.method not in scores)),
    )


def rank_agreement(small: Sequence[Outcome], full: Sequence[Outcome]) -> RankAgreement:
    """How well a small comparison's ranking foretold a full one's, over the methods that both have.

    Raises:
        UserError: fewer than three methods have scores in both.
    """
    first, second = ({m: _mean(of) for m, of in _scores(outcomes).items()} for outcomes in (small, full))
    methods = sorted((method for method in second if method in first), key=lambda method: -second[method])
    if len(methods) < 3:
        raise UserError(
            f"Two rankings can be held against each other from three common methods on; here there are {len(methods)}."
        )
    x, y = (np.array([found[method] for method in methods]) for found in (first, second))
    if not np.ptp(x) or not np.ptp(y):
        return RankAgreement(tuple(methods), tied="whole" if np.ptp(x) else "short")
    tau, spearman = float(stats.kendalltau(x, y).statistic), float(stats.spearmanr(x, y).statistic)
    tau_p, spearman_p = _permutation_p(x, y)
    return RankAgreement(tuple(methods), tau, spearman, tau_p, spearman_p, regret=float(y.max() - y[int(x.argmax())]))


def _scores(outcomes: Sequence[Outcome]) -> dict[str, dict[int, float]]:
    """Scores by seed of each method that has one."""
    found: dict[str, dict[int, float]] = {}
    for outcome in outcomes:
        if outcome.score is not None:
            found.setdefault(outcome.method, {})[outcome.seed] = outcome.score
    return found


def _mean(scores: Mapping[int, float]) -> float:
    return float(np.mean(list(scores.values())))


def _seed_moves(
    scores: Sequence[Mapping[int, float]], draws: int, rng: np.random.Generator
) -> NDArray[np.float64] | None:
    """(draws, M) how the means may move with other seeds; None where no method has two."""
    spreads = [float(np.std(list(of.values()), ddof=1)) for of in scores if len(of) > 1]
    if not spreads:
        return None
    seeds = sorted({seed for of in scores for seed in of})
    shared = dict(zip(seeds, rng.standard_normal((len(seeds), draws)), strict=True))
    degrees = max(len(of) for of in scores) - 1
    uniform = rng.random(draws)
    moves = np.empty((draws, len(scores)))
    for place, of in enumerate(scores):
        n, mean = len(of), _mean(of)
        if n > 1:
            moved = np.sum([shared[seed] * (score - mean) for seed, score in of.items()], axis=0)
            moved /= math.sqrt(n * (n - 1))
        else:
            # What the seed does to a method with one seed is taken from the others.
            moved = math.sqrt(float(np.mean(np.square(spreads)))) * rng.standard_normal(draws)
        own = n - 1 if n > 1 else degrees
        moves[:, place] = moved / np.sqrt(stats.chi2.ppf(uniform, own) / own)
    return moves


def _image_moves(
    outcomes: Sequence[Outcome],
    scores: Mapping[str, Mapping[int, float]],
    order: Sequence[str],
    draws: int,
    rng: np.random.Generator,
) -> NDArray[np.float64] | None:
    """(draws, M) how the means may move with other images; None where answers image by image are missing."""
    by_method = []
    for method in order:
        answers = [o.right for o in outcomes if o.method == method and o.seed in scores[method] and o.right is not None]
        if len(answers) != len(scores[method]) or len({len(right) for right in answers}) != 1:
            return None
        by_method.append(np.mean(answers, axis=0))
    if len({len(right) for right in by_method}) != 1 or len(by_method[0]) < 2:
        return None
    # As in `intervals.over_images`, pseudo-images on which methods differ keep near-equal methods from certainty.
    covariance = np.atleast_2d(np.cov(by_method)) / len(by_method[0]) + np.eye(len(order)) / 2 / len(by_method[0]) ** 2
    return rng.multivariate_normal(np.zeros(len(order)), covariance, size=draws, method="eigh")


def chance_words(p: float) -> str:
    """A probability as the draws can tell it: `84 %`, `over 99 %`, `below 1 %`."""
    return "over 99 %" if p >= 0.995 else "below 1 %" if p < 0.005 else f"{100 * p:.0f} %"


def _covers(seeds: bool, images: bool) -> Covers:
    if seeds:
        return "seeds and images" if images else "seeds alone"
    return "images alone" if images else "nothing"


def _permutation_p(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """One-sided p-values of tau and rho: the share of the orders of `x` that agree with `y` as well or better."""
    n = len(x)
    if n <= ALL_ORDERS_UPTO:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        orders = np.random.default_rng(0).permuted(np.tile(np.arange(n), (RANDOM_ORDERS, 1)), axis=1)
        # The order that was found is one of those that chance may give.
        orders = np.vstack([np.arange(n), orders])
    i, j = np.triu_indices(n, 1)
    # Both statistics are these sums over constants that shuffling leaves as they are.
    concordance = (np.sign(x[orders[:, i]] - x[orders[:, j]]) * np.sign(y[i] - y[j])).sum(1)
    product = stats.rankdata(x)[orders] @ stats.rankdata(y)
    found = np.sign(x[i] - x[j]) @ np.sign(y[i] - y[j]), stats.rankdata(x) @ stats.rankdata(y)
    return float((concordance >= found[0] - 1e-9).mean()), float((product >= found[1] - 1e-9).mean())
