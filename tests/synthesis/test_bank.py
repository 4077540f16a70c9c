"""A folder of made pictures holds what was made, whatever happened on the way, and says what it is."""

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.door import open_data
from limbeck.data.loader import make_train_loader
from limbeck.data.names import PARTIAL_FILE, SYNTHESIS_FILE
from limbeck.data.options import ViewOptions
from limbeck.errors import UserError
from limbeck.models.base import Provenance, VisionModel
from limbeck.outputs import ModelFacts, Outputs, Request
from limbeck.synthesis import bank
from limbeck.synthesis.bank import BankWriter, class_folders
from limbeck.synthesis.bank_sheet import choose, draw_sheet
from limbeck.synthesis.base import Made, Setting
from limbeck.synthesis.names import parse_synthesis
from limbeck.synthesis.pixels import to_pixels
from limbeck.synthesis.quality import MEANINGS

NAMES = ("maple/tree", "äpfel 🍎", "..", "CON", "a | b", "dog", "dog?", "ant", "a" * 300, "never seen")
SIZE = (12, 16)
COUNTS = (20, 8)


class Teacher(VisionModel):
    """A random linear network of as many classes as asked for; it never answers with the last one."""

    def __init__(self, num_classes: int = 10, seed: int = 0) -> None:
        super().__init__((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.facts = ModelFacts("runs/teacher", num_classes, SIZE, (), 24, architecture="tiny")
        self.provenance = Provenance("CC-BY-NC-4.0", "somewhere")
        self.linear = torch.nn.Linear(24, num_classes)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            self.linear.weight.copy_(torch.randn(num_classes, 24, generator=generator))
            self.linear.bias.zero_()
            if num_classes > 1:
                self.linear.bias[-1] = -1e3

    def read(self, inputs: torch.Tensor, request: Request) -> Outputs:
        pooled = torch.nn.functional.adaptive_avg_pool2d(inputs, (2, 4)).flatten(1)
        return Outputs(self.linear(pooled), pooled)


@pytest.fixture(autouse=True)
def _still_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank.time, "perf_counter", lambda: 0.0)


def setting(num_classes: int = 10, names: tuple[str, ...] | None = NAMES, **options: object) -> Setting:
    return Setting(Teacher(num_classes), SIZE, batch_size=4, seed=3, class_names=names, **options)


def batches(source: int, count: int) -> Iterator[Made]:
    """Blurred random pictures, four at a time, each batch with random numbers of its own."""
    for start in range(0, count, 4):
        generator = torch.Generator().manual_seed(100 * source + start)
        low = torch.rand(min(4, count - start), 3, 3, 4, generator=generator)
        images = torch.nn.functional.interpolate(low, SIZE, mode="bilinear")
        asked = None if source else torch.arange(start, start + len(low)) % 10
        yield Made(images, asked, [f"photo {source}.jpg"] * len(low) if source else [])


def writer(folder: Path, made_with: Setting | None = None, **options: object) -> BankWriter:
    specs = parse_synthesis("invert(iterations=3)+one_image(image='my photo.jpg', share=0.4)")
    return BankWriter(folder, made_with or setting(), specs, **{"counts": COUNTS, "command": "limbeck ...", **options})


def fill(folder: Path, *, stop_after: int | None = None, **options: object) -> BankWriter:
    """Write everything that is not there yet; stopped after so many batches, without finishing."""
    bank = writer(folder, **options)
    written = 0
    for source, count in enumerate(COUNTS):
        for made in list(batches(source, count))[bank.done(source) // 4 :]:
            if written == stop_after:
                return bank
            bank.write(made, source)
            written += 1
    bank.finish(seconds=5.0, notes=["invert: a note | of its own"])
    return bank


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_written_is_read_pixel_by_pixel(tmp_path: Path) -> None:
    fill(tmp_path / "bank")
    data = open_data(str(tmp_path / "bank"))
    images = torch.cat([made.images for source, count in enumerate(COUNTS) for made in batches(source, count)])
    pixels = to_pixels(images)
    assert len(data.train) == 28
    read = np.stack([np.asarray(data.train.read(index)) for index in range(28)])
    assert np.array_equal(read, pixels.permute(0, 2, 3, 1).numpy())
    with torch.no_grad():
        logits = Teacher()(pixels.float() / 255).logits
    assert data.train.labels is not None
    assert data.train.labels.tolist() == logits.argmax(1).tolist()
    with np.load(tmp_path / "bank" / "soft_labels.npz") as soft:
        assert np.allclose(soft["logits"], logits, atol=1e-5)
        assert soft["logits"].dtype == np.float32
        assert soft["asked"].tolist() == [*(i % 10 for i in range(20)), *[-1] * 8]
        assert [str(tmp_path / "bank" / file) for file in soft["files"]] == [data.train.describe(i) for i in range(28)]
    assert (data.class_names, data.native_size, data.val) == (NAMES, SIZE, None)
    assert data.labels_by_teacher and data.labelled
    assert data.train.groups is not None
    assert data.train.groups.tolist() == [0] * 20 + [1] * 8
    assert data.record["split"] == "none"
    assert not (tmp_path / "bank" / PARTIAL_FILE).exists()


def test_class_folders_sort_in_label_order_and_their_pictures_are_the_classs(tmp_path: Path) -> None:
    folders = class_folders(10, NAMES)
    assert folders == sorted(folders)
    assert folders[:4] == ["0_maple_tree", "1_äpfel", "2", "3_CON"]
    assert max(len(folder.encode()) for folder in class_folders(1000, ["🍎é" * 200] * 1000)) < 255
    assert class_folders(101, None)[7] == class_folders(101, [str(label) for label in range(101)])[7] == "007"
    fill(tmp_path)
    rows = json.loads((tmp_path / SYNTHESIS_FILE).read_text())["pictures"]
    assert all(row["file"].split("/")[1] == folders[row["label"]] for row in rows)
    there = {path.name for path in (tmp_path / "images").iterdir()}
    assert there == {folders[row["label"]] for row in rows}
    assert folders[9] not in there  # the teacher never sees this class
    assert rows[21] == {**rows[21], "asked": None, "source": 1, "name": "photo 1.jpg"}


@pytest.mark.parametrize("stop_after", [0, 1, 3, 5, 6])
def test_a_stopped_run_ends_in_the_same_folder(tmp_path: Path, stop_after: int) -> None:
    fill(tmp_path / "whole")
    stopped = fill(tmp_path / "stopped", stop_after=stop_after)
    assert [stopped.done(0), stopped.done(1)] == [min(20, 4 * stop_after), max(0, 4 * stop_after - 20)]
    # A batch in the middle of being written, and a line that was cut off.
    fresh = tmp_path / "stopped" / "images" / "5_dog" / f"{4 * stop_after:06d}.png"
    fresh.parent.mkdir(parents=True, exist_ok=True)
    fresh.write_bytes(b"half a picture")
    with (tmp_path / "stopped" / PARTIAL_FILE).open("ab") as journal:
        journal.write(b'{"rows": [{"file": "im')
    with pytest.raises(UserError, match=r"not finished: limbeck synthesize was stopped.*--resume"):
        open_data(str(tmp_path / "stopped"))
    fill(tmp_path / "stopped")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_pictures_that_were_lost_are_made_again(tmp_path: Path) -> None:
    fill(tmp_path / "whole")
    stopped = fill(tmp_path / "stopped", stop_after=6)
    (tmp_path / "stopped" / stopped.journal.rows[9]["file"]).write_bytes(b"")
    assert [writer(tmp_path / "stopped").done(source) for source in (0, 1)] == [8, 0]
    fill(tmp_path / "stopped")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_time_of_stopped_calls_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(bank.time, "perf_counter", lambda: float(next(clock)))
    fill(tmp_path, stop_after=3)
    fill(tmp_path)
    assert json.loads((tmp_path / SYNTHESIS_FILE).read_text())["seconds"] == 35.0


def test_another_recipe_is_refused_with_what_differs(tmp_path: Path) -> None:
    fill(tmp_path, stop_after=2)
    same = setting()
    same.teacher.facts = ModelFacts("/elsewhere/teacher", 10, SIZE, (), 24, architecture="tiny")
    assert writer(tmp_path, same).done(0) == 8
    other = Setting(Teacher(seed=1), SIZE, batch_size=8, seed=4, class_names=NAMES)
    with pytest.raises(UserError, match=r"batch_size: 4 -> 8; seed: 3 -> 4; teacher\.weights_sha256: '\w+' -> '\w+'\)"):
        writer(tmp_path, other)
    specs = parse_synthesis("invert(iterations=4)+noise")
    differing = (
        r"\[0\]\.text: 'invert\(iterations=3\)' -> 'invert\(iterations=4\)'; sources\[1\]\.count: 8 -> 9; .*'noise'"
    )
    with pytest.raises(UserError, match=differing):
        BankWriter(tmp_path, setting(), specs, counts=(20, 9))
    with pytest.raises(UserError, match="image_format: 'png' -> 'webp'"):
        writer(tmp_path, image_format="webp")
    assert writer(tmp_path).done(0) == 8  # nothing was touched


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/bank for the images cannot be made: Not a directory.*--out"):
        writer(tmp_path / "file" / "bank")


def test_foreign_folders_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"is not empty \(it holds thesis\.tex\)"):
        writer(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    fill(tmp_path / "bank")
    before = contents(tmp_path / "bank")
    with pytest.raises(UserError, match="already holds finished synthetic images"):
        writer(tmp_path / "bank")
    assert contents(tmp_path / "bank") == before
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".DS_Store").touch()
    assert writer(tmp_path / "hidden").done(0) == 0


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="9 class names are recorded with runs/teacher, which answers with 10 classes"):
        writer(tmp_path / "a", setting(names=NAMES[:9]))
    with pytest.raises(UserError, match="image_format is 'jpeg'"):
        writer(tmp_path / "a", image_format="jpeg")
    with pytest.raises(UserError, match="No images were made"):
        writer(tmp_path / "b").finish()
    with pytest.raises(UserError, match=r"invert made pictures whose values are not finite"):
        writer(tmp_path / "c").write(Made(torch.full((2, 3, *SIZE), torch.nan)), 0)
    broken = setting()
    broken.teacher.linear.weight.fill_(torch.inf)
    with pytest.raises(UserError, match="answers to made pictures with values that are not finite"):
        writer(tmp_path / "d", broken).write(next(batches(0, 4)), 0)


