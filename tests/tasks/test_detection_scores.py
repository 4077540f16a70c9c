"""COCO's numbers: equal to pycocotools on the same predictions, and right where the answer is known."""

import contextlib
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limbeck.data.detection.base import Objects, SceneSource, SceneSubset
from limbeck.data.detection.door import open_scenes
from limbeck.data.detection.masks import encode_rle
from limbeck.errors import MissingExtraError, UserError
from limbeck.tasks.detection_scores import Detections, DetectionScores, IouKind, score

pytest.importorskip("faster_coco_eval")
coco_api = pytest.importorskip("pycocotools.coco")
coco_eval = pytest.importorskip("pycocotools.cocoeval")
coco_masks = pytest.importorskip("pycocotools.mask")

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the image sets beside the checkout are absent")
IOUS: tuple[IouKind, ...] = ("bbox", "segm")


class Annotated(SceneSource):
    """Objects without pictures."""

    has_masks = True

    def __init__(self, objects: list[Objects], side: int, class_names: tuple[str, ...]) -> None:
        self.all, self.side, self.class_names = objects, side, class_names

    def __len__(self) -> int:
        return len(self.all)

    def read(self, index: int) -> Image.Image:
        return Image.new("RGB", (self.side, self.side))

    def objects(self, index: int) -> Objects:
        return self.all[index]

    def image_id(self, index: int) -> int:
        return index

    def size(self, index: int) -> tuple[int, int]:
        return self.side, self.side

    def describe(self, index: int) -> str:
        return f"picture {index}"


def rectangle(box: np.ndarray, side: int) -> np.ndarray:
    mask = np.zeros((side, side), dtype=bool)
    x1, y1, x2, y2 = box.astype(int)
    mask[y1:y2, x1:x2] = True
    return mask


def some_boxes(random: np.random.RandomState, number: int, side: int) -> np.ndarray:
    corners = random.randint(0, side - 10, size=(number, 2))
    sizes = np.minimum(random.randint(5, side, size=(number, 2)), side - corners)
    return np.concatenate([corners, corners + sizes], axis=1).astype(np.float32)


def random_set(seed: int, images: int = 12, side: int = 130, classes: int = 4) -> tuple[Annotated, list[Detections]]:
    """Objects of all three sizes with crowds, the last class without any; detections near them, elsewhere, and tied."""
    random = np.random.RandomState(seed)
    names = tuple(f"class {label}" for label in range(classes + 1))
    objects, found = [], []
    for _ in range(images):
        boxes = some_boxes(random, random.randint(0, 7), side)
        labels = random.randint(classes, size=len(boxes))
        masks = [rectangle(box, side) for box in boxes]
        area = np.array([mask.sum() for mask in masks], dtype=np.float32)
        objects.append(
            Objects(boxes, labels, random.rand(len(boxes)) < 0.2, area, tuple(encode_rle(mask) for mask in masks))
        )
        near = np.clip(np.repeat(boxes, 2, axis=0) + random.randint(-6, 7, size=(2 * len(boxes), 4)), 0, side)
        near = near[(near[:, 2:] > near[:, :2] + 1).all(axis=1)]
        guesses = np.concatenate([near, some_boxes(random, random.randint(0, 5), side)]).astype(np.float32)
        guessed = random.randint(classes + 1, size=len(guesses))
        guessed[: len(labels)] = labels[: len(guesses)]
        ties = np.round(random.rand(len(guesses)), 1)
        masks_found = np.array([rectangle(box, side) for box in guesses]).reshape(-1, side, side)
        found.append(Detections(guesses, ties, guessed, masks_found))
    return Annotated(objects, side, names), found


