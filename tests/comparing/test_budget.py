"""A small comparison fits into its minutes, cuts every method alike, and says what it predicts and what to run next."""

import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import limbeck
from limbeck.cli import _parse
from limbeck.comparing.base import Cell
from limbeck.comparing.budget import RESERVE, Size, Whole, changes_for, fit_into, size_of_share
from limbeck.comparing.probe import Pace, probe_changes, read_paces
from limbeck.comparing.recipe import CompareRecipe
from limbeck.comparing.runner import Runner
from limbeck.errors import UserError
from limbeck.verbs import compare as verb

WHOLE = Whole(50_000, 100, classes=100, batch_size=128)
FAKE = Path(__file__).parent / "fake_cell.py"


@pytest.mark.parametrize("passes", [3_000, 10_000, 123_456, 1e6, 3.3e6, 5e6, 1e9])
def test_a_size_uses_its_share_and_no_more(passes: float) -> None:
    size, least = size_of_share(WHOLE, passes), WHOLE.least
    assert least == Size(1000, 3)
    assert size.images is not None and least.images is not None
    assert least.images <= size.images <= 50_000 and least.epochs <= size.epochs <= 100
    assert size.passes <= max(passes, least.passes)
    assert size.passes > 0.9 * min(passes, 5e6)


def test_images_and_epochs_are_cut_alike() -> None:
    size = size_of_share(WHOLE, 0.04 * 50_000 * 100)
    assert size == Size(10_000, 20)
    assert size_of_share(WHOLE, 1e9) == Size(50_000, 100)
    assert size_of_share(Whole(None, 12), 7.9) == Size(None, 7)
    assert size_of_share(Whole(200, 2, classes=10, batch_size=64), 1) == Size(200, 2), (
        "a run that is small already stays"
    )


def test_the_runs_of_the_chosen_size_end_in_time() -> None:
    paces = [Pace("none", 10.0, 1e-4, 1000), Pace("kd", 14.0, 3e-4, 1000)]
    for seconds, jobs in ((300, 1), (300, 2), (1000, 4)):
        size = fit_into(WHOLE, paces, [3, 3], seconds=seconds, jobs=jobs, spent=20)
        one_after_another = 3 * sum(pace.seconds(size.passes) for pace in paces)
        assert one_after_another / jobs <= (seconds - 20) * (1 - RESERVE) * 1.001
        assert one_after_another / min(jobs, 3) > 0.8 * (seconds - 20) * (1 - RESERVE)


def test_a_budget_too_small_says_what_would_do() -> None:
    paces = [Pace("none", 10.0, 1e-3, 1000), Pace("kd", 14.0, 3e-3, 1000)]
    with pytest.raises(UserError, match=r"6 runs of 3 epochs on 1000 images") as refused:
        fit_into(WHOLE, paces, [3, 3], seconds=60, jobs=1, spent=20)
    found = re.search(r"--budget (\d+) or more", str(refused.value))
    assert found is not None
    assert fit_into(WHOLE, paces, [3, 3], seconds=60 * int(found[1]), jobs=1, spent=20).epochs == 3
    with pytest.raises(UserError):
        fit_into(WHOLE, paces, [3, 3], seconds=60 * (int(found[1]) - 1), jobs=1, spent=20)


def test_what_counts_epochs_shrinks_with_them() -> None:
    recipe = CompareRecipe(
        teacher="t", student="s", data="digits", methods=["kd"], epochs=100, warmup_epochs=5, step_epochs=[60, 80]
    )
    changes = changes_for(recipe, Size(500, 20))
    assert changes["warmup_epochs"] == 1 and changes["step_epochs"] == [12, 16]
    assert (changes["epochs"], changes["eval_every"], changes["max_train_images"]) == (20, 20, 500)
    left = changes_for(dataclasses.replace(recipe, warmup_epochs="auto", step_epochs="auto"), Size(None, 20))
    assert not {"warmup_epochs", "step_epochs", "max_train_images"} & left.keys()


def test_a_probe_is_a_few_steps() -> None:
    assert probe_changes(50_000, 100, 128)["max_train_images"] == 12 * 128
    assert probe_changes(500, 100, 128)["max_train_images"] == 500
    assert probe_changes(50_000, 1000, 8)["max_train_images"] == 1000
    assert "max_train_images" not in probe_changes(None, 1, 8)


