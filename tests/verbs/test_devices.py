"""Several devices: one run, one folder, every image measured once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import limbeck
from limbeck.errors import UserError
from limbeck.run import Run, choose_run, process_rank


def test_two_processes_make_one_run(teacher_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = (
        f"--teacher {teacher_run.path} --student limbeck:resnet8 --student_size 8 --data digits --method kd --devices 2 "
        f"--accelerator cpu --epochs 2 --lr 0.01 --num_workers 0 --progress false --loggers [] --report false --out {out}"
    ).split()
    done = subprocess.run([sys.executable, "-m", "limbeck.cli", "distill", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Result, last epoch") == 1, "one process speaks"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    assert train[-1]["step"] == 2 * (1438 // 2 // 128), "each process takes half of the images"
    last = [row for row in rows if row["kind"] == "val"][-1]
    # 359 images cannot be shared out evenly; what fills up is not measured.
    assert last["accuracy"] == pytest.approx(limbeck.evaluate(str(out))["accuracy"])


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "1"}, 1),
        ({"NODE_RANK": "2", "LOCAL_RANK": "1"}, 9),
        ({"RANK": "5", "LOCAL_RANK": "1"}, 5),
        ({"SLURM_PROCID": "3"}, 3),
    ],
)
def test_ranks_are_read_from_every_launcher(
    variables: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "LIMBECK_RUN_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert process_rank(devices=4) == rank
    if rank:
        with pytest.raises(UserError, match="--out"):
            choose_run("auto", "train", "m", "d", resume=False)
