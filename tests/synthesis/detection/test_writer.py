"""A folder of made scenes: what is written is read again, and a stopped run is gone on with as if it had not been."""

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_detectors import NAMES, opened

from limbeck.data.detection.door import open_scenes
from limbeck.data.detection.names import check_scenes_name
from limbeck.detection import Found, Target
from limbeck.errors import UserError
from limbeck.synthesis.detection import writer as module
from limbeck.synthesis.detection.base import DetectionSetting, MadeScenes
from limbeck.synthesis.detection.labels import ellipses
from limbeck.synthesis.detection.writer import SceneWriter, measure
from limbeck.synthesis.pixels import to_pixels

SIZE = (48, 64)
BOXES = ([4.25, 3, 30, 40.5], [33, 8, 60.125, 44])


def setting_of(family: str = "mask_rcnn", seed: int = 0) -> DetectionSetting:
    return DetectionSetting(copy.deepcopy(opened(family, "student")), SIZE, batch_size=2, seed=seed)


def batch(number: int, count: int = 2, masks: bool = True) -> MadeScenes:
    generator = torch.Generator().manual_seed(number)
    targets = []
    for row in range(count):
        boxes = torch.tensor(BOXES[: 1 + row])
        targets.append(Target(boxes, torch.arange(1 + row) + 1, ellipses(boxes, SIZE) if masks else None))
    return MadeScenes(torch.rand(count, 3, *SIZE, generator=generator), targets)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher finds the first box, as class 1, and nothing else."""

    def find(teacher: Any, images: torch.Tensor) -> list[Found]:
        return [Found(torch.tensor([BOXES[0]]), torch.tensor([1]), torch.tensor([0.75]))] * len(images)

    monkeypatch.setattr(module, "find", find)


@pytest.mark.parametrize("masks", [True, False])
def test_what_is_written_is_read_again(tmp_path: Path, masks: bool) -> None:
    folder = tmp_path / "made"
    setting = setting_of("mask_rcnn" if masks else "faster_rcnn")
    writer = SceneWriter(folder, setting, "scenes(iterations=2)")
    batches = [batch(0, masks=masks), batch(1, masks=masks)]
    for made in batches:
        writer.write(made)
    numbers = writer.finish(["a note"], 8.0)
    assert check_scenes_name(str(folder)).kind == "synthetic"
    train = open_scenes(str(folder)).train
    assert (len(train), train.class_names, train.has_masks) == (4, NAMES, masks)
    pixels = torch.cat([to_pixels(made.images) for made in batches]).permute(0, 2, 3, 1).numpy()
    for index, target in enumerate(target for made in batches for target in made.targets):
        assert np.array_equal(np.asarray(train.read(index)), pixels[index])
        objects = train.objects(index)
        assert np.array_equal(objects.boxes, target.boxes.numpy())
        assert np.array_equal(objects.labels, target.labels.numpy())
        if target.masks is not None:
            assert np.array_equal(objects.masks(*SIZE), target.masks.numpy())
            assert objects.area.tolist() == target.masks.sum((1, 2)).tolist()
    record = json.loads((folder / "synthesis.json").read_text())
    assert (record["task"], record["num_classes"], record["size"]) == ("detection", 3, list(SIZE))
    assert (record["numbers"], record["notes"], record["seconds_per_picture"]) == (numbers, ["a note"], 2.0)
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 200
    card = (folder / "README.md").read_text()
    assert "a note" in card and "scenes(iterations=2)" in card and record["teacher"]["weights_sha256"] in card
    assert not (folder / "synthesis.partial.jsonl").exists()


@pytest.mark.usefixtures("finds")
def test_the_numbers_are_those_of_the_labels(tmp_path: Path) -> None:
    writer = SceneWriter(tmp_path / "made", setting_of(), "scenes")
    writer.write(batch(0))
    writer.write(batch(1, count=1))
    numbers = writer.finish()
    # Class 1 in each of three pictures, class 2 in one; the teacher finds the former.
    assert numbers["boxes_per_picture"] == [pytest.approx(4 / 3), 1, 2]
    assert numbers["class_counts"] == {"cat": 0, "dog": 3, "owl": 1}
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(3)
    assert numbers["class_balance"] == pytest.approx(entropy, abs=1e-4)
    assert (numbers["pictures"], numbers["boxes"]) == (3, 4)
    assert numbers["mean_teacher_score"] == pytest.approx(3 * 0.75 / 4, abs=1e-4)
    assert numbers["found_again"] == pytest.approx(0.75)
    scores = [entry["score"] for entry in json.loads((tmp_path / "made/annotations.json").read_text())["annotations"]]
    assert scores == [0.75, 0.75, 0, 0.75]


def test_the_balance_of_one_class_and_of_equal_ones_is_whole() -> None:
    scene = {"image": {}, "annotations": [{"category_id": 1, "score": 0.1}, {"category_id": 2, "score": 0.2}]}
    assert measure([scene], ["a", "b"])["class_balance"] == 1
    assert measure([{"image": {}, "annotations": scene["annotations"][:1]}], ["a"])["class_balance"] == 1


def test_a_stopped_run_is_gone_on_with_as_if_it_had_not_been(tmp_path: Path) -> None:
    setting, whole, stopped = setting_of(), tmp_path / "whole", tmp_path / "stopped"
    writer = SceneWriter(whole, setting, "scenes")
    for number in range(3):
        writer.write(batch(number))
    writer.finish()
    writer = SceneWriter(stopped, setting, "scenes")
    writer.write(batch(0))
    writer.write(batch(1))
    journal = stopped / "synthesis.partial.jsonl"
    # As if it had been killed while the second batch was recorded, and its pictures half written.
    journal.write_bytes(journal.read_bytes()[:-40])
    (stopped / "images/000002.png").write_bytes(b"half")
    with pytest.raises(UserError, match="not finished"):
        check_scenes_name(str(stopped))
    writer = SceneWriter(stopped, setting, "scenes")
    assert writer.done() == 2
    for number in (1, 2):
        writer.write(batch(number))
    assert SceneWriter(stopped, setting, "scenes").done() == 6
    writer.finish()
    assert contents(stopped) == contents(whole)


@pytest.mark.parametrize("content", [None, b"half"])
def test_a_batch_whose_pictures_are_gone_is_made_again_and_all_after_it(tmp_path: Path, content: bytes | None) -> None:
    setting, whole, folder = setting_of(), tmp_path / "whole", tmp_path / "made"
    for path in (whole, folder):
        writer = SceneWriter(path, setting, "scenes", count=6)
        for number in range(3):
            writer.write(batch(number))
    lost = folder / "images/000003.png"
    lost.unlink() if content is None else lost.write_bytes(content)
    assert SceneWriter(folder, setting, "scenes", count=6).done() == 2
    again = SceneWriter(folder, setting, "scenes", count=6)
    assert again.done() == 2
    for number in (1, 2):
        again.write(batch(number))
    assert contents(folder) == contents(whole)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made: Not a directory"):
        SceneWriter(tmp_path / "file/made", setting_of(), "scenes")


def test_other_pictures_are_never_mixed_in(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    SceneWriter(folder, setting_of(), "scenes").write(batch(0))
    for setting, text, count, what in (
        (setting_of(seed=1), "scenes", None, "seed: 0 -> 1"),
        (setting_of(), "scenes(iterations=7)", None, "sources[0].text: 'scenes' -> 'scenes(iterations=7)'"),
        (setting_of("faster_rcnn"), "scenes", None, "teacher.weights_sha256"),
        (setting_of(), "scenes", 8, "sources[0].count: None -> 8"),
    ):
        with pytest.raises(UserError, match=rf"begun with another recipe \(.*{re.escape(what)}"):
            SceneWriter(folder, setting, text, count=count)
    renamed = setting_of()
    renamed.teacher.facts = dataclasses.replace(renamed.teacher.facts, name="moved elsewhere")
    writer = SceneWriter(folder, renamed, "scenes")
    writer.finish()
    with pytest.raises(UserError, match="finished pictures already"):
        SceneWriter(folder, setting_of(), "scenes")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.txt").touch()
    with pytest.raises(UserError, match=r"not empty \(it holds a.txt\)"):
        SceneWriter(tmp_path / "other", setting_of(), "scenes")
    with pytest.raises(UserError, match="no pictures"):
        SceneWriter(tmp_path / "empty", setting_of(), "scenes").finish()
