"""Cells as processes: as many at a time as there is room for, each failure its own, all of them gone when this process is.

A cell is `limbeck distill` in a process group of its own, its terminal output in log.txt. When the comparison is asked to stop,
the running cells are: they write a checkpoint and end, and are taken up from it another time.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from limbeck.comparing.base import Cell
from limbeck.comparing.outcomes import last_error, why_no_score
from limbeck.comparing.plan import LOG_FILE, finished, note_failure, require_same, score_of, write_cell
from limbeck.run import Run

COMMAND = (sys.executable, "-m", "limbeck.cli", "distill")
POLL_SECONDS = 0.1

# How long a cell may take to end after it was asked to; it loses what it learned since its last checkpoint if it is killed then.
STOP_SECONDS = 120.0

# Linux only: the signal that a process gets when its parent dies, even by SIGKILL.
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class HaltedError(Exception):
    """Cells were left over: the user asked to stop, the time was up, or nothing worked."""


class StopAskedError(HaltedError):
    """Ctrl-C or SIGTERM; the cells that ran have stopped, most of them with a checkpoint."""


class TimeUpError(HaltedError):
    """The cells were not finished at the deadline."""


class NothingWorksError(HaltedError):
    """So many cells failed, one after another, and none finished, that the others are not tried."""


@dataclass
class _Running:
    cell: Cell
    process: "subprocess.Popen[bytes]"
    began: float
    log_began: int


class Runner:
    """Runs cells.

    Args:
        jobs: how many at a time.
        environments: variables of the processes at each of so many places, such as the GPU that they see; used in turn.
        say: takes a line for each cell that ends.
        say_stop: takes the lines about stopping.
        command: what is called, with `--config FILE --out FOLDER`, and `--resume true` where there is a checkpoint.

    Attributes:
        seconds: how long each process took, by its cell's folder.
        held: file descriptors that the cells keep open too, such as the comparison's lock: a cell may outlive this process.
    """

    def __init__(
        self,
        jobs: int,
        environments: Sequence[Mapping[str, str]] = ({},),
        *,
        say: Callable[[str], None] = print,
        say_stop: Callable[[str], None] | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.jobs = jobs
        self.environments = environments
        self.say = say
        self.say_stop = say_stop or say
        self.command = command
        self.seconds: dict[Path, float] = {}
        self.held: tuple[int, ...] = ()
        self._failures = self._successes = 0
        self._asked_to_stop = False
        self._running: dict[int, _Running] = {}

    def run(self, cells: Sequence[Cell], *, deadline: float | None = None, patience: int | None = None) -> None:
        """Bring all cells to their end; those that are finished are left alone.

        `seconds` then holds how long each process took that ended here, by the cell's folder.

        Args:
            cells: in the order in which they are begun.
            deadline: by time.monotonic().
            patience: so many failures, while no cell is finished, are enough.

        Raises:
            UserError: a cell's folder holds a run with other options. Nothing was started.
            StopAskedError, TimeUpError, NothingWorksError: cells are left over.
            KeyboardInterrupt: Ctrl-C was pressed twice; the cells were killed.
        """
        for cell in cells:
            require_same(cell)
        waiting = deque(cell for cell in cells if not finished(cell))
        total, began, ended = len(waiting), time.monotonic(), 0
        reason: type[HaltedError] | None = None
        kill_at = float("inf")
        self._failures, self._successes = 0, len(cells) - total
        with self._listening():
            try:
                while waiting or self._running:
                    if reason is None:
                        reason = self._reason_to_halt(deadline, patience)
                        if reason is not None:
                            waiting.clear()
                            self._ask_to_stop()
                            kill_at = time.monotonic() + STOP_SECONDS
                    if time.monotonic() > kill_at:
                        break
                    while waiting and len(self._running) < self.jobs:
                        self._start(waiting.popleft())
                    for place, running in list(self._running.items()):
                        if running.process.poll() is not None:
                            del self._running[place]
                            _kill_group(running.process)
                            ended += 1
                            self._end(
                                running, stopping=reason is not None, left=total - ended, since=began, ended=ended
                            )
                    time.sleep(POLL_SECONDS)
            finally:
                self._kill_all()
        if reason is not None and not all(finished(cell) for cell in cells):
            raise reason

    def _reason_to_halt(self, deadline: float | None, patience: int | None) -> type[HaltedError] | None:
        if self._asked_to_stop:
            return StopAskedError
        if deadline is not None and time.monotonic() > deadline:
            return TimeUpError
        if patience is not None and self._successes == 0 and self._failures >= patience:
            return NothingWorksError
        return None

    def _start(self, cell: Cell) -> None:
        place = next(number for number in range(self.jobs) if number not in self._running)
        Run(cell.folder).make()
        note_failure(cell, None)
        # It is damaged or without a score, else the cell would not be started.
        (cell.folder / "summary.json").unlink(missing_ok=True)
        words = [*self.command, "--config", str(write_cell(cell)), "--out", str(cell.folder)]
        if Run(cell.folder).last_checkpoint.is_file():
            words += ["--resume", "true"]
        variables = self.environments[place % len(self.environments)]
        with (cell.folder / LOG_FILE).open("ab") as log:
            log_began = log.tell()
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **variables},
                # A terminal's Ctrl-C reaches this process only, which then stops the cells in order.
                start_new_session=True,
                pass_fds=self.held,
                preexec_fn=_end_with_parent if _LIBC is not None else None,
            )
        self._running[place] = _Running(cell, process, time.monotonic(), log_began)

    def _end(self, running: _Running, *, stopping: bool, left: int, since: float, ended: int) -> None:
        cell, took = running.cell, time.monotonic() - running.began
        name = f"{cell.method}, seed {cell.seed}"
        if finished(cell):
            self._successes += 1
            self.seconds[cell.folder] = took
            # Nobody continues a finished cell, and the optimiser's state of many cells fills a disk.
            for file in (Run(cell.folder).last_checkpoint, Run(cell.folder).best_checkpoint):
                file.unlink(missing_ok=True)
            score = score_of(cell)
            assert score is not None
            rest = (time.monotonic() - since) / ended * left
            ahead = f"; {left} to go, about {duration(rest)}" if left and not stopping else ""
            self.say(f"{name}: {100 * score:.2f} % in {duration(took)}{ahead}")
        elif stopping:
            begun = Run(cell.folder).last_checkpoint.is_file()
            self.say_stop(f"{name}: stopped, {'with a checkpoint' if begun else 'before its first checkpoint'}")
        else:
            self._failures += 1
            sentence = _why(running)
            note_failure(cell, sentence)
            self.say(f"{name} failed: {sentence}")

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask to stop; only the main thread can hear them, as Python wants it."""
        self._asked_to_stop = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked_to_stop:
            raise KeyboardInterrupt
        self._asked_to_stop = True
        self.say_stop("Stopping: the running cells end with a checkpoint. Press Ctrl-C again to stop at once.")

    def _ask_to_stop(self) -> None:
        """The runs' own processes only: those that load their images end by themselves, and would end too early."""
        for running in self._running.values():
            running.process.send_signal(signal.SIGTERM)

    def _kill_all(self) -> None:
        for running in self._running.values():
            _kill_group(running.process)
            running.process.wait()
        self._running.clear()


