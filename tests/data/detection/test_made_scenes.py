"""Scenes that were made for a teacher, and real ones to measure on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limbeck.data.detection.door import open_scenes
from limbeck.data.detection.names import check_scenes_name
from limbeck.errors import UserError


def coco(root: Path, names: list[str], count: int = 10, start: int = 0) -> tuple[Path, Path]:
    """A COCO set whose image number n shows class n % K."""
    images = root / "images"
    images.mkdir(parents=True)
    entries: list[dict[str, Any]] = []
    for number in range(start, start + count):
        Image.new("RGB", (40, 30)).save(images / f"{number}.png")
        entries.append({"id": number, "file_name": f"{number}.png", "height": 30, "width": 40})
    annotations = [
        {
            "id": e["id"],
            "image_id": e["id"],
            "category_id": e["id"] % len(names) + 1,
            "bbox": [1, 2, 10, 10],
            "score": 0.5,
        }
        for e in entries
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    file = root / "annotations.json"
    file.write_text(json.dumps({"images": entries, "annotations": annotations, "categories": categories}))
    return file, images


def made(root: Path, names: list[str], task: str = "detection") -> str:
    coco(root, names)
    (root / "synthesis.json").write_text(
        json.dumps({"task": task, "sources": [{"text": "scenes"}], "teacher": {"name": "t"}})
    )
    return str(root)


def test_nothing_is_held_out_of_made_scenes(tmp_path: Path) -> None:
    scenes = open_scenes(made(tmp_path / "m", ["cat", "dog"]), val_fraction=0.5)
    assert (len(scenes.train), len(scenes.val)) == (10, 10)
    assert (scenes.record["kind"], scenes.record["split"]) == ("synthetic", "none")
    assert scenes.record["sources"] == [{"text": "scenes"}]
    assert any("nothing real to measure on" in note for note in scenes.notes)


def test_real_scenes_are_measured_on_with_the_learned_order_of_classes(tmp_path: Path) -> None:
    name = made(tmp_path / "m", ["traffic light", "dog", "cat"])
    file, images = coco(tmp_path / "r", ["Cat", "traffic_light", "dog"])
    scenes = open_scenes(name, val_data=f"coco:{file},{images}", val_fraction=0.3, split_seed=4)
    alone = open_scenes(f"coco:{file},{images}", val_fraction=0.3, split_seed=4)
    assert len(scenes.train) == 10
    assert scenes.class_names == scenes.val.class_names == ("traffic light", "dog", "cat")
    ids = [scenes.val.image_id(index) for index in range(len(scenes.val))]
    assert ids == [alone.val.image_id(index) for index in range(len(alone.val))]
    assert len(ids) == 3
    for index, number in enumerate(ids):
        objects, old = scenes.val.objects(index), alone.val.objects(index)
        assert objects.labels.tolist() == [{0: 2, 1: 0, 2: 1}[int(number) % 3]]
        assert np.array_equal(objects.boxes, old.boxes)
        assert scenes.val.size(index) == (30, 40)
        assert scenes.val.read(index).size == (40, 30)
    assert scenes.record["split"] == "val_data"
    assert scenes.record["val_data"]["val_ids"] == ids
    assert sum(scenes.record["class_counts"]["val"].values()) == 3


def test_classes_that_differ_by_capitals_only_meet_by_their_exact_names(tmp_path: Path) -> None:
    name = made(tmp_path / "m", ["Polish", "polish"])
    file, images = coco(tmp_path / "r", ["polish", "Polish"])
    scenes = open_scenes(name, val_data=f"coco:{file},{images}")
    number = int(scenes.val.image_id(0))
    assert scenes.val.objects(0).labels.tolist() == [1 - number % 2]


def test_of_real_scenes_too_nothing_is_held_out_where_others_are_measured_on(tmp_path: Path) -> None:
    first, second = coco(tmp_path / "a", ["cat"]), coco(tmp_path / "b", ["cat"], count=4, start=50)
    given = coco(tmp_path / "c", ["cat"], count=3, start=80)
    scenes = open_scenes(
        f"coco:{first[0]},{first[1]}", val_data=f"coco:{second[0]},{second[1]},{given[0]},{given[1]}", val_fraction=0.5
    )
    assert (len(scenes.train), [scenes.val.image_id(index) for index in range(len(scenes.val))]) == (10, [80, 81, 82])


def test_what_cannot_be_measured_on_is_refused(tmp_path: Path) -> None:
    name = made(tmp_path / "m", ["cat", "dog"])
    with pytest.raises(UserError, match="were made for a teacher"):
        open_scenes(name, val_data=name)
    with pytest.raises(UserError, match="without boxes"):
        open_scenes(name, val_data=str(tmp_path / "m/images"))
    file, images = coco(tmp_path / "r", ["cat", "horse"])
    with pytest.raises(UserError, match="missing dog, added horse"):
        open_scenes(name, val_data=f"coco:{file},{images}")
    learned = f"coco:{file},{images}"
    with pytest.raises(UserError, match=r"1 of 1 images to measure on, .* are also learned from"):
        open_scenes(learned, val_data=learned)


def test_folders_that_are_no_scenes_or_not_finished_say_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="made for a classifier"):
        check_scenes_name(made(tmp_path / "c", ["cat"], task="classification"))
    damaged = made(tmp_path / "d", ["cat"])
    (tmp_path / "d/synthesis.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        check_scenes_name(damaged)
    begun = made(tmp_path / "b", ["cat"])
    (tmp_path / "b/synthesis.partial.jsonl").touch()
    with pytest.raises(UserError, match="--resume"):
        check_scenes_name(begun)
    gone = made(tmp_path / "g", ["cat"])
    (tmp_path / "g/annotations.json").unlink()
    with pytest.raises(UserError, match=r"there is no file .*annotations.json"):
        check_scenes_name(gone)
