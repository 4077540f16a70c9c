"""A search for each method's weights and temperatures, in short runs, by optuna's tree-structured Parzen estimator (TPE).

The first trial is the method as it is written. The others vary the weight of each of its terms within a factor of ten, and its
temperature, where it has one, within a factor of four, both on a logarithmic scale. All trials share one seed, which
the comparison does not use. Trials are kept in journal.log, which optuna's own tools read, and in trials.csv.
"""

import csv
import inspect
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.comparing.base import Cell
from limbeck.comparing.methods import terms, with_options
from limbeck.comparing.plan import FAILED_FILE, finished, score_of
from limbeck.errors import MissingExtraError
from limbeck.files import atomic_write
from limbeck.losses.build import import_loss
from limbeck.training.randomness import stable_seed

WEIGHT_FACTOR, TEMPERATURE_FACTOR = 10.0, 4.0
TEMPERATURE = "temperature"


@dataclass(frozen=True)
class Knob:
    """One number that is searched for.

    Attributes:
        term: of the method, by its name.
        option: of that term.
        default: as the method is written, or published.
        low, high: between which it is searched for.
    """

    term: str
    option: str
    default: float
    low: float
    high: float

    @property
    def name(self) -> str:
        """In the journal and the table."""
        return f"{self.term}.{self.option}"


@dataclass(frozen=True)
class Trial:
    """One short run of a search.

    Attributes:
        method: as the user wrote it.
        number: from 0, which is the method as it is written.
        text: the method with the trial's values.
        values: by the knob's name.
        score: on the images held out for tuning; None where it failed.
        message: why.
    """

    method: str
    number: int
    text: str
    values: dict[str, float]
    score: float | None
    message: str = ""


def knobs_of(method: str, weights: Mapping[str, float]) -> list[Knob]:
    """What is searched for.

    Args:
        method: as the user wrote it.
        weights: of its terms, as a run resolved them; a term of weight 0 is left alone.
    """
    found = []
    for name, spec in terms(method).items():
        if (weight := weights.get(name, 0.0)) > 0:
            found.append(Knob(name, "weight", weight, weight / WEIGHT_FACTOR, weight * WEIGHT_FACTOR))
        parameter = inspect.signature(import_loss(spec)).parameters.get(TEMPERATURE)
        value = spec.options.get(TEMPERATURE, parameter.default if parameter is not None else None)
        if parameter is not None and isinstance(value, int | float) and value > 0:
            found.append(Knob(name, TEMPERATURE, value, value / TEMPERATURE_FACTOR, value * TEMPERATURE_FACTOR))
    return found


def write_values(method: str, knobs: Sequence[Knob], values: Mapping[str, float]) -> str:
    """The method with a trial's values, to three digits; as it is written where they are the defaults."""
    options: dict[str, dict[str, float]] = {}
    for knob in knobs:
        if values[knob.name] != knob.default:
            options.setdefault(knob.term, {})[knob.option] = float(f"{values[knob.name]:.3g}")
    return with_options(method, options)


def search(
    method: str,
    weights: Mapping[str, float],
    folder: Path,
    *,
    trials: int,
    seed: int,
    jobs: int,
    make_cell: Callable[[str], Cell],
    run: Callable[[list[Cell]], None],
) -> list[Trial]:
    """All trials of a method, those of an earlier call included.

    Args:
        method: as the user wrote it.
        weights: of its terms, as a run resolved them.
        folder: of the tuning; the journal is in it.
        trials: in all.
        seed: of the search. A trial depends on it, on those before, and on how many are asked for at a time.
        jobs: how many are asked for at a time.
        make_cell: the short run of a method's text.
        run: brings cells to their end.

    Raises:
        MissingExtraError: optuna is not installed.
    """
    knobs = knobs_of(method, weights)
    study = _open_study(folder, method)
    from optuna.distributions import FloatDistribution
    from optuna.samplers import TPESampler
    from optuna.trial import Trial as Suggested
    from optuna.trial import TrialState

    space: dict[str, Any] = {knob.name: FloatDistribution(knob.low, knob.high, log=True) for knob in knobs}
    if not space:
        trials = 1
    # What was asked for when an earlier call was stopped is asked for again; its run goes on from its checkpoint.
    for stale in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(stale.number, state=TrialState.FAIL)
        study.enqueue_trial(stale.params, skip_if_exists=False)
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial({knob.name: knob.default for knob in knobs})
    while (done := len(_ended(study))) < trials:
        study.sampler = TPESampler(seed=stable_seed("tuning", seed, done) % 2**32, n_startup_trials=max(3, trials // 4))
        asked: list[Suggested] = [study.ask(space) for _ in range(min(jobs, trials - done))]
        cells = [make_cell(write_values(method, knobs, trial.params)) for trial in asked]
        unique = {cell.folder: cell for cell in cells}
        run(list(unique.values()))
        for trial, cell in zip(asked, cells, strict=True):
            score = score_of(cell) if finished(cell) else None
            trial.set_user_attr("ended", True)
            trial.set_user_attr("text", cell.method)
            trial.set_user_attr("message", _message(cell) if score is None else "")
            study.tell(trial, score, state=TrialState.FAIL if score is None else None)
    return [
        Trial(method, number, kept.user_attrs["text"], dict(kept.params), kept.value, kept.user_attrs["message"])
        for number, kept in enumerate(_ended(study)[:trials])
    ]


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial of the highest score, the earliest of several; None where all failed."""
    scored = [trial for trial in trials if trial.score is not None]
    return max(scored, key=lambda trial: (trial.score, -trial.number), default=None)


def write_trials(trials: Sequence[Trial], file: Path) -> None:
    """Write a table with every trial's values and score."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.values))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["method", "trial", "score", *names, "text", "message"])
    for trial in trials:
        values = (trial.values.get(name, "") for name in names)
        writer.writerow([trial.method, trial.number, trial.score, *values, trial.text, trial.message])
    with atomic_write(file) as opened:
        opened.write(text.getvalue().encode())


def describe(trials: Sequence[Trial]) -> str:
    """What a search found, in a sentence."""
    first, best = trials[0], best_of(trials)
    if best is None:
        return f"{first.method}: all {len(trials)} trials failed; the first: {first.message}"
    as_written = f"{100 * first.score:.2f} %" if first.score is not None else "failed"
    if best.text == first.method:
        return f"{first.method}: best as it is written ({as_written}), of {len(trials)} trials."
    return (
        f"{first.method}: best as {best.text}, {100 * (best.score or 0.0):.2f} % on the images to tune on, as it is written "
        f"{as_written} ({len(trials)} trials, one run each: the best of many looks better than it is)."
    )


def _open_study(folder: Path, method: str) -> Any:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise MissingExtraError("optuna", "tune", "--tune") from error
    optuna.logging.set_verbosity(logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / "journal.log"))),
        study_name=method,
        direction="maximize",
        load_if_exists=True,
    )


def _ended(study: Any) -> list[Any]:
    """Trials that came to an end, in their order; those that a stop cut off are not among them."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("ended")]


def _message(cell: Cell) -> str:
    file = cell.folder / FAILED_FILE
    return file.read_text().strip() if file.is_file() else "no score"
