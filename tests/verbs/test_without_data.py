"""Distillation without data: images made for a teacher, written, learned from; stopped and gone on with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import limbeck
import limbeck.training.fit
from limbeck.data.door import open_data
from limbeck.errors import UserError
from limbeck.run import Run
from limbeck.training.checkpoints import Checkpoints, StoppedByUserError

SMALL = "limbeck:resnet8"


@pytest.fixture(scope="module")
def bank(teacher_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two controls for the digits' teacher, four to one."""
    out = tmp_path_factory.mktemp("made") / "bank"
    method = "noise(share=4)+dead_leaves"
    return limbeck.synthesize(teacher=str(teacher_run.path), method=method, count=80, batch_size=32, out=str(out))


def options(tiny: dict[str, Any], **more: Any) -> dict[str, Any]:
    return tiny | {"batch_size": 16, "report": False, "student": SMALL, "student_size": 8} | more


def test_the_images_are_a_data_set_with_the_teachers_labels(bank: Path, teacher_run: Run) -> None:
    data = open_data(str(bank))
    assert len(data.train) == 80
    assert data.class_names == open_data("digits").class_names
    assert np.bincount(data.train.groups).tolist() == [64, 16]
    teacher = limbeck.load_model(str(teacher_run.path)).eval()
    images = torch.stack([torch.tensor(np.asarray(data.train.read(i))) for i in range(80)]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        logits = teacher(images).logits
    assert data.train.labels.tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(np.load(bank / "soft_labels.npz")["logits"], logits.numpy(), atol=1e-4)


def test_a_student_learns_from_them_and_is_measured_on_real_ones(
    bank: Path, teacher_run: Run, tiny: dict[str, Any], tmp_path: Path
) -> None:
    values = options(tiny, data=str(bank), val_data="digits", epochs=1, out=str(tmp_path / "run"))
    run = limbeck.distill(teacher=str(teacher_run.path), **values)
    assert run.summary["teacher_accuracy"] == pytest.approx(teacher_run.accuracy)
    assert run.recipe["task_weight"] == 0  # the teacher's whole answer says more than its labels
    evaluated = limbeck.evaluate(str(run.path), accelerator="cpu", num_workers=0)
    assert evaluated["accuracy"] == pytest.approx(run.accuracy)


def test_a_method_that_reads_labels_gets_the_teachers(
    bank: Path, teacher_run: Run, tiny: dict[str, Any], tmp_path: Path
) -> None:
    values = options(tiny, data=str(bank), method="nkd", epochs=1, out=str(tmp_path / "run"))
    run = limbeck.distill(teacher=str(teacher_run.path), **values)
    assert run.recipe["task_weight"] == 1
    assert run.summary["accuracy"]["last"] is None


def test_images_made_first_and_learned_from_in_one_command(
    teacher_run: Run, tiny: dict[str, Any], tmp_path: Path
) -> None:
    values = options(tiny, data="none", synthesis="noise+fractals", synthetic_images=48, epochs=1)
    run = limbeck.distill(teacher=str(teacher_run.path), out=str(tmp_path / "run"), **values)
    assert len(open_data(str(run.path / "synthetic")).train) == 48
    recipe = yaml.safe_load((run.path / "recipe.yaml").read_text())
    assert "auto" not in recipe.values()
    record = yaml.safe_load((run.path / "provenance.yaml").read_text())["data"]
    assert record["synthesis"] == "noise+fractals"


class StopsAt(Checkpoints):
    """As if somebody pressed Ctrl-C in a certain step."""

    step = 0

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.asked_to_stop = trainer.global_step >= self.step
        super().on_train_batch_end(trainer, *args)


ONLINE = {
    "fast": "fast(g_steps=2, warmup_rounds=1)",
    "zskt": "zskt(student_steps=2, channels=8)",
    "dafl": "dafl(student_steps=2, channels=8, latent=16)",
    "mixed": "fast(g_steps=2, warmup_rounds=0, share=0.5)+noise(share=0.5)",
    "streamed and made before": "dafl(channels=8, latent=16, share=0.5)+noise(share=0.5)",
    "adi": "deepinversion(iterations=4, adi=0.2)",
}


class DiesAfterAnEpoch(Checkpoints):
    """As if the power went off while the second epoch begins."""

    def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
        super().on_train_epoch_end(trainer, *args)
        raise RuntimeError("no power")


@pytest.mark.parametrize("way", ["fast", "dafl"])
def test_killed_between_epochs_it_goes_on_the_same_and_once_finished_stays_as_it_is(
    way: str, teacher_run: Run, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = options(tiny, data="none", synthesis=ONLINE[way], synthetic_images=64, epochs=2)
    values |= {"teacher": str(teacher_run.path), "synthesis_batch_size": 8}
    whole = limbeck.distill(out=str(tmp_path / "whole"), **values)
    monkeypatch.setattr(limbeck.training.fit, "Checkpoints", DiesAfterAnEpoch)
    with pytest.raises(RuntimeError, match="no power"):
        limbeck.distill(out=str(tmp_path / "killed"), **values)
    monkeypatch.undo()
    resumed = limbeck.distill(out=str(tmp_path / "killed"), resume=True, **values)
    first, second = (load_file(run.path / "student.safetensors") for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    before = {path: path.read_bytes() for path in (resumed.path / "synthetic").rglob("*.*") if path.is_file()}
    again = limbeck.distill(out=str(tmp_path / "killed"), resume=True, **values)
    assert before == {path: path.read_bytes() for path in (again.path / "synthetic").rglob("*.*") if path.is_file()}
    third = load_file(again.path / "student.safetensors")
    assert all(torch.equal(first[name], third[name]) for name in first)


def test_a_start_after_a_failed_one_makes_its_own_images(
    teacher_run: Run, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import limbeck.verbs.course

    def fails(*_values: Any) -> None:
        raise RuntimeError("no power")

    values = options(tiny, data="none", epochs=1, teacher=str(teacher_run.path), out=str(tmp_path / "run"))
    monkeypatch.setattr(limbeck.verbs.course, "fit", fails)
    with pytest.raises(RuntimeError, match="no power"):
        limbeck.distill(synthesis="noise", synthetic_images=32, **values)
    monkeypatch.undo()
    run = limbeck.distill(synthesis="fractals", synthetic_images=48, **values)
    made = open_data(str(run.path / "synthetic"))
    assert len(made.train) == 48 and made.record["sources"] == ["fractals"]
    record = yaml.safe_load((run.path / "provenance.yaml").read_text())["data"]["made"]
    assert record["images"] == 48 and record["sources"] == ["fractals"]


@pytest.mark.parametrize("way", ONLINE)
def test_stopped_and_resumed_it_ends_bit_for_bit_the_same(
    way: str, teacher_run: Run, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = options(tiny, data="none", val_data="digits", synthesis=ONLINE[way], synthetic_images=64, epochs=2)
    values |= {"teacher": str(teacher_run.path), "synthesis_batch_size": 8, "log_every": 1}
    whole = limbeck.distill(out=str(tmp_path / "whole"), **values)
    monkeypatch.setattr(limbeck.training.fit, "Checkpoints", StopsAt)
    monkeypatch.setattr(StopsAt, "step", 3)
    with pytest.raises(StoppedByUserError):
        limbeck.distill(out=str(tmp_path / "stopped"), **values)
    monkeypatch.undo()
    resumed = limbeck.distill(out=str(tmp_path / "stopped"), resume=True, **values)
    first, second = (load_file(run.path / "student.safetensors") for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    losses = [
        [row["loss/kd"] for row in map(json.loads, run.metrics_file.read_text().splitlines()) if "loss/kd" in row]
        for run in (whole, resumed)
    ]
    assert losses[0] == losses[1]
    assert len(open_data(str(whole.path / "synthetic" / "samples")).train) > 0


def test_images_begun_and_gone_on_with_are_the_same(
    teacher_run: Run, bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limbeck.synthesis.bank import BankWriter

    write, count = BankWriter.write, 0

    def stops(self: BankWriter, made: Any, source: int) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        write(self, made, source)

    monkeypatch.setattr(BankWriter, "write", stops)
    values = {"teacher": str(teacher_run.path), "method": "noise(share=4)+dead_leaves", "count": 80, "batch_size": 32}
    with pytest.raises(KeyboardInterrupt):
        limbeck.synthesize(**values, out=str(tmp_path / "again"))
    monkeypatch.undo()
    with pytest.raises(UserError, match="--resume"):
        limbeck.synthesize(**values, out=str(tmp_path / "again"))
    again = limbeck.synthesize(**values, out=str(tmp_path / "again"), resume=True)
    files = sorted(path.relative_to(bank) for path in bank.rglob("*.png"))
    assert files == sorted(path.relative_to(again) for path in again.rglob("*.png"))
    assert all((bank / file).read_bytes() == (again / file).read_bytes() for file in files)


def test_statistics_are_saved_with_the_teacher_and_found_again(
    teacher_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from limbeck.synthesis.moments import load

    file = limbeck.statistics(str(teacher_run.path), max_images=200, accelerator="cpu", num_workers=0)
    try:
        assert file == teacher_run.path / "statistics.safetensors"
        assert load(file).images == 200
        limbeck.synthesize(
            teacher=str(teacher_run.path), method="invert(iterations=2)", count=4, out=str(tmp_path / "made")
        )
        assert "moments" in capsys.readouterr().out
    finally:
        file.unlink()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "digits", "synthesis": "noise"}, "--synthesis is for --data none"),
        ({"data": "digits", "synthetic_images": 5}, "--synthetic_images is for --data none"),
        ({"data": "none", "synthesis": "nois"}, "Did you mean 'noise'"),
        ({"data": "none", "synthesis": "dafl+zskt"}, "Only one way"),
        ({"data": "none", "synthesis": "fast+dafl"}, "Only one way"),
        ({"data": "none", "synthesis": "noise", "devices": 2, "synthetic_images": 0}, "at least 1"),
        ({"data": "none", "synthesis": "zskt", "devices": 2}, "one device only"),
        ({"data": "none", "max_train_images": 5}, "--synthetic_images"),
        ({"data": "none", "synthesis": "noise(sigma=1)"}, "no option 'sigma'"),
        ({"data": "none", "statistics": "nowhere.safetensors"}, "nowhere.safetensors does not exist"),
    ],
)
def test_wrong_uses_are_named(
    changes: dict[str, Any], words: str, teacher_run: Run, tiny: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises((UserError, FileNotFoundError), match=words):
        limbeck.distill(teacher=str(teacher_run.path), out=str(tmp_path / "run"), **options(tiny, **changes))


def test_too_small_a_pool_is_said(
    teacher_run: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for number, file in enumerate(sorted(photos.rglob("*.png"))[:3]):
        (few / f"{number}.png").write_bytes(file.read_bytes())
    limbeck.synthesize(
        teacher=str(teacher_run.path), method=f"pool(images='{few}')", count=8, out=str(tmp_path / "made")
    )
    assert "3 pictures instead of 8" in " ".join(capsys.readouterr().out.split())


def test_what_needs_a_learning_student_cannot_be_made_before(teacher_run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="limbeck distill --data none --synthesis zskt"):
        limbeck.synthesize(teacher=str(teacher_run.path), method="zskt", count=4, out=str(tmp_path / "made"))


def test_training_without_a_teacher_needs_images(tiny: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="limbeck distill --data none"):
        limbeck.train(model=SMALL, **(tiny | {"data": "none"}))


def test_a_full_folder_is_not_written_to(teacher_run: Run, bank: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for folder, words in ((bank, "already holds"), (tmp_path, "not empty"), (tmp_path / "mine.txt", "is a file")):
        with pytest.raises(UserError, match=words):
            limbeck.synthesize(teacher=str(teacher_run.path), method="noise", count=4, out=str(folder))
