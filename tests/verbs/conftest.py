"""Small real runs that several tests look at; each is made once."""

from pathlib import Path
from typing import Any

import pytest

import limbeck
from limbeck.run import Run

TINY = {"data": "digits", "batch_size": 64, "num_workers": 0, "accelerator": "cpu", "progress": False, "loggers": []}


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Options of a run of seconds."""
    return dict(TINY)


@pytest.fixture(scope="session")
def teacher_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A teacher of the digits at 8 pixels; good, not perfect."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    return limbeck.train(model="limbeck:resnet14", input_size=8, epochs=8, lr=5e-3, out=str(out), report=False, **TINY)


@pytest.fixture(scope="session")
def student_run(teacher_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A student of it, with a report and everything else a run leaves."""
    out = tmp_path_factory.mktemp("runs") / "student"
    return limbeck.distill(
        teacher=str(teacher_run.path),
        student="limbeck:resnet8",
        student_size=8,
        method="kd+reviewkd",
        epochs=3,
        lr=5e-3,
        out=str(out),
        **TINY,
    )


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of class folders: digits 0 to 3 as PNG files."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("photos")
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if label < 4 and number < 600:
            place = folder / f"digit_{label}" / f"{number}.png"
            place.parent.mkdir(exist_ok=True)
            Image.fromarray((pixels * 15.9375).astype(np.uint8)).resize((16, 16)).save(place)
    return folder
