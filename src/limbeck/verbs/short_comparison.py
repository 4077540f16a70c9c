"""Short runs: a budget that predicts the order of the methods, and the search for a method's weights and temperatures."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from limbeck.comparing.base import Cell
from limbeck.comparing.budget import Size, Whole, changes_for, describe, fit_into, size_of_share
from limbeck.comparing.methods import CONTROL, with_shorter_warmups
from limbeck.comparing.outcomes import read_outcomes
from limbeck.comparing.plan import make_cell, make_cells
from limbeck.comparing.probe import Pace, probe_changes, read_paces
from limbeck.comparing.ranking import RankAgreement, rank_agreement
from limbeck.comparing.recipe import command_line
from limbeck.comparing.runner import NothingWorksError, StopAskedError, TimeUpError, duration
from limbeck.errors import UserError
from limbeck.files import atomic_write
from limbeck.run import Run
from limbeck.verbs import screen
from limbeck.verbs.compare import Work, announce, by_seed, conclude, nothing_works, stopped

if TYPE_CHECKING:
    from limbeck.comparing.statistics import Comparison
    from limbeck.data.base import DataSet

PROBES, BUDGET, TUNING, CELLS, SIZE_FILE = "probes", "budget", "tuning", "cells", "size.json"

# Of a whole run, for tuning without a budget.
SHARE_OF_A_TRIAL = 0.1

# Trials' seed is that of the comparison and so much more, which it does not come to however many seeds are added later.
SEED_OF_TRIALS = 10_000


def predict(work: Work) -> Comparison:
    """The small comparison of --budget: the order of the methods, how sure it is, and what to run next."""
    began = time.monotonic()
    recipe, folder = work.recipe, work.folder / BUDGET
    assert recipe.budget is not None
    seconds = 60 * recipe.budget
    data = _open_data(work)
    whole = _whole_run(work, data)
    probes = _probes(work, whole)
    paces = _time(work, probes, deadline=began + seconds)
    methods = [method for method in work.methods if method in paces]
    size = _kept_size(folder)
    if size is None:
        # What tuning finds for a method is compared beside it.
        extra = recipe.tune + recipe.seeds if recipe.tune else 0
        runs = [recipe.seeds + (extra if method != CONTROL else 0) for method in methods]
        spent = time.monotonic() - began
        size = fit_into(whole, [paces[m] for m in methods], runs, seconds=seconds, jobs=work.runner.jobs, spent=spent)
        _keep_size(size, folder)
    work.note(describe(whole, size))
    failed = [cell for cell in probes if cell.method not in paces]
    work.methods = methods
    given = _shortened(work, paces, size)
    if recipe.tune:
        given |= _search(work, paces, data, size)
    cells = make_cells(recipe, work.methods, folder / CELLS, changes=changes_for(recipe, size), given=given)
    announce(work, cells)
    try:
        work.runner.run(by_seed(cells), patience=len(work.methods))
    except StopAskedError:
        conclude(work, cells, folder, others=read_outcomes(failed))
        raise stopped(work) from None
    except NothingWorksError:
        raise nothing_works(cells) from None
    found = conclude(work, cells, folder, others=read_outcomes(failed), ranking=True)
    if found is None:
        raise nothing_works(cells)
    comparison, ranking = found
    assert ranking is not None
    for sentence in ranking.sentences:
        screen.say(sentence)
    screen.say(f"This took {duration(time.monotonic() - began)} of {duration(seconds)}.")
    chosen = [CONTROL, *(method for method in ranking.promising if method != CONTROL)]
    if size == Size(whole.images, whole.epochs):
        screen.say("These were whole runs, so there is nothing more to run.")
    elif len(chosen) > 1:
        then = command_line(recipe, methods=chosen, budget=None, tune=0, out=str(work.folder), resume=True)
        screen.say(f"The whole comparison of what may be best:\n  {then}")
    return comparison


def tune(work: Work) -> None:
    """The search of --tune before a whole comparison; what it finds joins the methods."""
    data = _open_data(work)
    whole = _whole_run(work, data)
    paces = _time(work, _probes(work, whole))
    size = _kept_size(work.folder / TUNING)
    if size is None:
        size = size_of_share(whole, SHARE_OF_A_TRIAL * (whole.images or 1) * whole.epochs)
    _search(work, paces, data, size)


def agreement_with_prediction(work: Work, cells: list[Cell]) -> RankAgreement | None:
    """How well short runs of the same comparison predicted the order of the whole ones; None where there were none."""
    folder = work.folder / BUDGET / CELLS
    if not folder.is_dir():
        return None
    try:
        agreement = rank_agreement(read_outcomes(make_cells(work.recipe, work.methods, folder)), read_outcomes(cells))
    except UserError:  # fewer than three methods in common
        return None
    screen.say(agreement.sentence)
    return agreement


def _open_data(work: Work) -> DataSet | None:
    """The data, to count and to tune on; None of detectors, whose data is taken whole."""
    recipe = work.recipe
    if recipe.task == "detection":
        return None
    from limbeck.data.door import open_data

    return open_data(
        recipe.data,
        val_fraction=recipe.val_fraction,
        seed=recipe.split_seed,
        bad_images=recipe.bad_images,
        max_train_images=recipe.max_train_images,
        val_data=recipe.val_data,
    )


def _whole_run(work: Work, data: DataSet | None) -> Whole:
    batch_size = int(work.recipe.settled().batch_size)
    if data is None:
        return Whole(None, work.recipe.epochs, batch_size=batch_size)
    return Whole(len(data.train), work.recipe.epochs, len(data.class_names or ()) or 1, batch_size)


def _probes(work: Work, whole: Whole) -> list[Cell]:
    changes = probe_changes(whole.images, whole.classes, whole.batch_size)
    recipe = work.recipe
    return [make_cell(recipe, method, recipe.seed, work.folder / PROBES, changes) for method in work.methods]


def _time(work: Work, probes: list[Cell], *, deadline: float | None = None) -> dict[str, Pace]:
    """How fast each method is; those that cannot be run at all are not among them."""
    screen.say(f"Finding out how fast {len(probes)} methods are, each in a short run.")
    try:
        work.runner.run(probes, deadline=deadline, patience=len(probes))
    except StopAskedError:
        raise stopped(work) from None
    except NothingWorksError:
        raise nothing_works(probes) from None
    except TimeUpError:
        raise UserError(
            f"--budget {work.recipe.budget:g} is too small: finding out how fast the methods are was not finished in that time. "
            "Give more minutes or fewer methods."
        ) from None
    paces = read_paces(probes, work.runner.seconds)
    if not paces:
        raise nothing_works(probes)
    if work.recipe.task == "detection":  # where an epoch is not cut, it counts as one image
        paces = {
            m: Pace(**{**asdict(p), "seconds_per_image": p.seconds_per_image * p.images}) for m, p in paces.items()
        }
    return paces


def _shortened(work: Work, paces: dict[str, Pace], size: Size) -> dict[str, str]:
    """The methods with warm-ups as short as the runs."""
    factor = size.epochs / work.recipe.epochs
    return {m: with_shorter_warmups(m, paces[m].warmup_epochs, factor) for m in work.methods if m in paces}


def _search(work: Work, paces: dict[str, Pace], data: DataSet | None, size: Size) -> dict[str, str]:
    """Search, add what is found to the methods, and return what these are given to short runs as."""
    from limbeck.comparing.tuning import Trial, best_of, search, write_trials
    from limbeck.comparing.tuning import describe as describe_search

    recipe, folder = work.recipe, work.folder / TUNING
    kept = _kept_size(folder)
    if kept is None:
        kept = size
        _keep_size(size, folder)
    changes = changes_for(recipe, kept) | _images_to_tune_on(work, data, kept, folder)
    factor, seed = kept.epochs / recipe.epochs, recipe.seed + SEED_OF_TRIALS
    searched = [method for method in work.methods if method in paces and method != CONTROL]
    expected = sum(recipe.tune * paces[method].seconds(kept.passes) for method in searched) / work.runner.jobs
    screen.say(
        f"Tuning: {recipe.tune} trials for each of {len(searched)} methods, {kept.epochs} epochs each, about "
        f"{duration(expected)}."
    )
    trials: list[Trial] = []
    given: dict[str, str] = {}
    methods: list[str] = []
    try:
        for method in work.methods:
            methods.append(method)
            if method not in searched:
                continue
            warmups = paces[method].warmup_epochs

            def cell_of(text: str, warmups: dict[str, float] = warmups) -> Cell:
                shorter = with_shorter_warmups(text, warmups, factor)
                return make_cell(recipe, text, seed, folder / CELLS, changes, shorter)

            found = search(
                method,
                paces[method].weights,
                folder,
                trials=recipe.tune,
                seed=recipe.seed,
                jobs=work.runner.jobs,
                make_cell=cell_of,
                run=work.runner.run,
            )
            trials += found
            write_trials(trials, work.folder / "tuning.csv")
            work.note(describe_search(found))
            best = best_of(found)
            if best is not None and best.text not in (method, *work.methods):
                methods.append(best.text)
                given[best.text] = with_shorter_warmups(best.text, warmups, factor)
    except StopAskedError:
        raise stopped(work) from None
    work.methods = methods
    return given


def _images_to_tune_on(work: Work, data: DataSet | None, size: Size, folder: Path) -> dict[str, Any]:
    """The options by which trials learn from and are measured on training images only, where that can be had."""
    recipe = work.recipe
    name: str | None = None
    if data is not None and size.images is not None:
        from limbeck.comparing.tuning_images import write_tuning_images

        kept = folder / "images.json"
        if kept.is_file():
            name = json.loads(kept.read_text())
        else:
            name = write_tuning_images(data, size.images, folder, seed=recipe.split_seed)
            with atomic_write(kept) as file:
                file.write(json.dumps(name).encode())
    if name is None:
        work.note(
            "Tuning was measured on the same validation images as the comparison (no labelled training images could be held out "
            "for it), so the tuned methods look better here than they are. Judge them on images that nothing was chosen with."
        )
        return {}
    work.note(
        "Tuning was measured on training images held out for it; the comparison's validation images had no say in it."
    )
    # What depends on the data's name and size is taken from a run on the data itself.
    decided = _recipe_of_a_probe(work)
    seen: dict[str, Any] = {key: decided[key] for key in ("view_size", "crop", "pad", "flip") if key in decided}
    return {"data": name, "val_data": None, "max_train_images": None, **seen}


def _recipe_of_a_probe(work: Work) -> dict[str, Any]:
    for file in sorted((work.folder / PROBES).glob("*/*/recipe.yaml")):
        if Run(file.parent).summary:
            return dict(yaml.safe_load(file.read_text()))
    return {}


def _kept_size(folder: Path) -> Size | None:
    """The size that an earlier call decided on: all runs must have the same."""
    file = folder / SIZE_FILE
    return Size(**json.loads(file.read_text())) if file.is_file() else None


def _keep_size(size: Size, folder: Path) -> None:
    with atomic_write(folder / SIZE_FILE) as file:
        file.write(json.dumps(asdict(size)).encode())
