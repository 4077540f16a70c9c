import json
import shutil

import numpy as np
import pytest

from limbeck.comparing.base import Cell
from limbeck.comparing.outcomes import LONGEST_MESSAGE, last_error, read_outcome, read_outcomes
from limbeck.comparing.plan import finished


def test_a_finished_cell_says_what_its_files_say(make_comparison):
    cells = make_comparison({"none": 0.0, "kd": {"gain": 0.05, "time": 1.5, "memory": 2.0}}, seeds=1)
    outcome = read_outcome(cells[1])
    summary = json.loads((cells[1].folder / "summary.json").read_text())
    arrays = np.load(cells[1].folder / "predictions.npz")
    assert (outcome.method, outcome.seed, outcome.state, outcome.message) == ("kd", 0, "finished", "")
    assert outcome.score == summary["accuracy"]["last"] == outcome.right.mean()
    assert outcome.agreement == summary["agreement"] and outcome.teacher_score == summary["teacher_accuracy"]
    assert outcome.peak_memory == 2e9 and outcome.epochs == 8 and outcome.score_name == "accuracy"
    assert np.array_equal(outcome.right, arrays["student_logits"].argmax(1) == arrays["labels"])
    # Every epoch took 15 s; the first one's three further seconds do not count.
    assert outcome.seconds_per_epoch == pytest.approx(15.0)
    assert outcome.curve.shape == (8, 2) and outcome.curve[0, 0] == pytest.approx(18.0)
    by_hand = {f"class {k}": outcome.right[outcome.labels == k].mean() for k in range(10)}
    assert outcome.class_scores == pytest.approx(by_hand)


def test_detectors_are_read_by_their_average_precision(make_comparison):
    outcome = read_outcome(make_comparison({"none": 0.0}, seeds=1, task="detection", classes=4)[0])
    assert outcome.score_name == "AP" and outcome.state == "finished"
    assert outcome.right is None and outcome.agreement is None and outcome.teacher_score == 0.8
    assert list(outcome.class_scores) == [f"class {k}" for k in range(4)]


def test_the_last_epoch_ends_the_curve_though_it_was_measured_after_training(make_comparison):
    cell = make_comparison({"none": 0.0}, seeds=1)[0]
    lines = (cell.folder / "metrics.jsonl").read_text().splitlines()
    (cell.folder / "metrics.jsonl").write_text("\n".join(lines[1::3]))  # epochs 1, 4 and 7 of 0 to 7
    assert read_outcome(cell).curve[:, 0].tolist() == [23.0, 53.0, 83.0]
    (cell.folder / "metrics.jsonl").write_text("\n".join(lines[1:6:3]))
    outcome = read_outcome(cell)
    assert outcome.curve[-1].tolist() == [83.0, outcome.score]
    # Two measurements are too few for a median: all of the training by its epochs.
    assert outcome.seconds_per_epoch == pytest.approx(83 / 8)


def test_failed_and_waiting_cells_are_told_apart(make_comparison):
    cells = make_comparison({"kd": {"fails": {0: "The GPU's memory is too small.", 1: None}}}, seeds=4)
    (cells[2].folder / "summary.json").unlink()
    missing = Cell("kd", 9, cells[0].folder / "nowhere", {})
    said, logged, stopped, whole, nothing = read_outcomes([*cells, missing])
    assert (said.state, said.message) == ("failed", "The GPU's memory is too small.")
    assert (logged.state, logged.message) == ("failed", "RuntimeError: it broke")
    assert (stopped.state, nothing.state) == ("waiting", "waiting")
    assert whole.state == "finished"
    # What an unfinished cell has measured so far is no score.
    assert said.score is None and stopped.score is None and len(said.curve) == 2


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("step 1\rstep 2\nTraceback\n  File x\ntorch.OutOfMemoryError: CUDA out of memory.\n", "CUDA out of memory"),
        ("\nlimbeck distill: --data none needs --synthesis.\n", "--data none needs --synthesis."),
        ("ValueError: first\nlater words\nRuntimeError: second\nCompile with X\n", "RuntimeError: second"),
        ("KeyError\n", "KeyError"),
        ("limbeck distill: Add --trust_teacher.\nException ignored\nOSError: late\n", "Add --trust_teacher."),
    ],
)
def test_the_last_error_of_a_log(log, reason):
    assert reason in last_error(log)


