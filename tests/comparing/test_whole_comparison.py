"""A whole comparison, as commands: stopped, gone on with, one of its methods failing, and read in the end."""

import csv
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import limbeck
from limbeck.run import Run

OPTIONS = shlex.split(
    "--student limbeck:resnet8 --student_size 8 --data digits --epochs 1 --max_train_images 200 --batch_size 64 --lr 0.01 "
    "--num_workers 0 --accelerator cpu --loggers [] --trust_teacher --seeds 2 --methods none,kd,broken:Breaks"
)
BROKEN = """from limbeck.losses.kd import KD


class Breaks(KD):
    def forward(self, student, teacher, target=None):
        raise ValueError("this loss cannot be computed")
"""


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    (folder / "broken.py").write_text(BROKEN)
    limbeck.train(
        model="limbeck:resnet8",
        input_size=8,
        data="digits",
        epochs=1,
        batch_size=64,
        num_workers=0,
        accelerator="cpu",
        progress=False,
        loggers=[],
        report=False,
        out=str(folder / "teacher"),
    )
    return folder


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "limbeck.cli", "compare", *words]


@pytest.fixture(scope="module")
def stopped(where: Path) -> "subprocess.CompletedProcess[str]":
    """It was asked to stop when its second run had begun."""
    process = subprocess.Popen(
        command("--teacher", "teacher", *OPTIONS, "--out", "compared"),
        cwd=where,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    second = where / "compared" / "cells" / "kd" / "seed0" / "log.txt"
    deadline = time.monotonic() + 300
    while process.poll() is None and not second.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


@pytest.fixture(scope="module")
def finished(where: Path, stopped: "subprocess.CompletedProcess[str]") -> "subprocess.CompletedProcess[str]":
    words = command("--config", "compared/comparison.yaml", "--resume")
    return subprocess.run(words, cwd=where, capture_output=True, text=True)


def test_stopped_it_says_how_to_go_on_and_what_is_there(stopped: "subprocess.CompletedProcess[str]") -> None:
    assert stopped.returncode == 130, stopped.stderr
    assert "Go on with: limbeck compare --config compared/comparison.yaml --resume" in stopped.stderr
    assert "none, seed 0: " in stopped.stdout and "kd, seed 0: stopped" in stopped.stdout


def test_it_goes_on_to_its_end(where: Path, finished: "subprocess.CompletedProcess[str]") -> None:
    assert finished.returncode == 0, finished.stderr
    assert "1 are finished" in finished.stdout
    assert "none, seed 0: " not in finished.stdout, "what is finished is not run again"
    assert "broken:Breaks, seed 0 failed: ValueError: this loss cannot be computed" in finished.stdout
    for method in ("none", "kd"):
        for seed in (0, 1):
            run = Run(where / "compared" / "cells" / method / f"seed{seed}")
            assert 0 <= run.accuracy <= 1
            assert (run.recipe["method"], run.recipe["seed"]) == (method, seed)
            assert yaml.safe_load((run.path / "cell.yaml").read_text())["lr"] == 0.01


def test_the_tables_hold_what_the_runs_hold(where: Path, finished: "subprocess.CompletedProcess[str]") -> None:
    out = where / "compared"
    rows = list(csv.DictReader((out / "comparison.csv").open()))
    assert len(rows) == 6 and [row["state"] for row in rows].count("failed") == 2
    for row in rows:
        if row["state"] == "finished":
            run = Run(out / "cells" / row["method"] / f"seed{row['seed']}")
            assert float(row["score"]) == pytest.approx(run.accuracy, abs=1e-6)
    assert json.loads((out / "comparison.json").read_text())
    assert "<html" in (out / "report.html").read_text()


def test_the_same_command_again_trains_nothing(where: Path, finished: "subprocess.CompletedProcess[str]") -> None:
    files = {path: path.stat().st_mtime_ns for path in where.glob("compared/cells/*/*/summary.json")}
    refused = subprocess.run(
        command("--teacher", "teacher", *OPTIONS, "--out", "compared"), cwd=where, capture_output=True, text=True
    )
    assert refused.returncode == 1 and "Add --resume" in refused.stderr
    changed = subprocess.run(
        command("--config", "compared/comparison.yaml", "--resume", "--lr", "0.1"),
        cwd=where,
        capture_output=True,
        text=True,
    )
    assert changed.returncode == 1 and "lr: 0.01 -> 0.1" in changed.stderr
    assert {path: path.stat().st_mtime_ns for path in files} == files
