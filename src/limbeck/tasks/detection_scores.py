"""Average precision of boxes and masks by COCO's rules, computed by faster-coco-eval.

AP is the mean over the classes, and over IoU 0.50, 0.55, ... 0.95, of the precision at 101 recalls from 0 to 1, of the
best 100 detections of a class in an image. Crowds are neither right nor missed. A class without an object on the scored
images has no AP: it is NaN and left out of every mean (pycocotools writes -1).

Source: https://cocodataset.org/#detection-eval; T.-Y. Lin et al., Microsoft COCO, arXiv 1405.0312.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limbeck.data.detection.base import SceneSource
from limbeck.data.detection.masks import encode_rle
from limbeck.errors import MissingExtraError, UserError

IouKind = Literal["bbox", "segm"]


@dataclass(frozen=True)
class Detections:
    """What a detector finds in one image.

    Attributes:
        boxes: (N, 4), x1, y1, x2, y2 in pixels of the original image.
        scores: (N,), higher is surer.
        labels: (N,) integers, 0 to K - 1 in the order of the class names.
        masks: (N, H, W) of the original image, bool or 0 and 1; or N run lengths {"size", "counts"}; None for boxes
            only.

    Raises:
        UserError: the lengths differ, a box or score is not finite, or masks are not yet decided.
    """

    boxes: NDArray[Any]
    scores: NDArray[Any]
    labels: NDArray[Any]
    masks: "NDArray[Any] | Sequence[dict[str, Any]] | None" = None

    def __post_init__(self) -> None:
        number = len(self.scores)
        if np.shape(self.boxes) != (number, 4) or np.shape(self.labels) != (number,):
            raise UserError(
                f"Detections have boxes {np.shape(self.boxes)}, scores {np.shape(self.scores)} and labels "
                f"{np.shape(self.labels)}; they must be (N, 4), (N,) and (N,)."
            )
        if self.masks is not None and len(self.masks) != number:
            raise UserError(f"There are {len(self.masks)} masks of {number} detections; each needs its own.")
        if isinstance(self.masks, np.ndarray) and self.masks.dtype.kind == "f" and self.masks.size:
            raise UserError(
                "The masks of detections are real numbers; compare them with a threshold first, such as 0.5."
            )
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all()):
            raise UserError("A detection has a box or a score that is NaN or infinite; the detector has diverged.")

    def rles(self) -> list[dict[str, Any]]:
        """The masks as run lengths, which take little memory.

        Raises:
            UserError: there are no masks.
        """
        if self.masks is None:
            raise UserError("These detections are boxes only; masks cannot be scored. Score them with iou='bbox'.")
        return [mask if isinstance(mask, dict) else encode_rle(mask) for mask in self.masks]


@dataclass(frozen=True)
class DetectionScores:
    """COCO's numbers, from 0 to 1; NaN where there is nothing to measure.

    Attributes:
        iou: what was compared, "bbox" or "segm".
        class_names: K of them.
        ap: over IoU 0.50 to 0.95.
        ap50: at IoU 0.50.
        ap75: at IoU 0.75.
        ap_small: of objects of less than 32 x 32 pixels.
        ap_medium: of those between.
        ap_large: of objects of more than 96 x 96 pixels.
        ar100: average recall with the best 100 detections of a class in an image, over IoU 0.50 to 0.95.
        class_ap: (K,) AP of each class.
        class_ap50: (K,) AP50 of each class.
        recall_points: (101,), 0 to 1.
        precision: (K, 101) at IoU 0.50: the best precision at this recall or more, 0 where it is never reached.
        thresholds: (K, 101) the score of the detection at which that recall is reached; 0 where it never is.
        objects: (K,) objects of each class, crowds left out.
        detections: (K,) detections of each class.
        crowds: in all images.
        images: how many were scored.
    """

    iou: IouKind
    class_names: tuple[str, ...]
    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar100: float
    class_ap: NDArray[np.float64]
    class_ap50: NDArray[np.float64]
    recall_points: NDArray[np.float64]
    precision: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    objects: NDArray[np.int64]
    detections: NDArray[np.int64]
    crowds: int
    images: int

    def summary(self) -> dict[str, float | None]:
        """The seven numbers by their names, for a JSON file; None stands for NaN, which JSON lacks."""
        names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")
        values = {name: float(getattr(self, name)) for name in names}
        return {name: None if math.isnan(value) else value for name, value in values.items()}


def score(source: SceneSource, predictions: Sequence[Detections], *, iou: IouKind = "bbox") -> DetectionScores:
    """Compare detections with the annotations of a source.

    Args:
        source: the annotated images.
        predictions: one for each image, in the order of the source.
        iou: "bbox" compares boxes, "segm" masks.

    Raises:
        UserError: the predictions do not fit the source, or masks are missing.
        MissingExtraError: `faster_coco_eval` is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as missing:
        raise MissingExtraError("faster_coco_eval", "detection", "Scoring detections") from missing
    _check(source, predictions, iou)
    truth, objects, crowds = _truth(source, iou)
    results = _results(source, predictions, iou)
    ground = COCO(truth)
    evaluation = COCOeval_faster(ground, ground.loadRes(results), iou)
    evaluation.evaluate()
    evaluation.accumulate()
    # Precision (IoU, recall, class, area, most detections), recall (IoU, class, area, most detections).
    precision, recall, scores = (
        np.where(np.asarray(evaluation.eval[key]) < 0, np.nan, evaluation.eval[key])
        for key in ("precision", "recall", "scores")
    )
    precision, recall, scores = precision[..., -1], recall[..., -1], scores[..., -1]
    labels = np.concatenate([np.asarray(found.labels, dtype=np.int64) for found in predictions])
    return DetectionScores(
        iou=iou,
        class_names=source.class_names,
        ap=_mean(precision[..., 0]),
        ap50=_mean(precision[0, ..., 0]),
        ap75=_mean(precision[5, ..., 0]),
        ap_small=_mean(precision[..., 1]),
        ap_medium=_mean(precision[..., 2]),
        ap_large=_mean(precision[..., 3]),
        ar100=_mean(recall[..., 0]),
        class_ap=np.array([_mean(of_class) for of_class in precision[..., 0].transpose(2, 0, 1)]),
        class_ap50=np.array([_mean(of_class) for of_class in precision[0, ..., 0].T]),
        recall_points=np.asarray(evaluation.params.recThrs, dtype=np.float64),
        precision=precision[0, ..., 0].T.copy(),
        thresholds=np.where(np.isnan(precision[0, ..., 0]), np.nan, scores[0, ..., 0]).T.copy(),
        objects=objects,
        detections=np.bincount(labels, minlength=len(source.class_names)).astype(np.int64),
        crowds=crowds,
        images=len(source),
    )


