"""From the cells' outcomes to what they say together: scores with their spread, and paired differences with verdicts.

The seeds are what was repeated, so verdicts come from them: a method is said to help or to hurt where Student's t over the
paired differences of the same seeds, with the spread that the methods share (`spread`), says so after Holm's correction for
all methods that are held against the same reference. The chance of the images is told beside it (`intervals`), and alone
where there is one seed, which is no verdict.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from limbeck.call_text import split_call, split_joined
from limbeck.comparing.base import Outcome
from limbeck.comparing.classes import SIGNIFICANT, ClassGains, class_gains
from limbeck.comparing.cost import Cost, Reach, cost, reach
from limbeck.comparing.intervals import Estimate, holm, over_images, over_seeds
from limbeck.comparing.spread import Pool, difference_over_seeds, pool_spread
from limbeck.errors import UserError

Verdict = Literal["helps", "hurts", "no difference shown", "too few seeds"]

CONTROL, PLAIN = "none", "kd"


@dataclass(frozen=True)
class Difference:
    """A method's score minus a reference's, seed by seed.

    Attributes:
        reference: the method it is held against.
        seeds: that both have finished.
        values: (n,) their differences, in the seeds' order.
        mean: of the values.
        over_seeds: would it hold with other seeds on these images, by the spread that the methods share; None with fewer
            than two.
        own: the same by this pair's differences alone, n - 1 degrees of freedom.
        over_images: would it hold for these networks on other images; None of detectors.
        adjusted_p: over the seeds, by Holm over all methods held against this reference; None with fewer than two.
        compared: how many those are.
        verdict: what that says.
    """

    reference: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    over_seeds: Estimate | None
    own: Estimate | None
    over_images: Estimate | None
    adjusted_p: float | None = None
    compared: int = 1
    verdict: Verdict = "too few seeds"


@dataclass(frozen=True)
class MethodResult:
    """What is known of one method.

    Attributes:
        cells: all of them, by seed.
        finished: those with a score.
        mean, std: of the scores; std (n - 1 in the denominator) None with fewer than two.
        over_seeds: the interval of the mean; None with fewer than two.
        agreement: mean share of images answered as the teacher does.
        cost, reach: in time and memory.
        against_control, against_plain: differences from `none` and from `kd`; None where there are no common seeds.
        gains: class by class against `none`.
    """

    method: str
    cells: tuple[Outcome, ...]
    finished: tuple[Outcome, ...]
    mean: float | None
    std: float | None
    over_seeds: Estimate | None
    agreement: float | None
    cost: Cost
    reach: Reach | None
    against_control: Difference | None = None
    against_plain: Difference | None = None
    gains: ClassGains | None = None

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Cells that ended badly."""
        return tuple(cell for cell in self.cells if cell.state == "failed")

    @property
    def waiting(self) -> tuple[Outcome, ...]:
        """Cells that have not been run to their end."""
        return tuple(cell for cell in self.cells if cell.state == "waiting")


@dataclass(frozen=True)
class Comparison:
    """All methods of a comparison.

    Attributes:
        score_name: accuracy, or AP of detectors.
        methods: in the order in which they were asked for.
        control, plain: the texts of the methods that stand for `none` and `kd`; None where there is none.
        images: how many validation images all cells were measured on; None where it is not known (detectors).
        teacher_score: the teacher's, on the same images.
        epochs: that all cells were trained for; None where they differ or do not tell.
        pool: the spread that methods share; None for fewer than three methods of two seeds.
        warnings: what makes the comparison unfair or incomplete.
    """

    score_name: str
    methods: tuple[MethodResult, ...]
    control: str | None
    plain: str | None
    images: int | None
    teacher_score: float | None
    epochs: int | None
    pool: Pool | None = None
    warnings: tuple[str, ...] = field(default=())

    def of(self, method: str) -> MethodResult:
        """One method's result."""
        return next(result for result in self.methods if result.method == method)

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Every cell, method by method."""
        return tuple(cell for result in self.methods for cell in result.cells)

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds."""
        return tuple(sorted({cell.seed for cell in self.outcomes}))

    @property
    def ranked(self) -> tuple[MethodResult, ...]:
        """Methods with a score, the best mean first; then those without."""
        return tuple(sorted(self.methods, key=lambda result: -(result.mean if result.mean is not None else -1.0)))


