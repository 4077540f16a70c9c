"""A classifier that reads digits: random convolutions, and a linear readout in closed form."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.data.digits import open_digits
from limbeck.data.loader import make_val_loader
from limbeck.data.options import ViewOptions
from limbeck.exporting.onnx import export_onnx

# The tests are no packages, so what several of them share is found as a module beside them.
sys.path.insert(0, str(Path(__file__).parent))
from tiny_network import SIDE, TinyNetwork, tiny_network


@pytest.fixture(scope="session")
def digits() -> tuple[list[Tensor], list[Tensor]]:
    """Batches of the real validation images (b, 3, 16, 16) and their labels."""
    batches = list(make_val_loader(open_digits(), ViewOptions(), SIDE, batch_size=64))
    return [batch["image"] for batch in batches], [batch["label"] for batch in batches]


@pytest.fixture(scope="session")
def reader(digits: tuple[list[Tensor], list[Tensor]]) -> TinyNetwork:
    """A network whose readout was fitted to the first batches."""
    model = tiny_network()
    images, labels = torch.cat(digits[0]), torch.cat(digits[1])
    with torch.no_grad():
        vectors = F.pad(model.pooled(model.prepare(images)), (0, 1), value=1.0)
        target = F.one_hot(labels, 10).float() * 10
        ridge = vectors.T @ vectors + torch.eye(vectors.shape[1])
        solution = torch.linalg.solve(ridge, vectors.T @ target)
        model.classifier.weight.copy_(solution[:-1].T)
        model.classifier.bias.copy_(solution[-1])
    return model


@pytest.fixture(scope="session")
def reader_file(reader: TinyNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(reader, tmp_path_factory.mktemp("reader") / "reader.onnx")


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run that learned the digits at 8 pixels, for the verb."""
    import limbeck

    folder = tmp_path_factory.mktemp("runs") / "resnet8"
    limbeck.train(
        model="limbeck:resnet8",
        data="digits",
        input_size=8,
        epochs=4,
        lr=5e-3,
        batch_size=64,
        num_workers=0,
        accelerator="cpu",
        progress=False,
        loggers=[],
        report=False,
        out=str(folder),
    )
    return folder
