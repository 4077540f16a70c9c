"""How long an exported file takes per batch, on the CPU of the machine that asks."""

import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from limbeck.errors import UserError
from limbeck.exporting.onnx import INPUT_NAME, OUTPUT_NAME, open_session


@dataclass(frozen=True)
class Latency:
    """Time of one batch through onnxruntime; comparable only with numbers of the same machine and session.

    Attributes:
        median_ms, p90_ms: median and 90th percentile over the runs, in milliseconds.
        runs, warmup, batch, threads: how it was measured.
        onnxruntime: its version.
        platform: operating system and processor architecture.
    """

    median_ms: float
    p90_ms: float
    runs: int
    warmup: int
    batch: int
    threads: int
    onnxruntime: str
    platform: str


def onnx_latency(path: str | Path, *, threads: int = 1, runs: int = 50, warmup: int = 10, batch: int = 1) -> Latency:
    """Time an exported file with random images of its own input size.

    Args:
        path: the ONNX file, as `export_onnx` writes it.
        threads: to compute with.
        runs: timed runs.
        warmup: runs before those, not timed: the first ones allocate memory.
        batch: images per run.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: a number is out of range, or the file cannot be run.
    """
    path = Path(path)
    for name, value, least in (("threads", threads, 1), ("runs", runs, 1), ("warmup", warmup, 0), ("batch", batch, 1)):
        if value < least:
            raise UserError(f"To time {path}, {name} was given as {value}; give at least {least}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} to time.")
    try:
        session = open_session(path, threads)
        (entry,) = session.get_inputs()
        images = np.random.default_rng(0).random((batch, *entry.shape[1:]), dtype=np.float32)
        durations = [_one_run(session, images) for _ in range(warmup + runs)][warmup:]
    # onnxruntime raises its own kinds of exceptions, without a common base.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path} cannot be timed: {reason} Give a file written by limbeck export, with one input {INPUT_NAME!r}."
        ) from error
    return Latency(
        median_ms=float(np.median(durations)),
        p90_ms=float(np.percentile(durations, 90)),
        runs=runs,
        warmup=warmup,
        batch=batch,
        threads=threads,
        onnxruntime=onnxruntime.__version__,
        platform=f"{platform.system()} {platform.machine()}",
    )


def _one_run(session: onnxruntime.InferenceSession, images: NDArray[np.float32]) -> float:
    """Milliseconds."""
    began = time.perf_counter_ns()
    session.run([OUTPUT_NAME], {INPUT_NAME: images})
    return (time.perf_counter_ns() - began) / 1e6
