"""`limbeck evaluate`, for detectors: COCO's average precision of boxes and masks."""

import time
from typing import Any, Literal

from limbeck.tasks.detection import DetectionTask, predict_detections
from limbeck.training.fit import choose_accelerator, main_device
from limbeck.verbs import screen
from limbeck.verbs.detection.classes import in_our_classes
from limbeck.verbs.detection.measured_scenes import measured_scenes


def evaluate(
    model: str,
    data: str | None,
    *,
    batch_size: int,
    val_fraction: float | None,
    split_seed: int | None,
    bad_images: Literal["stop", "skip"],
    accelerator: str,
    num_workers: int | Literal["auto"],
) -> dict[str, Any]:
    """Measure a detector on the validation images of annotated scenes; arguments as of `limbeck.evaluate`.

    Returns:
        `bbox` and, where detector and data have masks, `segm`: each ap, ap50, ap75, ap_small, ap_medium, ap_large, ar100 (0 to 1;
        None where there is nothing to measure) and `classes`, the AP by class name; images; images_per_second.

    Raises:
        UserError: the data's classes are none of the detector's.
    """
    device = main_device(choose_accelerator(accelerator))
    shown = measured_scenes(
        model,
        data,
        val_fraction=val_fraction,
        split_seed=split_seed,
        bad_images=bad_images,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    began = time.perf_counter()
    found = predict_detections(shown.model.to(device), shown.batches, device)
    rate = len(found) / (time.perf_counter() - began)
    names = shown.scenes.class_names
    found, notes = in_our_classes(found, shown.model.facts.class_names, names)
    task = DetectionTask(shown.scenes.val, masks=shown.model.facts.has_masks and shown.scenes.has_masks)
    scores = task.scores(found)
    screen.notes([*shown.scenes.notes, *(f"{shown.model.facts.name}: {note}" for note in notes)])
    columns = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")
    screen.table(
        f"{shown.model.facts.name} on {shown.scenes.name}, {len(found)} validation images, {rate:.1f} images/s",
        ("", "AP", "AP50", "AP75", "small", "medium", "large", "AR100"),
        [
            ({"bbox": "boxes", "segm": "masks"}[kind], *(screen.per_cent(of.summary()[column]) for column in columns))
            for kind, of in scores.items()
        ],
    )
    measured: dict[str, Any] = {
        kind: {
            **of.summary(),
            "classes": {
                name: None if value != value else float(value) for name, value in zip(names, of.class_ap, strict=True)
            },
        }
        for kind, of in scores.items()
    }
    return {**measured, "images": len(found), "images_per_second": rate}
