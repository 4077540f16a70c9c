"""The search for weights and temperatures starts at the method as written, improves on it, and uses images apart."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

pytest.importorskip("optuna")

import limbeck
from limbeck.comparing.base import Cell
from limbeck.comparing.plan import slug
from limbeck.comparing.runner import Runner
from limbeck.comparing.tuning import Knob, Trial, best_of, knobs_of, search, write_values
from limbeck.comparing.tuning_images import write_tuning_images
from limbeck.data.base import DataSet
from limbeck.data.door import open_data
from limbeck.errors import UserError
from limbeck.losses.names import parse_methods
from limbeck.verbs import compare as verb

FAKE = Path(__file__).parent / "fake_cell.py"


class World:
    """Where the best temperature is 8 and the best weight 0.3; counts the runs that are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[str] = []
        self.stop_at: int | None = None

    def cell(self, text: str) -> Cell:
        return Cell(text, 9, self.folder / "cells" / slug(text), {"method": text})

    def run(self, cells: list[Cell]) -> None:
        for cell in cells:
            if (cell.folder / "summary.json").exists():
                continue
            if self.stop_at == len(self.made):
                raise KeyboardInterrupt
            self.made.append(cell.method)
            (spec,) = parse_methods(cell.method)
            temperature, weight = spec.options.get("temperature", 4.0), spec.options.get("weight", 0.9)
            score = 0.8 - 0.1 * np.log(temperature / 8) ** 2 - 0.02 * np.log(weight / 0.3) ** 2
            cell.folder.mkdir(parents=True)
            (cell.folder / "summary.json").write_text(json.dumps({"accuracy": {"last": score}}))

    def search(self, trials: int, jobs: int = 1) -> list[Trial]:
        return search(
            "kd", {"kd": 0.9}, self.folder, trials=trials, seed=0, jobs=jobs, make_cell=self.cell, run=self.run
        )


def test_weights_and_temperatures_are_searched_around_what_is_written() -> None:
    assert knobs_of("kd+fitnets(weight=10.0)", {"kd": 0.9, "fitnets": 10.0}) == [
        Knob("kd", "weight", 0.9, 0.09, 9.0),
        Knob("kd", "temperature", 4.0, 1.0, 16.0),
        Knob("fitnets", "weight", 10.0, 1.0, 100.0),
    ]
    assert [knob.default for knob in knobs_of("kd(temperature=2)+kd", {"kd": 0.0, "kd#2": 0.5})] == [2, 0.5, 4.0]


def test_values_are_written_into_the_method() -> None:
    knobs = knobs_of("kd+kd(temperature=2.0)", {"kd": 0.9, "kd#2": 0.9})
    values = {knob.name: knob.default for knob in knobs}
    assert write_values("kd+kd(temperature=2.0)", knobs, values) == "kd+kd(temperature=2.0)"
    values["kd#2.temperature"] = 3.14159
    assert write_values("kd+kd(temperature=2.0)", knobs, values) == "kd+kd(temperature=3.14)"


def test_a_search_begins_with_the_method_as_written_and_improves_on_it(tmp_path: Path) -> None:
    trials = World(tmp_path).search(15)
    assert [trial.number for trial in trials] == list(range(15))
    assert trials[0].text == "kd" and trials[0].values == {"kd.weight": 0.9, "kd.temperature": 4.0}
    best = best_of(trials)
    assert best is not None and best.score is not None and trials[0].score is not None
    assert best.score > trials[0].score + 0.02
    assert 5 < best.values["kd.temperature"] < 13


def test_a_search_goes_on_where_it_was_stopped_and_ends_the_same(tmp_path: Path) -> None:
    whole = World(tmp_path / "whole").search(6)
    stopped = World(tmp_path / "stopped")
    stopped.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        stopped.search(6)
    stopped.stop_at = None
    again = stopped.search(6)
    assert [(t.text, t.score) for t in again] == [(t.text, t.score) for t in whole]
    made = len(stopped.made)
    assert stopped.search(6) == again and len(stopped.made) == made, "what is done is not done again"
    more = stopped.search(8)
    assert more[:6] == again and len(more) == 8