def duration(seconds: float) -> str:
    """Seconds for people: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 and whole % 60 else f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """End a cell's process, and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _why(running: _Running) -> str:
    """Why a process ended without a result, in a sentence."""
    if summary := Run(running.cell.folder).summary:
        return why_no_score(summary)
    file, status = running.cell.folder / LOG_FILE, running.process.returncode
    with file.open("rb") as log:
        log.seek(running.log_began)
        said = last_error(log.read().decode(errors="replace"))
    if said is not None and status >= 0:
        return said
    if status < 0:
        cause = " (the machine may be out of memory)" if -status == signal.SIGKILL else ""
        return f"Its process was ended by {signal.Signals(-status).name}{cause}; see {file}."
    return f"Its process ended with status {status} and without a result; see {file}."


def _end_with_parent() -> None:
    """In the new process: be told to stop when the comparison's process dies, however."""
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def gpu_environments(devices: int, visible: str | None, count: int) -> list[dict[str, str]]:
    """Which GPUs a cell sees at each place.

    Args:
        devices: GPUs of one cell.
        visible: CUDA_VISIBLE_DEVICES of this process, or None.
        count: GPUs that torch finds.
    """
    names = [name.strip() for name in visible.split(",") if name.strip()] if visible else [str(n) for n in range(count)]
    names = names[:count]
    groups = [names[start : start + devices] for start in range(0, len(names) - devices + 1, devices)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]


def cpu_environment(jobs: int) -> dict[str, str]:
    """Threads of a cell where several share the processor: more threads than cores wait for each other."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // jobs))}


def places(accelerator: str, devices: int, jobs: int | Any) -> tuple[int, list[dict[str, str]]]:
    """How many cells run at a time, and what each place's processes see.

    Args:
        accelerator: gpu, cpu or mps.
        devices: of one cell.
        jobs: asked for, or "auto".
    """
    if accelerator == "gpu":
        import torch

        found = gpu_environments(devices, os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count()) or [{}]
        return (len(found) if jobs == "auto" else int(jobs)), found
    jobs = 1 if jobs == "auto" else int(jobs)
    return jobs, [cpu_environment(jobs)]
