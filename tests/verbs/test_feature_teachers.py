"""Whole runs that learn features: measured before training, resumed, without labels, and from several teachers at once."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import limbeck
from limbeck.errors import UserError
from limbeck.models import load_model
from limbeck.run import Run

SMALL = "hidden=16, last_hidden=16, calibration_images=100"


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Any]) -> list[Run]:
    """Two hasty teachers of the digits, at 8 and 16 pixels."""
    folder = tmp_path_factory.mktemp("teachers")
    options = tiny | {
        "model": "limbeck:resnet8",
        "epochs": 2,
        "lr": 1e-2,
        "report": False,
        "view_size": 16,
        "max_train_images": 600,
    }
    return [limbeck.train(input_size=side, seed=side, out=str(folder / f"t{side}"), **options) for side in (8, 16)]


@pytest.fixture
def options(tiny: dict[str, Any]) -> dict[str, Any]:
    return tiny | {
        "student": "limbeck:resnet8",
        "student_size": 8,
        "view_size": 16,
        "max_train_images": 200,
        "epochs": 1,
        "report": False,
        "trust_teacher": True,
    }


def state(run: Run) -> dict[str, torch.Tensor]:
    saved: dict[str, torch.Tensor] = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
    return saved


def test_feature_kd_measures_the_teacher_and_resumes_bit_for_bit(
    options: dict[str, Any], teachers: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import limbeck.training.fit
    from limbeck.training.checkpoints import Checkpoints

    class DiesAfterAnEpoch(Checkpoints):
        def on_train_epoch_end(self, *values: Any) -> None:
            super().on_train_epoch_end(*values)
            raise RuntimeError("no power")

    options |= {"teacher": str(teachers[0].path), "method": "feature_kd(standardise=phi_s)", "epochs": 2}
    whole = limbeck.distill(out=str(tmp_path / "whole"), **options)
    seen = {name: int(value) for name, value in state(whole).items() if name.endswith(".seen")}
    # All 200 training images were looked at; maps of 2x2 cells are four vectors each.
    assert sorted(seen.values()) == [200, 800]
    monkeypatch.setattr(limbeck.training.fit, "Checkpoints", DiesAfterAnEpoch)
    with pytest.raises(RuntimeError, match="no power"):
        limbeck.distill(out=str(tmp_path / "killed"), **options)
    monkeypatch.undo()
    resumed = limbeck.distill(out=str(tmp_path / "killed"), resume=True, **options)
    first, second = state(whole), state(resumed)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_without_labels_the_run_says_what_is_left_to_do_and_it_can_be_done(
    options: dict[str, Any], teachers: list[Run], photos: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    for picture in sorted(photos.rglob("*.png"))[:80]:
        shutil.copy(picture, unlabelled / f"{picture.parent.name}_{picture.name}")
    del options["max_train_images"]
    options |= {"data": str(unlabelled), "teacher": str(teachers[0].path), "method": "feature_kd+patch_relation"}
    run = limbeck.distill(out=str(tmp_path / "run"), **options)
    (note,) = [note for note in run.summary["notes"] if "classifier" in note]
    assert note == (
        "feature_kd + patch_relation teaches the student's features and not its classifier, and the images have no labels, so "
        f"its answers stay random. Train a classifier on the features afterwards: limbeck train --model {run.path} "
        "--data LABELLED_IMAGES."
    )
    model = load_model(str(run.path), num_classes=4)
    assert model(torch.rand(2, 3, 8, 8)).logits.shape == (2, 4)
    tuned = limbeck.train(
        model=str(run.path), out=str(tmp_path / "tuned"), **(tiny | {"data": str(photos), "epochs": 1, "report": False})
    )
    assert len(tuned.summary["class_names"]) == 4


@pytest.mark.parametrize("method", ["kd", f"unic({SMALL})+kd(weight=0.5)"])
def test_two_teachers(method: str, options: dict[str, Any], teachers: list[Run], tmp_path: Path) -> None:
    name = f"{teachers[0].path} + {teachers[1].path}"
    run = limbeck.distill(teacher=name, method=method, out=str(tmp_path / "run"), **(options | {"report": True}))
    summary = run.summary
    assert summary["teacher"] == name
    both = [load_model(str(of.path)) for of in teachers]
    assert summary["parameters"]["teacher"] == sum(p.numel() for model in both for p in model.parameters())
    assert summary["macs"]["teacher"] > 4 * summary["macs"]["student"]
    # The teachers' answers are the mean of their probabilities, measured as such.
    saved = np.load(run.path / "predictions.npz")
    alone = [np.load(of.path / "predictions.npz")["student_logits"] for of in teachers]
    mean = sum(torch.from_numpy(of).softmax(1).numpy() for of in alone) / 2
    np.testing.assert_allclose(np.exp(saved["teacher_logits"]), mean, atol=1e-4)
    assert summary["teacher_accuracy"] == pytest.approx((mean.argmax(1) == saved["labels"]).mean())
    recorded = yaml.safe_load((run.path / "provenance.yaml").read_text())["teacher"]
    assert [of["name"] for of in recorded["members"]] == [str(of.path) for of in teachers]
    card = (run.path / "MODEL_CARD.md").read_text()
    assert all(f"| teacher | {of.path} |" in card for of in teachers)
    # Each has an input size of its own, and there is no one number to record.
    assert run.recipe["teacher_size"] == "auto"
    assert run.report_file.is_file()
    again = limbeck.distill(teacher=name, method=method, out=str(run.path), resume=True, **options)
    assert again.summary["accuracy"] == summary["accuracy"]


def test_what_several_teachers_cannot_do_is_refused(
    options: dict[str, Any], teachers: list[Run], tmp_path: Path
) -> None:
    name = f"{teachers[0].path} + limbeck:resnet8"
    for method, message in (
        ("manifold", "manifold reads the features of one teacher, and there are 2"),
        ("kd", r"kd reads .* classes differ: .* has 10, limbeck:resnet8 has 100"),
    ):
        with pytest.raises(UserError, match=message):
            limbeck.distill(teacher=name, method=method, out=str(tmp_path / "run"), **options)
    with pytest.raises(UserError, match="no method 'nothing'"):
        limbeck.distill(teacher=name, method="nothing", out=str(tmp_path / "run"), **options)
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        limbeck.distill(teacher=f"{name} + /nowhere/at/all", method="unic", out=str(tmp_path / "run"), **options)
    with pytest.raises(UserError, match="images for one teacher"):
        without = {key: value for key, value in options.items() if key not in ("data", "max_train_images")}
        limbeck.distill(teacher=name, data="none", method="unic", out=str(tmp_path / "run"), **without)
