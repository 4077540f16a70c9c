"""Runs and pages of detectors that were never trained: made-up detections over the drawn scenes."""

import json
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from limbeck.data.detection.door import open_scenes
from limbeck.reporting.detection.artefacts import write_detections
from limbeck.tasks.detection_scores import Detections, score

pytest.importorskip("faster_coco_eval")


@pytest.fixture(scope="session")
def scenes():
    return open_scenes("shapes(train=1, val=6, size=96)").val


def perfect(source, sure=0.9):
    """The annotations as detections, all equally sure."""
    found = []
    for index in range(len(source)):
        objects = source.objects(index)
        height, width = source.size(index)
        found.append(
            Detections(objects.boxes, np.full(len(objects), sure), objects.labels, objects.masks(height, width))
        )
    return found


def noisy(source, seed, *, jitter=2.0, lost=0.2, mistaken=0.1, false=2):
    """The annotations with shaken boxes, some lost, some of another class, and unsure boxes anywhere."""
    random = np.random.default_rng(seed)
    classes, found = len(source.class_names), []
    for index in range(len(source)):
        objects = source.objects(index)
        height, width = source.size(index)
        kept = random.random(len(objects)) >= lost
        boxes = objects.boxes[kept] + random.normal(0, jitter, (int(kept.sum()), 4))
        labels = np.where(
            random.random(len(boxes)) < mistaken, random.integers(0, classes, len(boxes)), objects.labels[kept]
        )
        scores = random.uniform(0.4, 0.98, len(boxes))
        corner = random.uniform(0, 0.7, (false, 2)) * (width, height)
        boxes = np.concatenate([boxes, np.concatenate([corner, corner + 0.2 * np.array([width, height])], axis=1)])
        boxes = np.clip(boxes, 0, [width, height, width, height])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = np.concatenate([labels, random.integers(0, classes, false)])
        scores = np.concatenate([scores, random.uniform(0.05, 0.6, false)])
        masks = objects.masks(height, width)
        if masks is not None:
            anywhere = np.zeros((false, height, width), dtype=bool)
            for mask, (x1, y1, x2, y2) in zip(anywhere, boxes[len(boxes) - false :].astype(int), strict=True):
                mask[y1:y2, x1:x2] = True
            masks = np.concatenate([masks[kept], anywhere])
        found.append(Detections(boxes.astype(np.float32), scores, labels, masks))
    return found


def scores_of(source, found, *, masks=True):
    """COCO's numbers of boxes and, if wanted, masks."""
    kinds = ("bbox", "segm") if masks and source.has_masks else ("bbox",)
    return {iou: score(source, found, iou=iou) for iou in kinds}


@pytest.fixture
def make_detection_run(tmp_path, scenes):
    """Write a detection run's folder, as training leaves it, with made-up detections of the drawn scenes."""

    def make(
        name="mine", *, student=None, teacher=None, verb="distill", method="pkd", source=None, masks=True, ap=None
    ):
        source = source if source is not None else scenes
        folder = tmp_path / name
        folder.mkdir()
        student = student if student is not None else noisy(source, 1)
        has_teacher = verb == "distill"
        teacher = (teacher if teacher is not None else noisy(source, 2, jitter=1.0, lost=0.05)) if has_teacher else None
        scores = {"student": scores_of(source, student, masks=masks)}
        if teacher is not None:
            scores["teacher"] = scores_of(source, teacher, masks=masks)
        write_detections(folder, source, student, teacher, scores)
        plain = {who: {iou: found.summary() for iou, found in kinds.items()} for who, kinds in scores.items()}
        if ap is not None:
            plain["student"]["bbox"]["ap"] = ap
        own = {"model": "fcos"} if verb == "train" else {"student": "fcos", "teacher": "faster_rcnn", "method": method}
        (folder / "recipe.yaml").write_text(yaml.safe_dump({"task": "detection", **own, "data": "shapes", "epochs": 3}))
        rows = []
        for epoch in range(3):
            step = 10 * (epoch + 1)
            train = {
                "loss/total": 2.0 - 0.5 * epoch,
                "loss/task": 1.0,
                "loss/task/boxes": 0.75,
                "loss/task/classes": 0.25,
            }
            train |= {"images_per_second": 3.21, "time/data": 0.1, "time/teacher": 0.3, "time/student": 0.6}
            if has_teacher and method != "none":
                train |= {"loss/pkd": 3.0 - epoch, "weight/pkd": 0.5, "weight/task": 1.0}
            rows.append({"kind": "train", "epoch": epoch, "step": step, **train})
            values = {"ap": 0.1 * (epoch + 1), "ap50": 0.2 * (epoch + 1), "ap75": 0.05}
            values |= {"mask_ap": 0.08 * (epoch + 1), "mask_ap50": 0.15, "mask_ap75": 0.1} if masks else {}
            rows.append({"kind": "val", "epoch": epoch, "step": step, **values})
            rows.append({"kind": "gradients", "epoch": epoch, "step": step, "task": 1.0, "pkd": 0.2})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        summary = {
            "task": "detection", "verb": verb, "name": name, "teacher": "faster_rcnn" if has_teacher else None,
            "method": method if has_teacher else None,
            "scores": {"student": plain["student"], "teacher": plain.get("teacher")},
            "best": {"ap": 0.99, "epoch": 1}, "class_names": list(source.class_names),
            "parameters": {"student": 5_000_000, "teacher": 20_000_000 if has_teacher else None},
            "macs": {"student": 1_000_000_000, "teacher": 4_500_000_000 if has_teacher else None},
            "image_size": [96, 128], "seconds": 3725.0, "training_seconds": 3600.0, "images_per_second": 3.21,
            "pairs": [{"loss": "pkd", "student": "fpn.p3", "teacher": "fpn.p3"}] if has_teacher else [],
            "notes": ["two images were skipped"],
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return make


class Page(HTMLParser):
    """A page's tags, visible text by section, and figures."""

    def __init__(self, file):
        super().__init__()
        self.tags, self.words, self.figures, self.kind, self.place = [], {"": []}, [], None, ""
        self.source = file.read_text()
        self.feed(self.source)
        self.text = " ".join(self.section(name) for name in self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.kind = dict(attrs).get("type", tag)
        if tag == "section":
            self.place = dict(attrs)["id"]
            self.words[self.place] = []

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.kind = None
        if tag == "section":
            self.place = ""

    def handle_data(self, data):
        if self.kind is None:
            self.words[self.place].append(data)
        elif self.kind == "application/json":
            self.figures.append(json.loads(data))

    def section(self, name):
        return " ".join(" ".join(self.words[name]).split())

    @property
    def sections(self):
        return {name for name in self.words if name}


@pytest.fixture
def read_page():
    return Page


@pytest.fixture
def detectors():
    """Made-up detectors: `perfect(source, sure)` and `noisy(source, seed, ...)`, and `scores_of(source, found)`."""
    return SimpleNamespace(perfect=perfect, noisy=noisy, scores_of=scores_of)
