"""onnxruntime on the CPU, and the names, the quiet and the error messages that all exports share."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

INPUT_NAME = "images"
OUTPUT_NAME = "logits"

_NOISY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def open_session(model: str | Path | bytes, threads: int | None = None) -> onnxruntime.InferenceSession:
    """onnxruntime on the CPU, quiet.

    Args:
        model: a file or its content.
        threads: to compute with; None lets onnxruntime choose.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # an error is raised, with the same words
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    content = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (B, K) of images (B, 3, H, W) in [0, 1]."""
    logits: NDArray[np.float32] = session.run([OUTPUT_NAME], {INPUT_NAME: np.ascontiguousarray(images)})[0]
    return logits


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters report their steps on the screen and in the log; what matters comes as an exception."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    # The root logger gives itself a handler for the screen at its first message, unless it has one.
    silent = logging.NullHandler()
    logging.getLogger().addHandler(silent)
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger().removeHandler(silent)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """What went wrong at the bottom of a chain of exceptions, as one sentence."""
    while (cause := error.__cause__) is not None:
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    text = text if len(text) <= 300 else text[:297] + "..."
    return text if text.endswith((".", "!", "?")) else text + "."
