"""How long an exported file takes per batch, on the CPU of the machine that asks."""

import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from limbeck.errors import UserError
from limbeck.exporting.runtime import INPUT_NAME, OUTPUT_NAME, open_session


@dataclass(frozen=True)
class Latency:
    """Time of one batch through onnxruntime; comparable only with numbers of the same machine and session.

    Attributes:
        median_ms, p90_ms: median and 90th percentile over the runs, in milliseconds.
        runs, warmup, batch, threads: how it was measured.
        size: (height, width) of the images in pixels.
        onnxruntime: its version.
        platform: operating system and processor architecture.
    """

    median_ms: float
    p90_ms: float
    runs: int
    warmup: int
    batch: int
    threads: int
    size: tuple[int, int]
    onnxruntime: str
    platform: str


def onnx_latency(
    path: str | Path,
    *,
    threads: int = 1,
    runs: int = 50,
    warmup: int = 10,
    batch: int = 1,
    size: tuple[int, int] | None = None,
) -> Latency:
    """Time an exported file with random images of its own input size, or of another where its size is dynamic.

    Args:
        path: the ONNX file, as `export_onnx` writes it.
        threads: to compute with.
        runs: timed runs.
        warmup: runs before those, not timed: the first ones allocate memory.
        batch: images per run.
        size: (height, width) of the images in pixels; None is the input size of the model that was exported.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: a number is out of range, the file takes another size only, or it cannot be run.
    """
    path = Path(path)
    for name, value, least in (("threads", threads, 1), ("runs", runs, 1), ("warmup", warmup, 0), ("batch", batch, 1)):
        if value < least:
            raise UserError(f"To time {path}, {name} was given as {value}; give at least {least}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} to time.")
    try:
        session = open_session(path, threads)
        height, width = _size(path, session, size)
        images = np.random.default_rng(0).random((batch, 3, height, width), dtype=np.float32)
        durations = [_one_run(session, images) for _ in range(warmup + runs)][warmup:]
    except UserError:
        raise
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
        size=(height, width),
        onnxruntime=onnxruntime.__version__,
        platform=f"{platform.system()} {platform.machine()}",
    )


def _size(path: Path, session: onnxruntime.InferenceSession, asked: tuple[int, int] | None) -> tuple[int, int]:
    """The size to time at: the asked one, the file's fixed one, or the model's own that its metadata hold."""
    (entry,) = session.get_inputs()
    height, width = entry.shape[2:]
    if not (isinstance(height, int) and isinstance(width, int)):
        if asked is not None:
            return asked
        own = session.get_modelmeta().custom_metadata_map.get("input_size")
        if own is None:
            raise UserError(f"{path} takes images of any size and does not say its model's own; give the size to time.")
        height, width = json.loads(own)
    if asked not in (None, (height, width)):
        raise UserError(f"{path} takes images of {height}x{width} pixels only; it cannot be timed at {asked}.")
    return height, width


def _one_run(session: onnxruntime.InferenceSession, images: NDArray[np.float32]) -> float:
    """Milliseconds."""
    began = time.perf_counter_ns()
    session.run([OUTPUT_NAME], {INPUT_NAME: images})
    return (time.perf_counter_ns() - began) / 1e6
