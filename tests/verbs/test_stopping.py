"""A run may be stopped at any moment: killed, interrupted, out of space, out of numbers."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck
from limbeck.errors import UserError
from limbeck.run import Run

COMMAND = [
    sys.executable,
    "-m",
    "limbeck.cli",
    "distill",
    "--student",
    "limbeck:resnet8",
    "--student_size",
    "8",
    "--data",
    "digits",
]
OPTIONS = [
    "--method",
    "kd+reviewkd+vitkd",
    "--epochs",
    "4",
    "--batch_size",
    "64",
    "--mixup",
    "0.4",
    "--ema",
    "0.9",
    "--random_erasing",
    "0.3",
    "--accelerator",
    "cpu",
    "--num_workers",
    "0",
    "--progress",
    "false",
    "--loggers",
    "[]",
    "--report",
    "false",
    "--log_every",
    "1",
    "--checkpoint_steps",
    "5",
]


def command(teacher: Run, out: Path, *more: str) -> list[str]:
    return [*COMMAND, "--teacher", str(teacher.path), "--out", str(out), *OPTIONS, *more]


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(Run(run).last_checkpoint, weights_only=True)["state_dict"]
    return state


def wait_for_lines(file: Path, lines: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if file.is_file() and len(file.read_text().splitlines()) >= lines:
            return
        time.sleep(0.005)


@pytest.fixture(scope="module")
def uninterrupted(teacher_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(teacher_run, out), check=True, capture_output=True)
    return out


def test_killed_at_random_moments_and_resumed_it_ends_bit_for_bit_the_same(
    teacher_run: Run, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    chance = random.Random(7)
    metrics = out / "metrics.jsonl"
    kills = 0
    for lines in (3, 12, 38, 61):
        resume = ["--resume", "true"] if Run(out).last_checkpoint.is_file() else []
        if not resume and out.exists():
            subprocess.run(["rm", "-r", str(out)], check=True)
        process = subprocess.Popen(
            command(teacher_run, out, *resume), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        wait_for_lines(metrics, lines, process)
        time.sleep(chance.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if Run(out).last_checkpoint.is_file():
            torch.load(Run(out).last_checkpoint, weights_only=True)  # never half-written
    assert kills >= 3, "the run was too quick to be killed"
    resume = ["--resume", "true"] if Run(out).last_checkpoint.is_file() else []
    subprocess.run(command(teacher_run, out, *resume), check=True, capture_output=True)
    whole, resumed = weights(uninterrupted), weights(out)
    assert whole.keys() == resumed.keys()
    different = [name for name in whole if not torch.equal(whole[name], resumed[name])]
    assert different == []
    assert (out / "student.safetensors").read_bytes() == (uninterrupted / "student.safetensors").read_bytes()
    steps = [[row["step"] for row in limbeck_records(run) if row["kind"] == "train"] for run in (uninterrupted, out)]
    assert steps[0] == steps[1], "no step is recorded twice or left out"


def limbeck_records(run: Path) -> list[dict[str, Any]]:
    from limbeck.training.records import read_records

    return read_records(Run(run).metrics_file)


def test_ctrl_c_leaves_a_clean_checkpoint_and_says_how_to_go_on(
    teacher_run: Run, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(command(teacher_run, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_lines(out / "metrics.jsonl", 8, process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "--resume" in said
    assert "Traceback" not in said
    assert not list(out.rglob("*.partial"))
    subprocess.run(command(teacher_run, out, "--resume", "true"), check=True, capture_output=True)
    assert (out / "student.safetensors").read_bytes() == (uninterrupted / "student.safetensors").read_bytes()


def test_resuming_with_another_recipe_is_refused_by_name(teacher_run: Run, uninterrupted: Path) -> None:
    done = subprocess.run(
        command(teacher_run, uninterrupted, "--resume", "true", "--lr", "0.5"), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "lr: " in done.stderr
    assert "-> 0.5" in done.stderr


def test_a_folder_with_a_run_is_not_overwritten(teacher_run: Run, uninterrupted: Path) -> None:
    done = subprocess.run(command(teacher_run, uninterrupted), capture_output=True, text=True)
    assert done.returncode == 1
    assert "already holds a run" in done.stderr


def test_a_loss_that_is_no_number_stops_with_its_name(teacher_run: Run, tmp_path: Path, tiny: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"loss term .* is (nan|inf) at step \d+.*bad_batch_step"):
        limbeck.distill(
            teacher=str(teacher_run.path),
            student="limbeck:resnet8",
            student_size=8,
            method="kd(weight=1e30)+reviewkd",
            epochs=2,
            optimizer="sgd",
            lr=1e6,
            out=str(tmp_path / "run"),
            report=False,
            **tiny,
        )
    assert len(list((tmp_path / "run").glob("bad_batch_step*.safetensors"))) == 1


def test_a_full_disk_keeps_the_last_good_checkpoint(teacher_run: Run, tmp_path: Path) -> None:
    """A real limit on the size of files, reached when the second checkpoint would be larger than the first allowed."""
    out = tmp_path / "run"
    limit = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, {os.sysconf('SC_PAGE_SIZE') * 10**6})); "
    )
    code = limit + f"import sys; from limbeck.cli import main; sys.exit(main({command(teacher_run, out)[3:]!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "No space to write" in done.stderr
    assert "last.ckpt" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.rglob("*.partial"))


def test_killed_between_two_epochs_it_goes_on_with_the_second_ones_batches(
    teacher_run: Run, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import limbeck.training.fit
    from limbeck.training.checkpoints import Checkpoints

    class DiesAfterAnEpoch(Checkpoints):
        def on_train_epoch_end(self, *values: Any) -> None:
            super().on_train_epoch_end(*values)
            raise RuntimeError("no power")

    values = tiny | {"model": "limbeck:resnet8", "input_size": 8, "epochs": 2, "batch_size": 256, "report": False}
    whole = limbeck.train(out=str(tmp_path / "whole"), **values)
    monkeypatch.setattr(limbeck.training.fit, "Checkpoints", DiesAfterAnEpoch)
    with pytest.raises(RuntimeError, match="no power"):
        limbeck.train(out=str(tmp_path / "killed"), **values)
    monkeypatch.undo()
    resumed = limbeck.train(out=str(tmp_path / "killed"), resume=True, **values)
    first, second = weights(whole.path), weights(resumed.path)
    assert all(torch.equal(first[name], second[name]) for name in first)
