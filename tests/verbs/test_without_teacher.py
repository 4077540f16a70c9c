"""`--teacher none`: a student learns from labels and from itself, and everything that is written says so."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import limbeck
from limbeck.data.door import open_data
from limbeck.errors import UserError
from limbeck.run import Run


def learn(tiny: dict[str, Any], out: Path, **options: Any) -> Run:
    settings = {"student": "limbeck:resnet8", "student_size": 8, "epochs": 1, "method": "uskd", "max_train_images": 256}
    return limbeck.distill(teacher="none", out=str(out), **{**tiny, **settings, **options})


@pytest.fixture(scope="module")
def alone(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return learn(tiny, tmp_path_factory.mktemp("runs") / "alone")


def test_the_student_is_saved_alone_and_answers_as_measured(alone: Run) -> None:
    model = limbeck.load_model(str(alone.path)).eval()
    assert not any("losses" in name for name in model.state_dict())
    predictions = np.load(alone.path / "predictions.npz")
    assert "teacher_logits" not in predictions
    data = open_data("digits")
    images = torch.stack([torch.tensor(np.asarray(data.val.read(i))) for i in range(50)]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        np.testing.assert_allclose(model(images).logits.numpy(), predictions["student_logits"][:50], atol=1e-4)
    assert not (alone.path / "cka.npz").exists()


def test_summary_recipe_card_and_report_know_of_no_teacher(alone: Run) -> None:
    summary = alone.summary
    assert (summary["verb"], summary["teacher"], summary["method"]) == ("distill", None, "uskd")
    assert summary["teacher_accuracy"] is None
    assert summary["agreement"] is None
    assert summary["macs"]["teacher"] is None
    recipe = yaml.safe_load((alone.path / "recipe.yaml").read_text())
    assert (recipe["teacher"], recipe["task_weight"]) == ("none", 1.0)
    assert not {"teacher_size", "teacher_accuracy", "trust_teacher"} & recipe.keys()
    assert yaml.safe_load((alone.path / "provenance.yaml").read_text())["teacher"] is None
    card = (alone.path / "MODEL_CARD.md").read_text()
    assert "distilled from" not in card
    assert "from its own answers, without a teacher, by the method `uskd`" in card
    page = (alone.path / "report.html").read_text()
    assert "Teacher accuracy" not in page
    assert "Agreement with teacher" not in page
    assert "The student is right on" in page


def test_the_total_is_made_of_labels_and_itself(alone: Run) -> None:
    rows = [json.loads(line) for line in alone.metrics_file.read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    for row in train:
        assert row["loss/total"] == pytest.approx(row["loss/task"] + row["loss/uskd"], rel=1e-3)
    (gradients,) = [row for row in rows if row["kind"] == "gradients"]
    assert gradients["uskd"] > 0
    assert gradients["task"] > 0


def test_the_report_holds_it_against_a_control(alone: Run, tiny: dict[str, Any], tmp_path: Path) -> None:
    control = learn(tiny, tmp_path / "control", method="none", report=False)
    limbeck.report(str(alone.path), control=[str(control.path)], out=str(tmp_path / "page.html"))
    assert "the control" in (tmp_path / "page.html").read_text()
    with pytest.raises(UserError, match="no control"):
        limbeck.report(str(control.path), control=[str(alone.path)])


def test_a_recipe_can_be_given_back_and_resumed(alone: Run, tiny: dict[str, Any], tmp_path: Path) -> None:
    assert learn(tiny, alone.path, resume=True).accuracy == alone.accuracy


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "kd"}, "The method kd needs a teacher, and --teacher is none.*uskd"),
        ({"method": "uskd+nkd"}, "The method nkd needs a teacher"),
        ({"method": "auto"}, "The method kd needs a teacher"),
        ({"data": "none"}, "leave nothing to learn from"),
        ({"task": "detection", "student_size": "auto", "max_train_images": None}, "--teacher none is for --task class"),
        ({"teacher_accuracy": 0.9}, "--teacher_accuracy says something of the teacher"),
        ({"teacher_size": 8}, "--teacher_size says something of the teacher"),
        ({"trust_teacher": True}, "--trust_teacher says something of the teacher"),
    ],
)
def test_what_needs_a_teacher_is_refused(
    options: dict[str, Any], words: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        learn(tiny, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


OWN = """
from limbeck.losses import DistillationLoss

class Gap(DistillationLoss):
    def forward(self, student, teacher, target=None):
        return (student.logits - teacher.logits).square().mean()
"""


def test_a_users_own_method_that_needs_a_teacher_is_refused(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_gap_losses.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="Gap needs a teacher"):
        learn(tiny, tmp_path / "out", method="my_gap_losses:Gap")


def test_unlabelled_images_are_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(folder / f"{number}.png")
    with pytest.raises(UserError, match="has no labels, and training without a teacher needs them"):
        learn(tiny, tmp_path / "out", data=str(folder), max_train_images=None)
