"""What a detection run leaves reads back as it was, and the kept images are those worth keeping."""

import json

import numpy as np
import pytest
from PIL import Image

from limbeck.data.detection.base import SceneSubset
from limbeck.data.detection.door import open_scenes
from limbeck.reporting.detection.artefacts import write_detections
from limbeck.reporting.detection.choice import FALSE_ALARM, GOOD, MISSED, TAUGHT, choose_images
from limbeck.reporting.detection.pictures import SIDE, read_pictures
from limbeck.reporting.detection.score_file import read_scores
from limbeck.reporting.detection.stored import KEPT, collect, read_stored
from limbeck.tasks.detection_scores import Detections


def keep(found, rows):
    masks = None if found.masks is None else found.masks[rows]
    return Detections(found.boxes[rows], found.scores[rows], found.labels[rows], masks)


def add(found, box, label, score):
    masks = None if found.masks is None else np.concatenate([found.masks, np.zeros_like(found.masks[:1])])
    boxes = np.concatenate([found.boxes, np.array([box], dtype=np.float32)])
    return Detections(boxes, np.append(found.scores, score), np.append(found.labels, label), masks)


def test_detections_read_back_as_they_were(tmp_path, scenes, detectors):
    student, teacher = detectors.noisy(scenes, 1), detectors.noisy(scenes, 2)
    write_detections(tmp_path, scenes, student, teacher, {})
    stored = read_stored(tmp_path / "detections.npz")
    assert stored.class_names == scenes.class_names
    assert stored.ids == tuple("012345")
    assert stored.sizes.tolist() == [[96, 96]] * 6
    for index, (truth, found) in enumerate(zip(stored.truths, student, strict=True)):
        objects, kept = scenes.objects(index), stored.student.images[index]
        order = np.argsort(-found.scores, kind="stable")
        assert np.array_equal(truth.boxes, objects.boxes) and np.array_equal(truth.labels, objects.labels)
        assert np.array_equal(kept.boxes, found.boxes[order]) and np.array_equal(kept.labels, found.labels[order])
        assert np.allclose(kept.scores, found.scores[order])
    fresh = collect(scenes, student, teacher)
    assert stored.teacher is not None
    assert stored.teacher.threshold == fresh.teacher.threshold
    assert stored.student.mistakes(stored.truths) == fresh.student.mistakes(fresh.truths)


def test_only_the_best_hundred_of_an_image_are_kept(tmp_path, scenes, detectors):
    source = SceneSubset(scenes, [0])
    many = Detections(np.tile([1.0, 2, 30, 40], (250, 1)), np.linspace(0, 1, 250), np.zeros(250, dtype=int))
    stored = write_detections(tmp_path, source, [many], None, {})
    assert len(stored.student.images[0].scores) == KEPT
    assert stored.student.images[0].scores.min() == np.float32(np.linspace(0, 1, 250)[150])


def test_scores_read_back_with_their_gaps(tmp_path, scenes, detectors):
    source = SceneSubset(scenes, [0])  # not every class is on one image
    found = detectors.noisy(source, 1)
    scores = detectors.scores_of(source, found)
    write_detections(tmp_path, source, found, None, {"student": scores})
    read = read_scores(tmp_path / "detection_scores.json")
    assert read.of("teacher", "bbox") is None
    for iou, official in scores.items():
        stored = read.of("student", iou)
        assert stored.summary == official.summary()
        assert np.isnan(stored.class_ap).any()
        for name in ("class_ap", "class_ap50", "precision", "thresholds", "recall_points", "objects", "detections"):
            assert np.allclose(getattr(stored, name), getattr(official, name), atol=1e-6, equal_nan=True)


def test_a_score_file_whose_lists_do_not_fit_is_refused(tmp_path, scenes, detectors):
    source = SceneSubset(scenes, [0])
    found = detectors.noisy(source, 1)
    write_detections(tmp_path, source, found, None, {"student": detectors.scores_of(source, found)})
    file = tmp_path / "detection_scores.json"
    values = json.loads(file.read_text())
    values["models"]["student"]["bbox"]["class_ap"].pop()
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="not all of 5 classes"):
        read_scores(file)


