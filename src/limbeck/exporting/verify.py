"""Whether an exported file gives the trained model's answers, on real images.

Random noise proves little: its logits are small and far from those that decide. So both are run on validation images,
and the file passes where every logit is as near as float32 arithmetic in another order lets it be, and every image
whose first answer is not a tie gets the same first answer. A file with a dynamic size must do so at other sizes too.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import UserError
from limbeck.exporting.comparison import accuracy, decided_flips, differences, labelled_batches
from limbeck.exporting.onnx import inference_copy
from limbeck.exporting.record import write_record
from limbeck.exporting.runtime import INPUT_NAME, OUTPUT_NAME, open_session, run
from limbeck.exporting.sizes import Size, allow_any_size, logits_as_given, other_sizes, require_any_size, resized
from limbeck.models.base import VisionModel

RELATIVE_TOLERANCE = 1e-3
# Images at each size beside the model's own: enough to see a wrong position or a lost window.
IMAGES_PER_SIZE = 16


class ExportMismatchError(UserError):
    """An exported file does not give the model's answers."""


@dataclass(frozen=True)
class SizeVerification:
    """How a file with a dynamic size compares with its network at another size than the model's own.

    Attributes:
        height, width: in pixels; the images were resized to it before both.
        images, max_abs_difference, top1_agreement, top1_flips, not_finite, tolerance: as in `Verification`.
    """

    height: int
    width: int
    images: int
    max_abs_difference: float
    top1_agreement: float
    top1_flips: int
    not_finite: int
    tolerance: float

    @property
    def passed(self) -> bool:
        """The difference is within the tolerance, nothing flipped, everything is finite."""
        return not self.not_finite and self.max_abs_difference <= self.tolerance and not self.top1_flips


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
        other_sizes: the same at other sizes, for a file with a dynamic size; empty for one with a fixed size.
        passed: the difference is within the tolerance, nothing flipped, everything is finite; at every size.
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
    other_sizes: tuple[SizeVerification, ...]
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

    A file with a dynamic size is also run on the first images at two other sizes or more, where its reference is the
    network on the normalised images, not resized to the model's own size.

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
        UserError: it is no ONNX file that onnxruntime can run, was not made for this model's input, takes any size
            where this model does not, or there are no images.
        ExportMismatchError: its logits have another shape than the model's, or it fails at another size.
    """
    path = Path(path)
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise UserError(f"The tolerance for verifying {path} is {tolerance}; give a number of at least 0.")
    session, opset, content, sizes = _open(path, model)
    reference = inference_copy(model)
    ours: list[NDArray[np.float32]] = []
    theirs: list[NDArray[np.float32]] = []
    truths: list[NDArray[np.int64]] = []
    first: list[Tensor] = []
    batches: set[int] = set()
    wanted = max((*batch_sizes, IMAGES_PER_SIZE if sizes else 0), default=0)
    with torch.no_grad():
        for batch, truth in labelled_batches(images, labels, max_images):
            shown = resized(batch, reference.facts.input_size, reference)
            ours.append(reference(shown).logits.numpy())
            theirs.append(run(session, shown.numpy()))
            _require_same_shape(ours[-1], theirs[-1])
            truths.append(truth)
            batches.add(len(shown))
            if sum(len(seen) for seen in first) < wanted:
                first.append(shown)
    if not ours:
        raise UserError(f"There are no images to verify {path} with; give at least one validation image.")
    expected, found, truth = np.concatenate(ours), np.concatenate(theirs), np.concatenate(truths)
    difference, finite = differences(expected, found)
    for size in batch_sizes:
        again = torch.cat(first)[:size]
        if len(again) == size:
            batches.add(size)
            more, _ = differences(expected[:size], run(session, again.numpy()))
            difference = np.concatenate([difference, more])
    limit = _limit(expected, tolerance)
    same = (expected.argmax(1) == found.argmax(1)) & finite
    flips = decided_flips(expected, found, limit)
    worst = float(difference.max())
    labelled = truth >= 0
    elsewhere = _at_sizes(session, reference, torch.cat(first), sizes, tolerance) if sizes else ()
    return Verification(
        file=path.name,
        images=len(expected),
        batch_sizes=tuple(sorted(batches)),
        max_abs_difference=worst,
        mean_abs_difference=float(difference.mean()),
        top1_agreement=float(same.mean()),
        top1_flips=flips,
        not_finite=int((~finite).sum()),
        accuracy_torch=accuracy(expected, truth) if labelled.any() else None,
        accuracy_onnx=accuracy(found, truth) if labelled.any() else None,
        tolerance=limit,
        other_sizes=elsewhere,
        passed=bool(finite.all() and worst <= limit and flips == 0 and all(size.passed for size in elsewhere)),
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
    return write_record(verification, path)


def require(verification: Verification) -> None:
    """Nothing for a file that passed.

    Raises:
        ExportMismatchError: it did not pass; the message says in what.
    """
    if verification.passed:
        return
    faults = _faults(verification)
    for size in verification.other_sizes:
        faults += [f"at {size.height}x{size.width} pixels {fault}" for fault in _faults(size)]
    raise ExportMismatchError(
        f"{verification.file} does not give the model's answers: {'; '.join(faults)}. Do not ship this file. Export "
        "the model again; if that gives the same, try another opset."
    )


def _faults(found: Verification | SizeVerification) -> list[str]:
    faults = []
    if found.not_finite:
        faults.append(f"{found.not_finite} of {found.images} images have logits that are not finite")
    elif found.max_abs_difference > found.tolerance:
        faults.append(
            f"a logit differs by {found.max_abs_difference:.3g}, more than the tolerance of {found.tolerance:.3g}"
        )
    if found.top1_flips:
        faults.append(f"{found.top1_flips} of {found.images} images get another first answer")
    return faults


def _at_sizes(
    session: onnxruntime.InferenceSession,
    reference: VisionModel,
    images: Tensor,
    sizes: Sequence[Size],
    tolerance: float | None,
) -> tuple[SizeVerification, ...]:
    """The same comparison at other sizes; the reference, an inference copy, is changed to take them."""
    allow_any_size(reference)
    require_any_size(reference)
    return tuple(_at_size(session, reference, images[:IMAGES_PER_SIZE], size, tolerance) for size in sizes)


def _at_size(
    session: onnxruntime.InferenceSession, model: VisionModel, images: Tensor, size: Size, tolerance: float | None
) -> SizeVerification:
    shown = resized(images, size, model)
    with torch.no_grad():
        expected = logits_as_given(model, shown).numpy()
    try:
        found = run(session, shown.numpy())
    # onnxruntime raises its own kinds of exceptions, without a common base.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ExportMismatchError(
            f"The file takes any size, but fails at {size[0]}x{size[1]} pixels: {reason} Export the model again, without "
            "dynamic_size if that gives the same."
        ) from error
    _require_same_shape(expected, found)
    difference, finite = differences(expected, found)
    limit = _limit(expected, tolerance)
    same = (expected.argmax(1) == found.argmax(1)) & finite
    return SizeVerification(
        height=size[0],
        width=size[1],
        images=len(shown),
        max_abs_difference=float(difference.max()),
        top1_agreement=float(same.mean()),
        top1_flips=decided_flips(expected, found, limit),
        not_finite=int((~finite).sum()),
        tolerance=limit,
    )


def _open(path: Path, model: VisionModel) -> tuple[onnxruntime.InferenceSession, int, bytes, list[Size]]:
    """The file ready to run, its opset, its content (read once, so that the hash is of what ran), other sizes to try."""
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
    sides = inputs.get(INPUT_NAME, [])[2:]
    # A dimension that may vary is a name, or None.
    dynamic = len(sides) == 2 and not any(isinstance(side, int) for side in sides)
    if list(inputs) != [INPUT_NAME] or OUTPUT_NAME not in outputs or not (dynamic or sides == size):
        raise UserError(
            f"{path} takes {inputs} and gives {outputs}; a file exported from {model.facts.name} takes {INPUT_NAME!r} "
            f"of shape (batch, 3, {size[0]}, {size[1]}) and gives {OUTPUT_NAME!r}. Name the file exported from it."
        )
    opset = next((entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")), 0)
    return session, opset, content, other_sizes(model) if dynamic else []


def _require_same_shape(expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
    if expected.shape != found.shape:
        raise ExportMismatchError(
            f"The file gives logits of shape {found.shape} where the model gives {expected.shape}, so it is another "
            "model's. Export the model again."
        )


def _limit(expected: NDArray[np.float32], tolerance: float | None) -> float:
    """The largest difference that passes: the given one, or a share of the largest logit."""
    scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    return RELATIVE_TOLERANCE * max(1.0, scale) if tolerance is None else tolerance
