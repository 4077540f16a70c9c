"""Is it working? Faults planted in real runs are found by name and no other, and healthy runs are not accused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import limbeck
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.kd import kd_loss
from limbeck.models.cifar import create
from limbeck.outputs import Outputs
from limbeck.run import Run
from limbeck.training.checkpoints import Checkpoints
from limbeck.training.records import read_records

QUICK: dict[str, Any] = {
    "student": "limbeck:resnet8",
    "student_size": 8,
    "epochs": 3,
    "lr": 5e-3,
    "max_train_images": 400,
    "batch_size": 32,
    "report": False,
}
HERE = "tests.verbs.test_watching"
Distil = Callable[..., Run]


class AgainstTheTeacher(DistillationLoss):
    """Pulls the student away from the teacher, in the direction opposite to kd's."""

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        return 10 / (1 + kd_loss(student.logits, teacher.logits, 4.0))


def frozen(num_classes: int, input_size: tuple[int, int]) -> nn.Module:
    """A student that nobody can teach."""
    return create("resnet8", num_classes, input_size=input_size).requires_grad_(False)


@pytest.fixture
def distil(teacher_run: Run, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distil:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))

    def run(teacher: Path | str | None = None, out: str = "run", **options: Any) -> Run:
        values = {**tiny, **QUICK, "out": str(tmp_path / out), **options}
        return limbeck.distill(teacher=str(teacher or teacher_run.path), **values)

    return run


def warned(run: Run) -> list[tuple[str, str]]:
    return [(found["name"], found["subject"]) for found in run.summary["findings"] if found["severity"] == "warning"]


def with_normalisation(teacher: Run, mean: float, std: float, folder: Path) -> Path:
    """The same teacher, believed to want other numbers."""
    shutil.copytree(teacher.path, folder, ignore=shutil.ignore_patterns("checkpoints"))
    model = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(model | {"mean": [mean] * 3, "std": [std] * 3}))
    return folder


@pytest.mark.parametrize("method", ["kd", "nkd+vitkd", "manifold"])
def test_a_healthy_run_is_not_accused(method: str, distil: Distil) -> None:
    run = distil(method=method)
    assert warned(run) == []
    rows = read_records(run.metrics_file)
    watched = [row for row in rows if row["kind"] == "watch"]
    assert [row["epoch"] for row in watched] == [0, 1, 2]
    assert all(any(key.startswith("cka/") for key in row) for row in watched)
    gradients = [row for row in rows if row["kind"] == "gradients"]
    name = method.partition("+")[0]
    for row in gradients:
        assert row[f"ratio/{name}"] == pytest.approx(row[name] / row["task"])
        assert -1 <= row[f"cosine/task|{name}"] <= 1


def test_the_report_says_that_nothing_was_found(student_run: Run) -> None:
    assert warned(student_run) == []
    page = student_run.report_file.read_text()
    assert 'id="working"' in page
    assert '<p class="good">' in page
    assert 'class="remark grave"' not in page


def test_a_teacher_of_another_normalisation(teacher_run: Run, distil: Distil, tmp_path: Path) -> None:
    wrong = with_normalisation(teacher_run, 0.0, 1 / 255, tmp_path / "wrong")
    run = distil(wrong, method="kd", trust_teacher=True, report=True)
    assert warned(run) == [("teacher_normalisation", "")]
    (found,) = [found for found in run.summary["findings"] if found["severity"] == "warning"]
    assert "CIFAR-100's normalisation" in found["words"]
    page = run.report_file.read_text()
    assert "The teacher&#39;s normalisation is wrong" in page
    assert '<p class="good">' not in page


def test_a_teacher_that_is_half_right_needs_no_trust_to_be_doubted(
    teacher_run: Run, distil: Distil, tmp_path: Path
) -> None:
    wrong = with_normalisation(teacher_run, 0.5, 0.5, tmp_path / "wrong")
    run = distil(wrong, method="kd", epochs=1)
    assert 0.3 < run.summary["teacher_accuracy"] < 0.88
    assert warned(run) == [("teacher_normalisation", "")]


def test_shuffled_classes_are_told_one_by_one(teacher_run: Run, distil: Distil, tmp_path: Path) -> None:
    weights = load_file(teacher_run.path / "model.safetensors")
    order = torch.tensor([1, 0, 2, 4, 3, 6, 7, 5, 9, 8])
    shuffled = weights | {key: weights[key][order].contiguous() for key in ("classifier.weight", "classifier.bias")}
    save_file(shuffled, tmp_path / "shuffled.safetensors")
    name = f"limbeck:resnet14@{tmp_path / 'shuffled.safetensors'}"
    run = distil(name, method="kd", teacher_size=8, trust_teacher=True)
    assert warned(run) == [("classes_shuffled", "")]
    words = run.summary["findings"][0]["words"]
    assert "'0' is '1', '1' is '0', '3' is '4', '4' is '3', '5' is '6' and 4 more" in words


@pytest.mark.parametrize(
    ("method", "found"),
    [
        ("kd(weight=900)", ("term_dominates", "kd")),
        ("kd+reviewkd(weight=1000)", ("term_dominates", "reviewkd")),
        ("kd+vitkd(weight=0.001)", ("term_vanishes", "vitkd")),
        ("kd+reviewkd(weight=0.0005)", ("term_vanishes", "reviewkd")),
    ],
)
def test_a_weight_a_thousand_times_off(method: str, found: tuple[str, str], distil: Distil) -> None:
    assert warned(distil(method=method, epochs=2)) == [found]


