"""Whether an exported file gives the trained model's answers, on real images.

Random noise proves little: its logits are small and far from those that decide. So both are run on validation images,
and the file passes where every logit is as near as float32 arithmetic in another order lets it be, and every image
whose first answer is not a tie gets the same first answer.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import UserError
from limbeck.exporting.onnx import INPUT_NAME, OUTPUT_NAME, inference_copy, open_session
from limbeck.files import atomic_write
from limbeck.models.base import VisionModel

RELATIVE_TOLERANCE = 1e-3


class ExportMismatchError(UserError):
    """An exported file does not give the model's answers."""


@dataclass(frozen=True)
class Verification:
    """How an exported file compares with its model on the same images.

    Attributes:
        file: the file that was verified.
        images: how many images both were run on.
        batch_sizes: sizes of the batches in which the file was run, ascending.
        max_abs_difference: the largest difference of a logit; infinite where one is not finite.
        mean_abs_difference: the mean difference; infinite likewise.
        top1_agreement: share of the images with the same first answer.
        top1_flips: images with another first answer although the model's margin exceeds the tolerance.
        not_finite: images for which either gives a NaN or an infinite logit.
        accuracy_torch, accuracy_onnx: share of the labelled images that are answered rightly; None without labels.
        tolerance: largest difference of a logit that passes.
        passed: the difference is within the tolerance, nothing flipped, everything is finite.
        onnxruntime: its version.
        opset: of the file's ONNX operators.
        file_bytes: size of the file.
        sha256: of the file.
    """

    file: str
    images: int
    batch_sizes: tuple[int, ...]
    max_abs_difference: float
    mean_abs_difference: float
    top1_agreement: float
    top1_flips: int
    not_finite: int
    accuracy_torch: float | None
    accuracy_onnx: float | None
    tolerance: float
    passed: bool
    onnxruntime: str
    opset: int
    file_bytes: int
    sha256: str


def verify_onnx(
    path: str | Path,
    model: VisionModel,
    images: Iterable[Tensor] | Iterable[Mapping[str, Tensor]],
    labels: Iterable[Tensor] | None = None,
    *,
    max_images: int | None = None,
    tolerance: float | None = None,
    batch_sizes: Sequence[int] = (1, 2, 5),
) -> Verification:
    """Run a file in onnxruntime and its model in torch, both in float32 on the CPU, and compare.

    Args:
        path: the ONNX file.
        model: what it was exported from; left as it is.
        images: batches (b, 3, H, W) in [0, 1], any size; or a loader's batches, mappings with `image` and perhaps
            `label`. Other sizes than the model's input size are resized once, as the model does, for both.
        labels: (b,) class indices for each batch of plain images; -1 is unlabelled.
        max_images: stop after so many.
        tolerance: largest difference of a logit that passes; by default 1e-3 of the largest logit, at least 1e-3.
        batch_sizes: the first images are also run in batches of these sizes, and those logits compared too.

    Returns:
        The comparison; look at `passed`, or call `require`.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no ONNX file that onnxruntime can run, was not made for this model's input, or there are no
            images.
        ExportMismatchError: its logits have another shape than the model's.
    """
    path = Path(path)
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise UserError(f"The tolerance for verifying {path} is {tolerance}; give a number of at least 0.")
    session, opset, content = _open(path, model)
    reference = inference_copy(model)
    ours: list[NDArray[np.float32]] = []
    theirs: list[NDArray[np.float32]] = []
    truths: list[NDArray[np.int64]] = []
    first: list[Tensor] = []
    sizes: set[int] = set()
    with torch.no_grad():
        for batch, truth in _batches(images, labels, max_images):
            shown = _resized(batch, reference)
            ours.append(reference(shown).logits.numpy())
            theirs.append(_run(session, shown))
            _require_same_shape(ours[-1], theirs[-1])
            truths.append(truth)
            sizes.add(len(shown))
            if sum(len(seen) for seen in first) < max(batch_sizes, default=0):
                first.append(shown)
    if not ours:
        raise UserError(f"There are no images to verify {path} with; give at least one validation image.")
    expected, found, truth = np.concatenate(ours), np.concatenate(theirs), np.concatenate(truths)
    difference, finite = _differences(expected, found)
    for size in batch_sizes:
        again = torch.cat(first)[:size]
        if len(again) == size:
            sizes.add(size)
            more, _ = _differences(expected[:size], _run(session, again))
            difference = np.concatenate([difference, more])
    scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    limit = RELATIVE_TOLERANCE * max(1.0, scale) if tolerance is None else tolerance
    same = (expected.argmax(1) == found.argmax(1)) & finite
    flips = int((~same & finite & (_margin(expected) > limit)).sum())
    worst = float(difference.max())
    labelled = truth >= 0
    return Verification(
        file=path.name,
        images=len(expected),
        batch_sizes=tuple(sorted(sizes)),
        max_abs_difference=worst,
        mean_abs_difference=float(difference.mean()),
        top1_agreement=float(same.mean()),
        top1_flips=flips,
        not_finite=int((~finite).sum()),
        accuracy_torch=_accuracy(expected, truth) if labelled.any() else None,
        accuracy_onnx=_accuracy(found, truth) if labelled.any() else None,
        tolerance=limit,
        passed=bool(finite.all() and worst <= limit and flips == 0),
        onnxruntime=onnxruntime.__version__,
        opset=opset,
        file_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def write_verification(verification: Verification, path: str | Path) -> Path:
    """Write it as JSON beside the file, as FILE.json; a number that is not finite becomes null.

    Returns:
        The JSON file.
    """
    path = Path(path)
    beside = path.with_name(f"{path.name}.json")
    values = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in dataclasses.asdict(verification).items()
    }
    with atomic_write(beside) as file:
        file.write((json.dumps(values, indent=2, allow_nan=False) + "\n").encode())
    return beside


