"""Cells as processes: failures stay their own, a stop leaves checkpoints and no process, what is finished stays."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from limbeck.comparing.base import Cell
from limbeck.comparing.outcomes import read_outcome
from limbeck.comparing.plan import claimed
from limbeck.comparing.runner import (
    NothingWorksError,
    Runner,
    StopAskedError,
    TimeUpError,
    cpu_environment,
    duration,
    gpu_environments,
)
from limbeck.errors import UserError
from limbeck.run import Run

FAKE = Path(__file__).parent / "fake_cell.py"
COMMAND = (sys.executable, str(FAKE))


def cells(folder: Path, *methods: str, seeds: int = 1) -> list[Cell]:
    return [
        Cell(method, seed, folder / method / f"seed{seed}", {"method": given(method), "seed": seed, "epochs": 1})
        for seed in range(seeds)
        for method in methods
    ]


def given(method: str) -> str:
    return method if method in ("none", "kd") else f"fake:{method}"


def log_of(cell: Cell) -> str:
    return (cell.folder / "log.txt").read_text()


def states(made: list[Cell]) -> list[str]:
    return [read_outcome(cell).state for cell in made]


def alive(process: int) -> bool:
    file = Path(f"/proc/{process}/stat")
    return file.is_file() and file.read_text().rpartition(")")[2].split()[0] != "Z"


def once(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_failure_is_noted_in_its_own_words_and_the_others_go_on(tmp_path: Path) -> None:
    lines: list[str] = []
    made = cells(tmp_path, "crash", "kd", "refuse", "silent", "killed", "none")
    Runner(2, say=lines.append, command=COMMAND).run(made)
    outcomes = {cell.method: read_outcome(cell) for cell in made}
    assert states(made) == ["failed", "finished", "failed", "failed", "failed", "finished"]
    assert outcomes["crash"].message == "RuntimeError: the network fell over"
    assert outcomes["refuse"].message == "The teacher is near chance. Add --trust_teacher."
    assert "status 3" in outcomes["silent"].message
    assert "SIGKILL" in outcomes["killed"].message
    assert outcomes["kd"].score == pytest.approx(0.675)
    assert len(lines) == 6
    assert any(line.startswith("kd, seed 0: 67.50 % in") and "to go, about" in line for line in lines)


def test_only_what_is_not_finished_is_run_again(tmp_path: Path) -> None:
    made = cells(tmp_path, "none", "crash", "kd")
    Runner(1, say=lambda line: None, command=COMMAND).run(made)
    before = log_of(made[0])
    assert (made[1].folder / "failed.txt").is_file()
    # What was wrong is put right.
    mended = [made[0], Cell("crash", 0, made[1].folder, made[1].options | {"method": "kd"}), made[2]]
    runner = Runner(1, say=lambda line: None, command=COMMAND)
    runner.run(mended)
    assert log_of(made[0]) == before
    assert not (made[1].folder / "failed.txt").exists()
    assert states(mended) == ["finished"] * 3
    assert set(runner.seconds) == {made[1].folder}


def test_nothing_starts_where_a_run_with_other_options_is_in_the_way(tmp_path: Path) -> None:
    made = cells(tmp_path, "none", "kd")
    Runner(1, say=lambda line: None, command=COMMAND).run(made[1:])
    changed = [made[0], Cell("kd", 0, made[1].folder, made[1].options | {"epochs": 7})]
    with pytest.raises(UserError, match="epochs: 1 -> 7"):
        Runner(1, say=lambda line: None, command=COMMAND).run(changed)
    assert not made[0].folder.exists()


def test_asked_to_stop_the_cells_stop_and_are_taken_up_from_their_checkpoints(tmp_path: Path) -> None:
    made = cells(tmp_path, "slow", "none", "kd")
    said: list[str] = []
    runner = Runner(1, say=lambda line: None, say_stop=said.append, command=COMMAND)

    def interrupt() -> None:
        once(lambda: (made[0].folder / "ready").exists())
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt).start()
    with pytest.raises(StopAskedError):
        runner.run(made)
    assert signal.getsignal(signal.SIGINT) is before
    assert states(made) == ["waiting"] * 3
    assert said[0].startswith("Stopping:") and said[1] == "slow, seed 0: stopped, with a checkpoint"
    assert not any(alive(int(word)) for word in log_of(made[0]).split() if word.isdigit())
    runner.run(made)
    assert states(made) == ["finished"] * 3
    assert "Options true" in log_of(made[0]) and "Options anew" in log_of(made[1])
    assert not Run(made[0].folder).last_checkpoint.exists(), "nobody continues a finished cell"


def test_a_killed_comparison_leaves_no_process(tmp_path: Path) -> None:
    (cell,) = cells(tmp_path, "slow")
    code = (
        "from pathlib import Path\n"
        "from limbeck.comparing.base import Cell\n"
        "from limbeck.comparing.runner import Runner\n"
        f"cell = Cell('slow', 0, Path({str(cell.folder)!r}), {cell.options!r})\n"
        f"Runner(1, command={COMMAND!r}).run([cell])"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    once(lambda: (cell.folder / "ready").exists())
    (own,) = [int(line.rpartition("process ")[2]) for line in log_of(cell).splitlines() if "process" in line]
    assert alive(own)
    process.kill()
    process.wait()
    once(lambda: not alive(own))
    assert Run(cell.folder).last_checkpoint.exists(), "it was asked to stop, not killed"


def test_a_run_that_outlives_its_comparison_keeps_the_folder_claimed(tmp_path: Path) -> None:
    (cell,) = cells(tmp_path, "stubborn")
    stubborn = (
        "import os, signal, sys, time; from pathlib import Path; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "Path(sys.argv[4], 'part').write_text(str(os.getpid())); os.rename(sys.argv[4] + '/part', sys.argv[4] + '/ready'); "
        "time.sleep(600)"
    )
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from limbeck.comparing.base import Cell\n"
        "from limbeck.comparing.plan import claimed\n"
        "from limbeck.comparing.runner import Runner\n"
        f"runner = Runner(1, command=(sys.executable, '-c', {stubborn!r}))\n"
        f"with claimed(Path({str(tmp_path)!r})) as lock:\n"
        "    runner.held = (lock,)\n"
        f"    runner.run([Cell('stubborn', 0, Path({str(cell.folder)!r}), {cell.options!r})])"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    ready = cell.folder / "ready"
    once(ready.exists)
    process.kill()
    process.wait()
    own = int(ready.read_text())
    try:
        with pytest.raises(UserError, match="Another process is at work"), claimed(tmp_path):
            pass
    finally:
        os.kill(own, signal.SIGKILL)
    once(lambda: not alive(own))
    with claimed(tmp_path):
        pass


def test_a_run_whose_summary_is_damaged_or_holds_no_score_is_run_again(tmp_path: Path) -> None:
    made = cells(tmp_path, "none", "kd")
    Runner(1, say=lambda line: None, command=COMMAND).run(made)
    (made[0].folder / "summary.json").write_text('{"accuracy')
    (made[1].folder / "summary.json").write_text('{"accuracy": {"last": NaN}}')
    runner = Runner(1, say=lambda line: None, command=COMMAND)
    runner.run(made)
    assert states(made) == ["finished"] * 2 and set(runner.seconds) == {cell.folder for cell in made}


def test_a_run_without_a_number_for_a_score_fails_and_says_why(tmp_path: Path) -> None:
    (cell,) = cells(tmp_path, "none")
    nan = "import sys; open(sys.argv[4] + '/summary.json', 'w').write('{\"accuracy\": {\"last\": NaN}}')"
    lines: list[str] = []
    Runner(1, say=lines.append, command=(sys.executable, "-c", nan)).run([cell])
    assert states([cell]) == ["failed"]
    assert len(lines) == 1 and lines[0].startswith("none, seed 0 failed: Its score is nan")


def test_a_deadline_ends_the_cells(tmp_path: Path) -> None:
    made = cells(tmp_path, "slow", "none")
    with pytest.raises(TimeUpError):
        Runner(1, say=lambda line: None, command=COMMAND).run(made, deadline=time.monotonic() + 0.5)
    assert states(made) == ["waiting", "waiting"]


def test_when_all_methods_fail_the_other_seeds_are_not_tried(tmp_path: Path) -> None:
    made = cells(tmp_path, "crash", "refuse", seeds=3)
    with pytest.raises(NothingWorksError):
        Runner(1, say=lambda line: None, command=COMMAND).run(made, patience=2)
    assert states(made) == ["failed"] * 2 + ["waiting"] * 4


def test_each_place_sees_its_own_gpu(tmp_path: Path) -> None:
    made = cells(tmp_path, "none", "kd", "other", "further")
    Runner(2, gpu_environments(1, None, 2), say=lambda line: None, command=COMMAND).run(made)
    seen = {line for cell in made for line in log_of(cell).replace(",", "").split("GPU ")[1].split()[:1]}
    assert seen == {"0", "1"}


def test_gpus_are_shared_out() -> None:
    assert gpu_environments(1, None, 2) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert gpu_environments(2, "4,5,6", 3) == [{"CUDA_VISIBLE_DEVICES": "4,5"}]
    assert gpu_environments(1, "GPU-ab", 1) == [{"CUDA_VISIBLE_DEVICES": "GPU-ab"}]
    assert gpu_environments(1, None, 0) == []


def test_threads_are_shared_out_where_nobody_chose_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert cpu_environment(1) == {}
    assert cpu_environment(cores) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cpu_environment(4) == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (1500, "25 min"), (7500, "2 h 5 min")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