@pytest.mark.parametrize(
    "log",
    [
        "",
        "all is well\nerror rate 0.2\n",
        "ValueError: an old one\nlimbeck distill: stopped at once.\n",
        "Traceback\nKeyboardInterrupt\n",
        "limbeck distill: Stopped on request; last.ckpt holds everything.\n",
    ],
)
def test_logs_without_an_error_or_stopped_by_a_person_have_none(log):
    assert last_error(log) is None


def test_nothing_in_a_folder_makes_reading_fail(make_comparison, tmp_path):
    whole = make_comparison({"none": 0.0}, seeds=1)[0]
    for file in [f.name for f in whole.folder.iterdir()]:
        for content in (None, b"", b"\x00\xff{", "half"):
            copy = tmp_path / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(whole.folder, copy)
            data = (copy / file).read_bytes()
            (copy / file).unlink()
            if content is not None:
                (copy / file).write_bytes(data[: len(data) // 2] if content == "half" else content)
            outcome = read_outcome(Cell("none", 0, copy, {}))
            expected = "waiting" if file == "summary.json" else "finished"
            assert outcome.state == expected, (file, content)
    for content in (None, b"", b"[1, 2]", b'{"accuracy": 3}'):
        copy = tmp_path / "bare"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        if content is not None:
            (copy / "summary.json").write_bytes(content)
        assert read_outcome(Cell("none", 0, copy, {})).score is None


def test_a_long_message_keeps_what_was_wrong_and_what_to_do():
    whole = "What was wrong. " + "x" * 500 + " Add --trust_teacher."
    assert last_error(f"limbeck distill: {whole}\n") == whole
    cut = last_error(f"limbeck distill: {whole.replace('x', 'xyz')}\n")
    assert cut.startswith("What was wrong.") and cut.endswith("Add --trust_teacher.") and " … " in cut
    assert len(cut) <= LONGEST_MESSAGE


@pytest.mark.parametrize(
    "content", ["", '{"accuracy": {"la', "[1, 2]", '{"accuracy": {"last": NaN}}', '{"accuracy": 3}']
)
def test_whether_a_cell_has_finished_is_read_in_one_way(content, make_comparison):
    cell = make_comparison({"none": 0.0}, seeds=1)[0]
    assert finished(cell) and read_outcome(cell).state == "finished"
    (cell.folder / "summary.json").write_text(content)
    assert not finished(cell) and read_outcome(cell).state != "finished"


def test_a_score_that_is_no_number_is_a_failure(make_comparison):
    cell = make_comparison({"none": 0.0}, seeds=1)[0]
    (cell.folder / "summary.json").write_text('{"accuracy": {"last": NaN}}')
    outcome = read_outcome(cell)
    assert outcome.state == "failed" and "score is nan" in outcome.message and "--lr" in outcome.message


def test_a_run_that_could_not_be_measured_has_failed(make_comparison):
    cell = make_comparison({"none": 0.0}, seeds=1)[0]
    summary = json.loads((cell.folder / "summary.json").read_text())
    (cell.folder / "summary.json").write_text(json.dumps(summary | {"accuracy": {"last": None}}))
    outcome = read_outcome(cell)
    assert outcome.state == "failed" and "no labelled validation images" in outcome.message


def test_classes_of_one_name_are_kept_apart(make_comparison):
    cell = make_comparison({"none": 0.0}, seeds=1, classes=3, names=["crane", "dog", "crane"])[0]
    assert list(read_outcome(cell).class_scores) == ["crane (0)", "dog", "crane (2)"]