def require(verification: Verification) -> None:
    """Nothing for a file that passed.

    Raises:
        ExportMismatchError: it did not pass; the message says in what.
    """
    if verification.passed:
        return
    faults = []
    if verification.not_finite:
        faults.append(f"{verification.not_finite} of {verification.images} images have logits that are not finite")
    elif verification.max_abs_difference > verification.tolerance:
        faults.append(
            f"a logit differs by {verification.max_abs_difference:.3g}, more than the tolerance of "
            f"{verification.tolerance:.3g}"
        )
    if verification.top1_flips:
        faults.append(f"{verification.top1_flips} of {verification.images} images get another first answer")
    raise ExportMismatchError(
        f"{verification.file} does not give the model's answers: {'; '.join(faults)}. Do not ship this file. Export "
        "the model again; if that gives the same, try another opset."
    )


def _open(path: Path, model: VisionModel) -> tuple[onnxruntime.InferenceSession, int, bytes]:
    """The file ready to run, its opset and its content, which is read once so that the hash is of what ran."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} to verify.")
    content = path.read_bytes()
    try:
        graph = onnx.load_model_from_string(content)
        session = open_session(content)
    # onnx and onnxruntime raise their own kinds of exceptions, without a common base.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path} is not an ONNX file that onnxruntime can run: {reason} Export the model again."
        ) from error
    inputs = {entry.name: list(entry.shape) for entry in session.get_inputs()}
    outputs = {entry.name: list(entry.shape) for entry in session.get_outputs()}
    size = list(model.facts.input_size)
    if list(inputs) != [INPUT_NAME] or OUTPUT_NAME not in outputs or inputs[INPUT_NAME][2:] != size:
        raise UserError(
            f"{path} takes {inputs} and gives {outputs}; a file exported from {model.facts.name} takes {INPUT_NAME!r} "
            f"of shape (batch, 3, {size[0]}, {size[1]}) and gives {OUTPUT_NAME!r}. Name the file exported from it."
        )
    opset = next((entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")), 0)
    return session, opset, content


def _batches(
    images: Iterable[Tensor] | Iterable[Mapping[str, Tensor]], labels: Iterable[Tensor] | None, max_images: int | None
) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """Images with their labels (-1 where there are none), at most `max_images` in all."""
    left = math.inf if max_images is None else max_images
    # Labels that run out before the images do are the caller's mistake, hence strict; without labels there is no end.
    pairs: Iterable[tuple[Tensor | Mapping[str, Tensor], Tensor | None]]
    pairs = zip(images, repeat(None)) if labels is None else zip(images, labels, strict=True)
    for entry, given in pairs:
        batch = entry if isinstance(entry, Tensor) else entry["image"]
        label = given if isinstance(entry, Tensor) else entry.get("label", given)
        if label is not None and len(label) != len(batch):
            raise UserError(f"A batch of {len(batch)} images came with {len(label)} labels; give one label per image.")
        count = int(min(left, len(batch)))
        truth = torch.full((count,), -1) if label is None else torch.as_tensor(label)[:count]
        left -= count
        if count:
            yield batch[:count].cpu().float(), truth.cpu().long().numpy()
        # Asking for one more batch would decode images for nothing.
        if left <= 0:
            return


def _resized(images: Tensor, model: VisionModel) -> Tensor:
    """The images as the file wants them, through the model's own resize with the normalisation undone."""
    if tuple(images.shape[-2:]) == model.facts.input_size:
        return images
    return (model.prepare(images) * model.std + model.mean).clamp(0, 1)


def _run(session: onnxruntime.InferenceSession, images: Tensor) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = session.run([OUTPUT_NAME], {INPUT_NAME: images.contiguous().numpy()})[0]
    return logits


def _require_same_shape(expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
    if expected.shape != found.shape:
        raise ExportMismatchError(
            f"The file gives logits of shape {found.shape} where the model gives {expected.shape}, so it is another "
            "model's. Export the model again."
        )


def _differences(
    expected: NDArray[np.float32], found: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Absolute differences (N, K), infinite where a logit is not finite; and which of the N images are finite."""
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(expected) & np.isfinite(found))
    every: NDArray[np.bool_] = np.asarray(finite.all(axis=1))
    difference = np.abs(np.where(finite, expected, 0).astype(np.float64) - np.where(finite, found, 0))
    return np.where(finite, difference, np.inf), every


def _margin(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far the first answer is ahead of the second (N,)."""
    if logits.shape[1] < 2:
        return np.full(len(logits), np.inf, dtype=np.float32)
    top = np.partition(logits, -2, axis=1)[:, -2:]
    margin: NDArray[np.float32] = top[:, 1] - top[:, 0]
    return margin


def _accuracy(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    """Share of the labelled images whose first answer is the label; an image without finite logits has no answer."""
    labelled = truth >= 0
    right = (logits.argmax(1) == truth) & np.isfinite(logits).all(1)
    return float(right[labelled].mean())
