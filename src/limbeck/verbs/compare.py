"""`limbeck compare`: which method helps here?"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.comparing.base import Cell, Outcome
from limbeck.comparing.methods import check_shares, read_methods
from limbeck.comparing.plan import RECIPE_FILE, choose_folder, claimed, make_cells, write_recipe
from limbeck.comparing.recipe import CompareRecipe, options_of_runs
from limbeck.errors import UserError
from limbeck.losses.names import RESERVED_OPTIONS, MethodSpec, parse_methods
from limbeck.recipe import from_recipe
from limbeck.verbs import screen
from limbeck.verbs.names import check_names

if TYPE_CHECKING:
    from limbeck.comparing.ranking import RankAgreement, Ranking
    from limbeck.comparing.runner import Runner
    from limbeck.comparing.statistics import Comparison


@dataclass
class Work:
    """A comparison under way.

    Attributes:
        recipe: as the user gave it.
        methods: to compare, the control among them; what tuning finds is added.
        folder: of the comparison.
        runner: of its cells.
        notes: what the reader of the results should know about how they came about.
    """

    recipe: CompareRecipe
    methods: list[str]
    folder: Path
    runner: Runner
    notes: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        """Say something now, and in the page."""
        self.notes.append(sentence)
        screen.notes([sentence])


@from_recipe(CompareRecipe)
def compare(recipe: CompareRecipe) -> Comparison:
    """Distil with several methods and seeds, and say which method helps, by how much, how surely and at what cost.

    Every run is a folder like that of any other run, in cells/ of the comparison's folder, where comparison.csv, methods.csv,
    comparison.json and report.html are written. A run that fails is named, and the others go on.

    Returns:
        The comparison.

    Raises:
        UserError: something given cannot be used, no run ended with a score, or the comparison was stopped; the message says
            what to do.
        FileNotFoundError: a file or folder does not exist.
    """
    recipe.check()
    methods, notes = read_methods(recipe.methods, recipe.task)
    check_names(recipe, _specs(methods))
    check_shares(methods, recipe.balance)
    folder = choose_folder(recipe)
    _check_options(methods)
    with claimed(folder) as lock:
        write_recipe(recipe, folder)
        work = Work(recipe, methods, folder, _make_runner(recipe))
        work.runner.held = (lock,)
        for sentence in notes:
            work.note(sentence)
        try:
            return _carry_out(work)
        except KeyboardInterrupt:
            screen.say(f"Stopped at once. {_how_to_go_on(folder)}")
            raise


def conclude(
    work: Work,
    cells: Sequence[Cell],
    folder: Path,
    *,
    others: Sequence[Outcome] = (),
    ranking: bool = False,
    agreement: RankAgreement | None = None,
) -> tuple[Comparison, Ranking | None] | None:
    """Say and write what the cells say together; None where no cell has a score.

    Args:
        work: the comparison.
        cells: finished or not.
        folder: where tables and page are written.
        others: what became of further cells.
        ranking: whether short runs predict the order of whole ones.
        agreement: of an earlier prediction with these cells.
    """
    from limbeck.comparing.outcomes import read_outcomes
    from limbeck.comparing.page import write_page
    from limbeck.comparing.ranking import predict_ranking
    from limbeck.comparing.statistics import compare_outcomes
    from limbeck.comparing.tables import show, write_csv, write_json, write_methods_csv

    outcomes = [*read_outcomes(cells), *others]
    if not any(outcome.state == "finished" for outcome in outcomes):
        return None
    comparison = compare_outcomes(outcomes)
    predicted = predict_ranking(outcomes) if ranking else None
    show(comparison, screen.console)
    write_csv(comparison, folder / "comparison.csv")
    write_methods_csv(comparison, folder / "methods.csv")
    write_json(comparison, folder / "comparison.json")
    if work.recipe.report:
        page = write_page(
            comparison,
            folder,
            recipe=options_of_runs(work.recipe),
            notes=work.notes,
            ranking=predicted,
            agreement=agreement,
        )
        screen.say(f"Report: {page}")
    return comparison, predicted


def stopped(work: Work) -> UserError:
    """What is raised when the user asked to stop."""
    from limbeck.training.checkpoints import StoppedByUserError

    return StoppedByUserError(f"Stopped on request. {_how_to_go_on(work.folder)}")


def nothing_works(cells: Sequence[Cell]) -> UserError:
    """What is raised when no cell has a score."""
    from limbeck.comparing.outcomes import read_outcomes

    reasons: dict[str, list[str]] = {}
    for outcome in read_outcomes(cells):
        if outcome.state == "failed" and outcome.method not in reasons.setdefault(outcome.message, []):
            reasons[outcome.message].append(outcome.method)
    told = " ".join(f"{', '.join(methods)}: {message}" for message, methods in reasons.items())
    return UserError(
        f"Not one run ended with a score, so there is nothing to compare. {told} What they wrote is in "
        f"the log.txt of their folders, such as {cells[0].folder}. Correct what is wrong, and start again with --resume."
    )


def _carry_out(work: Work) -> Comparison:
    from limbeck.comparing.runner import NothingWorksError, StopAskedError
    from limbeck.verbs import short_comparison

    if work.recipe.budget is not None:
        return short_comparison.predict(work)
    if work.recipe.tune:
        short_comparison.tune(work)
    cells = make_cells(work.recipe, work.methods, work.folder / "cells")
    announce(work, cells)
    try:
        work.runner.run(by_seed(cells), patience=len(work.methods))
    except StopAskedError:
        conclude(work, cells, work.folder)
        raise stopped(work) from None
    except NothingWorksError:
        raise nothing_works(cells) from None
    found = conclude(work, cells, work.folder, agreement=short_comparison.agreement_with_prediction(work, cells))
    if found is None:
        raise nothing_works(cells)
    return found[0]


def announce(work: Work, cells: Sequence[Cell]) -> None:
    """Say what is about to be done."""
    from limbeck.comparing.plan import finished
    from limbeck.reporting.wording import counted

    done = sum(finished(cell) for cell in cells)
    screen.say(
        f"{counted(len(cells), 'run')}, {counted(len({cell.method for cell in cells}), 'method')} with "
        f"{counted(work.recipe.seeds, 'seed')} each, {work.runner.jobs} at a time"
        f"{f'; {done} are finished' if done else ''}. A run's output is in the log.txt of its "
        f"folder, such as {cells[0].folder}."
    )


def by_seed(cells: Sequence[Cell]) -> list[Cell]:
    """All methods with the first seed, then with the next: what a stopped comparison leaves can then be compared."""
    return sorted(cells, key=lambda cell: cell.seed)


def _how_to_go_on(folder: Path) -> str:
    return f"Go on with: limbeck compare --config {shlex.quote(str(folder / RECIPE_FILE))} --resume"


def _make_runner(recipe: CompareRecipe) -> Runner:
    from limbeck.comparing.runner import Runner, places
    from limbeck.training.fit import choose_accelerator

    jobs, environments = places(choose_accelerator(recipe.accelerator), recipe.devices, recipe.jobs)
    say = screen.say if recipe.progress else _say_nothing
    return Runner(jobs, environments, say=say, say_stop=screen.say)


def _say_nothing(line: str) -> None:
    """Where no progress is asked for."""


def _check_options(methods: Sequence[str]) -> None:
    """The methods' options; this imports the losses."""
    from limbeck.call_checks import checked_options
    from limbeck.losses.build import import_loss

    for spec in _specs(methods):
        options = {name: value for name, value in spec.options.items() if name not in RESERVED_OPTIONS}
        checked_options(spec.name, import_loss(spec), options, skip=2, reserved=RESERVED_OPTIONS, kind="method")


def _specs(methods: Sequence[str]) -> list[MethodSpec]:
    return [spec for method in methods if method != "auto" for spec in parse_methods(method)]
