"""Unlabelled folders, and a teacher's labels for them: what is kept, written, and read again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.detection.door import open_pseudo_labels, open_scenes, open_unlabelled_scenes
from limbeck.data.detection.names import check_scenes_name
from limbeck.data.detection.pseudo_labels import keep_confident, write_pseudo_labels
from limbeck.data.detection.views import scene_eval_view
from limbeck.detection import Found, Resize
from limbeck.errors import UserError
from limbeck.tasks.detection_scores import Detections

CLASSES = ("cat", "dog", "owl")
HEIGHT, WIDTH = 30, 40


def folder_of(root: Path, count: int = 4) -> Path:
    (root / "deep" / "er").mkdir(parents=True)
    for number in range(count):
        name = f"deep/er/{number}.png" if number % 2 else f"{number}.jpg"
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(root / name)
    (root / "notes.txt").write_text("not an image")
    return root


def found(scores: list[float], masks: bool = False) -> Found:
    """Objects of 5 x 6.5 pixels, 2 to the right of each other."""
    number = len(scores)
    left = 2.0 * torch.arange(number) + 0.1
    boxes = torch.stack([left, torch.full_like(left, 3), left + 5, torch.full_like(left, 9.5)], dim=1)
    made = torch.zeros(number, HEIGHT, WIDTH, dtype=torch.bool)
    for row in range(number):
        made[row, 3:9, 2 * row : 2 * row + 5] = True
    return Found(boxes, torch.arange(number) % 3, torch.tensor(scores), made if masks else None)


def test_an_unlabelled_folder_is_all_of_its_images(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pool")
    assert check_scenes_name(str(folder)).kind == "images"
    opened = open_unlabelled_scenes(str(folder))
    source = opened.train
    assert opened.val is None and "4 images without boxes" in opened.notes[0]
    assert [source.image_id(index) for index in range(4)] == ["0.jpg", "2.jpg", "deep/er/1.png", "deep/er/3.png"]
    assert {source.size(index) for index in range(4)} == {(HEIGHT, WIDTH)}
    assert [len(source.objects(index)) for index in range(4)] == [0] * 4
    assert source.counts()[1] == 4
    _, target = scene_eval_view(Resize(60, 80), with_masks=False)(source.read(0), source.objects(0), 0)
    assert len(target) == 0
    with pytest.raises(UserError, match="without boxes, which only a teacher"):
        open_scenes(str(folder))
    with pytest.raises(UserError, match="has boxes of its own"):
        open_unlabelled_scenes("shapes")
    with pytest.raises(UserError, match="hold no images"):
        (tmp_path / "empty").mkdir()
        open_unlabelled_scenes(str(tmp_path / "empty"))


def test_bad_images_of_a_folder_are_left_out_when_asked(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pool")
    (folder / "1.jpg").write_bytes(b"no image")
    opened = open_unlabelled_scenes(str(folder), bad_images="skip")
    assert [opened.train.image_id(index) for index in range(2)] == ["0.jpg", "2.jpg"]
    assert len(opened.train) == 4 and "1 images cannot be decoded" in opened.notes[-1]


def test_what_the_teacher_is_sure_of_is_kept() -> None:
    objects = keep_confident(found([0.9, 0.4, 0.39]), HEIGHT, WIDTH)
    assert objects.scores is not None
    assert objects.scores.tolist() == [np.float32(0.9), np.float32(0.4)]
    assert objects.labels.tolist() == [0, 1]
    assert objects.segments is None and not objects.is_crowd.any()
    assert len(keep_confident(found([0.9, 0.4, 0.39]), HEIGHT, WIDTH, min_score=0.95)) == 0


def test_boxes_are_clipped_and_nothing_empty_is_kept() -> None:
    one = found([0.9, 0.9, 0.9, 0.9, 0.9], masks=True)
    one.boxes[0] = torch.tensor([-5.0, -1.0, 50.0, 12.0])
    one.boxes[1] = torch.tensor([41.0, 3.0, 45.0, 9.0])
    one.boxes[4] = torch.tensor([9.0, 9.0, 3.0, 3.0])  # inside out
    assert one.masks is not None
    one.masks[2] = False
    objects = keep_confident(one, HEIGHT, WIDTH)
    assert objects.labels.tolist() == [0, 0]
    assert objects.boxes[0].tolist() == [0, 0, 40, 12]
    assert objects.area.tolist() == [30, 30]
    masks = objects.masks(HEIGHT, WIDTH)
    assert masks is not None
    assert np.array_equal(masks, one.masks[[0, 3]].numpy())


def test_measured_detections_serve_as_well(tmp_path: Path) -> None:
    one = found([0.9, 0.7, 0.1], masks=True)
    assert one.masks is not None
    compact = Detections(one.boxes.numpy(), one.scores.numpy(), one.labels.numpy(), one.masks.numpy())
    compact = Detections(compact.boxes, compact.scores, compact.labels, compact.rles())
    first, second = keep_confident(one, HEIGHT, WIDTH), keep_confident(compact, HEIGHT, WIDTH)
    assert np.array_equal(first.boxes, second.boxes)
    assert first.segments == second.segments


@pytest.mark.parametrize("masks", [False, True])
def test_what_is_written_is_read_again(tmp_path: Path, masks: bool) -> None:
    folder, file = folder_of(tmp_path / "a, pool"), tmp_path / "run" / "pseudo_labels.json"
    source = open_unlabelled_scenes(str(folder)).train
    answers = [found([0.9, 0.51], masks), found([0.2], masks), found([], masks), found([0.7, 0.6, 0.123], masks)]
    notes = write_pseudo_labels(file, source, folder, iter(answers), CLASSES, teacher="t", min_score=0.5)
    assert "labelled 4 objects in 2 of 4 images" in notes[0] and "2 less sure ones" in notes[0]
    assert notes[1].startswith("2 images") and "left out" in notes[1]
    scenes = open_pseudo_labels(file, folder, val_fraction=0.5)
    assert (scenes.class_names, scenes.has_masks, scenes.record["kind"]) == (CLASSES, masks, "pseudo_labels")
    assert any("agrees" in note for note in scenes.notes)
    read = {
        part.image_id(index): part.objects(index) for part in (scenes.train, scenes.val) for index in range(len(part))
    }
    assert set(read) == {"0.jpg", "deep/er/3.png"}
    for name, answer in (("0.jpg", answers[0]), ("deep/er/3.png", answers[3])):
        kept, again = keep_confident(answer, HEIGHT, WIDTH, min_score=0.5), read[name]
        for field in ("boxes", "labels", "area", "scores", "is_crowd"):
            assert np.array_equal(getattr(kept, field), getattr(again, field)), field
        assert kept.segments == again.segments
    assert scenes.train.read(0).getpixel((0, 0))[0] in (0, 3)
    info = json.loads(file.read_text())["info"]
    assert (info["teacher"], info["min_score"]) == ("t", 0.5)


def test_the_file_is_coco_data_and_its_scores_reach_the_targets(tmp_path: Path) -> None:
    folder, file = folder_of(tmp_path / "pool", 2), tmp_path / "labels.json"
    source = open_unlabelled_scenes(str(folder)).train
    write_pseudo_labels(file, source, folder, [found([0.9, 0.5]), found([0.75])], CLASSES, teacher="t")
    scenes = open_scenes(f"coco:{file},{folder}", val_fraction=0.5)
    assert any("3 of 3 objects carry a score" in note for note in scenes.notes)
    scores = []
    for part in (scenes.train, scenes.val):
        _, target = scene_eval_view(Resize(HEIGHT, WIDTH), with_masks=False)(part.read(0), part.objects(0), 0)
        assert target.scores is not None
        scores.append(tuple(target.scores.tolist()))
    assert sorted(scores) == sorted([(float(np.float32(0.9)), 0.5), (0.75,)])


def test_background_is_kept_when_asked(tmp_path: Path) -> None:
    folder, file = folder_of(tmp_path / "pool", 2), tmp_path / "labels.json"
    source = open_unlabelled_scenes(str(folder)).train
    answers = [found([0.9]), found([0.1])]
    notes = write_pseudo_labels(file, source, folder, answers, CLASSES, teacher="t", keep_background=True)
    assert "count as background" in notes[1]
    content = json.loads(file.read_text())
    assert [image["file_name"] for image in content["images"]] == ["0.jpg", "deep/er/1.png"]


def test_a_teacher_who_is_sure_of_nothing_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    folder, file = folder_of(tmp_path / "pool", 2), tmp_path / "labels.json"
    source = open_unlabelled_scenes(str(folder)).train
    with pytest.raises(UserError, match=r"t finds nothing in 2 images.*best is 0\.30.*cat, dog, owl"):
        write_pseudo_labels(file, source, folder, [found([0.3]), found([])], CLASSES, teacher="t")
    assert not file.exists()


@pytest.mark.parametrize("score", [1.5, -0.1, "high", True])
def test_scores_that_are_none_are_named(tmp_path: Path, score: object) -> None:
    folder, file = folder_of(tmp_path / "pool", 2), tmp_path / "labels.json"
    source = open_unlabelled_scenes(str(folder)).train
    write_pseudo_labels(file, source, folder, [found([0.9]), found([0.9])], CLASSES, teacher="t")
    content = json.loads(file.read_text())
    content["annotations"][1]["score"] = score
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"annotation 2.*its score is"):
        open_pseudo_labels(file, folder)
