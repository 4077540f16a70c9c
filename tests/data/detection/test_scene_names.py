"""Names of scenes are checked before anything heavy is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.data.detection.door import open_scenes
from limbeck.data.detection.names import check_scenes_name
from limbeck.data.names import DataNotFoundError
from limbeck.errors import UserError


def test_good_names(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.json", tmp_path / "images"
    file.write_text("{}")
    folder.mkdir()
    assert check_scenes_name("shapes").kind == "shapes"
    assert check_scenes_name("shapes(train=8, size=64)").options == {"train": 8, "size": 64}
    assert check_scenes_name(f"coco:{file},{folder}").paths == (file, folder)
    assert check_scenes_name(f"coco:{file}, {folder},{file},{folder}").paths == (file, folder) * 2
    assert check_scenes_name(f"voc:{tmp_path}").kind == "voc"
    assert check_scenes_name(f"yolo:{tmp_path}").kind == "yolo"


@pytest.mark.parametrize("name", ["", "digits", "coc:a,b", "coco:a.json", "coco:a,b,c", "coco:,x", "voc:", "shape"])
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(UserError, match=r"coco:.*voc:FOLDER.*yolo:"):
        check_scenes_name(name)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.json"
    empty.touch()
    for name, path in {
        f"coco:{tmp_path}/no.json,{tmp_path}": "no.json",
        f"voc:{tmp_path}/no": "no",
        f"yolo:{tmp_path}/no.yaml": "no.yaml",
    }.items():
        with pytest.raises(DataNotFoundError, match=path):
            check_scenes_name(name)
    with pytest.raises(UserError, match="is empty"):
        check_scenes_name(f"coco:{empty},{tmp_path}")
    with pytest.raises(UserError, match="is a file where a folder"):
        check_scenes_name(f"voc:{empty}")
    with pytest.raises(UserError, match="is a folder where a file"):
        check_scenes_name(f"coco:{tmp_path},{tmp_path}")


def test_neither_names_nor_sources_import_torch() -> None:
    code = (
        "import sys, limbeck.data.detection.names; assert 'torch' not in sys.modules and 'numpy' not in sys.modules;"
        "from limbeck.data.detection.door import open_scenes; open_scenes('shapes(train=1, val=1, size=32)');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_val_fraction_is_a_share(share: float) -> None:
    with pytest.raises(UserError, match="val_fraction"):
        open_scenes("shapes", val_fraction=share)