def by_pycocotools(truth: dict[str, Any] | Path, results: list[dict[str, Any]], iou: str, images: list[int]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        ground = coco_api.COCO(str(truth)) if isinstance(truth, Path) else coco_api.COCO()
        if isinstance(truth, dict):
            ground.dataset = truth
            ground.createIndex()
        evaluation = coco_eval.COCOeval(ground, ground.loadRes(results), iou)
        evaluation.params.imgIds = images
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def assert_equal(ours: DetectionScores, theirs: Any) -> None:
    numbers = [ours.ap, ours.ap50, ours.ap75, ours.ap_small, ours.ap_medium, ours.ap_large, ours.ar100]
    np.testing.assert_allclose(np.nan_to_num(numbers, nan=-1), theirs.stats[[0, 1, 2, 3, 4, 5, 8]], atol=1e-6)
    precision = theirs.eval["precision"][..., 0, 2]
    known = np.where(precision > -1, precision, np.nan)
    np.testing.assert_allclose(ours.precision, known[0].T, atol=1e-6)
    for label, expected in enumerate(known.transpose(2, 0, 1)):
        if np.isnan(expected).all():
            assert math.isnan(ours.class_ap[label])
        else:
            assert ours.class_ap[label] == pytest.approx(expected.mean(), abs=1e-6)
            assert ours.class_ap50[label] == pytest.approx(expected[0].mean(), abs=1e-6)


def as_coco(source: Annotated, ids: list[int]) -> dict[str, Any]:
    annotations = []
    for image, objects in enumerate(source.all):
        assert objects.segments is not None
        for row, (x1, y1, x2, y2) in enumerate(objects.boxes.tolist()):
            annotation = {"id": len(annotations) + 1, "image_id": image, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            annotation |= {"category_id": ids[objects.labels[row]], "area": float(objects.area[row])}
            annotation |= {"iscrowd": int(objects.is_crowd[row]), "segmentation": objects.segments[row]}
            annotations.append(annotation)
    images = [{"id": image, "height": source.side, "width": source.side} for image in range(len(source))]
    return {"images": images, "annotations": annotations, "categories": [{"id": i, "name": str(i)} for i in ids]}


def as_results(found: list[Detections], image_ids: list[int], ids: list[int], iou: str) -> list[dict[str, Any]]:
    results = []
    for image_id, each in zip(image_ids, found, strict=True):
        rles = each.rles() if iou == "segm" else []
        for row, (x1, y1, x2, y2) in enumerate(np.asarray(each.boxes).tolist()):
            result: dict[str, Any] = {"image_id": image_id, "category_id": ids[int(each.labels[row])]}
            result["score"] = float(each.scores[row])
            if iou == "bbox":
                result["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            else:
                result["segmentation"] = rles[row]
            results.append(result)
    return results


@pytest.mark.parametrize("iou", IOUS)
@pytest.mark.parametrize("seed", range(5))
def test_equal_to_pycocotools_with_crowds_ties_and_sparse_category_ids(seed: int, iou: IouKind) -> None:
    source, found = random_set(seed)
    ids = [2, 13, 14, 57, 90]
    theirs = by_pycocotools(as_coco(source, ids), as_results(found, list(range(12)), ids, iou), iou, list(range(12)))
    ours = score(source, found, iou=iou)
    assert 0.02 < ours.ap < 0.9
    assert_equal(ours, theirs)
    assert ours.crowds == sum(int(objects.is_crowd.sum()) for objects in source.all) > 0
    assert ours.objects.sum() + ours.crowds == sum(map(len, source.all))
    assert ours.detections.sum() == sum(len(each.scores) for each in found)


@pytest.mark.parametrize("iou", IOUS)
def test_perfect_predictions_score_one(iou: IouKind) -> None:
    source, _ = random_set(0)
    perfect = [
        Detections(o.boxes[keep], np.linspace(0.9, 0.1, len(o))[keep], o.labels[keep], m[keep])
        for o in source.all
        if (m := o.masks(source.side, source.side)) is not None and (keep := ~o.is_crowd) is not None
    ]
    scores = score(source, perfect, iou=iou)
    for value in (scores.ap, scores.ap50, scores.ap75, scores.ar100):
        assert value == pytest.approx(1)
    assert scores.class_ap[:4].tolist() == pytest.approx([1] * 4)
    assert scores.precision[:4].min() == pytest.approx(1)
    assert (
        math.isnan(scores.class_ap[4]) and np.isnan(scores.precision[4]).all() and np.isnan(scores.thresholds[4]).all()
    )


def test_nothing_found_scores_zero() -> None:
    source, _ = random_set(0)
    nothing = [Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), [])] * len(source)
    for iou in IOUS:
        scores = score(source, nothing, iou=iou)
        assert scores.ap == scores.ap50 == scores.ar100 == 0
        assert scores.class_ap[:4].tolist() == [0, 0, 0, 0] and math.isnan(scores.class_ap[4])
        assert scores.summary()["ap"] == 0
        json.dumps(scores.summary(), allow_nan=False)


def test_a_detection_of_an_absent_class_changes_no_number() -> None:
    source, found = random_set(1)
    without = [
        Detections(f.boxes[keep], f.scores[keep], f.labels[keep], f.masks[keep])  # type: ignore[call-overload]
        for f in found
        if (keep := f.labels != 4) is not None
    ]
    assert score(source, found).summary() == score(source, without).summary()


def one(boxes: list[list[float]]) -> Annotated:
    number = len(boxes)
    boxed = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    segments = tuple(encode_rle(rectangle(box, 200)) for box in boxed)
    area = (boxed[:, 2:] - boxed[:, :2]).prod(axis=1)
    return Annotated([Objects(boxed, np.zeros(number, int), np.zeros(number, bool), area, segments)], 200, ("thing",))


def test_one_hit_of_iou_080_counts_at_seven_of_ten_thresholds() -> None:
    source = one([[0, 0, 100, 100]])
    scores = score(source, [Detections(np.array([[0, 0, 100, 81]]), np.array([0.7]), np.array([0]))])
    assert scores.ap == pytest.approx(0.7) and scores.ar100 == pytest.approx(0.7)
    assert (scores.ap50, scores.ap75, scores.ap_large) == pytest.approx((1, 1, 0.7))
    assert math.isnan(scores.ap_small) and scores.summary()["ap_small"] is None
    assert scores.thresholds[0] == pytest.approx(0.7)


def test_a_false_alarm_above_the_hit_halves_precision() -> None:
    source = one([[0, 0, 50, 50]])
    boxes = np.array([[100, 100, 150, 150], [0, 0, 50, 50]])
    assert score(source, [Detections(boxes, np.array([0.9, 0.8]), np.zeros(2, int))]).ap == pytest.approx(0.5)
    assert score(source, [Detections(boxes, np.array([0.8, 0.9]), np.zeros(2, int))]).ap == pytest.approx(1)


def test_half_of_the_objects_found_fills_51_of_101_recalls() -> None:
    source = one([[0, 0, 50, 50], [100, 100, 150, 150]])
    scores = score(source, [Detections(np.array([[0, 0, 50, 50]]), np.array([0.9]), np.array([0]))])
    assert scores.ap == pytest.approx(51 / 101)
    assert scores.precision[0].tolist() == [1] * 51 + [0] * 50
    assert (scores.recall_points[0], scores.recall_points[-1]) == (0, 1)


def test_wrong_input_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    source = one([[0, 0, 50, 50]])
    box, sure, first = np.array([[0, 0, 50, 50]]), np.array([0.9]), np.array([0])
    good = Detections(box, sure, first)
    with pytest.raises(UserError, match="0 of 1 images"):
        score(source, [])
    with pytest.raises(UserError, match=r"picture 0 has the label 1.* 0 to 0"):
        score(source, [Detections(box, sure, np.array([1]))])
    with pytest.raises(UserError, match="boxes only"):
        score(source, [good], iou="segm")
    with pytest.raises(UserError, match=r"size \[9, 9\].* \[200, 200\]"):
        score(source, [Detections(box, sure, first, np.ones((1, 9, 9), bool))], iou="segm")
    with pytest.raises(UserError, match="threshold"):
        Detections(box, sure, first, np.full((1, 200, 200), 0.3))
    with pytest.raises(UserError, match="must be \\(N, 4\\)"):
        Detections(box, np.array([0.9, 0.8]), first)
    with pytest.raises(UserError, match="NaN"):
        Detections(box, np.array([np.nan]), first)
    with pytest.raises(UserError, match="'bbox' or 'segm'"):
        score(source, [good], iou="box")  # type: ignore[arg-type]
    source.has_masks = False
    with pytest.raises(UserError, match="data has boxes only"):
        score(source, [good], iou="segm")
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingExtraError, match=r"limbeck\[detection\]"):
        score(source, [good])


