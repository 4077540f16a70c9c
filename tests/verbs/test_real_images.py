"""The main job on real image sets beside the checkout; skipped where they are absent."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import limbeck
from limbeck.data.door import open_data

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the image sets beside the checkout are absent")


@needs_data
def test_mnist_end_to_end(tmp_path: Path, tiny: dict[str, Any]) -> None:
    options = {**tiny, "data": str(SHARED / "mnist.npz"), "lr": 1e-2, "crop": "none"}
    common = {"max_train_images": 2000, "epochs": 1, "report": False, **options}
    teacher = limbeck.train(model="limbeck:resnet14", input_size=16, out=str(tmp_path / "t"), **common)
    student = limbeck.distill(
        teacher=str(teacher.path),
        student="limbeck:resnet8",
        student_size=16,
        method="kd+reviewkd",
        out=str(tmp_path / "s"),
        **common,
    )
    assert len(np.load(student.path / "predictions.npz")["labels"]) == 10_000
    assert teacher.accuracy > 0.6
    assert student.accuracy > 0.3
    assert student.recipe["flip"] == 0.0, "a mirrored digit is none"
    file = limbeck.export(str(student.path), max_images=500)
    assert json.loads(Path(f"{file}.json").read_text())["passed"]


@needs_data
def test_cifar100_is_read_as_it_was_unpacked(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SHARED / "unpack.py", "cifar100", tmp_path], check=True, capture_output=True)
    data = open_data(str(tmp_path / "cifar100.npz"))
    assert (len(data.train), len(data.val or []), len(data.class_names or ())) == (50_000, 10_000, 100)
    assert data.native_size == (32, 32)
    assert data.train.labels is not None
    assert np.bincount(data.train.labels).tolist() == [500] * 100
    some = np.stack([np.asarray(data.train.read(i)) for i in range(0, 50_000, 25)]) / 255
    np.testing.assert_allclose(some.mean((0, 1, 2)), [0.5071, 0.4865, 0.4409], atol=0.01)