def test_a_trial_that_fails_is_no_end(tmp_path: Path) -> None:
    world = World(tmp_path)

    def run(cells: list[Cell]) -> None:
        world.run(cells[1:])
        cells[0].folder.mkdir(parents=True, exist_ok=True)
        (cells[0].folder / "failed.txt").write_text("The loss is not a number.\n")

    trials = search("kd", {"kd": 0.9}, tmp_path, trials=4, seed=0, jobs=2, make_cell=world.cell, run=run)
    assert [trial.score is None for trial in trials] == [True, False, True, False]
    assert trials[0].message == "The loss is not a number."
    best = best_of(trials)
    assert best is not None and best.number in (1, 3)
    assert best_of(trials[:1]) is None


def pixels(data: DataSet, split: str) -> list[bytes]:
    source = getattr(data, split)
    return [np.asarray(source.read(index)).tobytes() for index in range(len(source))]


def test_no_validation_image_is_tuned_on(tmp_path: Path) -> None:
    data = open_data("digits")
    name = write_tuning_images(data, 300, tmp_path, seed=0)
    assert name is not None
    tuned_on = open_data(name)
    assert tuned_on.class_names == data.class_names and tuned_on.val is not None and data.val is not None
    assert len(tuned_on.train) == 300 and len(tuned_on.val) == len(data.val)
    known = dict(zip(pixels(data, "train"), data.train.labels, strict=True))
    validation = set(pixels(data, "val")) - set(known)  # a few drawings are there twice
    for split in ("train", "val"):
        shown = pixels(tuned_on, split)
        assert not validation & set(shown)
        assert [known[image] for image in shown] == list(getattr(tuned_on, split).labels)
    twice = set(pixels(tuned_on, "train")) & set(pixels(tuned_on, "val"))
    assert len(twice) <= 2


def test_photographs_of_several_sizes_are_linked_to(tmp_path: Path) -> None:
    for number in range(24):
        file = tmp_path / "photos" / ("train" if number < 16 else "val") / f"class_{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + number, 10), (number, 0, 0)).save(file)
    data = open_data(str(tmp_path / "photos"))
    name = write_tuning_images(data, 100, tmp_path / "tuning", seed=0)
    assert name is not None
    tuned_on = open_data(name)
    assert tuned_on.class_names == data.class_names and tuned_on.val is not None
    assert (len(tuned_on.train), len(tuned_on.val)) == (12, 4)
    assert set(pixels(tuned_on, "train")) | set(pixels(tuned_on, "val")) == set(pixels(data, "train"))


def test_images_that_cannot_be_held_out_are_not_made_up(tmp_path: Path) -> None:
    for number in range(4):
        file = tmp_path / "photos" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
    assert write_tuning_images(open_data(str(tmp_path / "photos")), 100, tmp_path / "tuning", seed=0) is None


def compare(out: Path, **options: Any) -> list[str]:
    found = limbeck.compare(
        teacher="limbeck:resnet14",
        student="limbeck:resnet8",
        data="digits",
        methods=["none", "kd"],
        seeds=2,
        tune=8,
        epochs=20,
        out=str(out),
        report=False,
        **options,
    )
    return [method.method for method in found.methods]


def test_the_tuned_method_stands_beside_the_one_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        verb, "_make_runner", lambda recipe: Runner(2, say=lambda line: None, command=(sys.executable, str(FAKE)))
    )
    out = tmp_path / "c"
    methods = compare(out)
    assert methods[:2] == ["none", "kd"] and methods[2].startswith("kd(") and "temperature=" in methods[2]
    assert "no say in it" in " ".join(capsys.readouterr().out.split())
    rows = list(csv.DictReader((out / "tuning.csv").open()))
    assert len(rows) == 8 and rows[0]["text"] == "kd"
    assert max(rows, key=lambda row: float(row["score"]))["text"] == methods[2]
    for file in out.glob("tuning/cells/*/*/cell.yaml"):
        options = yaml.safe_load(file.read_text())
        assert options["data"] == str(out / "tuning" / "images.npz") and options["val_data"] is None
        assert options["seed"] == 10_000, "the comparison's seeds are 0 and 1"
        assert options["epochs"] < 20 and "warmup_epochs" in options["method"]
    for file in out.glob("cells/*/*/cell.yaml"):
        options = yaml.safe_load(file.read_text())
        assert (options["data"], options["epochs"]) == ("digits", 20)
        assert slug(options["method"]) == file.parent.parent.name
    assert compare(out, resume=True) == methods


def test_optuna_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"limbeck\[tune\]"):
        compare(tmp_path / "c", loggers=[])