def compare_outcomes(outcomes: Sequence[Outcome]) -> Comparison:
    """What the cells say together; cells that failed or wait are counted, not guessed.

    Args:
        outcomes: at least one, each method and seed once.

    Raises:
        UserError: there is none, or a cell is there twice.
    """
    outcomes = [replace(outcome, method=outcome.method.strip()) for outcome in outcomes]
    twice = [key for key, n in Counter((o.method, o.seed) for o in outcomes).items() if n > 1]
    if twice or not outcomes:
        raise UserError(
            f"The comparison has the cell of method {twice[0][0]!r} and seed {twice[0][1]} twice; each is run once."
            if twice
            else "There is nothing to compare: no cell was given."
        )
    outcomes, warnings = _on_the_same_images(outcomes)
    names = list(dict.fromkeys(o.method for o in outcomes))
    control, plain = _named(names, CONTROL), _named(names, PLAIN)
    finished = {name: [o for o in outcomes if o.method == name and o.score is not None] for name in names}
    images = {len(o.right) for o in outcomes if o.right is not None}
    grain = 1 / images.pop() if images else 0.0
    scores = {n: {o.seed: o.score for o in done if o.score is not None} for n, done in finished.items()}
    pool = pool_spread(scores, grain=grain)
    base = finished[control] if control is not None else []
    results = [
        _result(name, [o for o in outcomes if o.method == name], finished[name], base, grain=grain) for name in names
    ]
    if control is not None:
        results = _judged(results, finished, control, "against_control", [control], pool, grain)
        results = [replace(r, gains=_gains(finished[r.method], base)) if r.method != control else r for r in results]
    if plain is not None:
        results = _judged(results, finished, plain, "against_plain", [n for n in (control, plain) if n], pool, grain)
    done = [o for o in outcomes if o.score is not None]
    epochs = {o.epochs for o in done}
    teachers = [o.teacher_score for o in done if o.teacher_score is not None]
    return Comparison(
        score_name=(done or outcomes)[0].score_name,
        methods=tuple(results),
        control=control,
        plain=plain,
        images=round(1 / grain) if grain else None,
        teacher_score=float(np.median(teachers)) if teachers else None,
        epochs=epochs.pop() if len(epochs) == 1 else None,
        pool=pool,
        warnings=(*warnings, *_doubts(results, pool)),
    )


def _on_the_same_images(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], list[str]]:
    """Cells that were measured on other images than most count as failed, since nothing can be said by comparing them."""
    kinds = [None if o.labels is None or o.right is None else o.labels.tobytes() for o in outcomes]
    known = Counter(kind for kind in kinds if kind is not None)
    if len(known) < 2:
        return list(outcomes), []
    usual = known.most_common(1)[0][0]
    kept = []
    for outcome, kind in zip(outcomes, kinds, strict=True):
        if kind is not None and kind != usual:
            reason = "It was measured on other validation images than most cells, so it cannot be compared with them."
            outcome = replace(outcome, state="failed", message=reason, score=None, right=None, labels=None)
        kept.append(outcome)
    left_out = sum(kind is not None and kind != usual for kind in kinds)
    return kept, [f"{left_out} of {len(outcomes)} cells were measured on other validation images and are left out."]


def _named(names: Sequence[str], wanted: str) -> str | None:
    """The method of that name: without options where it is there, else the only one with options."""
    plain = [name for name in names if name.lower() == wanted]
    with_options = [
        name
        for name in names
        if len(split_joined(name, "+", "method")) == 1 and split_call(name, "method")[0].strip().lower() == wanted
    ]
    if plain:
        return plain[0]
    return with_options[0] if len(with_options) == 1 else None


def _result(
    name: str, cells: Sequence[Outcome], finished: Sequence[Outcome], base: Sequence[Outcome], *, grain: float
) -> MethodResult:
    scores = [o.score for o in finished if o.score is not None]
    agreements = [o.agreement for o in finished if o.agreement is not None]
    return MethodResult(
        method=name,
        cells=tuple(sorted(cells, key=lambda o: o.seed)),
        finished=tuple(sorted(finished, key=lambda o: o.seed)),
        mean=float(np.mean(scores)) if scores else None,
        std=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        over_seeds=over_seeds(scores, grain=grain),
        agreement=float(np.mean(agreements)) if agreements else None,
        cost=cost(finished, base),
        reach=reach(finished, base),
    )


