"""A folder's images, each once and in order."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from limbeck.synthesis.base import Setting
from limbeck.synthesis.pools.folder import Folder

Fill = Callable[[Path, list[tuple[int, int, int]]], Path]
GREYS = [(value, value, value) for value in range(0, 90, 10)]


def test_all_images_in_order_or_evenly_spaced_ones(tmp_path: Path, setting: Setting, fill: Fill) -> None:
    folder = Folder(setting, images=str(fill(tmp_path / "a", GREYS)))
    batches = list(folder.make(100))
    assert [len(batch) for batch in batches] == [4, 4, 1]
    images = torch.cat([batch.images for batch in batches])
    assert images.shape == (9, 3, 8, 8)
    torch.testing.assert_close(images[:, 0, 3, 3], torch.arange(0, 90, 10) / 255)
    assert any("9 images, fewer than 100" in note for note in folder.notes)
    assert any(note.startswith("External generator") for note in folder.notes)
    assert batches[0].asked is None
    few = list(folder.make(3))
    assert [name for batch in few for name in batch.names] == ["000.png", "004.png", "008.png"]
    rest = list(folder.make(100, done=4))
    assert torch.equal(torch.cat([batch.images for batch in rest]), images[4:])


def test_the_middle_of_an_image_is_shown_whatever_its_shape(tmp_path: Path, setting: Setting) -> None:
    picture = Image.new("RGB", (30, 10), "red")
    picture.paste("white", (10, 0, 20, 10))
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "wide.png")
    (batch,) = Folder(replace(setting, size=(10, 10)), images=str(tmp_path / "a")).make(1)
    assert (batch.images == 1).all()
    (batch,) = Folder(replace(setting, size=(4, 6)), images=str(tmp_path / "a")).make(1)
    assert batch.images.shape == (1, 3, 4, 6)


def test_folders_that_are_called_as_classes_say_what_was_asked(tmp_path: Path, setting: Setting, fill: Fill) -> None:
    fill(tmp_path / "a" / "blue", GREYS[:2])
    fill(tmp_path / "a" / "green", GREYS[:1])
    (batch,) = Folder(setting, images=str(tmp_path / "a")).make(9)
    assert batch.asked is not None
    assert batch.asked.tolist() == [2, 2, 1]
    assert batch.names == ["blue/000.png", "blue/001.png", "green/000.png"]
    fill(tmp_path / "a" / "violet", GREYS[:1])
    (batch,) = Folder(setting, images=str(tmp_path / "a")).make(9)
    assert batch.asked is None
