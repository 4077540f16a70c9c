"""Pascal VOC's XML and YOLO's text: offsets, units, layouts, and what is said about bad files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limbeck.data.detection.door import open_scenes
from limbeck.errors import UserError

WIDTH, HEIGHT = 40, 20


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)


def xml(*objects: tuple[str, object, str], size: bool = True) -> str:
    def entry(name: str, box: object, difficult: str) -> str:
        sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=False)  # type: ignore[call-overload]
        inner = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
        return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{inner}</bndbox></object>"

    head = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>" if size else ""
    return f"<annotation>{head}{''.join(entry(*each) for each in objects)}</annotation>"


def voc(root: Path, files: dict[str, str], lists: dict[str, str] | None = None) -> str:
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / "Annotations" / f"{name}.xml").write_text(text)
        picture(root / "JPEGImages" / f"{name}.jpg")
    for name, text in (lists or {}).items():
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
    return f"voc:{root}"


CAT = ("cat", (1, 1, 40, 20), "0")
DOG = ("dog", (5, 6, 5, 6), "0")


def test_voc_counts_pixels_from_one_and_includes_the_last(tmp_path: Path) -> None:
    files = {"a": xml(DOG, CAT), "b": xml(("cat", (1, 1, 4, 4), "1"), CAT), "c": xml(CAT, size=False)}
    scenes = open_scenes(voc(tmp_path, files, {"train": "a\nb\n", "val": "c  1\n"}))
    assert scenes.class_names == ("cat", "dog")
    assert scenes.record["split"] == "given"
    first = scenes.train.objects(0)
    assert first.boxes.tolist() == [[4, 5, 5, 6], [0, 0, WIDTH, HEIGHT]], "one pixel, and the whole image"
    assert (first.labels.tolist(), first.area.tolist()) == ([1, 0], [1, WIDTH * HEIGHT])
    assert scenes.train.objects(1).is_crowd.tolist() == [True, False]
    assert any("1 objects are marked difficult" in note for note in scenes.notes)
    assert (scenes.val.image_id(0), scenes.val.size(0), scenes.has_masks) == ("c", (HEIGHT, WIDTH), False)


def test_voc_with_a_zero_is_taken_as_edges(tmp_path: Path) -> None:
    files = {"a": xml(("cat", (0, 3, 10, 9), "0")), "b": xml(("cat", (2, 3, 10.5, 9), "0"))}
    scenes = open_scenes(voc(tmp_path, files))
    boxes = {s.image_id(0): s.objects(0).boxes[0].tolist() for s in (scenes.train, scenes.val)}
    assert boxes == {"a": [0, 3, 10, 9], "b": [2, 3, 10.5, 9]}
    assert any("0-based" in note for note in scenes.notes)
    assert scenes.record["first_pixel"] == 0


def test_voc_without_a_validation_list_is_split(tmp_path: Path) -> None:
    files = {f"i{number}": xml(CAT) for number in range(8)}
    scenes = open_scenes(voc(tmp_path, files, {"trainval": "\n".join(list(files)[:6])}), val_fraction=0.5)
    assert (len(scenes.train), len(scenes.val), scenes.record["split"]) == (3, 3, "made")
    assert "i7" not in {s.image_id(i) for s in (scenes.train, scenes.val) for i in range(3)}


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        (("cat", (41, 3, 50, 9), "0"), "box outside its image", r"image b \(b.xml\), object 2 \(cat\)"),
        (("cat", (9, 3, 7, 9), "0"), "box without area", "object 2"),
        (("cat", ("x", 3, 7, 9), "0"), "unreadable box", r"object 2 \(cat\)"),
        (("cat", (1, 3, 7), "0"), "unreadable box", "object 2"),
        (("cat", ("nan", 3, 7, 9), "0"), "box with NaN", "object 2"),
        (("", (1, 3, 7, 9), "0"), "no class name", "object 2"),
    ],
)
def test_bad_voc_objects(tmp_path: Path, bad: tuple[str, object, str], reason: str, detail: str) -> None:
    name = voc(tmp_path, {"a": xml(CAT), "b": xml(CAT, bad), "c": xml(CAT)})
    with pytest.raises(UserError, match=f"{detail}.*1 x {reason}"):
        open_scenes(name)
    scenes = open_scenes(name, bad_images="skip")
    assert any(f"left out 1 x {reason}" in note for note in scenes.notes)
    assert sum(scenes.record["class_counts"][split]["cat"] for split in ("train", "val")) == 3


def test_bad_voc_files(tmp_path: Path) -> None:
    name = voc(tmp_path, {"a": xml(CAT), "b": xml(CAT), "c": xml(CAT)})
    (tmp_path / "Annotations" / "b.xml").write_text("<annotation><object>")
    with pytest.raises(UserError, match=r"b\.xml is not well-formed XML"):
        open_scenes(name, bad_images="skip")
    voc(tmp_path, {"b": xml(CAT)}, {"train": "a\nb\n", "val": "b\n"})
    with pytest.raises(UserError, match=r"1 images are both in train\.txt and in val\.txt, such as b"):
        open_scenes(name)
    voc(tmp_path, {}, {"train": "a\nb\nx\n", "val": "c\n"})
    with pytest.raises(UserError, match=r"image x: there is no file .*x\.xml"):
        open_scenes(name)
    assert any("missing annotation file" in note for note in open_scenes(name, bad_images="skip").notes)
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    assert any("1 x missing image" in note for note in open_scenes(name, bad_images="skip").notes)
    with pytest.raises(UserError, match="no folder Annotations/"):
        open_scenes(f"voc:{tmp_path / 'JPEGImages'}")


def yolo(root: Path, labels: dict[str, str], classes: str = "cat\ndog\n") -> str:
    for name, text in labels.items():
        picture(root / "images" / f"{name}.png")
        (root / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        if text != "absent":
            (root / "labels" / f"{name}.txt").write_text(text)
    (root / "classes.txt").write_text(classes)
    return f"yolo:{root}"


def test_yolo_shares_become_pixels(tmp_path: Path) -> None:
    labels = {"train/a": "1 0.5 0.5 1.0 1.0\n0 0.25 0.5 0.1 0.2\n", "train/b": "absent", "val/c": "0 0.1 0.1 0.2 0.2"}
    scenes = open_scenes(yolo(tmp_path, labels))
    objects = scenes.train.objects(0)
    np.testing.assert_allclose(objects.boxes, [[0, 0, 40, 20], [8, 8, 12, 12]], atol=1e-5)
    assert objects.labels.tolist() == [1, 0]
    np.testing.assert_allclose(objects.area, [800, 16], rtol=1e-5)
    assert (scenes.train.image_id(0), scenes.train.size(0)) == ("images/train/a", (HEIGHT, WIDTH))
    assert (len(scenes.train), len(scenes.val), scenes.record["train_background_images"]) == (2, 1, 1)
    assert not any("clipped" in note for note in scenes.notes)


def test_yolo_polygons_are_masks(tmp_path: Path) -> None:
    line = "0 0.1 0.1 0.6 0.1 0.6 0.5 0.1 0.5"
    scenes = open_scenes(yolo(tmp_path, {"a": line, "b": line}))
    objects = scenes.train.objects(0)
    assert scenes.has_masks
    np.testing.assert_allclose(objects.boxes, [[4, 2, 24, 10]])
    assert objects.area.tolist() == [160]
    pytest.importorskip("faster_coco_eval")
    masks = objects.masks(HEIGHT, WIDTH)
    assert masks is not None and masks.sum() == 160
    mixed = open_scenes(yolo(tmp_path, {"c": "1 0.5 0.5 0.2 0.2"}))
    assert not mixed.has_masks
    assert any("boxes only" in note for note in mixed.notes)


def test_yolo_data_yaml(tmp_path: Path) -> None:
    yolo(tmp_path, {"t/a": "0 .5 .5 .2 .2", "t/b": "1 .5 .5 .2 .2", "v/c": "1 .5 .5 .2 .2", "u/d": "0 .5 .5 .2 .2"})
    (tmp_path / "list.txt").write_text("./images/v/c.png\n")
    file = tmp_path / "data.yaml"
    file.write_text("path: .\ntrain: [images/t, images/u]\nval: list.txt\nnames: {0: cat, 1: dog}\nnc: 2\n")
    for name in (f"yolo:{file}", f"yolo:{tmp_path}"):
        scenes = open_scenes(name)
        assert scenes.class_names == ("cat", "dog")
        assert [scenes.train.image_id(i) for i in range(3)] == ["images/t/a", "images/t/b", "images/u/d"]
        assert [scenes.val.image_id(i) for i in range(len(scenes.val))] == ["images/v/c"]
    for text, message in {
        "train: [unclosed": "is not YAML",
        "names: [cat]": "lacks train or names",
        "train: images/t\nnames: {1: cat, 2: dog}": "numbered",
        "train: images/t\nnames: [cat, cat]": "'cat' is there twice",
        "train: images/t\nnames: [cat]\nnc: 3": "nc is 3",
        "train: images/none\nnames: [cat]": "there is no",
        "path: away\ntrain: images/t\nnames: [cat]": "is no folder",
        "train: images/t\nval: images/t\nnames: [cat, dog]": "both in train and in val",
    }.items():
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            open_scenes(f"yolo:{file}")


def test_roboflow_layout(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        yolo(tmp_path / split, {"a": "0 .5 .5 .2 .2"})
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: [cat]\n")
    scenes = open_scenes(f"yolo:{tmp_path}")
    assert (scenes.train.image_id(0), scenes.val.image_id(0)) == ("train/images/a", "valid/images/a")
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_text("cat")
    assert len(open_scenes(f"yolo:{tmp_path}").val) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2 0.5 0.5 0.2 0.2", "unknown class"),
        ("-1 0.5 0.5 0.2 0.2", "unknown class"),
        ("0.5 0.5 0.5 0.2 0.2", "unknown class"),
        ("0 20 10 4 4", "coordinates beyond 0 to 1"),
        ("0 0.5 0.5 0.2 -0.2", "coordinates beyond 0 to 1"),
        ("0 0.5 0.5 0.2 0", "box without area"),
        ("0 0.5 0.5 0.2", "unreadable line"),
        ("0 0.5 0.5 0.2 0.2 0.9", "unreadable line"),
        ("cat 0.5 0.5 0.2 0.2", "unreadable line"),
        ("0 nan 0.5 0.2 0.2", "box with NaN"),
    ],
)
def test_bad_yolo_lines(tmp_path: Path, line: str, reason: str) -> None:
    name = yolo(tmp_path, {"a": f"0 .5 .5 .2 .2\n\n{line}\n", "b": "0 .5 .5 .2 .2"})
    with pytest.raises(UserError, match=rf"image images/a.png, a.txt line 3.*1 x {reason}"):
        open_scenes(name)
    scenes = open_scenes(name, bad_images="skip")
    assert any(f"left out 1 x {reason}" in note for note in scenes.notes)


def test_yolo_boxes_over_the_border_are_clipped_and_counted(tmp_path: Path) -> None:
    scenes = open_scenes(yolo(tmp_path, {"a": "0 1.0 .5 .2 .2", "b": "0 1.0 .5 .2 .2"}))
    np.testing.assert_allclose(scenes.train.objects(0).boxes, [[36, 8, 40, 12]], atol=1e-5)
    assert any("2 boxes reach outside their images, by up to 4 pixels" in note for note in scenes.notes)


def test_bad_yolo_files(tmp_path: Path) -> None:
    name = yolo(tmp_path, {"a": "0 .5 .5 .2 .2", "b": "0 .5 .5 .2 .2", "c": "0 .5 .5 .2 .2"})
    (tmp_path / "images" / "c.png").unlink()
    with pytest.raises(UserError, match=r"c\.txt: there is no image.*1 x labels without an image"):
        open_scenes(name)
    (tmp_path / "labels" / "c.txt").unlink()
    (tmp_path / "images" / "d.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"images/d: The image .*d\.png cannot be read.*1 x corrupt image"):
        open_scenes(name)
    assert any("1 x corrupt image" in note for note in open_scenes(name, bad_images="skip").notes)
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"classes\.txt is not text in UTF-8"):
        open_scenes(name)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"neither data\.yaml nor classes\.txt"):
        open_scenes(name)