def _pairs(method: Sequence[Outcome], reference: Sequence[Outcome]) -> list[tuple[Outcome, Outcome]]:
    """Cells of the same seed, by seed."""
    other = {o.seed: o for o in reference}
    return [(o, other[o.seed]) for o in sorted(method, key=lambda o: o.seed) if o.seed in other]


def _difference(
    method: Sequence[Outcome],
    reference: Sequence[Outcome],
    names: tuple[str, str],
    pool: Pool | None,
    grain: float,
) -> Difference | None:
    pairs = _pairs(method, reference)
    values = [a.score - b.score for a, b in pairs if a.score is not None and b.score is not None]
    if not values:
        return None
    by_image = [a.right.astype(np.float64) - b.right for a, b in pairs if a.right is not None and b.right is not None]
    return Difference(
        reference=names[1],
        seeds=tuple(a.seed for a, _ in pairs),
        values=tuple(values),
        mean=float(np.mean(values)),
        over_seeds=difference_over_seeds(values, names, pool, grain=grain),
        own=over_seeds(values, grain=grain),
        # Images are averaged over all the seeds or not at all, so that both intervals are of one mean.
        over_images=over_images(np.mean(by_image, axis=0)) if len(by_image) == len(values) else None,
    )


def _judged(
    results: Sequence[MethodResult],
    finished: dict[str, list[Outcome]],
    reference: str,
    place: Literal["against_control", "against_plain"],
    apart: Sequence[str],
    pool: Pool | None,
    grain: float,
) -> list[MethodResult]:
    """The results with their differences from a reference and the verdicts over all of these together."""
    found = {
        r.method: _difference(finished[r.method], finished[reference], (r.method, reference), pool, grain)
        for r in results
        if r.method not in apart
    }
    tested = {method: d.over_seeds.p for method, d in found.items() if d is not None and d.over_seeds is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    judged = []
    for result in results:
        difference = found.get(result.method)
        if difference is not None and result.method in adjusted:
            p = adjusted[result.method]
            difference = replace(difference, adjusted_p=p, compared=len(tested), verdict=_verdict(difference.mean, p))
        if place == "against_control":
            judged.append(replace(result, against_control=difference))
        else:
            judged.append(replace(result, against_plain=difference))
    return judged


def _verdict(mean: float, p: float) -> Verdict:
    if p >= SIGNIFICANT:
        return "no difference shown"
    return "helps" if mean > 0 else "hurts"


def _gains(method: Sequence[Outcome], control: Sequence[Outcome]) -> ClassGains | None:
    pairs = _pairs(method, control)
    return class_gains([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None


def _doubts(results: Sequence[MethodResult], pool: Pool | None) -> list[str]:
    """What makes a reader doubt the cells themselves."""
    found = []
    epochs = sorted({o.epochs for r in results for o in r.finished if o.epochs is not None})
    if len(epochs) > 1:
        found.append(f"The cells were trained for different numbers of epochs: {', '.join(map(str, epochs))}.")
    for result in results:
        finished = result.finished
        # On a few images equal scores are no wonder; equal answers are.
        if len(finished) > 1 and all(_same(finished[0], other) for other in finished[1:]):
            found.append(
                f"All seeds of {result.method} gave exactly the same result, as if they were one run; its spread says nothing."
            )
        lacking = [cell.seed for cell in result.cells if cell.state != "finished"]
        if finished and lacking:
            seeds = f"seed{'s' * (len(lacking) > 1)} {', '.join(map(str, lacking))}"
            found.append(
                f"{result.method} lacks {seeds}: its mean is of fewer seeds than planned; its differences are of the seeds that "
                "both have."
            )
        if pool is not None and len(finished) > 1 and result.method not in pool.methods:
            found.append(
                f"The seeds of {result.method} scatter more than those of the others; it is judged by its own spread."
            )
    return found


def _same(a: Outcome, b: Outcome) -> bool:
    if a.right is None or b.right is None:
        return a.score == b.score
    return a.score == b.score and bool(np.array_equal(a.right, b.right)) and np.array_equal(a.curve, b.curve)
