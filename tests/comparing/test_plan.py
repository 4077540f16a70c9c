"""What a comparison is made of: methods told apart, folders of their own, options as a run takes them."""

import inspect
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.cli import _parse
from limbeck.comparing.base import Cell
from limbeck.comparing.methods import (
    check_shares,
    read_methods,
    shares_for,
    terms,
    with_options,
    with_shorter_warmups,
)
from limbeck.comparing.plan import (
    choose_folder,
    claimed,
    make_cells,
    require_same,
    slug,
    write_cell,
    write_recipe,
)
from limbeck.comparing.recipe import CompareRecipe, command_line, options_of_runs
from limbeck.errors import UserError
from limbeck.losses.names import parse_methods
from limbeck.recipe import DistillRecipe, as_plain
from limbeck.run import Run
from limbeck.verbs.compare import _how_to_go_on, compare


def recipe(**options: Any) -> CompareRecipe:
    return CompareRecipe(**{"teacher": "t", "student": "s", "data": "digits", "methods": ["none", "kd"]} | options)


def test_commas_outside_brackets_separate_methods() -> None:
    asked = ["none,kd, vitkd+nkd(gamma=1.0, weight=0.5)", "fitnets"]
    assert read_methods(asked, "classification") == (
        ["none", "kd", "vitkd+nkd(gamma=1.0, weight=0.5)", "fitnets"],
        [],
    )


def test_a_text_is_one_list_of_methods() -> None:
    assert recipe(methods="none,kd").methods == ["none,kd"]


def test_the_control_is_added_and_a_method_is_compared_once() -> None:
    methods, notes = read_methods(["KD,kd", "kd(temperature=4.0)", "kd(temperature=4)", "auto"], "classification")
    assert methods == ["none", "KD", "kd(temperature=4.0)"]
    assert len(notes) == 4 and "The control none is added" in notes[-1]


@pytest.mark.parametrize("texts", [["none"], [""], ["kd,,none"], ["kd,no_such_method"], ["kd(weight=1"]])
def test_what_is_no_list_of_methods_is_refused(texts: list[str]) -> None:
    with pytest.raises(UserError):
        read_methods(texts, "classification")


def test_options_are_set_on_the_term_that_is_meant() -> None:
    method = "kd+kd(temperature=2.0)+limbeck.losses.nkd:NKD(gamma=1.0)"
    assert list(terms(method)) == ["kd", "kd#2", "NKD"]
    changed = with_options(method, {"kd#2": {"weight": 0.5}, "NKD": {"gamma": 2.0}})
    assert changed == "kd+kd(temperature=2.0, weight=0.5)+limbeck.losses.nkd:NKD(gamma=2.0)"
    assert parse_methods(with_options(changed, {"kd": {"weight": 1.0}}))[1:] == parse_methods(changed)[1:]
    assert with_options(method, {}) == method


def test_warmups_shrink_with_the_epochs() -> None:
    assert with_shorter_warmups("reviewkd(warmup_epochs=20)+kd", {"reviewkd": 20.0, "kd": 0.0}, 0.1) == (
        "reviewkd(warmup_epochs=2.0)+kd"
    )
    assert with_shorter_warmups("none", {}, 0.1) == "none"


def test_shares_belong_to_the_methods_that_have_the_terms() -> None:
    assert shares_for("kd+fitnets", "kd=0.5,nkd=0.2") == "kd=0.5"
    assert shares_for("none", "kd=0.5") is None
    check_shares(["none", "kd"], "kd=0.5")
    with pytest.raises(UserError, match="nkd, which no method has"):
        check_shares(["none", "kd"], "kd=0.5,nkd=0.2")


def test_shares_have_to_fit_into_each_method() -> None:
    check_shares(["kd", "nkd"], "kd=0.6,nkd=0.6")
    assert shares_for("nkd", "kd=0.6,nkd=0.6") == "nkd=0.6"
    with pytest.raises(UserError, match=r"the shares of kd\+nkd add up to 1\.2"):
        check_shares(["kd", "kd+nkd"], "kd=0.6,nkd=0.6")
    with pytest.raises(UserError, match=r"100 % of the pull of kd\+nkd, and nothing is left for nkd"):
        check_shares(["kd+nkd"], "kd=1")
    with pytest.raises(UserError, match="names kd twice"):
        check_shares(["kd"], "kd=0.2,kd=0.3")


