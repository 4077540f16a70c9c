"""COCO's files: what is read, how ids and splits are made, and what is said about bad ones."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limbeck.data.decode import BadImageError
from limbeck.data.detection.door import open_scenes
from limbeck.data.detection.masks import encode_rle
from limbeck.errors import UserError

WIDTH, HEIGHT = 40, 30
SQUARE = [[4, 5, 10, 5, 10, 11, 4, 11]]


def content(images: int = 10) -> dict[str, Any]:
    """One object in each image; the category ids are sparse and out of order."""
    return {
        "categories": [{"id": 90, "name": "zebra"}, {"id": 7, "name": "boat"}],
        "images": [
            {"id": 100 + i, "file_name": f"{i:03}.png", "width": WIDTH, "height": HEIGHT} for i in range(images)
        ],
        "annotations": [
            {"id": 1 + i, "image_id": 100 + i, "category_id": (90, 7)[i % 2], "bbox": [4, 5, 6, 6], "iscrowd": 0}
            | {"segmentation": SQUARE, "area": 36.5}
            for i in range(images)
        ],
    }


def save(root: Path, data: Any, name: str = "a.json", folder: str = "images") -> str:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for image in data.get("images", []) if isinstance(data, dict) else []:
        if isinstance(image, dict) and "file_name" in image:
            number = int(image["file_name"][:3])
            Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(root / folder / image["file_name"])
    (root / name).write_text(data if isinstance(data, str) else json.dumps(data))
    return f"coco:{root / name},{root / folder}"


def test_categories_are_numbered_in_the_order_of_their_ids(tmp_path: Path) -> None:
    scenes = open_scenes(save(tmp_path, content()), val_fraction=0.3)
    assert scenes.class_names == ("boat", "zebra")
    assert (len(scenes.train), len(scenes.val)) == (7, 3)
    for source in (scenes.train, scenes.val):
        for index in range(len(source)):
            number = source.read(index).getpixel((0, 0))[0]
            objects = source.objects(index)
            assert source.image_id(index) == 100 + number
            assert objects.labels.tolist() == [(1, 0)[number % 2]]
            assert objects.boxes.tolist() == [[4, 5, 10, 11]]
            assert objects.area.tolist() == [36.5]
            assert source.size(index) == (HEIGHT, WIDTH)
            assert source.describe(index) == str(tmp_path / "images" / f"{number:03}.png")


def test_the_made_split_is_by_image_id_and_recorded(tmp_path: Path) -> None:
    data = content(20)
    name = save(tmp_path, data)
    scenes = open_scenes(name, val_fraction=0.25, split_seed=3)
    assert (scenes.record["split"], scenes.record["seed"], scenes.record["val_fraction"]) == ("made", 3, 0.25)
    assert scenes.record["val_ids"] == [scenes.val.image_id(i) for i in range(5)]
    data["images"].reverse()
    again = open_scenes(save(tmp_path, data), val_fraction=0.25, split_seed=3)
    assert set(again.record["val_ids"]) == set(scenes.record["val_ids"])
    assert again.record["sha256"] != scenes.record["sha256"]
    assert set(open_scenes(name, val_fraction=0.25, split_seed=4).record["val_ids"]) != set(again.record["val_ids"])
    json.dumps(scenes.record)


def test_source_split_is_used_where_every_image_has_it(tmp_path: Path) -> None:
    data = content()
    for number, image in enumerate(data["images"]):
        image["source_split"] = "val2017" if number in (2, 5) else "train2017"
    scenes = open_scenes(save(tmp_path, data))
    assert [scenes.val.image_id(i) for i in range(len(scenes.val))] == [102, 105]
    assert (scenes.record["split"], scenes.record["split_by"]) == ("given", "source_split")
    del data["images"][0]["source_split"]
    assert open_scenes(save(tmp_path, data)).record["split"] == "made"


def test_a_second_pair_is_matched_by_class_name(tmp_path: Path) -> None:
    first = save(tmp_path / "t", content())
    data = content(4)
    data["categories"] = [{"id": 1, "name": "zebra"}, {"id": 2, "name": "boat"}]
    for annotation in data["annotations"]:
        annotation["category_id"] = {90: 1, 7: 2}[annotation["category_id"]]
    both = f"{first},{save(tmp_path / 'v', data).removeprefix('coco:')}"
    scenes = open_scenes(both)
    assert (len(scenes.train), len(scenes.val), scenes.record["split"]) == (10, 4, "given")
    assert [scenes.val.objects(i).labels.tolist() for i in range(4)] == [[1], [0], [1], [0]]
    data["categories"][0]["name"] = "horse"
    save(tmp_path / "v", data)
    with pytest.raises(UserError, match=r"missing \['zebra'\], added \['horse'\]"):
        open_scenes(both)
    with pytest.raises(UserError, match="both in"):
        open_scenes(f"{first},{first.removeprefix('coco:')}")


def test_every_form_of_a_mask_is_decoded(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    whole = np.zeros((HEIGHT, WIDTH), bool)
    whole[5:11, 4:10] = True
    compressed = encode_rle(whole)
    runs = np.flatnonzero(np.diff(np.concatenate([[0], whole.ravel(order="F"), [0]])))
    counts = np.diff(np.concatenate([[0], runs, [whole.size]])).tolist()
    data = content()
    forms = [SQUARE, compressed, {"size": [HEIGHT, WIDTH], "counts": counts}]
    for annotation, form in zip(data["annotations"], forms, strict=False):
        annotation["segmentation"] = form
        del annotation["area"], annotation["bbox"]
    data["annotations"][3] |= {"iscrowd": 1}
    del data["annotations"][3]["segmentation"]
    scenes = open_scenes(save(tmp_path, data))
    assert scenes.has_masks
    for source in (scenes.train, scenes.val):
        for index in range(len(source)):
            objects = source.objects(index)
            masks = objects.masks(HEIGHT, WIDTH)
            assert masks is not None
            assert (masks == whole).all(), "the crowd without a mask takes its box"
            assert objects.boxes.tolist() == [[4, 5, 10, 11]]
            assert objects.is_crowd.tolist() == [source.image_id(index) == 103]
            assert objects.area.tolist() == [36.0 if int(source.image_id(index)) < 103 else 36.5]
    assert any("1 crowds have no mask" in note for note in scenes.notes)


def test_sets_without_masks_or_with_some_are_for_boxes_only(tmp_path: Path) -> None:
    data = content()
    del data["annotations"][4]["segmentation"]
    scenes = open_scenes(save(tmp_path, data))
    assert not scenes.has_masks
    assert any("1 of 10 objects have no mask" in note for note in scenes.notes)
    for annotation in data["annotations"]:
        annotation.pop("segmentation", None)
    scenes = open_scenes(save(tmp_path, data))
    assert not scenes.has_masks
    assert scenes.train.objects(0).masks(HEIGHT, WIDTH) is None
    assert not any("mask" in note for note in scenes.notes)


def test_boxes_partly_outside_are_clipped_and_counted(tmp_path: Path) -> None:
    data = content()
    data["annotations"][0]["bbox"] = [-3, 20, 10, 12.5]
    data["annotations"][1]["bbox"] = [35, 2, 5.25, 5]
    scenes = open_scenes(save(tmp_path, data))
    boxes = {s.image_id(i): s.objects(i).boxes[0].tolist() for s in (scenes.train, scenes.val) for i in range(len(s))}
    assert (boxes[100], boxes[101]) == ([0, 20, 7, 30], [35, 2, 40, 7])
    assert any("2 boxes reach outside their images, by up to 3 pixels" in note for note in scenes.notes)


def test_images_without_annotations_are_background(tmp_path: Path) -> None:
    data = content()
    data["annotations"] = data["annotations"][:6]
    scenes = open_scenes(save(tmp_path, data), split_seed=1)
    record = scenes.record
    assert record["train_background_images"] + record["val_background_images"] == 4
    index = next(i for i in range(len(scenes.train)) if scenes.train.image_id(i) >= 106)  # type: ignore[operator]
    objects = scenes.train.objects(index)
    assert (len(objects), objects.boxes.shape) == (0, (0, 4))
    masks = objects.masks(HEIGHT, WIDTH)
    assert masks is not None and masks.shape == (0, HEIGHT, WIDTH)
    assert any("count as background" in note for note in scenes.notes)


def test_the_source_goes_to_workers_and_cannot_be_changed_through_its_objects(tmp_path: Path) -> None:
    source = pickle.loads(pickle.dumps(open_scenes(save(tmp_path, content())).train))
    source.objects(0).boxes[:] = -1
    assert source.objects(0).boxes.tolist() == [[4, 5, 10, 11]]
    assert source.objects(0).segments == (SQUARE,)


def change(number: int, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["annotations"][number].update(fields)


BAD_OBJECTS = {
    "outside": (change(2, bbox=[50, 5, 6, 6]), "box outside its image", r"\[50, 5, 56, 11\].*40 x 30"),
    "zero area": (change(2, bbox=[5, 5, 0, 6]), "box without area", "no area"),
    "negative": (change(2, bbox=[5, 5, 6, -6]), "box without area", "no area"),
    "NaN": (change(2, bbox=[float("nan"), 5, 6, 6]), "box with NaN or infinity", "nan"),
    "text box": (change(2, bbox=["1", 5, 6, 6]), "unreadable box", "four numbers"),
    "short box": (change(2, bbox=[1, 5, 6]), "unreadable box", "four numbers"),
    "category": (change(2, category_id=8), "unknown category", "category_id 8"),
    "image id": (change(2, image_id=999), "unknown image", "image_id 999"),
    "two points": (change(2, segmentation=[[1, 1, 5, 5]]), "polygon of fewer than three points", "2 points"),
    "RLE": (change(2, segmentation={"size": [9, 9], "counts": [81]}), "RLE of the wrong size", r"\[9, 9\]"),
    "area": (change(2, area=-1), "bad area", "-1"),
    "area NaN": (change(2, area=float("nan")), "bad area", "nan"),
    "nothing": (change(2, bbox=None, segmentation=[]), "no box", "neither"),
}


@pytest.mark.parametrize("case", BAD_OBJECTS)
def test_a_bad_object_stops_or_is_counted(tmp_path: Path, case: str) -> None:
    spoil, reason, detail = BAD_OBJECTS[case]
    data = content()
    spoil(data)
    name = save(tmp_path, data)
    where = "annotation 3" if case == "image id" else r"image 102 \(002\.png\), annotation 3"
    with pytest.raises(UserError, match=rf"(?s)a\.json.*{where}.*{detail}.*1 x {reason}.*--bad-images skip"):
        open_scenes(name)
    scenes = open_scenes(name, bad_images="skip", val_fraction=0.3)
    assert any(f"left out 1 x {reason}" in note for note in scenes.notes)
    counts = scenes.record["class_counts"]
    assert sum(counts["train"].values()) + sum(counts["val"].values()) == 9
    assert len(scenes.train) + len(scenes.val) == 10


def test_all_bad_objects_are_counted_by_reason(tmp_path: Path) -> None:
    data = content()
    for number in (1, 2, 3):
        data["annotations"][number]["bbox"] = [5, 5, 0, 0]
    data["annotations"][7]["category_id"] = 1
    with pytest.raises(UserError, match=r"annotation 2.*3 x box without area, 1 x unknown category"):
        open_scenes(save(tmp_path, data))


def remove(*path: Any) -> Callable[[dict[str, Any]], None]:
    def spoil(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return spoil


STRUCTURE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no categories": (remove("categories"), "lacks the list categories"),
    "no lists": (lambda d: (d.pop("images"), d.pop("annotations")), "lists images, annotations"),
    "category id twice": (lambda d: d["categories"][0].update(id=7), "two categories have the id 7"),
    "category name twice": (lambda d: d["categories"][0].update(name="boat"), "several categories are called 'boat'"),
    "nameless category": (remove("categories", 0, "name"), r"categories\[0\] needs"),
    "empty categories": (lambda d: d["categories"].clear(), "lists no categories"),
    "image id twice": (lambda d: d["images"][1].update(id=100), "two images have the id 100"),
    "nameless image": (remove("images", 3, "file_name"), r"images\[3\] needs an id and a file_name"),
    "annotation id twice": (change(4, id=1), "two annotations have the id 1"),
    "no object": (lambda d: d["annotations"].append(5), r"annotations\[10\] is '5'"),
    "mixed ids": (lambda d: d["images"].append({"id": "x", "file_name": "009.png"}), "all one kind"),
    "no annotations": (lambda d: d["annotations"].clear(), "has an object"),
}


@pytest.mark.parametrize("case", STRUCTURE)
def test_a_broken_structure_always_stops(tmp_path: Path, case: str) -> None:
    data = content()
    STRUCTURE[case][0](data)
    name = save(tmp_path, data)
    for policy in ("stop", "skip"):
        with pytest.raises(UserError, match=rf"a\.json.*{STRUCTURE[case][1]}"):
            open_scenes(name, bad_images=policy)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'a': 1}", "is not JSON"),
        ("[1, 2]", "holds a list"),
        ('{"images": [', "is not JSON"),
        ("{}", "it has nothing"),
    ],
)
def test_a_file_that_is_none_of_coco(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"a\.json.*{message}"):
        open_scenes(save(tmp_path, text))


def test_missing_and_corrupt_images(tmp_path: Path) -> None:
    name = save(tmp_path, content())
    (tmp_path / "images" / "002.png").unlink()
    with pytest.raises(UserError, match=r"image 102: there is no file .*002\.png.*1 x missing image"):
        open_scenes(name)
    path = tmp_path / "images" / "003.png"
    path.write_bytes(path.read_bytes()[:60])
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "images" / "004.png")
    scenes = open_scenes(name, bad_images="skip")
    assert len(scenes.train) + len(scenes.val) == 7
    assert [Path(entry["file"]).name for entry in scenes.record["bad_images"]] == ["003.png", "004.png"]
    assert any("1 x missing image" in note for note in scenes.notes)
    assert any("2 images cannot be decoded" in note for note in scenes.notes)


def test_an_image_of_another_size_than_its_annotations_is_never_read(tmp_path: Path) -> None:
    name = save(tmp_path, content())
    for file in (tmp_path / "images").iterdir():
        Image.new("RGB", (HEIGHT, WIDTH)).save(file)
    with pytest.raises(BadImageError, match=r"30 x 40 pixels.*annotations are for 40 x 30"):
        open_scenes(name).train.read(0)


def test_sizes_left_out_are_read_from_the_files(tmp_path: Path) -> None:
    data = content()
    for image in data["images"]:
        del image["width"]
    scenes = open_scenes(save(tmp_path, data))
    assert scenes.train.size(0) == (HEIGHT, WIDTH)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "images" / "000.png", exif=exif)
    scenes = open_scenes(f"coco:{tmp_path / 'a.json'},{tmp_path / 'images'}", bad_images="skip")
    assert len(scenes.train) + len(scenes.val) == 10, "turned upright, it is as wide as the others"
