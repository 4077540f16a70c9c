"""`limbeck predict`, for detectors: boxes, masks and scores of images, as JSON lines, drawn pictures and a contact sheet."""

import json
from pathlib import Path
from typing import Any, Literal

import torch

from limbeck.contact_sheet import SheetItem
from limbeck.data.decode import BadImageError, read_image
from limbeck.data.detection.base import no_objects
from limbeck.data.detection.views import scene_eval_view
from limbeck.detection import pad
from limbeck.files import atomic_write
from limbeck.models.detection.door import load_detector
from limbeck.reporting.detection.sheet import detection_sheet, sheet_item
from limbeck.reporting.drawing import draw_detections
from limbeck.tasks.detection import compact
from limbeck.training.fit import choose_accelerator, main_device
from limbeck.verbs import screen


def predict(
    model: str,
    files: list[Path],
    *,
    min_score: float,
    folder: Path,
    max_sheet: int,
    bad_images: Literal["stop", "skip"],
    accelerator: str,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Find objects in images.

    Writes `detections.jsonl`, a drawn PNG of each image under `drawn/`, and `contact_sheet.png` into the folder.

    Args:
        model: a run's folder or any other detector name.
        files: the images.
        min_score: detections with at least this score are kept and drawn.
        folder: where to write.
        max_sheet: most images on the contact sheet.
        bad_images: what to do about files that cannot be decoded.
        accelerator: where to run.
        batch_size: images at a time.

    Returns:
        One dict per image: file, size (height, width), and objects, each with class, score, box (x1, y1, x2, y2 in pixels of
        the image) and, of a detector with masks, mask (COCO's run lengths).

    Raises:
        UserError: an image cannot be decoded.
    """
    device = main_device(choose_accelerator(accelerator))
    detector = load_detector(model).to(device).eval()
    names = detector.facts.class_names
    view = scene_eval_view(detector.resize, with_masks=False)
    answers: list[dict[str, Any]] = []
    sheet: list[SheetItem] = []
    skipped: list[str] = []
    for start in range(0, len(files), batch_size):
        images = []
        for file in files[start : start + batch_size]:
            try:
                images.append((file, read_image(file)))
            except BadImageError as error:
                if bad_images == "stop":
                    raise
                skipped.append(str(error))
        if not images:
            continue
        sizes = [(image.height, image.width) for _, image in images]
        pictures = pad([view(image, no_objects(), 0)[0] for _, image in images], 1 if detector.resize.stretch else 32)
        with torch.no_grad():
            found = [compact(one) for one in detector.detect(pictures.to(device), sizes)]
        for (file, image), size, one in zip(images, sizes, found, strict=True):
            kept = [row for row in range(len(one.scores)) if one.scores[row] >= min_score]
            objects = []
            for row in kept:
                entry: dict[str, Any] = {
                    "class": names[int(one.labels[row])],
                    "score": round(float(one.scores[row]), 4),
                    "box": [round(float(value), 2) for value in one.boxes[row]],
                }
                if one.masks is not None:
                    entry["mask"] = one.masks[row]
                objects.append(entry)
            answers.append({"file": str(file), "size": list(size), "objects": objects})
            drawn = draw_detections(image, one, names, min_score=min_score)
            place = folder / "drawn" / f"{len(answers):05d}_{file.stem}.png"
            with atomic_write(place) as stream:
                drawn.save(stream, format="PNG")
            if len(sheet) < max_sheet:
                sheet.append(sheet_item(file.name, image, one, names, min_score=min_score))
    with atomic_write(folder / "detections.jsonl") as stream:
        stream.write("".join(json.dumps(answer) + "\n" for answer in answers).encode())
    rows = [
        (
            answer["file"],
            len(answer["objects"]),
            ", ".join(f"{o['class']} {o['score']:.2f}" for o in answer["objects"][:4]),
        )
        for answer in answers[:20]
    ]
    screen.table(
        f"{detector.facts.name} on {len(answers)} images, scores of at least {min_score}",
        ("file", "objects", "best"),
        rows,
    )
    if len(answers) > len(rows):
        screen.say(f"({len(answers) - len(rows)} more in {folder / 'detections.jsonl'})")
    if skipped:
        screen.notes([f"{len(skipped)} images could not be decoded and were skipped:", *skipped])
    if sheet:
        with atomic_write(folder / "contact_sheet.png") as stream:
            detection_sheet(sheet).save(stream, format="PNG")
        screen.say(f"Contact sheet: {folder / 'contact_sheet.png'}; each image, drawn: {folder / 'drawn'}")
    return answers
