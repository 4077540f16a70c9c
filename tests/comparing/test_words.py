import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from limbeck.comparing.outcomes import read_outcomes
from limbeck.comparing.statistics import compare_outcomes
from limbeck.comparing.tables import result_rows, show, write_csv, write_json, write_methods_csv
from limbeck.comparing.words import answer, signed


def said(outcomes):
    return answer(compare_outcomes(outcomes))


def line(found, method):
    return next(text for text in found.lines if text.startswith(f"{method} "))


def test_a_method_that_helps_says_by_how_much_how_surely_and_at_what_cost(make_comparison):
    planted = {"none": 0.0, "kd": {"gain": 0.02, "time": 1.2}, "vitkd+nkd": {"gain": 0.05, "time": 1.31, "memory": 1.5}}
    outcomes = read_outcomes(make_comparison(planted, noise=0.001, images=2000))
    comparison = compare_outcomes(outcomes)
    found = answer(comparison)
    text = line(found, "vitkd+nkd")
    assert re.fullmatch(
        r"vitkd\+nkd helps: \+4\.\d+ points over none \(95 % interval \d\.\d+ to \d\.\d+, 3 seeds\), \+\d\.\d+ over kd "
        r"\(\d\.\d+ to \d\.\d+: better\), at 1\.31 times the time per epoch and 1\.50 times the memory\.",
        text,
    )
    numbers = [float(n) for n in re.findall(r"(\d\.\d+) to (\d\.\d+), 3 seeds", text)[0]]
    interval = comparison.of("vitkd+nkd").against_control.over_seeds
    assert numbers == pytest.approx([100 * interval.low, 100 * interval.high], abs=0.06)
    assert found.conclusion.startswith("vitkd+nkd has the highest mean of the 2 methods that help: +4.")
    assert "and more than kd by" in found.conclusion and found.conclusion.endswith("kd helps too.")
    assert found.lines[0].startswith("none is the control: accuracy 69.97 ± 0.16 %, 3 seeds")


def test_the_notes_say_what_was_compared_and_what_each_interval_means(make_comparison):
    notes = " ".join(said(read_outcomes(make_comparison({"none": 0.0, "kd": 0.02, "x": 0.01}))).notes)
    for words in ("same 1000 validation images", "last epoch", "what other seeds would give", "other images", "Holm"):
        assert words in notes
    assert "3 methods together, 4 degrees of freedom" in notes


def test_nothing_helps(make_outcomes):
    found = said(make_outcomes({"none": [0.70, 0.72, 0.71], "kd": [0.71, 0.71, 0.71], "x": [0.5, 0.52, 0.51]}))
    assert found.conclusion.startswith(
        "Nothing is shown to help: no method is above none by more than chance explains."
    )
    assert "x hurts." in found.conclusion and "stay hidden" in found.conclusion
    assert line(found, "kd").startswith("kd shows no difference: 0.0 points over none (95 % interval")
    assert line(found, "x").startswith("x hurts: \u221220.0 points over none")


def test_one_seed_is_too_few_to_tell(make_comparison):
    found = said(read_outcomes(make_comparison({"none": 0.0, "kd": 0.1}, seeds=1)))
    assert found.conclusion.startswith("Too few seeds to tell: kd is highest with +10.0 points over none")
    assert "three seeds" in found.conclusion
    text = line(found, "kd")
    assert "95 % interval over images alone" in text and "says nothing of other seeds" in text
    assert "helps" not in text
    lower = said(read_outcomes(make_comparison({"none": 0.0, "kd": -0.1}, seeds=1, where="lower")))
    assert "no method is above none" in lower.conclusion


def test_an_interval_that_excludes_zero_is_no_verdict_among_many(make_outcomes):
    rng = np.random.default_rng(0)
    for _ in range(200):
        scores = 0.7 + 0.003 * rng.standard_normal((12, 3))
        names = ["none", *(f"m{k}" for k in range(11))]
        outcomes = make_outcomes(dict(zip(names, scores, strict=True)))
        undecided = [
            r
            for r in compare_outcomes(outcomes).methods
            if r.against_control
            and r.against_control.over_seeds.excludes_zero
            and r.against_control.verdict == "no difference shown"
        ]
        if undecided:
            text = line(said(outcomes), undecided[0].method)
            assert "shows no difference" in text and "not shown once 11 comparisons are allowed for" in text
            return
    raise AssertionError("no such case came up")


def test_a_gain_that_other_images_might_not_show_says_so(make_outcomes):
    rng = np.random.default_rng(0)
    base = rng.random(100) < 0.7
    better = base.copy()
    better[np.flatnonzero(~base)[:2]] = True
    flips = [base, base, base, base], [better, better, better, better]
    text = line(said(make_outcomes({"none": flips[0], "kd": flips[1]})), "kd")
    assert text.startswith("kd helps: +2.0 points") and "other images might not show it" in text


def test_failed_cells_are_named_with_their_reason(make_comparison):
    planted = {
        "none": 0.0,
        "all": {"fails": {0: "No memory left.", 1: "No memory left.", 2: "No memory left."}},
        "some": {"gain": 0.1, "fails": {2: "The loss is NaN"}},
    }
    found = said(read_outcomes(make_comparison(planted)))
    assert line(found, "all") == "all failed in all 3 cells: No memory left."
    assert line(found, "some").endswith("1 of its 3 cells failed: The loss is NaN.")
    assert any("some lacks seed 2" in note for note in found.notes)