def test_the_pace_is_what_the_steps_say(tmp_path: Path) -> None:
    cell = Cell("kd", 0, tmp_path, {})
    # The first two steps are slow, as they are.
    rows = [{"kind": "train", "images_per_second": rate} for rate in (1, 50, 400, 400, 500)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    provenance = {
        "data": {"train_images": 800},
        "loss_weights": {"task": 0.1, "kd": 0.9},
        "loss_warmup_epochs": {"kd": 3.0},
    }
    (tmp_path / "provenance.yaml").write_text(yaml.safe_dump(provenance))
    (tmp_path / "summary.json").write_text(json.dumps({"seconds": 11.0, "training_seconds": 5.0}))
    pace = read_paces([cell], {tmp_path: 12.0})["kd"]
    assert pace == Pace("kd", 10.0, 1 / 400, 800, {"kd": 0.9}, {"kd": 3.0})
    assert pace.seconds(4000) == pytest.approx(20.0)
    assert read_paces([cell], {}) == {"kd": pace}, "it is kept: a process is timed once"
    assert read_paces([Cell("nkd", 0, tmp_path / "failed", {})], {}) == {}


@pytest.fixture
def fake_cells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Cells learn nothing and take no time; a class in reach fails."""
    monkeypatch.setattr(
        verb, "_make_runner", lambda recipe: Runner(2, say=lambda line: None, command=(sys.executable, str(FAKE)))
    )
    (tmp_path / "broken.py").write_text("from limbeck.losses.kd import KD\n\n\nclass Crash(KD):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)


def asked(out: Path, **options: Any) -> dict[str, Any]:
    models = {"teacher": "limbeck:resnet14", "student": "limbeck:resnet8", "data": "digits"}
    return {**models, "methods": ["none,kd,fitnets"], "seeds": 2, "out": str(out), "report": False, **options}


@pytest.mark.usefixtures("fake_cells")
def test_a_budget_predicts_the_order_and_names_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c"
    limbeck.compare(**asked(out, methods=["none,kd,fitnets,broken:Crash"], budget=4.0, epochs=90))
    said = " ".join(capsys.readouterr().out.split())
    size = json.loads((out / "budget" / "size.json").read_text())
    assert 100 <= size["images"] < 1438 and 3 <= size["epochs"] < 90
    cells = {
        path.parent.name: yaml.safe_load((path / "cell.yaml").read_text()) for path in out.glob("budget/cells/*/seed0")
    }
    assert set(cells) == {"none", "kd", "fitnets"}, "a method that cannot be run at all is not tried again"
    for options in cells.values():
        assert (options["max_train_images"], options["epochs"]) == (size["images"], size["epochs"])
    assert cells["kd"]["method"] == f"kd(warmup_epochs={round(4 * size['epochs'] / 90, 4)})"
    assert "Predicted order: kd" in said and "of 90 epochs" in said and "the network fell over" in said
    assert "kd" in (out / "budget" / "methods.csv").read_text()
    command = said.partition("what may be best: ")[2]
    values = _parse("compare", limbeck.compare, shlex.split(command)[2:])
    assert values["budget"] is None and values["resume"] and values["out"] == str(out) and values["epochs"] == 90
    assert values["methods"][0].startswith("none,kd")
    # The whole comparison follows in the same folder, and says how good the prediction was.
    limbeck.compare(**asked(out, epochs=90, resume=True))
    said = " ".join(capsys.readouterr().out.split())
    assert "Kendall's tau 1.00" in said
    assert (out / "comparison.csv").is_file() and (out / "cells" / "kd" / "seed1" / "summary.json").is_file()


@pytest.mark.usefixtures("fake_cells")
def test_a_budget_that_is_enough_cuts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limbeck.compare(**asked(tmp_path / "c", methods=["kd"], budget=60.0, epochs=5))
    assert "nothing is cut" in capsys.readouterr().out
    assert json.loads((tmp_path / "c" / "budget" / "size.json").read_text()) == {"images": 1438, "epochs": 5}


@pytest.mark.parametrize("options", [{}, {"budget": 5.0}, {"tune": 2}])
def test_where_nothing_can_be_run_the_reason_is_said(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = (sys.executable, "-c", "import sys; sys.exit('limbeck distill: The teacher is near chance.')")
    monkeypatch.setattr(verb, "_make_runner", lambda recipe: Runner(1, say=lambda line: None, command=failing))
    with pytest.raises(UserError, match=r"nothing to compare. none, kd.*: The teacher is near chance\. What"):
        limbeck.compare(**asked(tmp_path / "c", **options))
    assert len(list((tmp_path / "c").glob("*/*/*/failed.txt"))) == 3, "one seed of each method is enough to see it"


def test_where_nothing_could_be_run_it_is_taken_up_with_other_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = (sys.executable, "-c", "import sys; sys.exit('limbeck distill: The images are too few.')")
    runners = [Runner(1, say=print, command=command) for command in (failing, (sys.executable, str(FAKE)))]
    monkeypatch.setattr(verb, "_make_runner", lambda recipe: runners.pop(0))
    with pytest.raises(UserError, match=r"none, kd, fitnets: The images are too few\..*start again with --resume"):
        limbeck.compare(**asked(tmp_path / "c", lr=0.1))
    limbeck.compare(**asked(tmp_path / "c", lr=0.2, resume=True))
    assert yaml.safe_load((tmp_path / "c" / "comparison.yaml").read_text())["lr"] == 0.2
