import json

import numpy as np
import pytest
import yaml


@pytest.fixture
def make_run(tmp_path):
    """Write a run's folder whose student is right on `right` of 100 images of four classes, its teacher on 90."""

    def make(
        name, right=80, *, verb="distill", method="reviewkd+kd", shift=0, class_names=("cat", "dog", "cow", "hen")
    ):
        folder = tmp_path / name
        folder.mkdir()
        labels = np.arange(100) % 4
        recipe = {"data": "digits", "epochs": 3, "nested": {"inner": {"depth": 12}}, "crop_scale": [0.08, 1.0]}
        own = {"model": "student_net"} if verb == "train" else {"student": "student_net", "teacher": "teacher_net"}
        if verb == "distill":
            own["method"] = method
        (folder / "recipe.yaml").write_text(yaml.safe_dump(own | recipe))
        has_teacher = verb == "distill"
        rows = []
        for epoch in range(3):
            step = 10 * (epoch + 1)
            train = {"loss/total": 2.0 - 0.5 * epoch, "loss/task": 1.0, "lr": 0.1, "images_per_second": 50.0}
            train |= {"time/data": 0.5, "time/teacher": 0.2, "time/student": 0.3}
            if has_teacher and method != "none":
                train |= {"loss/kd": 3.0, "weight/kd": 0.5, "loss/reviewkd": 1.5, "weight/reviewkd": 1.0}
            rows.append({"kind": "train", "epoch": epoch, "step": step, **train})
            measured = {"accuracy": 0.1 * epoch, "loss": 1.0} | ({"agreement": 0.7} if has_teacher else {})
            rows.append({"kind": "val", "epoch": epoch, "step": step, **measured})
            rows.append({"kind": "gradients", "epoch": epoch, "step": step, "task": 1.0, "kd": 0.1})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        summary = {
            "verb": verb,
            "name": name,
            "accuracy": {"last": right / 100, "best": 0.85, "best_epoch": 1},
            "teacher_accuracy": 0.9 if has_teacher else None,
            "agreement": 0.77 if has_teacher else None,
            "class_names": list(class_names),
            "parameters": {"student": 5_000_000, "teacher": 20_000_000 if has_teacher else None},
            "macs": {"student": 1_000_000_000, "teacher": 4_500_000_000 if has_teacher else None},
            "seconds": 3725.0,
            "images_per_second": 50.0,
            "pairs": [{"loss": "reviewkd", "student": "stages.0", "teacher": "layer1"}] if has_teacher else [],
            "notes": ["two images were skipped"],
        }
        (folder / "summary.json").write_text(json.dumps(summary))
        arrays = {"labels": labels, "student_logits": logits(labels, right, shift)}
        if has_teacher:
            arrays["teacher_logits"] = logits(labels, 90, 0)
            np.savez(
                folder / "cka.npz",
                cka=np.array([[0.25, 0.75]], np.float32),
                student_levels=np.array(["stages.0"]),
                teacher_levels=np.array(["layer1", "layer2"]),
            )
        np.savez(folder / "predictions.npz", **arrays)
        images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / "samples.npz", images=images, index=np.arange(30) * 3)
        return folder

    return make


def logits(labels, right, shift):
    """Logits that are right on all but `100 - right` images, the wrong ones starting at `shift`."""
    guesses = labels.copy()
    wrong = (np.arange(100 - right) + shift) % 100
    guesses[wrong] = (labels[wrong] + 1) % 4
    values = np.zeros((len(labels), 4), np.float32)
    values[np.arange(len(labels)), guesses] = 2.0
    return values