@needs_data
def test_equal_to_pycocotools_on_real_annotations(tmp_path: Path) -> None:
    """Boxes and polygons of coco_mini as its file has them, with crowds, read by both sides on their own."""
    subprocess.run([sys.executable, SHARED / "unpack.py", "coco_mini", tmp_path], check=True, capture_output=True)
    file = tmp_path / "coco_mini" / "annotations.json"
    content = json.loads(file.read_text())
    sides = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for number, annotation in enumerate(a for a in content["annotations"] if a["iscrowd"]):
        # Their run lengths are of the original size; the box stands in for them, as in the reader, or a run of it.
        x, y, w, h = annotation["bbox"]
        polygon = [[x, y, x, y + h, x + w, y + h, x + w, y]]
        size = sides[annotation["image_id"]]
        rle = coco_masks.merge(coco_masks.frPyObjects(polygon, *size))
        annotation["segmentation"] = {"size": list(size), "counts": rle["counts"].decode()} if number % 2 else polygon
    file.write_text(json.dumps(content))
    val = open_scenes(f"coco:{file},{tmp_path / 'coco_mini' / 'images'}").val
    source = SceneSubset(val, range(0, len(val), 2))
    ids = sorted(category["id"] for category in content["categories"])
    random = np.random.RandomState(0)
    found = []
    for index in range(len(source)):
        objects, (height, width) = source.objects(index), source.size(index)
        masks = objects.masks(height, width)
        assert masks is not None
        shifts = random.randint(-3, 4, size=(len(objects), 2))
        moved = np.array([np.roll(m, s, (1, 0)) for m, s in zip(masks, shifts, strict=True)], dtype=bool)
        boxes = objects.boxes + np.tile(shifts, 2) * random.rand(len(objects), 1)
        labels = np.where(random.rand(len(objects)) < 0.15, random.randint(80, size=len(objects)), objects.labels)
        found.append(Detections(boxes, random.rand(len(objects)), labels, moved.reshape(-1, height, width)))
    image_ids = [int(source.image_id(index)) for index in range(len(source))]
    for iou in IOUS:
        theirs = by_pycocotools(file, as_results(found, image_ids, ids, iou), iou, image_ids)
        ours = score(source, found, iou=iou)
        assert 0.2 < ours.ap < 0.9
        assert_equal(ours, theirs)
        assert ours.crowds > 3
