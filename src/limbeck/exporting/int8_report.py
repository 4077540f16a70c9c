"""What int8 costs and what it gives: accuracy, agreement, size and time of an int8 file beside those of its float file.

Both are run on the same validation images, which the calibration has not seen. An int8 file need not give the float
file's logits, so there is nothing to pass but a limit on the accuracy lost, where somebody sets one.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import UserError
from limbeck.exporting.comparison import accuracy, labelled_batches
from limbeck.exporting.latency import onnx_latency
from limbeck.exporting.record import write_record
from limbeck.exporting.runtime import first_line, open_session, run

ROUNDS = 5


class AccuracyDropError(UserError):
    """An int8 file loses more accuracy than was allowed."""


@dataclass(frozen=True)
class Quantization:
    """An int8 file beside its float file, on the same images.

    Attributes:
        file, float_file: their names.
        calibration_images: training images that the ranges of the activations were found on.
        images: validation images that both were run on.
        accuracy_float, accuracy_int8: share of the labelled images that are answered rightly; None without labels.
        drop: accuracy lost, in points (per cent of the images); negative where int8 answers more rightly.
        agreement: share of the images with the same first answer.
        float_bytes, int8_bytes: sizes of the files.
        float_ms, int8_ms: median time of one image on one thread, in milliseconds; best of several rounds in turn.
        latency_ratio: int8_ms / float_ms, on the machine that measured it.
        platform, onnxruntime: of that machine.
        sha256: of the int8 file.
    """

    file: str
    float_file: str
    calibration_images: int | None
    images: int
    accuracy_float: float | None
    accuracy_int8: float | None
    drop: float | None
    agreement: float
    float_bytes: int
    int8_bytes: int
    float_ms: float
    int8_ms: float
    latency_ratio: float
    platform: str
    onnxruntime: str
    sha256: str


def measure_quantization(
    float_path: str | Path,
    int8_path: str | Path,
    images: Iterable[Tensor] | Iterable[Mapping[str, Tensor]],
    labels: Iterable[Tensor] | None = None,
    *,
    max_images: int | None = None,
    latency_runs: int = 15,
) -> Quantization:
    """Run both files on validation images and compare.

    Args:
        float_path: the float file.
        int8_path: what `quantize_int8` made of it.
        images: batches (b, 3, H, W) in [0, 1] at the files' input size; or a loader's batches, mappings with `image`
            and perhaps `label`.
        labels: (b,) class indices for each batch of plain images; -1 is unlabelled.
        max_images: stop after so many.
        latency_runs: timed runs of each file in each round.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: one cannot be run on the images, or there are none.
    """
    paths = Path(float_path), Path(int8_path)
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path} to measure.")
    logits: tuple[list[NDArray[np.float32]], ...] = ([], [])
    truths: list[NDArray[np.int64]] = []
    try:
        sessions = [open_session(path) for path in paths]
        for batch, truth in labelled_batches(images, labels, max_images):
            truths.append(truth)
            for session, found in zip(sessions, logits, strict=True):
                found.append(run(session, batch.numpy()))
    except UserError:
        raise
    # onnxruntime raises its own kinds of exceptions, without a common base.
    except Exception as error:
        raise UserError(
            f"{paths[0].name} and {paths[1].name} cannot be compared: {first_line(error)} Give files written by limbeck "
            "export, and images of their input size."
        ) from error
    if not truths:
        raise UserError(f"There are no images to measure {paths[1]} with; give at least one validation image.")
    before, after, truth = np.concatenate(logits[0]), np.concatenate(logits[1]), np.concatenate(truths)
    labelled = bool((truth >= 0).any())
    rights = (accuracy(before, truth), accuracy(after, truth)) if labelled else (None, None)
    float_ms, int8_ms, platform = _times(paths, (batch.shape[2], batch.shape[3]), latency_runs)
    content = paths[1].read_bytes()
    calibrated = sessions[1].get_modelmeta().custom_metadata_map.get("calibration_images")
    return Quantization(
        file=paths[1].name,
        float_file=paths[0].name,
        calibration_images=None if calibrated is None else int(calibrated),
        images=len(truth),
        accuracy_float=rights[0],
        accuracy_int8=rights[1],
        drop=None if rights[0] is None or rights[1] is None else 100 * (rights[0] - rights[1]),
        agreement=float((before.argmax(1) == after.argmax(1)).mean()),
        float_bytes=paths[0].stat().st_size,
        int8_bytes=len(content),
        float_ms=float_ms,
        int8_ms=int8_ms,
        latency_ratio=int8_ms / float_ms,
        platform=platform,
        onnxruntime=onnxruntime.__version__,
        sha256=hashlib.sha256(content).hexdigest(),
    )


def write_quantization(quantization: Quantization, path: str | Path) -> Path:
    """Write it as JSON beside the int8 file, as FILE.json.

    Returns:
        The JSON file.
    """
    return write_record(quantization, path)


def require_drop(quantization: Quantization, max_drop: float) -> None:
    """Nothing for an int8 file that loses no more accuracy than `max_drop` points.

    Raises:
        AccuracyDropError: it loses more; the message says how much.
        UserError: the images had no labels, so nobody knows.
    """
    if quantization.drop is None or quantization.accuracy_float is None or quantization.accuracy_int8 is None:
        raise UserError(
            f"max_drop is {max_drop}, but the images have no labels, so the accuracy of {quantization.file} is unknown. "
            "Name labelled images with data, or leave max_drop out."
        )
    # Accuracies are shares of whole images; what their difference loses to rounding is no drop.
    if quantization.drop > max_drop + 1e-9:
        raise AccuracyDropError(
            f"{quantization.file} answers {100 * quantization.accuracy_int8:.2f} % of {quantization.images} images rightly, "
            f"{quantization.float_file} {100 * quantization.accuracy_float:.2f} %: a drop of {quantization.drop:.2f} points, "
            f"more than max_drop = {max_drop:g}. Do not ship this file; ship the float file, or calibrate with more "
            "images (calibration_images)."
        )


def _times(paths: tuple[Path, Path], size: tuple[int, int], runs: int) -> tuple[float, float, str]:
    """Milliseconds of one image with either file, and the platform; in turn, so that both meet the same disturbances."""
    rounds = [[onnx_latency(path, runs=runs, warmup=5, size=size) for path in paths] for _ in range(ROUNDS)]
    before, after = (min(latency.median_ms for latency in column) for column in zip(*rounds, strict=True))
    return before, after, rounds[0][0].platform