def test_conclusions_without_anything_to_conclude_from(make_outcomes):
    outcomes = make_outcomes({"none": [0.5], "kd": [0.6]})
    waiting = [replace(o, state="waiting", score=None) for o in outcomes]
    failed = [replace(o, state="failed", score=None, message="x") for o in outcomes]
    assert said(waiting).conclusion == "No cell has finished yet."
    assert said(waiting).lines == ("none has not finished yet.", "kd has not finished yet.")
    assert said(failed).conclusion == "Every cell failed, so nothing can be said."
    assert said([outcomes[0], waiting[1]]).conclusion.startswith("Only the control has a score so far")
    assert said([failed[0], outcomes[1]]).conclusion.startswith("Without a finished control (method none)")
    assert said(outcomes[1:]).conclusion.startswith("Without a finished control (method none)")


@pytest.mark.parametrize(("value", "text"), [(0.021, "+2.1"), (-0.003, "\u22120.3"), (0.0001, "0.0"), (-0.0001, "0.0")])
def test_differences_are_written_with_their_sign(value, text):
    assert signed(value) == text


def test_detectors_are_spoken_of_in_average_precision(make_comparison):
    found = said(read_outcomes(make_comparison({"none": 0.0, "kd": 0.05}, task="detection", classes=3)))
    assert found.lines[0].startswith("none is the control: AP 69.97 ± 0.15 %")
    assert "chance of the validation images is not told" in " ".join(found.notes)


def test_the_terminal_shows_the_table_and_the_answer(make_comparison):
    planted = {"none": 0.0, "kd(temperature=2)": 0.05, "x": {"fails": {0: None, 1: None, 2: None}}}
    comparison = compare_outcomes(read_outcomes(make_comparison(planted)))
    console = Console(file=io.StringIO(), width=160)
    show(comparison, console)
    text = console.file.getvalue()
    found = answer(comparison)
    for part in (*found.lines, found.conclusion, "kd(temperature=2)", "0 of 3"):
        assert part in text
    header, rows = result_rows(comparison)
    assert [row[0] for row in rows] == ["kd(temperature=2)", "none", "x"]
    assert "seeds" in header and all(len(row) == len(header) for row in rows)


def test_files_hold_the_numbers(make_comparison, tmp_path):
    comparison = compare_outcomes(read_outcomes(make_comparison({"none": 0.0, "kd": 0.05, "x": {"fails": {1: None}}})))
    write_csv(comparison, tmp_path / "comparison.csv")
    write_methods_csv(comparison, tmp_path / "methods.csv")
    write_json(comparison, tmp_path / "comparison.json")
    cells = list(csv.DictReader((tmp_path / "comparison.csv").open()))
    methods = {row["method"]: row for row in csv.DictReader((tmp_path / "methods.csv").open())}
    values = json.loads((tmp_path / "comparison.json").read_text())
    assert len(cells) == 9 and [row["state"] for row in cells].count("failed") == 1
    kd = comparison.of("kd")
    assert [float(row["score"]) for row in cells if row["method"] == "kd"] == [o.score for o in kd.finished]
    assert float(methods["kd"]["over_none"]) == pytest.approx(kd.against_control.mean)
    assert methods["kd"]["over_none_verdict"] == "helps" and methods["kd"]["over_kd"] == ""
    by_name = {m["method"]: m for m in values["methods"]}
    assert by_name["kd"]["differences"]["none"]["1"] == pytest.approx(kd.against_control.values[1])
    assert by_name["kd"]["classes"]["class 3"]["gain"] == pytest.approx(kd.gains.gains[3])
    assert values["conclusion"] == answer(comparison).conclusion and len(values["cells"]) == 9


def test_where_all_but_the_control_failed_no_interval_is_explained(make_comparison):
    fails = dict.fromkeys(range(3), "No memory left.")
    found = said(read_outcomes(make_comparison({"none": 0.0, "kd": {"fails": fails}})))
    assert found.conclusion.startswith("Every method beside the control failed")
    assert not any("ntervals" in note or "chance of the" in note for note in found.notes)


def test_seeds_without_spread_are_not_called_too_few(make_outcomes):
    found = said(make_outcomes({"none": [0.5, 0.5, 0.5], "kd": [0.6, 0.6, 0.6]}))
    assert line(found, "kd").startswith("kd cannot be judged: +10.0 points over none in each of 3 seeds")
    assert "no spread to judge by" in found.conclusion and "one seed" not in found.conclusion


def test_seeds_that_the_control_lacks_are_what_is_missing(make_outcomes):
    outcomes = make_outcomes({"none": [0.5, 0.52, 0.51], "kd": [0.6, 0.61, 0.63]})
    without = [replace(o, state="waiting", score=None) if o.method == "none" and o.seed else o for o in outcomes]
    found = said(without)
    assert line(found, "kd").startswith("kd has too few seeds in common with none to tell: +10.0 points")
    assert "only seed 0 of it has a finished none" in found.conclusion
    apart = said([o for o in without if (o.method, o.seed) != ("kd", 0)])
    assert apart.conclusion.startswith("No method shares a finished seed with the control none")
