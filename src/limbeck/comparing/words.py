"""The answer in plain words: one line a method, one line in all, and what the intervals mean."""

from dataclasses import dataclass

import numpy as np

from limbeck.comparing.base import Outcome
from limbeck.comparing.intervals import Estimate
from limbeck.comparing.statistics import Comparison, Difference, MethodResult
from limbeck.reporting.wording import counted

# A share of the control's time or memory that is not worth a word.
SAME = 0.05

# The conclusion names so many methods of a kind; the lines name all.
NAMED = 4


@dataclass(frozen=True)
class Answer:
    """What a comparison says.

    Attributes:
        conclusion: one line.
        lines: one a method, the control first, then the best first.
        notes: what was compared and what the intervals mean.
    """

    conclusion: str
    lines: tuple[str, ...]
    notes: tuple[str, ...]


def answer(comparison: Comparison) -> Answer:
    """What a comparison says, in sentences."""
    ordered = sorted(comparison.ranked, key=lambda result: result.method != comparison.control)
    return Answer(
        conclusion=_conclusion(comparison),
        lines=tuple(_line(result, comparison) for result in ordered),
        notes=(*_notes(comparison), *comparison.warnings),
    )


def signed(difference: float, digits: int = 1) -> str:
    """A difference of scores in points, with its sign: 0.021 as `+2.1`."""
    text = f"{100 * difference:+.{digits}f}"
    return text.replace("-", "\u2212") if float(text) else f"{0:.{digits}f}"


def span(estimate: Estimate, digits: int = 1) -> str:
    """An interval in points: `1.2 to 3.0`."""
    low, high = (signed(end, digits).removeprefix("+") for end in (estimate.low, estimate.high))
    return f"{low} to {high}"


def digits_for(*estimates: Estimate | None) -> int:
    """Decimals that tell narrow intervals' ends apart: two for those of less than a point."""
    return 2 if any(e is not None and e.high - e.low < 0.01 for e in estimates) else 1


def mean_and_spread(result: MethodResult, digits: int = 2) -> str:
    """`71.20 ± 0.31 %`; without ± for one seed, n/a without a score."""
    if result.mean is None:
        return "n/a"
    spread = "" if result.std is None else f" ± {100 * result.std:.{digits}f}"
    return f"{100 * result.mean:.{digits}f}{spread} %"


def _line(result: MethodResult, comparison: Comparison) -> str:
    name = result.method
    if result.mean is None:
        return _without_score(result)
    parts = [_verdict(result, comparison)]
    if result.against_plain is not None:
        parts.append(_over_plain(result.against_plain))
    cost = _cost(result)
    if cost:
        parts.append(cost)
    text = f"{name} {', '.join(parts)}."
    if result.failed:
        text += f" {_lost(result.failed, len(result.cells))}"
    if result.waiting:
        text += f" {_still(len(result.waiting), len(result.cells))}"
    return text


def _verdict(result: MethodResult, comparison: Comparison) -> str:
    found, score = result.against_control, mean_and_spread(result)
    seeds = counted(len(result.finished), "seed")
    if result.method == comparison.control:
        return f"is the control: {comparison.score_name} {score}, {seeds}"
    if found is None:
        lack = "no control was run" if comparison.control is None else "no seed of it has a finished control"
        return f"reaches {score} ({seeds}); {lack}, so whether it helps cannot be told"
    digits = digits_for(found.over_seeds, found.over_images)
    gain = f"{signed(found.mean, digits)} points over {found.reference}"
    if found.over_seeds is None and len(found.values) > 1:
        return f"cannot be judged: {gain} in each of {counted(len(found.values), 'seed')}, so there is no spread to judge by"
    if found.over_seeds is None:
        few = (
            "has too few seeds" if len(result.finished) == 1 else f"has too few seeds in common with {found.reference}"
        )
        return f"{few} to tell: {gain} ({_one_seed(found, digits)})"
    within = f"95 % interval {span(found.over_seeds, digits)}, {counted(len(found.values), 'seed')}"
    if found.verdict == "no difference shown":
        # The interval is of this comparison alone, the verdict allows for all of them.
        allowing = (
            f"; not shown once {found.compared} comparisons are allowed for" if found.over_seeds.excludes_zero else ""
        )
        return f"shows no difference: {gain} ({within}{allowing})"
    images = found.over_images
    doubt = ""
    if images is not None and not images.excludes_zero:
        doubt = f"; over images {span(images, digits)}: other images might not show it"
    return f"{found.verdict}: {gain} ({within}{doubt})"