def test_a_frozen_student(distil: Distil) -> None:
    run = distil(student=f"{HERE}:frozen", method="reviewkd", epochs=4)
    assert warned(run) == [("student_frozen", "")]
    with pytest.raises(UserError, match="nothing to learn"):
        distil(student=f"{HERE}:frozen", method="kd", out="other")


def test_drop_path_beside_losses_on_blocks(distil: Distil) -> None:
    assert warned(distil(method="kd+manifold", drop_path=0.2)) == [("drop_path_with_blocks", "")]


def test_terms_that_pull_against_each_other(distil: Distil) -> None:
    run = distil(method=f"{HERE}:AgainstTheTeacher", task_weight=1.0)
    assert warned(run) == [("gradients_fight", "task|AgainstTheTeacher")]


def test_without_labels_the_agreement_is_that_of_the_watched_images(
    teacher_run: Run, photos: Path, distil: Distil, tmp_path: Path
) -> None:
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    for number, file in enumerate(sorted(photos.rglob("*.png"))):
        shutil.copy(file, folder / f"{number}.png")
    run = distil(method="kd", data=str(folder), max_train_images=None, flip=0.0)
    assert warned(run) == []
    watched = [row for row in read_records(run.metrics_file) if row["kind"] == "watch"]
    assert len([row for row in watched if "agreement" in row]) == 3


def test_chosen_shares_are_kept_and_a_resumed_run_goes_on_exactly(
    distil: Distil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kd has a weight a thousand times too large; killed within the second epoch, the run ends bit for bit the same."""
    import limbeck.training.balance
    import limbeck.training.fit

    monkeypatch.setattr(limbeck.training.balance, "EVERY", 4)
    options: dict[str, Any] = {"method": "kd(weight=900)+reviewkd", "balance": "kd=0.5,reviewkd=0.3", "epochs": 3}
    options |= {"checkpoint_steps": 6, "log_every": 1}
    whole = distil(out="whole", **options)
    assert warned(whole) == []
    rows = read_records(whole.metrics_file)
    for row in [row for row in rows if row["kind"] == "gradients"][1:]:
        pull = sum(row[name] for name in ("task", "kd", "reviewkd"))
        assert row["kd"] / pull == pytest.approx(0.5, abs=0.12)
        assert row["reviewkd"] / pull == pytest.approx(0.3, abs=0.12)
    applied = [row["weight/kd"] for row in rows if row["kind"] == "train"]
    assert max(applied) < 10
    assert len(set(applied)) > 6, "the weight follows the measurements"

    class Dies(Checkpoints):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            if trainer.current_epoch == 1 and batch_idx == 8:
                raise RuntimeError("no power")

    with monkeypatch.context() as patch:
        patch.setattr(limbeck.training.fit, "Checkpoints", Dies)
        with pytest.raises(RuntimeError, match="no power"):
            distil(out="killed", **options)
    resumed = distil(out="killed", resume=True, **options)
    first, second = (load_file(run.path / "student.safetensors") for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    again = [row["weight/kd"] for row in read_records(resumed.metrics_file) if row["kind"] == "train"]
    assert again == applied
    assert yaml.safe_load((whole.path / "recipe.yaml").read_text())["balance"] == "kd=0.5,reviewkd=0.3"


def test_shares_that_do_not_fit_are_refused_before_a_folder_is_made(distil: Distil, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"names vitkd.*The terms are kd"):
        distil(method="kd", balance="vitkd=0.5")
    with pytest.raises(UserError, match=r"add up to 1\.5"):
        distil(method="kd", balance="kd=0.5,vitkd=1.0")
    assert not (tmp_path / "run").exists()


def test_detectors_are_watched_and_balanced_too(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "task": "detection",
        "data": "shapes(train=8, val=4, size=64)",
        "batch_size": 4,
        "lr": 1e-3,
    }
    options |= {"short_side": 64, "long_side": 64, "num_workers": 0, "accelerator": "cpu", "progress": False}
    options |= {"loggers": [], "report": False}
    name = "torchvision:faster_rcnn(backbone='timm:mobilenetv3_small_050', fpn_channels=16, head_channels=16)"
    teacher = limbeck.train(model=name, epochs=1, out=str(tmp_path / "teacher"), **options)
    assert warned(teacher) == []
    run = limbeck.distill(
        teacher=str(teacher.path),
        student=name,
        method="pkd(weight=1000)+roi_kd",
        balance="pkd=0.4,roi_kd=0.2",
        epochs=2,
        trust_teacher=True,
        out=str(tmp_path / "student"),
        **options,
    )
    assert warned(run) == [("teacher_implausible", "")], "it has seen eight pictures once"
    rows = read_records(run.metrics_file)
    first = next(row for row in rows if row["kind"] == "gradients")
    assert first["pkd"] / first["task"] == pytest.approx(0.4 / 0.4, rel=1e-3)
    assert first["roi_kd"] / first["task"] == pytest.approx(0.2 / 0.4, rel=1e-3)
    watched = [row for row in rows if row["kind"] == "watch"]
    assert [set(row) for row in watched] == [{"kind", "epoch", "step", "parameters"}] * 2