def test_every_method_has_a_readable_folder_of_its_own() -> None:
    methods = [
        "kd",
        "kd(temperature=2.0)",
        "kd(temperature=2,0)",
        "kd (temperature=2.0)",
        "a.b:C",
        "a.b_C",
        "x" * 99,
        "x" * 98,
    ]
    slugs = [slug(method) for method in methods]
    assert len(set(slugs)) == len(methods)
    assert slugs[0] == "kd" and slugs[1].startswith("kd_temperature=2.0-")
    assert all(len(name) <= 70 and "/" not in name and "(" not in name for name in slugs)


def test_cells_are_what_distill_takes(tmp_path: Path) -> None:
    asked = recipe(methods=["none", "kd"], seeds=2, seed=5, epochs=3, lr=0.1, balance="kd=0.5")
    cells = make_cells(asked, ["none", "kd"], tmp_path, changes={"epochs": 1}, given={"kd": "kd(warmup_epochs=1)"})
    assert [(cell.method, cell.seed) for cell in cells] == [("none", 5), ("none", 6), ("kd", 5), ("kd", 6)]
    assert cells[3].folder == tmp_path / "kd" / "seed6"
    run = DistillRecipe(**cells[3].options)
    run.check()
    assert (run.method, run.seed, run.epochs, run.lr, run.balance) == ("kd(warmup_epochs=1)", 6, 1, 0.1, "kd=0.5")
    assert DistillRecipe(**cells[0].options).balance is None
    file = tmp_path / "cell.yaml"
    file.write_text(yaml.safe_dump(cells[3].options))
    from limbeck.verbs.distill import distill

    assert as_plain(DistillRecipe(**_parse("distill", distill, ["--config", str(file)]))) == as_plain(run)


def test_the_command_line_says_the_recipe_again(tmp_path: Path) -> None:
    asked = recipe(
        methods=["none", "vitkd+nkd(gamma=1.0, weight=0.5)"],
        crop_scale=[0.2, 1.0],
        loggers=[],
        lr=3e-4,
        ema=0.99,
        out="a folder",
        resume=True,
        nesterov=False,
    )
    words = shlex.split(command_line(asked))
    assert words[:2] == ["limbeck", "compare"] and "--momentum" not in words
    parsed = CompareRecipe(**_parse("compare", compare, words[2:]))
    assert options_of_runs(parsed) == options_of_runs(asked)
    assert read_methods(parsed.methods, "classification")[0] == asked.methods
    write_recipe(asked, tmp_path)
    again = CompareRecipe(**_parse("compare", compare, ["--config", str(tmp_path / "comparison.yaml"), "--resume"]))
    assert again == replace(asked, out=str(tmp_path), crop_scale=again.crop_scale)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "nkd"}, "--methods nkd"),
        ({"control": ["runs/a"]}, "--control"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"jobs": 0}, "--jobs is 0"),
        ({"nodes": 2}, "--nodes is 2"),
        ({"budget": 0.0}, "--budget is 0"),
        ({"tune": -1}, "--tune is -1"),
        ({"data": "none", "budget": 1.0}, "limbeck synthesize"),
        ({"tune": 3, "balance": "kd=0.5"}, "--balance"),
    ],
)
def test_impossible_options_are_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        recipe(**options).check()


def test_a_comparison_is_taken_up_only_with_its_own_options(tmp_path: Path) -> None:
    out = str(tmp_path / "c")
    with pytest.raises(UserError, match="nothing to resume"):
        choose_folder(recipe(out=out, resume=True))
    first = recipe(out=out, lr=0.1)
    folder = choose_folder(first)
    folder.mkdir()
    write_recipe(first, folder)
    with pytest.raises(UserError, match="already holds a comparison"):
        choose_folder(first)
    # Where no run came to anything, what was wrong may be put right.
    changed = recipe(out=out, lr=0.2, resume=True)
    assert choose_folder(changed) == folder
    checkpoint = Run(folder / "cells" / "kd" / "seed0").last_checkpoint
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    more = recipe(out=out, lr=0.1, resume=True, seeds=9, methods=["kd,nkd"], jobs=4, budget=3.0, tune=2)
    assert choose_folder(more) == folder
    with pytest.raises(UserError, match=r"lr: 0\.1 -> 0\.2"):
        choose_folder(changed)
    assert choose_folder(recipe(out=out, lr=0.1, resume=True, trust_teacher=True)) == folder
    for damage in ("", "[1", "lr"):
        (folder / "comparison.yaml").write_text(damage)
        with pytest.raises(UserError, match=r"comparison\.yaml cannot be read.*another --out"):
            choose_folder(replace(first, resume=True))