def _one_seed(found: Difference, digits: int) -> str:
    if found.over_images is None:
        return f"{counted(len(found.values), 'seed')}, no interval"
    return (
        f"{counted(len(found.values), 'seed')}; 95 % interval over images alone {span(found.over_images, digits)}, "
        "which says nothing of other seeds"
    )


def _over_plain(found: Difference) -> str:
    digits = digits_for(found.over_seeds)
    gain = f"{signed(found.mean, digits)} over {found.reference}"
    if found.over_seeds is None:
        return gain
    verdict = {"helps": "better", "hurts": "worse"}.get(found.verdict, "no difference shown")
    if verdict == "no difference shown" and found.over_seeds.excludes_zero:
        verdict = f"not shown once {found.compared} comparisons are allowed for"
    return f"{gain} ({span(found.over_seeds, digits)}: {verdict})"


def _cost(result: MethodResult) -> str:
    time, memory = result.cost.time_ratio, result.cost.memory_ratio
    if result.against_control is None or time is None:
        return ""
    text = f"at {time:.2f} times the time per epoch" if abs(time - 1) >= 0.005 else "at the same time per epoch"
    return f"{text} and {memory:.2f} times the memory" if memory is not None and abs(memory - 1) > SAME else text


def _without_score(result: MethodResult) -> str:
    if result.failed and not result.waiting:
        return f"{result.method} failed in {_all(len(result.cells))}: {_reasons(result.failed)}"
    if result.failed:
        return f"{result.method} has no score yet. {_lost(result.failed, len(result.cells))}"
    return f"{result.method} has not finished yet."


def _all(cells: int) -> str:
    return "its only cell" if cells == 1 else f"all {cells} cells"


def _lost(failed: tuple[Outcome, ...], cells: int) -> str:
    return f"{len(failed)} of its {counted(cells, 'cell')} failed: {_reasons(failed)}"


def _reasons(failed: tuple[Outcome, ...]) -> str:
    reasons = list(dict.fromkeys(cell.message.strip() or "it gave no reason" for cell in failed))
    text = reasons[0] if len(reasons) == 1 else f"{reasons[0].rstrip('.')} (and {len(reasons) - 1} other reasons)"
    return text if text.endswith((".", "!", "…")) else f"{text}."


def _still(waiting: int, cells: int) -> str:
    return f"{waiting} of its {counted(cells, 'cell')} {'is' if waiting == 1 else 'are'} not finished."


def _conclusion(comparison: Comparison) -> str:
    scored = [result for result in comparison.ranked if result.mean is not None]
    if not scored:
        failed = all(o.state == "failed" for o in comparison.outcomes)
        return "Every cell failed, so nothing can be said." if failed else "No cell has finished yet."
    if comparison.control is None or comparison.of(comparison.control).mean is None:
        return (
            f"Without a finished control (method none) whether anything helps cannot be told; {scored[0].method} has the "
            f"highest mean, {mean_and_spread(scored[0])}."
        )
    held = [(r, r.against_control) for r in scored if r.against_control is not None]
    if not held:
        return _nothing_held(comparison)
    helping = [(r, d) for r, d in held if d.verdict == "helps"]
    hurting = [r for r, d in held if d.verdict == "hurts"]
    harm = f" {_named(hurting)} {'hurts' if len(hurting) == 1 else 'hurt'}." if hurting else ""
    if all(d.verdict == "too few seeds" for _, d in held):
        best, found = held[0]
        gain = f"{signed(found.mean, digits_for(found.over_images))} points over {found.reference}"
        highest = f"{best.method} is highest with {gain}" if found.mean > 0 else f"no method is above {found.reference}"
        if len(found.values) > 1:
            return f"How sure this is cannot be told: {highest}, but the seeds show no spread to judge by."
        if len(best.finished) > 1:
            return (
                f"Too few seeds to tell: {highest}, but only seed {found.seeds[0]} of it has a finished {found.reference}, and "
                f"one seed does not show what another would give. Finish the other seeds of {found.reference} with --resume."
            )
        return (
            f"Too few seeds to tell: {highest}, but one seed does not show what another would give. Run it with three seeds "
            "or more."
        )
    if not helping:
        return f"Nothing is shown to help: no method is above {comparison.control} by more than chance explains." + (
            harm + _resolution([d for _, d in held])
        )
    best, found = helping[0]
    gain = f"{signed(found.mean, digits_for(found.over_seeds))} points over {found.reference}"
    if len(helping) == 1:
        return f"{best.method} helps: {gain}{_beside_plain(best)}.{harm}"
    others = [r for r, _ in helping[1:]]
    also = f" {_named(others)} {'helps' if len(others) == 1 else 'help'} too."
    return f"{best.method} has the highest mean of the {len(helping)} methods that help: {gain}{_beside_plain(best)}.{also}{harm}"


