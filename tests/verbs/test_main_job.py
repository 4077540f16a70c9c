"""The main job: a teacher, a student, real images, an honest report, a verified file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import limbeck
from limbeck.data.door import open_data
from limbeck.run import Run


def test_the_teacher_learned(teacher_run: Run) -> None:
    assert teacher_run.accuracy > 0.85
    assert teacher_run.summary["verb"] == "train"


def test_the_run_holds_everything(student_run: Run) -> None:
    names = {path.name for path in student_run.path.iterdir()}
    assert names >= {
        "recipe.yaml",
        "provenance.yaml",
        "metrics.jsonl",
        "metrics.csv",
        "checkpoints",
        "student.safetensors",
        "model.json",
        "MODEL_CARD.md",
        "summary.json",
        "predictions.npz",
        "cka.npz",
        "samples.npz",
        "report.html",
    }
    assert student_run.last_checkpoint.is_file()
    assert student_run.best_checkpoint.is_file()


def test_the_student_is_alone_and_rebuilds_to_the_same_answers(student_run: Run) -> None:
    weights = load_file(student_run.path / "student.safetensors")
    model = limbeck.load_model(str(student_run.path)).eval()
    assert set(weights) == set(model.state_dict())
    predictions = np.load(student_run.path / "predictions.npz")
    data = open_data("digits")
    images = torch.stack([torch.tensor(np.asarray(data.val.read(i))) for i in range(50)]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        logits = model(images).logits
    np.testing.assert_allclose(logits.numpy(), predictions["student_logits"][:50], atol=1e-4)


def test_the_numbers_agree_with_each_other(student_run: Run, teacher_run: Run) -> None:
    predictions = np.load(student_run.path / "predictions.npz")
    summary = student_run.summary
    student, teacher, labels = (predictions[name] for name in ("student_logits", "teacher_logits", "labels"))
    assert summary["accuracy"]["last"] == pytest.approx((student.argmax(1) == labels).mean())
    assert summary["teacher_accuracy"] == pytest.approx((teacher.argmax(1) == labels).mean())
    assert summary["teacher_accuracy"] == pytest.approx(teacher_run.accuracy)
    assert summary["agreement"] == pytest.approx((student.argmax(1) == teacher.argmax(1)).mean())
    rows = [json.loads(line) for line in student_run.metrics_file.read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "val"][-1]
    assert last["accuracy"] == pytest.approx(summary["accuracy"]["last"])
    assert last["agreement"] == pytest.approx(summary["agreement"])
    train = [row for row in rows if row["kind"] == "train"]
    for row in train:
        total = sum(row[f"weight/{name}"] * row[f"loss/{name}"] for name in ("task", "kd", "reviewkd"))
        assert row["loss/total"] == pytest.approx(total, rel=1e-3)
        assert row["time/data"] + row["time/teacher"] + row["time/student"] == pytest.approx(1.0)


def test_the_recipe_is_resolved_and_repeats_the_run(student_run: Run, tmp_path: Path) -> None:
    values = yaml.safe_load((student_run.path / "recipe.yaml").read_text())
    assert "auto" not in [value for name, value in values.items() if name != "out"]
    provenance = yaml.safe_load((student_run.path / "provenance.yaml").read_text())
    assert provenance["teacher"]["weights_sha256"]
    assert provenance["environment"]["torch"] == torch.__version__
    again = limbeck.distill(**{**values, "out": str(tmp_path / "again"), "report": False})
    ours, theirs = (load_file(run.path / "student.safetensors") for run in (student_run, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_model_card_names_teacher_and_licence(student_run: Run) -> None:
    card = (student_run.path / "MODEL_CARD.md").read_text()
    assert "distilled from" in card
    assert "Apache-2.0" in card
    assert "kd+reviewkd" in card


def test_evaluate_gives_the_runs_accuracy(student_run: Run) -> None:
    measured = limbeck.evaluate(str(student_run.path))
    assert measured["accuracy"] == pytest.approx(student_run.accuracy)
    assert measured["images"] == len(np.load(student_run.path / "predictions.npz")["labels"])


def test_export_is_verified_on_real_images(student_run: Run) -> None:
    file = limbeck.export(str(student_run.path), to="onnx")
    assert file.parent == student_run.path / "export"
    verification = json.loads(Path(f"{file}.json").read_text())
    assert verification["passed"]
    assert verification["top1_agreement"] == 1.0
    assert verification["accuracy_onnx"] == pytest.approx(student_run.accuracy, abs=0.003)


def test_predict_writes_answers_and_a_sheet(student_run: Run, photos: Path, tmp_path: Path) -> None:
    answers = limbeck.predict(str(student_run.path), str(photos), top=3, out=str(tmp_path))
    files = sorted(photos.rglob("*.png"))
    assert {answer["file"] for answer in answers} == {str(file) for file in files}
    for answer in answers[:5]:
        probabilities = [p for _, p in answer["answers"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) <= 1 + 1e-5
    right = np.mean([answer["answers"][0][0] == Path(answer["file"]).parent.name[-1] for answer in answers])
    assert right > 0.6, "the digits at twice their size are still digits"
    assert (tmp_path / "contact_sheet.png").stat().st_size > 1000


def test_a_run_teaches_the_next_and_controls_enter_the_report(
    tiny: dict[str, Any], student_run: Run, tmp_path: Path
) -> None:
    run = limbeck.distill(
        teacher=str(student_run.path),
        student="limbeck:resnet8",
        student_size=8,
        method="none",
        epochs=1,
        out=str(tmp_path / "next"),
        report=False,
        **tiny,
    )
    page = limbeck.report(str(student_run.path), control=[str(run.path)], out=str(tmp_path / "page.html"))
    assert f"{100 * run.accuracy:.2f}" in page.read_text()


def test_unlabelled_images_teach_through_label_free_losses(
    tiny: dict[str, Any], teacher_run: Run, tmp_path: Path
) -> None:
    import shutil

    data = open_data("digits")
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    for i in range(400):
        data.train.read(i).save(folder / f"{i}.png")
    options = {**tiny, "data": str(folder)}
    common = {"teacher": str(teacher_run.path), "student": "limbeck:resnet8", "student_size": 8, **options}
    common |= {"epochs": 10, "lr": 1e-2, "flip": 0.0}
    with pytest.raises(ValueError, match="nkd reads labels"):
        limbeck.distill(method="nkd", out=str(tmp_path / "refused"), **common)
    run = limbeck.distill(method="kd+manifold", out=str(tmp_path / "run"), **common)
    assert run.summary["accuracy"]["last"] is None
    assert limbeck.evaluate(str(run.path), data="digits")["accuracy"] > 0.5
    shutil.rmtree(folder)


def test_a_folder_of_class_folders_end_to_end(tiny: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    options = {**tiny, "data": str(photos)}
    teacher = limbeck.train(
        model="limbeck:resnet8", input_size=16, epochs=12, lr=1e-2, out=str(tmp_path / "t"), report=False, **options
    )
    assert teacher.summary["class_names"] == ["digit_0", "digit_1", "digit_2", "digit_3"]
    student = limbeck.distill(
        teacher=str(teacher.path),
        student="deit_tiny_patch16_224",
        student_size=32,
        method="manifold+kd",
        epochs=1,
        out=str(tmp_path / "s"),
        **options,
    )
    recipe = student.recipe
    assert recipe["view_size"] == 32 and recipe["teacher_size"] == 16, (
        "the two models see one picture at sizes of their own"
    )
    assert (tmp_path / "s" / "report.html").is_file()


def test_options_of_real_trainings_work_together(teacher_run: Run, tiny: dict[str, Any], tmp_path: Path) -> None:
    """Averaged weights, accumulation, clipping, mixing, LAMB, half precision and rare measurements in one run."""
    run = limbeck.distill(
        teacher=str(teacher_run.path),
        student="limbeck:mobilenetv2_half",
        student_size=16,
        method="kd+manifold",
        epochs=2,
        eval_every=5,
        optimizer="lamb",
        ema=0.9,
        accumulate=3,
        clip_grad=1.0,
        mixup=0.2,
        cutmix=0.5,
        label_smoothing=0.1,
        rand_augment="rand-m5-n1",
        random_erasing=0.2,
        color_jitter=0.2,
        drop_path=0.1,
        precision="bf16",
        out=str(tmp_path / "run"),
        report=False,
        **{**tiny, "loggers": ["tensorboard"]},
    )
    assert run.recipe["teacher_size"] == 8
    assert list((run.path / "tensorboard").glob("events*"))
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps[-1] == 2 * -(-(1438 // 64) // 3), "an update for every three batches, and one at the end of the epoch"
    assert 0 <= run.accuracy <= 1
