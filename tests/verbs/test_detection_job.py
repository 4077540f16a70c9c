"""The main job for detectors: a teacher, a student, drawn scenes, honest numbers; and what a newcomer gets wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import limbeck
from limbeck.data.detection.door import open_scenes
from limbeck.data.detection.masks import encode_rle
from limbeck.errors import UserError
from limbeck.models.detection.door import save_detector
from limbeck.run import Run
from limbeck.training import checkpoints

DATA = "shapes(train=16, val=6, size=64)"
TINY: dict[str, Any] = {
    "task": "detection",
    "data": DATA,
    "batch_size": 4,
    "short_side": 64,
    "long_side": 64,
    "num_workers": 0,
    "accelerator": "cpu",
    "progress": False,
    "loggers": [],
    "report": False,
}
SIZES = "fpn_channels=16, head_channels=16"
MASKS = f"torchvision:mask_rcnn(backbone='timm:mobilenetv3_small_050', {SIZES}, mask_channels=8)"
BOXES = f"torchvision:faster_rcnn(backbone='timm:mobilenetv3_small_050', {SIZES})"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A Mask R-CNN that has seen the shapes for a moment: it finds little."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    return limbeck.train(model=MASKS, epochs=1, lr=1e-3, out=str(out), **TINY)


@pytest.fixture(scope="module")
def student(teacher: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "student"
    return distil(teacher, out, method="pkd+roi_kd", epochs=2, report=True)


def distil(teacher: Run, out: Path, **options: Any) -> Run:
    defaults: dict[str, Any] = {"student": MASKS, "method": "pkd", "epochs": 1, "trust_teacher": True, "lr": 1e-3}
    return limbeck.distill(teacher=str(teacher.path), out=str(out), **{**TINY, **defaults, **options})


def test_the_run_holds_everything(student: Run) -> None:
    assert {path.name for path in student.path.iterdir()} >= {
        "recipe.yaml", "provenance.yaml", "metrics.jsonl", "metrics.csv", "checkpoints", "student.safetensors", "model.json",
        "MODEL_CARD.md", "summary.json", "detections.npz", "detection_scores.json", "samples", "report.html",
    }  # fmt: skip
    summary = student.summary
    assert summary["task"] == "detection" and summary["verb"] == "distill"
    assert set(summary["scores"]["student"]) == set(summary["scores"]["teacher"]) == {"bbox", "segm"}
    assert summary["parameters"]["student"] == sum(
        p.numel() for p in limbeck.load_detector(str(student.path)).parameters()
    )
    rows = [json.loads(line) for line in student.metrics_file.read_text().splitlines()]
    trained = next(row for row in rows if row["kind"] == "train")
    parts = [value for name, value in trained.items() if name.startswith("loss/task/")]
    assert trained["loss/task"] == pytest.approx(sum(parts), rel=1e-5)
    total = trained["loss/task"] + sum(
        trained[f"weight/{name}"] * trained[f"loss/{name}"] for name in ("pkd", "roi_kd")
    )
    assert trained["loss/total"] == pytest.approx(total, rel=1e-5)


def test_the_recipe_is_resolved_and_holds_no_options_of_another_task(student: Run) -> None:
    recipe = yaml.safe_load((student.path / "recipe.yaml").read_text())
    assert "auto" not in recipe.values()
    assert not {"mixup", "view_size", "student_size", "drop_path"} & set(recipe)
    assert recipe["task"] == "detection" and recipe["short_side"] == 64


def test_evaluating_the_run_gives_its_own_numbers(student: Run) -> None:
    measured = limbeck.evaluate(str(student.path), accelerator="cpu", num_workers=0)
    for kind in ("bbox", "segm"):
        for name, value in student.summary["scores"]["student"][kind].items():
            assert measured[kind][name] == pytest.approx(value, abs=1e-6)
    assert set(measured["bbox"]["classes"]) == set(student.summary["class_names"])


def test_predictions_are_in_pixels_of_the_image_and_drawn(student: Run, tmp_path: Path) -> None:
    scenes = open_scenes(DATA)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(2):
        scenes.val.read(number).resize((200, 100)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no image")
    found = limbeck.predict(
        str(student.path), str(folder), min_score=0.0, out=str(tmp_path / "out"), bad_images="skip", accelerator="cpu"
    )
    assert len(found) == 2 and found[0]["size"] == [100, 200]
    boxes = np.array([entry["box"] for entry in found[0]["objects"]])
    assert boxes[:, 2].max() > 100, "boxes reach into the wide image's right half"
    assert boxes.min() >= 0 and (boxes[:, [0, 2]] <= 200).all() and (boxes[:, [1, 3]] <= 100).all()
    assert found[0]["objects"][0]["mask"]["size"] == [100, 200]
    lines = (tmp_path / "out" / "detections.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == found[0]
    assert len(list((tmp_path / "out" / "drawn").glob("*.png"))) == 2
    assert Image.open(tmp_path / "out" / "contact_sheet.png").width > 100
    strict = limbeck.predict(
        str(student.path), str(folder), min_score=1.0, out=str(tmp_path / "none"), bad_images="skip", accelerator="cpu"
    )
    assert all(not answer["objects"] for answer in strict)


def test_a_run_stopped_within_an_epoch_resumes_to_the_same_weights(
    teacher: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distil(teacher, tmp_path / "whole", epochs=2)
    steps = {"seen": 0}
    original = checkpoints.Checkpoints.on_train_batch_end

    def stop_in_the_second_epoch(self: Any, *args: Any) -> None:
        steps["seen"] += 1
        if steps["seen"] == 6:
            self.asked_to_stop = True
        original(self, *args)

    monkeypatch.setattr(checkpoints.Checkpoints, "on_train_batch_end", stop_in_the_second_epoch)
    with pytest.raises(UserError, match="Stopped on request"):
        distil(teacher, tmp_path / "stopped", epochs=2)
    monkeypatch.undo()
    # A run that an earlier version started lacks the options that came later; their defaults change nothing.
    recipe = yaml.safe_load((tmp_path / "stopped" / "recipe.yaml").read_text())
    del recipe["short_sides"], recipe["color_jitter"]
    (tmp_path / "stopped" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    resumed = distil(teacher, tmp_path / "stopped", epochs=2, resume=True)
    first, second = (load_file(run.path / "student.safetensors") for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole.summary["scores"]["student"] == resumed.summary["scores"]["student"]


def test_unlabelled_images_and_a_teacher_are_enough(
    teacher: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = open_scenes("shapes(train=8, val=1, size=64)")
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        scenes.train.read(number).save(folder / f"{number}.png")
    with pytest.raises(UserError, match="no option 'weigth'"):
        distil(teacher, tmp_path / "typo", data=str(folder), method="pkd(weigth=2)")
    assert not (tmp_path / "typo").exists(), "nothing was labelled for a run that cannot be made"
    with pytest.raises(UserError, match=r"finds nothing in 8 images.*Lower the threshold"):
        distil(teacher, tmp_path / "sure", data=str(folder), pseudo_score=0.999)
    run = distil(teacher, tmp_path / "run", data=str(folder), student=BOXES, pseudo_score=0.01, val_fraction=0.25)
    labels = json.loads((run.path / "pseudo_labels.json").read_text())
    assert all(annotation["score"] >= 0.01 for annotation in labels["annotations"])
    assert run.summary["pseudo_labelled"] and run.summary["class_names"] == teacher.summary["class_names"]
    assert "agrees with it" in " ".join(run.summary["notes"])
    assert "pseudo-labels" in (run.path / "MODEL_CARD.md").read_text()
    measured = limbeck.evaluate(str(run.path), accelerator="cpu", num_workers=0)
    assert measured["bbox"]["ap"] == pytest.approx(run.summary["scores"]["student"]["bbox"]["ap"], abs=1e-6)
    with pytest.raises(UserError, match="--teacher_accuracy needs annotations"):
        distil(teacher, tmp_path / "expected", data=str(folder), teacher_accuracy=0.5)
    with pytest.raises(UserError, match=r"without annotations.*Distil with a teacher"):
        limbeck.train(model=BOXES, epochs=1, out=str(tmp_path / "alone"), **{**TINY, "data": str(folder)})


def test_methods_on_the_last_map_of_plain_transformers(tmp_path: Path) -> None:
    name = (
        "hf:yolos(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=[64, 64], "
        "num_detection_tokens=5, use_mid_position_embeddings=False)"
    )
    teacher = limbeck.train(model=name, epochs=1, out=str(tmp_path / "teacher"), **TINY)
    run = distil(teacher, tmp_path / "student", student=name, method="vitkd+query_kd")
    assert {"final"} < {pair["student"] for pair in run.summary["pairs"]}
    assert distil(teacher, tmp_path / "auto", student=name, method="auto").recipe["method"] == "query_kd"


def test_a_teacher_of_other_classes_is_refused_or_named(teacher: Run, tmp_path: Path) -> None:
    write_coco(tmp_path, ("cat", "dog"))
    data = f"coco:{tmp_path / 'a.json'},{tmp_path}"
    with pytest.raises(UserError, match="no class has the same name"):
        distil(teacher, tmp_path / "other", data=data, val_fraction=0.5, batch_size=2)
    with pytest.raises(UserError, match="no class has the same name"):
        limbeck.evaluate(str(teacher.path), data=data, accelerator="cpu", num_workers=0)
    known = teacher.summary["class_names"][0]
    write_coco(tmp_path, ("cat", known.upper()))
    run = distil(teacher, tmp_path / "some", data=data, val_fraction=0.5, batch_size=2, student=BOXES)
    assert any("no class for cat" in note for note in run.summary["notes"])


def test_a_teacher_that_finds_nothing_stops_the_run(teacher: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    untrained = limbeck.load_detector(str(teacher.path), pretrained=False)
    save_detector(untrained, tmp_path / "untrained")
    with pytest.raises(UserError, match=r"finds next to nothing.*--trust_teacher"):
        distil(Run(tmp_path / "untrained"), tmp_path / "out", trust_teacher=False)
    with pytest.raises(UserError, match=r"instead of 90\.0 %"):
        distil(teacher, tmp_path / "out", trust_teacher=False, teacher_accuracy=0.9)
    assert not (tmp_path / "out" / "checkpoints").exists(), "it stopped before training"


def test_options_and_names_of_another_task_are_refused(teacher: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--mixup is for --task classification"):
        distil(teacher, tmp_path, mixup=0.8)
    with pytest.raises(UserError, match=r"--short_side is for --task detection"):
        limbeck.train(model="limbeck:resnet8", data="digits", short_side=64)
    with pytest.raises(UserError, match=r"method kd is not for --task detection.*pkd"):
        distil(teacher, tmp_path, method="kd")
    with pytest.raises(UserError, match=r"method fgd is not for --task classification"):
        limbeck.distill(teacher="limbeck:resnet14", student="limbeck:resnet8", data="digits", method="fgd")
    with pytest.raises(UserError, match=r"architecture without weights.*backbone_pretrained"):
        distil(teacher, tmp_path, student_pretrained=True)
    with pytest.raises(UserError, match=r"--pseudo_score is for unlabelled images"):
        distil(teacher, tmp_path, pseudo_score=0.7)
    with pytest.raises(UserError, match=r"--view_size and --eval_crop are for classifiers"):
        limbeck.evaluate(str(teacher.path), view_size=32)
    with pytest.raises(UserError, match="--top is for classifiers"):
        limbeck.predict(str(teacher.path), str(tmp_path), top=3)
    with pytest.raises(UserError, match="--min_score is for detectors"):
        limbeck.predict("limbeck:resnet8", str(tmp_path), min_score=0.5)
    with pytest.raises(UserError, match="not a detector's name"):
        distil(teacher, tmp_path, student="resnet18")
    with pytest.raises(UserError, match=r"image classifier|detector"):
        limbeck.evaluate(str(teacher.path), task="classification", data="digits")


def test_masks_cannot_be_learned_from_boxes(teacher: Run, tmp_path: Path) -> None:
    write_coco(tmp_path, tuple(teacher.summary["class_names"]), masks=False)
    with pytest.raises(UserError, match=r"learns masks, but .* has boxes only"):
        distil(teacher, tmp_path / "out", data=f"coco:{tmp_path / 'a.json'},{tmp_path}", val_fraction=0.5)


def write_coco(folder: Path, names: tuple[str, ...], *, masks: bool = True) -> None:
    """Four images with one object each."""
    images, annotations = [], []
    for number in range(4):
        pixels = np.full((64, 64, 3), 90, np.uint8)
        pixels[16:48, 8:40] = (200, 60, 10 * number)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number + 1, "file_name": f"{number}.png", "height": 64, "width": 64})
        mask = np.zeros((64, 64), bool)
        mask[16:48, 8:40] = True
        annotation = {"id": number + 1, "image_id": number + 1, "category_id": number % len(names) + 1, "iscrowd": 0}
        annotation |= {"bbox": [8, 16, 32, 32], "area": 1024}
        if masks:
            annotation["segmentation"] = encode_rle(mask)
        annotations.append(annotation)
    categories = [{"id": place, "name": name} for place, name in enumerate(names, start=1)]
    (folder / "a.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


SCENES = "scenes(iterations=4, low_iterations=4, low_side=32, adapt_every=2)"


def test_scenes_are_made_and_learned_from(teacher: Run, tmp_path: Path) -> None:
    made = limbeck.synthesize(
        teacher=str(teacher.path),
        task="detection",
        method=SCENES,
        count=4,
        batch_size=2,
        size=64,
        out=str(tmp_path / "made"),
    )
    scenes = open_scenes(str(made))
    assert len(scenes.train) == 4 and scenes.has_masks
    run = distil(teacher, tmp_path / "run", data=str(made), val_data=DATA)
    assert run.recipe["val_data"] == DATA
    evaluated = limbeck.evaluate(str(run.path), accelerator="cpu", num_workers=0)
    assert evaluated["bbox"]["ap"] == pytest.approx(run.summary["scores"]["student"]["bbox"]["ap"], nan_ok=True)


def test_without_data_the_scenes_are_made_in_the_run(teacher: Run, tmp_path: Path) -> None:
    run = distil(teacher, tmp_path / "run", data="none", synthesis=SCENES, synthetic_images=2, report=True)
    assert len(open_scenes(str(run.path / "synthetic")).train) == 2
    assert run.recipe["synthesis"] == SCENES
    assert "The images that were made" in run.report_file.read_text()
    with pytest.raises(UserError, match="distilled without data"):
        limbeck.evaluate(str(run.path), accelerator="cpu")


def test_classifiers_ways_make_no_scenes(teacher: Run, tmp_path: Path) -> None:
    for verb, options in ((limbeck.synthesize, {"method": "invert"}), (limbeck.distill, {"synthesis": "invert"})):
        values = {"teacher": str(teacher.path), "task": "detection", "out": str(tmp_path / "made")} | options
        if verb is limbeck.distill:
            values |= {"student": BOXES, "data": "none"}
        with pytest.raises(UserError, match="no images for --task detection"):
            verb(**values)