def _check(source: SceneSource, predictions: Sequence[Detections], iou: IouKind) -> None:
    if iou not in ("bbox", "segm"):
        raise UserError(f"iou is {iou!r}; it must be 'bbox' or 'segm'.")
    if len(predictions) != len(source) or not predictions:
        raise UserError(f"There are predictions for {len(predictions)} of {len(source)} images; each needs its own.")
    if iou == "segm" and not source.has_masks:
        raise UserError("The data has boxes only; masks cannot be scored. Score it with iou='bbox'.")
    for index, found in enumerate(predictions):
        wrong = [label for label in found.labels if label not in range(len(source.class_names))]
        if wrong:
            raise UserError(
                f"A detection in {source.describe(index)} has the label {wrong[0]}, but the data has the classes 0 to "
                f"{len(source.class_names) - 1}."
            )


def _truth(source: SceneSource, iou: IouKind) -> tuple[dict[str, Any], NDArray[np.int64], int]:
    """The annotations as COCO's file has them, with ids counted from 1, since 0 means unmatched to the evaluation."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    counts, crowds = np.zeros(len(source.class_names), dtype=np.int64), 0
    for index in range(len(source)):
        height, width = source.size(index)
        images.append({"id": index + 1, "height": height, "width": width, "file_name": source.describe(index)})
        objects = source.objects(index)
        counts += np.bincount(objects.labels[~objects.is_crowd], minlength=len(counts))
        crowds += int(objects.is_crowd.sum())
        for row in range(len(objects)):
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": index + 1,
                "category_id": int(objects.labels[row]) + 1,
                "bbox": _corner_and_size(objects.boxes[row]),
                "area": float(objects.area[row]),
                "iscrowd": int(objects.is_crowd[row]),
            }
            if iou == "segm":
                assert objects.segments is not None
                segment = objects.segments[row]
                annotation["segmentation"] = encode_rle(segment) if isinstance(segment, np.ndarray) else segment
            annotations.append(annotation)
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(source.class_names)]
    return {"images": images, "annotations": annotations, "categories": categories}, counts, crowds


def _results(source: SceneSource, predictions: Sequence[Detections], iou: IouKind) -> list[dict[str, Any]]:
    results = []
    for index, found in enumerate(predictions):
        rles = found.rles() if iou == "segm" else None
        for row in range(len(found.scores)):
            result: dict[str, Any] = {
                "image_id": index + 1,
                "category_id": int(found.labels[row]) + 1,
                "score": float(found.scores[row]),
            }
            # Without a box beside the mask, the area that sorts a detection by size is the mask's.
            if rles is None:
                result["bbox"] = _corner_and_size(found.boxes[row])
            else:
                if list(rles[row]["size"]) != list(source.size(index)):
                    raise UserError(
                        f"A detection in {source.describe(index)} has a mask of size {list(rles[row]['size'])}, its "
                        f"image is of {list(source.size(index))} (height, width); they must be the same."
                    )
                result["segmentation"] = rles[row]
            results.append(result)
    return results


def _corner_and_size(box: NDArray[Any]) -> list[float]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return [x1, y1, x2 - x1, y2 - y1]


def _mean(values: NDArray[np.float64]) -> float:
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if measured.size else math.nan