def test_one_process_holds_a_comparison(tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "c"),
        pytest.raises(UserError, match="Another process is at work"),
        claimed(tmp_path / "c"),
    ):
        pass
    with claimed(tmp_path / "c"):
        pass


def test_a_finished_run_is_kept_if_nothing_asked_for_differs(tmp_path: Path) -> None:
    asked = make_cells(recipe(seeds=1, lr="auto", epochs=3), ["kd(temperature=2)"], tmp_path)[0]
    require_same(asked)  # nothing there
    run = Run(asked.folder)
    # A run's recipe has every "auto" decided, and may lack options that are younger than it.
    resolved = {name: value for name, value in asked.options.items() if name != "balance"}
    resolved |= {
        "lr": 0.0123,
        "method": "kd( temperature=2.0 )",
        "out": "elsewhere",
        "num_workers": 3,
        "batch_size": 128,
    }
    run.make()
    run.write_recipe(resolved)
    run.write_summary({"accuracy": {"last": 0.5}})
    require_same(asked)
    for name, value, said in (("lr", 0.5, "lr: 0.0123 -> 0.5"), ("epochs", 4, "epochs: 3 -> 4")):
        with pytest.raises(UserError, match=said):
            require_same(Cell(asked.method, 0, asked.folder, asked.options | {name: value}))
    with pytest.raises(UserError, match="temperature"):
        require_same(Cell(asked.method, 0, asked.folder, asked.options | {"method": "kd(temperature=3)"}))


def test_a_run_whose_recipe_cannot_be_read_is_named(tmp_path: Path) -> None:
    (cell,) = make_cells(recipe(seeds=1), ["kd"], tmp_path)
    run = Run(cell.folder)
    run.make()
    run.write_summary({"accuracy": {"last": 0.5}})
    for damage in (None, "", "lr: [0.1"):
        if damage is not None:
            (cell.folder / "recipe.yaml").write_text(damage)
        with pytest.raises(
            UserError, match=r"kd/seed0/recipe\.yaml cannot be read.*Delete .*kd/seed0 to train it anew"
        ):
            require_same(cell)
    (cell.folder / "summary.json").write_text("{")
    require_same(cell)  # it has neither a result nor a checkpoint, and is begun anew


def test_a_run_goes_on_with_its_own_trust_in_the_teacher(tmp_path: Path) -> None:
    (cell,) = make_cells(recipe(seeds=1, trust_teacher=True), ["kd"], tmp_path)
    assert yaml.safe_load(write_cell(cell).read_text())["trust_teacher"] is True
    run = Run(cell.folder)
    run.write_recipe(cell.options | {"trust_teacher": False})
    run.last_checkpoint.parent.mkdir()
    run.last_checkpoint.touch()
    require_same(cell)
    assert yaml.safe_load(write_cell(cell).read_text())["trust_teacher"] is False


def test_the_way_to_go_on_can_be_pasted() -> None:
    assert shlex.split(_how_to_go_on(Path("a folder")))[-2:] == ["a folder/comparison.yaml", "--resume"]


def test_every_option_is_documented_and_help_loads_nothing_heavy() -> None:
    documentation = "".join(inspect.getdoc(parent) or "" for parent in CompareRecipe.__mro__[:-1])
    for name in inspect.signature(CompareRecipe).parameters:
        assert f"\n    {name}: " in documentation, name
    code = (
        "import sys, limbeck.verbs.compare\n"
        "print([n for n in ('torch', 'timm', 'lightning', 'sklearn', 'optuna', 'plotly') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_way_to_go_on_with_a_run_can_be_pasted_too() -> None:
    from limbeck.training.checkpoints import Checkpoints

    with pytest.raises(UserError, match="--out 'a folder' --resume"):
        Checkpoints(Run("a folder"))._stop()