def _nothing_held(comparison: Comparison) -> str:
    """Why a control with a score has nothing to be held against it."""
    others = [result for result in comparison.methods if result.method != comparison.control]
    if any(result.mean is not None for result in others):
        return f"No method shares a finished seed with the control {comparison.control}, so nothing can be compared."
    if others and all(len(result.failed) == len(result.cells) for result in others):
        return "Every method beside the control failed, so nothing can be compared."
    return "Only the control has a score so far, so nothing can be compared."


def _beside_plain(result: MethodResult) -> str:
    found = result.against_plain
    if found is None or found.over_seeds is None:
        return ""
    if found.verdict == "no difference shown":
        return f", though no difference from {found.reference} is shown"
    better = "more" if found.verdict == "helps" else "less"
    return (
        f", and {better} than {found.reference} by {signed(abs(found.mean), digits_for(found.over_seeds)).lstrip('+')}"
    )


def _resolution(differences: list[Difference]) -> str:
    widths = [d.over_seeds.half_width for d in differences if d.over_seeds is not None]
    if not widths:
        return ""
    hidden = f"{100 * float(np.median(widths)):.1f} points"
    return f" With this many seeds differences below about {hidden} stay hidden; more seeds would show smaller ones."


def _named(results: list[MethodResult]) -> str:
    names = [result.method for result in results]
    if len(names) > NAMED:
        names = [*names[: NAMED - 1], f"{len(names) - NAMED + 1} others"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _notes(comparison: Comparison) -> list[str]:
    images, score = comparison.images, comparison.score_name
    notes = [
        f"All cells were measured on the same {f'{images} ' if images else ''}validation images, and the {score} of the last "
        "epoch is compared, not the best epoch's."
    ]
    several = any(
        r.against_control is not None and r.against_control.over_seeds is not None for r in comparison.methods
    )
    if several:
        notes.append(
            "Differences are of runs of the same seed. Their intervals are over seeds: what other seeds would give on these "
            f"images (Student's t over the paired differences, one method at a time{_pooled(comparison)}). The verdicts allow "
            "for all methods that are held against the same one (Holm, 5 %)."
        )
    held = [r.against_control for r in comparison.methods if r.against_control is not None]
    over_images = any(difference.over_images is not None for difference in held)
    if over_images and several:
        notes.append(
            "Intervals over images say another thing: what these very networks would give on other images of the kind."
        )
    elif over_images:
        notes.append(
            "Intervals are over images alone: what these very networks would give on other images of the kind. They say "
            "nothing of what another seed would give."
        )
    elif held and not images:
        notes.append(f"{score} has no answers image by image here, so the chance of the validation images is not told.")
    return notes


def _pooled(comparison: Comparison) -> str:
    pool = comparison.pool
    if pool is None:
        return ""
    return (
        f"; the spread between seeds is that of {len(pool.methods)} methods together, {pool.degrees} degrees of freedom"
    )
