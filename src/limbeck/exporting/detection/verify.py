"""Whether an exported detector finds what the trained one finds, on real images.

Both see the same pictures, and each detection is compared with its counterpart. The file passes where the sure ones have
counterparts, with boxes, scores and masks as near as float32 arithmetic in another order lets them be, and where both get
the same average precision. Detections that hardly anybody would show may differ: of hundreds that score alike, rounding
decides which are listed.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
import torch

from limbeck.detection import Found, Pictures
from limbeck.errors import UserError
from limbeck.exporting.detection.frame import Frame, as_found, taken_out
from limbeck.exporting.detection.graph import OUTPUT_NAMES
from limbeck.exporting.detection.matching import Pairs, pair
from limbeck.exporting.onnx import inference_copy
from limbeck.exporting.runtime import INPUT_NAME, first_line, open_session
from limbeck.exporting.verify import ExportMismatchError
from limbeck.models.detection.base import Detector
from limbeck.tasks.base import Batch
from limbeck.tasks.detection import MOST_DETECTIONS, compact
from limbeck.tasks.detection_scores import Detections

SURE = 0.3
COUNTED = 0.05
BOX_TOLERANCE = 1e-3
"""Of the longer side of the picture."""
SCORE_TOLERANCE = 0.01
MASK_TOLERANCE = 0.99
"""The least mean intersection over union of masks."""
AP_TOLERANCE = 0.005

Measure = Callable[[Sequence[Detections]], Mapping[str, float]]


@dataclass(frozen=True)
class DetectorVerification:
    """How an exported file compares with its detector on the same pictures.

    Attributes:
        file: the file that was verified.
        images: how many both were run on.
        sure_score: detections with at least this score must agree: 0.3, or half the best score where that is less.
        counted_score: detections with at least this score are counted: 0.05, or the sure score where that is less.
        detections, sure_detections: the detector's own of at least these scores.
        images_with_other_counts: images in which the two count differently.
        alone: sure detections of either that have no counterpart.
        max_box_difference: the largest, in pixels of the picture, of a sure detection's box.
        max_score_difference: the largest of a sure detection.
        max_box_difference_counted, max_score_difference_counted: the same of all that are counted and have a counterpart.
        mean_mask_iou: of sure detections' masks; None without masks.
        tolerance: largest difference of a sure detection's box, in pixels, that passes.
        scores_torch, scores_onnx: average precision of both, by name, 0 to 1.
        max_ap_difference: the largest difference between those.
        passed: no sure detection is alone, and all differences are within the tolerances.
        onnxruntime: its version.
        opset: of the file's ONNX operators.
        file_bytes: size of the file.
        sha256: of the file.
        scores_own_sizes: the detector's at the sizes it sees when it is evaluated, which a file of one size gives up; None
            where it always sees that size.
    """

    file: str
    images: int
    sure_score: float
    counted_score: float
    detections: int
    sure_detections: int
    images_with_other_counts: int
    alone: int
    max_box_difference: float
    max_score_difference: float
    max_box_difference_counted: float
    max_score_difference_counted: float
    mean_mask_iou: float | None
    tolerance: float
    scores_torch: dict[str, float]
    scores_onnx: dict[str, float]
    max_ap_difference: float
    passed: bool
    onnxruntime: str
    opset: int
    file_bytes: int
    sha256: str
    scores_own_sizes: dict[str, float] | None = None


@torch.no_grad()
def verify_detector_onnx(
    path: str | Path,
    detector: Detector,
    batches: Iterable[Batch],
    measure: Measure,
    *,
    tolerance: float | None = None,
) -> DetectorVerification:
    """Run a file in onnxruntime and its detector in torch, both in float32 on the CPU, and compare.

    Args:
        path: the ONNX file.
        detector: what it was exported from; left as it is.
        batches: of a loader of validation scenes that resizes as `Frame.of(detector).resize` says.
        measure: average precision by name of each image's detections, in pixels of the original images.
        tolerance: largest difference of a sure detection's box, in pixels, that passes; by default 1e-3 of the longer
            side of the picture.

    Returns:
        The comparison; look at `passed`, or call `require_detector`.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no ONNX file that onnxruntime can run, was not made for this detector, there are no images, or
            the detector finds nothing in any.
        ExportMismatchError: what it finds is not finite.
    """
    path = Path(path)
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise UserError(f"The tolerance for verifying {path} is {tolerance}; give pixels, at least 0.")
    frame, reference = Frame.of(detector), inference_copy(detector)
    session, opset, content = _open(path, detector)
    limit = BOX_TOLERANCE * max(frame.size) if tolerance is None else tolerance
    names = OUTPUT_NAMES[: 3 + detector.facts.has_masks]
    ours: list[Detections] = []
    theirs: list[Detections] = []
    pairs: list[Pairs] = []
    counts: list[tuple[torch.Tensor, torch.Tensor]] = []
    for picture, own, original in frame.pictures(batches):
        images = picture[None]
        (expected,) = reference.detect(Pictures(images, (frame.size,)), [frame.size])
        found = as_found(session.run(names, {INPUT_NAME: images.numpy()}))
        _require_finite(found, path)
        # Far enough that a wrong box is measured rather than missed.
        pairs.append(pair(expected, found, far=max(4 * limit, 0.02 * max(frame.size))))
        counts.append((expected.scores, found.scores))
        ours.append(compact(taken_out(_best(expected), own, original)))
        theirs.append(compact(taken_out(_best(found), own, original)))
    if not pairs:
        raise UserError(f"There are no images to verify {path} with; give at least one validation image.")
    best = max((float(scores.max()) for scores, _ in counts if len(scores)), default=0.0)
    if best <= 0:
        raise UserError(
            f"{detector.facts.name} finds nothing in {len(pairs)} images, so {path} cannot be verified with them. Train "
            "it longer, or name scenes with --data that show what it knows."
        )
    sure = min(SURE, best / 2)
    counted = min(COUNTED, sure)
    alone = sum(int((one.alone >= sure).sum()) for one in pairs)
    scores = {"torch": dict(measure(ours)), "onnx": dict(measure(theirs))}
    gap = max(abs(scores["torch"][name] - scores["onnx"][name]) for name in scores["torch"])
    box, score = _largest(pairs, sure)
    iou = _mean_iou(pairs, sure)
    return DetectorVerification(
        file=path.name,
        images=len(pairs),
        sure_score=sure,
        counted_score=counted,
        detections=sum(int((scores >= counted).sum()) for scores, _ in counts),
        sure_detections=sum(int((scores >= sure).sum()) for scores, _ in counts),
        images_with_other_counts=sum(_counts_differ(*of_image, counted) for of_image in counts),
        alone=alone,
        max_box_difference=box,
        max_score_difference=score,
        max_box_difference_counted=_largest(pairs, counted)[0],
        max_score_difference_counted=_largest(pairs, counted)[1],
        mean_mask_iou=iou,
        tolerance=limit,
        scores_torch=scores["torch"],
        scores_onnx=scores["onnx"],
        max_ap_difference=gap,
        passed=alone == 0
        and box <= limit
        and score <= SCORE_TOLERANCE
        and gap <= AP_TOLERANCE
        and (iou is None or iou >= MASK_TOLERANCE),
        onnxruntime=onnxruntime.__version__,
        opset=opset,
        file_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def require_detector(verification: DetectorVerification) -> None:
    """Nothing for a file that passed.

    Raises:
        ExportMismatchError: it did not pass; the message says in what.
    """
    if verification.passed:
        return
    found, faults = verification, []
    if found.alone:
        faults.append(f"{found.alone} detections with a score of at least {found.sure_score:.2g} are found by one only")
    if found.max_box_difference > found.tolerance:
        faults.append(f"a box differs by {found.max_box_difference:.3g} pixels, more than {found.tolerance:.3g}")
    if found.max_score_difference > SCORE_TOLERANCE:
        faults.append(f"a score differs by {found.max_score_difference:.3g}, more than {SCORE_TOLERANCE}")
    if found.mean_mask_iou is not None and found.mean_mask_iou < MASK_TOLERANCE:
        faults.append(f"masks overlap by {found.mean_mask_iou:.3f} on average, less than {MASK_TOLERANCE}")
    if found.max_ap_difference > AP_TOLERANCE:
        faults.append(f"the average precision differs by {found.max_ap_difference:.4f}, more than {AP_TOLERANCE}")
    raise ExportMismatchError(
        f"{found.file} does not give the detector's answers: {'; '.join(faults)}. Do not ship this file. Export the "
        "detector again. If only a few boxes differ by little, allow it with --tolerance PIXELS; if the detector has hardly "
        "learned yet, so that its scores tie and rounding chooses among them, train it longer."
    )


def _open(path: Path, detector: Detector) -> tuple[onnxruntime.InferenceSession, int, bytes]:
    """The file ready to run, its opset, its content (read once, so that the hash is of what ran)."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} to verify.")
    content = path.read_bytes()
    try:
        graph = onnx.load_model_from_string(content)
        session = open_session(content)
    # onnx and onnxruntime raise their own kinds of exceptions, without a common base.
    except Exception as error:
        raise UserError(
            f"{path} is not an ONNX file that onnxruntime can run: {first_line(error)} Export the detector again."
        ) from error
    inputs = {entry.name: list(entry.shape) for entry in session.get_inputs()}
    outputs = [entry.name for entry in session.get_outputs()]
    expected = {INPUT_NAME: [1, 3, *detector.facts.input_size]}
    names = list(OUTPUT_NAMES[: 3 + detector.facts.has_masks])
    if inputs != expected or outputs != names:
        raise UserError(
            f"{path} takes {inputs} and gives {outputs}; a file exported from {detector.facts.name} takes {expected} and "
            f"gives {names}. Name the file exported from it."
        )
    opset = next((entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")), 0)
    return session, opset, content


def _best(found: Found) -> Found:
    """As many as are measured; what a mask costs at the image's own size is only spent on these."""
    kept = slice(0, MOST_DETECTIONS)
    return Found(
        found.boxes[kept], found.labels[kept], found.scores[kept], None if found.masks is None else found.masks[kept]
    )


def _require_finite(found: Found, path: Path) -> None:
    if not (found.boxes.isfinite().all() and found.scores.isfinite().all()):
        raise ExportMismatchError(
            f"{path.name} finds boxes or scores that are not finite. Do not ship this file; export the detector again."
        )


def _largest(pairs: Sequence[Pairs], score: float) -> tuple[float, float]:
    """The largest differences of boxes and of scores among detections of at least this score."""
    boxes = torch.cat([one.box_differences[one.scores >= score] for one in pairs])
    scores = torch.cat([one.score_differences[one.scores >= score] for one in pairs])
    return (float(boxes.max()), float(scores.max())) if len(boxes) else (0.0, 0.0)


def _mean_iou(pairs: Sequence[Pairs], score: float) -> float | None:
    ious = [one.mask_ious[one.scores >= score] for one in pairs if one.mask_ious is not None]
    return float(torch.cat(ious).mean()) if ious and sum(len(each) for each in ious) else None


def _counts_differ(expected: torch.Tensor, found: torch.Tensor, score: float) -> bool:
    """Whether the two count differently, however scores that differ by no more than rounding are counted."""
    near = 1e-3 * score
    sides = [[int((scores >= score + shift).sum()) for shift in (near, -near)] for scores in (expected, found)]
    (least, most), (other_least, other_most) = sides
    return most < other_least or other_most < least
