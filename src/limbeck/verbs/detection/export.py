"""`limbeck export`, for detectors: a file with finished detections, proven on real validation scenes."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from limbeck.exporting.detection.frame import Frame
from limbeck.exporting.detection.onnx import export_detector_onnx
from limbeck.exporting.detection.verify import require_detector, verify_detector_onnx
from limbeck.exporting.record import write_record
from limbeck.models.names import file_stem
from limbeck.tasks.detection import DetectionTask, predict_detections
from limbeck.tasks.detection_scores import Detections
from limbeck.verbs import screen
from limbeck.verbs.detection.classes import in_our_classes
from limbeck.verbs.detection.measured_scenes import measured_scenes
from limbeck.verbs.detection.preparation import scene_batches


def export(
    model: str,
    data: str | None,
    *,
    out: str | None,
    max_images: int,
    batch_size: int,
    tolerance: float | None,
) -> Path:
    """Export a detector as an ONNX file of one picture at a time and verify it; arguments as of `limbeck.export`.

    The file is described in `limbeck.exporting.detection.onnx`. Beside it stands a JSON file with what
    `DetectorVerification` holds. A size that varies and int8 are not offered for detectors.

    Args:
        tolerance: largest difference, in pixels, of a sure detection's box that still passes; by default 1e-3 of the
            longer side of the picture.

    Returns:
        The file.

    Raises:
        UserError: the file's detections differ from the detector's, the detector cannot be exported or finds nothing, or
            the data's classes are none of its own.
    """
    shown = measured_scenes(model, data, batch_size=batch_size, num_workers=0, most=max_images)
    detector, ours, theirs = shown.model, shown.scenes.class_names, shown.model.facts.class_names
    task = DetectionTask(shown.scenes.val, masks=detector.facts.has_masks and shown.scenes.has_masks)
    # Known before minutes are spent on tracing: the data must have classes of the detector's.
    _, notes = in_our_classes([], theirs, ours)

    def measure(found: Any) -> dict[str, float]:
        answers: list[Detections] = in_our_classes(found, theirs, ours)[0]
        return task.measure(answers)

    is_run = os.path.isdir(model)
    name = Path(model).resolve().name if is_run else file_stem(model)
    path = Path(out) if out is not None else (Path(model) / "export" if is_run else Path()) / f"{name}.onnx"
    export_detector_onnx(detector, path)
    frame = Frame.of(detector)
    pictures = scene_batches(shown.scenes.val, frame.resize, batch_size, 0)
    verification = verify_detector_onnx(path, detector, pictures, measure, tolerance=tolerance)
    if frame.resize != detector.resize:
        usual = measure(predict_detections(detector, shown.batches))
        verification = dataclasses.replace(verification, scores_own_sizes=usual)
    beside = write_record(verification, path)
    screen.notes([*shown.scenes.notes, *(f"{detector.facts.name}: {note}" for note in notes)])
    height, width = frame.size
    screen.table(
        f"{path}, verified on {verification.images} images of {height}x{width} pixels",
        (
            "detections",
            f"of them >= {verification.sure_score:.2g}",
            "found by one only",
            "boxes differ by",
            "scores",
            "MB",
        ),
        [
            (
                verification.detections,
                verification.sure_detections,
                verification.alone,
                f"{verification.max_box_difference:.2e} px",
                f"{verification.max_score_difference:.2e}",
                f"{verification.file_bytes / 1e6:.2f}",
            )
        ],
    )
    rows = [("torch", verification.scores_torch), ("onnxruntime", verification.scores_onnx)]
    if verification.scores_own_sizes is not None:
        rows.append(("torch, at its own sizes", verification.scores_own_sizes))
    names = tuple(verification.scores_torch)
    screen.table(
        "Average precision on these images",
        ("", *(name.replace("_", " ").replace("ap", "AP") for name in names)),
        [(title, *(screen.per_cent(scores[name]) for name in names)) for title, scores in rows],
    )
    screen.say(
        f"Largest differences allowed: {verification.tolerance:.2g} pixels, 0.01 of a score, 0.5 points of AP. "
        f"Verification: {beside}"
    )
    require_detector(verification)
    return path
