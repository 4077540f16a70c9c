"""Real annotated images beside the checkout, read as they were packed; skipped where they are absent."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limbeck.data.detection.door import open_scenes

SHARED = Path(__file__).parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the image sets beside the checkout are absent")


@needs_data
def test_coco_mini(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    pytest.importorskip("faster_coco_eval")
    subprocess.run([sys.executable, SHARED / "unpack.py", "coco_mini", tmp_path], check=True, capture_output=True)
    file, folder = tmp_path / "coco_mini" / "annotations.json", tmp_path / "coco_mini" / "images"
    scenes = open_scenes(f"coco:{file},{folder}", bad_images="skip")
    assert (len(scenes.train), len(scenes.val), len(scenes.class_names)) == (295, 188, 80)
    assert (scenes.class_names[0], scenes.class_names[-1]) == ("person", "toothbrush")
    assert (scenes.record["split"], scenes.record["split_by"], scenes.record["bad_images"]) == (
        "given",
        "source_split",
        [],
    )
    assert scenes.has_masks
    assert any("45 crowds have no mask" in note for note in scenes.notes)
    assert any("boxes reach outside" in note for note in scenes.notes)
    assert not any("left out" in note for note in scenes.notes)
    counts = scenes.record["class_counts"]
    assert sum(sum(counts[split].values()) for split in ("train", "val")) == 4215 - 45
    theirs = coco.COCO(str(file))
    ids = sorted(theirs.cats)
    for index in range(0, 188, 17):
        objects, size = scenes.val.objects(index), scenes.val.size(index)
        entries = theirs.imgToAnns[scenes.val.image_id(index)]
        masks = objects.masks(*size)
        assert masks is not None
        assert [ids[label] for label in objects.labels] == [entry["category_id"] for entry in entries]
        assert scenes.val.read(index).size == size[::-1]
        for mask, box, entry in zip(masks, objects.boxes, entries, strict=True):
            x, y, w, h = entry["bbox"]
            np.testing.assert_allclose(box, (x, y, x + w, y + h), atol=0.1)
            if not entry["iscrowd"]:
                assert (mask == theirs.annToMask(entry).astype(bool)).all()


@needs_data
def test_pennfudan_masks_are_exact(tmp_path: Path) -> None:
    """The instance masks as run lengths, whose boxes and areas follow from them."""
    images, annotations, masks = [], [], {}
    with zipfile.ZipFile(SHARED / "pennfudan.zip") as pack:
        for number, member in enumerate(sorted(n for n in pack.namelist() if n.startswith("images/"))[::10]):
            (tmp_path / "images").mkdir(exist_ok=True)
            (tmp_path / member).write_bytes(pack.read(member))
            name = member.replace("images", "masks").replace(".jpg", ".png")
            instances = np.asarray(Image.open(io.BytesIO(pack.read(name))))
            height, width = instances.shape
            images.append({"id": number, "file_name": Path(member).name, "height": height, "width": width})
            for instance in np.unique(instances)[1:]:
                own = masks[number, int(instance)] = instances == instance
                inside = own.ravel(order="F")
                edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(int)))
                runs = np.diff(np.concatenate([[0], edges, [inside.size]]))
                entry = {"id": len(annotations), "image_id": number, "category_id": 1}
                annotations.append(entry | {"segmentation": {"size": [height, width], "counts": runs.tolist()}})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "pedestrian"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    scenes = open_scenes(f"coco:{tmp_path / 'a.json'},{tmp_path / 'images'}", val_fraction=0.3, bad_images="skip")
    assert (len(scenes.train) + len(scenes.val), scenes.class_names, scenes.has_masks) == (17, ("pedestrian",), True)
    for source in (scenes.train, scenes.val):
        for index in range(len(source)):
            objects = source.objects(index)
            found = objects.masks(*source.size(index))
            assert found is not None
            for number, (mask, box, area) in enumerate(zip(found, objects.boxes, objects.area, strict=True), start=1):
                expected = masks[int(source.image_id(index)), number]
                ys, xs = np.nonzero(expected)
                assert (mask == expected).all()
                assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
                assert area == expected.sum()
