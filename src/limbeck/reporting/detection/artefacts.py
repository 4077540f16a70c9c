"""What a finished detection run leaves for its report.

detections.npz            what each model detects on every validation image, and what of it is right
detection_scores.json     average precision, by class, and precision-recall curves
samples/                  a few of the images, with the masks of what is seen on them
"""

from collections.abc import Sequence
from pathlib import Path

from limbeck.data.detection.base import SceneSource
from limbeck.reporting.detection.choice import choose_images
from limbeck.reporting.detection.pictures import write_pictures
from limbeck.reporting.detection.score_file import Scores, write_scores
from limbeck.reporting.detection.stored import StoredDetections, collect, write_stored
from limbeck.tasks.detection_scores import Detections

MOST_PICTURES = 24


def write_detections(
    run_path: str | Path,
    source: SceneSource,
    student: Sequence[Detections],
    teacher: Sequence[Detections] | None,
    scores: Scores,
) -> StoredDetections:
    """Write detections.npz, detection_scores.json and samples/ into a run's folder.

    Args:
        run_path: the folder.
        source: the validation images with their objects; not empty.
        student: what the student detects in each, in the order of the source.
        teacher: the same of the teacher, in the classes of the source; None without one.
        scores: {"student": {"bbox": DetectionScores, "segm": ...}, "teacher": {...}} as far as measured.

    Returns:
        The judged detections.

    Raises:
        UserError: the disk is full.
    """
    folder = Path(run_path)
    assert len(student) == len(source) > 0 and (teacher is None or len(teacher) == len(source))
    stored = collect(source, student, teacher)
    write_stored(folder, stored)
    write_scores(folder, stored.class_names, scores)
    chosen = choose_images(stored, MOST_PICTURES)
    write_pictures(folder, source, chosen, stored, {"student": student, "teacher": teacher})
    return stored