def test_kept_pictures_are_the_images_and_their_masks(tmp_path, scenes, detectors):
    found = detectors.noisy(scenes, 1)
    stored = write_detections(tmp_path, scenes, found, None, {})
    pictures, lost = read_pictures(tmp_path / "samples" / "samples.json", 6)
    assert lost == []
    assert sorted(picture.number for picture in pictures) == list(range(6))
    for picture in pictures:
        index = picture.number
        assert np.array_equal(np.asarray(picture.image), np.asarray(scenes.read(index)))
        truth = scenes.objects(index).masks(96, 96)
        assert np.array_equal(np.stack([picture.masks["truth"][row] for row in range(len(truth))]), truth)
        order = np.argsort(-found[index].scores, kind="stable")
        shown = stored.student.images[index].shown(stored.student.threshold)
        assert set(picture.masks["student"]) == set(range(shown))
        for row, mask in picture.masks["student"].items():
            assert np.array_equal(mask, found[index].masks[order[row]])


def test_large_images_are_reduced_with_their_masks(tmp_path, detectors):
    source = open_scenes("shapes(train=1, val=1, size=640)").val
    write_detections(tmp_path, source, detectors.perfect(source), None, {})
    ((picture,), _) = read_pictures(tmp_path / "samples" / "samples.json", 1)
    assert picture.image.size == (SIDE, SIDE)
    shares = source.objects(0).masks(640, 640).mean(axis=(1, 2))
    assert np.allclose([mask.mean() for mask in picture.masks["truth"].values()], shares, atol=2e-3)


def test_pictures_of_an_earlier_end_are_removed_and_lost_ones_named(tmp_path, scenes, detectors):
    found = detectors.noisy(scenes, 1)
    write_detections(tmp_path, scenes, found, None, {})
    write_detections(tmp_path, SceneSubset(scenes, [0, 1]), found[:2], None, {})
    folder = tmp_path / "samples"
    assert sorted(file.name for file in folder.iterdir()) == ["000000.png", "000001.png", "samples.json"]
    (folder / "000000.png").write_bytes(b"no picture")
    pictures, lost = read_pictures(folder / "samples.json", 2)
    assert ([picture.number for picture in pictures], lost) == ([1], ["000000.png"])


def test_a_list_cannot_name_files_outside_the_folder(tmp_path, scenes, detectors):
    write_detections(tmp_path, SceneSubset(scenes, [0]), detectors.perfect(scenes)[:1], None, {})
    Image.new("RGB", (96, 96)).save(tmp_path / "secret.png")
    file = tmp_path / "samples" / "samples.json"
    values = json.loads(file.read_text())
    values["pictures"][0]["file"] = "../secret.png"
    file.write_text(json.dumps(values))
    assert read_pictures(file, 1) == ([], ["secret.png"])


def test_the_reasons_take_turns(scenes, detectors):
    student, teacher = detectors.perfect(scenes), detectors.perfect(scenes)
    sizes = [scenes.objects(index).area for index in range(6)]
    taught, alarm, missed = sorted(range(6), key=lambda index: sizes[index].min())[:3]
    student[taught] = keep(student[taught], np.arange(len(sizes[taught])) != sizes[taught].argmin())
    student[alarm] = add(student[alarm], (0, 0, 6, 6), 0, 0.99)
    for found in (student, teacher):
        found[missed] = keep(found[missed], np.arange(len(sizes[missed])) != sizes[missed].argmax())
    chosen = choose_images(collect(scenes, student, teacher), count=5)
    assert [(one.image, one.why) for one in chosen[:3]] == [(taught, TAUGHT), (alarm, FALSE_ALARM), (missed, MISSED)]
    assert [one.why for one in chosen[3:]] == [GOOD, GOOD]
    assert len(sizes[chosen[3].image]) >= len(sizes[chosen[4].image])