def test_a_full_disk_is_said_and_nothing_counts_that_is_not_there(tmp_path: Path) -> None:
    full = writer(tmp_path)
    full.write(next(batches(0, 4)), 0)

    def no_space(path: Path, content: bytes, **_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", lambda *_, **__: no_space(tmp_path, b""))
        with pytest.raises(UserError, match=r"No space to write .*are kept"):
            full.write(list(batches(0, 8))[1], 0)
    assert writer(tmp_path).done(0) == 4


def test_webp_is_lossless_too(tmp_path: Path) -> None:
    fill(tmp_path / "png")
    fill(tmp_path / "webp", image_format="webp")
    png, webp = (open_data(str(tmp_path / kind)).train for kind in ("png", "webp"))
    assert all(np.array_equal(png.read(i), webp.read(i)) for i in range(28))
    assert webp.describe(0).endswith(".webp")


@pytest.mark.parametrize("num_classes", [1, 12])
def test_a_teacher_without_class_names_or_with_one_class(tmp_path: Path, num_classes: int) -> None:
    nameless = setting(num_classes, None)
    only = BankWriter(tmp_path, nameless, parse_synthesis("noise"), counts=[4])
    only.write(Made(next(batches(1, 4)).images), 0)
    only.finish(second=Teacher(num_classes, seed=9))
    data = open_data(str(tmp_path))
    assert data.class_names == tuple(str(label) for label in range(num_classes))
    assert data.train.groups is None
    assert "without recorded names" in (tmp_path / "README.md").read_text()
    assert all(len(folder.name) == len(str(num_classes - 1)) for folder in (tmp_path / "images").iterdir())


def test_the_card_says_what_it_must(tmp_path: Path) -> None:
    fill(tmp_path)
    card = (tmp_path / "README.md").read_text()
    record = json.loads((tmp_path / SYNTHESIS_FILE).read_text())
    for words in (
        "28 pictures made for runs/teacher",
        "12 x 16 pixels",
        "    limbeck ...",
        "CC-BY-NC-4.0",
        "my photo.jpg. They keep the licence",
        "invert: a note | of its own",
        "| a \\| b |",
        "Not for measuring",
        "| never seen | 0 |",
        "`invert(iterations=3)`",
        "PSAQ-ViT",
    ):
        assert words in card, words
    assert all(meaning in card for key, meaning in MEANINGS.items() if record["quality"][key] is not None)
    assert record["quality"]["second_agreement"] is None
    assert "second agreement" not in card
    lines = card.replace("\\|", "").splitlines()
    tables = [list(rows) for is_row, rows in itertools.groupby(lines, lambda line: line.startswith("|")) if is_row]
    assert len(tables) == 3
    assert all(len({row.count("|") for row in rows}) == 1 for rows in tables)
    assert record["teacher"]["weights_sha256"] is not None
    assert record["sources"][1] | {"text": "", "confidence": 0} == {
        "text": "",
        "count": 8,
        "name": "one_image",
        "options": {"image": "my photo.jpg"},
        "pictures": 8,
        "classes": record["sources"][1]["classes"],
        "confidence": 0,
        "read_as_asked": None,
    }
    assert sum(record["class_counts"]) == 28


def test_the_sheet_shows_every_class_before_it_shows_more_of_one() -> None:
    labels = np.array([2] * 50 + [0] * 2 + [7] * 50)
    chosen = choose(labels, 10)
    assert labels[chosen].tolist() == [0, 0, 2, 2, 2, 2, 7, 7, 7, 7]
    assert chosen.tolist() == [50, 51, 0, 1, 2, 3, 52, 53, 54, 55]
    assert choose(labels, 1000).tolist() == labels.argsort(kind="stable").tolist()
    many = choose(np.arange(500).repeat(2), 100)
    assert len(set(many.tolist())) == 100
    assert (many[0], many[-1]) == (0, 998)


def test_the_sheet_is_as_large_as_its_pictures_need(tmp_path: Path) -> None:
    fill(tmp_path)
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.mode == "RGB"
        assert 1300 < sheet.width < 1600
        assert 400 < sheet.height < 700
    data = open_data(str(tmp_path))
    with np.load(tmp_path / "soft_labels.npz") as soft:
        logits, asked = soft["logits"], soft["asked"]
    assert draw_sheet(data.train, logits[:3], asked[:3], None).width < 600


def test_batches_for_training_mix_the_sources(tmp_path: Path) -> None:
    fill(tmp_path)
    loader = make_train_loader(open_data(str(tmp_path)), ViewOptions(), SIZE, batch_size=7, num_workers=0)
    assert [(batch["index"] >= 20).sum().item() for batch in loader] == [2, 2, 2, 2]


def test_a_folder_may_be_moved(tmp_path: Path) -> None:
    fill(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert open_data(str(tmp_path / "there")).train.read(0).size == (16, 12)
