"""One file, for any batch, with the normalisation inside; or an explanation and no file."""

import copy
import json
import logging
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from tiny_network import SIDE, TinyNetwork, tiny_network
from torch import Tensor, nn

import limbeck
from limbeck.errors import UserError
from limbeck.exporting.onnx import export_onnx, inference_copy
from limbeck.outputs import Outputs, Request


def run(path: Path, images: Tensor) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    return logits


def images(batch: int, side: int = SIDE) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(batch))


class ChannelMeans(TinyNetwork):
    """Logits are the means of the normalised channels."""

    def __init__(self) -> None:
        super().__init__(num_classes=3)

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        return Outputs(inputs.mean((2, 3)))


class Centred(TinyNetwork):
    """What an image gets depends on its company."""

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        return super().read(inputs - inputs.mean(0, keepdim=True), request)


class Branching(TinyNetwork):
    """A Python branch on a tensor's value."""

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        return super().read(inputs * 2 if inputs.sum() > 0 else inputs, request)


class FixedBatch(TinyNetwork):
    """A shape written down for the batch it was seen with."""

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        return super().read(inputs.reshape(2, 3, SIDE, SIDE), request)


class Unsupported(TinyNetwork):
    """An operator that ONNX has no words for."""

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        return Outputs(super().read(inputs, request).logits + torch.linalg.eigvals(inputs[:, 0]).real.sum())


class Caching(TinyNetwork):
    """Keeps in evaluation mode what it computed from its weights, as several transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.ones(10))
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> "Caching":
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        if "offset" not in self.cache:
            self.cache["offset"] = self.offset * 2
        return Outputs(super().read(inputs, request).logits + self.cache["offset"])


@pytest.mark.parametrize("batch", [1, 2, 5, 7])
def test_the_normalisation_is_in_the_graph(batch: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "means.onnx"
    if not path.exists():
        export_onnx(ChannelMeans().eval(), path)
    shown = images(batch)
    expected = (shown.double().mean((2, 3)) - torch.tensor([0.3, 0.4, 0.5])) / torch.tensor([0.2, 0.25, 0.5])
    np.testing.assert_allclose(run(path, shown), expected.numpy(), atol=1e-5)


def test_the_graph_has_one_input_one_output_and_a_dynamic_batch(reader_file: Path) -> None:
    session = onnxruntime.InferenceSession(str(reader_file), providers=["CPUExecutionProvider"])
    (entry,), (result,) = session.get_inputs(), session.get_outputs()
    assert (entry.name, entry.type, entry.shape) == ("images", "tensor(float)", ["batch", 3, SIDE, SIDE])
    assert (result.name, result.type, result.shape) == ("logits", "tensor(float)", ["batch", 10])
    assert not {node.op_type for node in onnx.load(reader_file).graph.node} & {"Resize", "Upsample", "Dropout"}


def test_one_file_holds_everything(reader_file: Path) -> None:
    assert [file.name for file in reader_file.parent.iterdir()] == ["reader.onnx"]
    assert not any(onnx.external_data_helper.uses_external_data(t) for t in onnx.load(reader_file).graph.initializer)


def test_the_metadata_say_how_to_use_it_and_nothing_of_the_machine(tmp_path: Path) -> None:
    names = ["zéro", "一", *(f"class {number}" for number in range(2, 10))]
    path = export_onnx(tiny_network(), tmp_path / "new folder" / "tiny.onnx", class_names=names)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == names
    assert json.loads(metadata["mean"]) == [0.3, 0.4, 0.5]
    assert json.loads(metadata["std"]) == [0.2, 0.25, 0.5]
    assert json.loads(metadata["input_size"]) == [SIDE, SIDE]
    assert "bilinear" in metadata["resize"]
    assert metadata["licence"] == "CC0-1.0"
    assert metadata["limbeck_version"] == limbeck.__version__
    content = path.read_bytes()
    for trace in (Path(__file__).name, "site-packages", str(Path.home()), os.getcwd()):
        assert trace.encode() not in content, trace


def test_mode_precision_and_gradients_change_neither_the_model_nor_the_file(tmp_path: Path) -> None:
    model = tiny_network()
    path = export_onnx(model, tmp_path / "eval.onnx")
    other = copy.deepcopy(model).train()
    other.norm.eval()  # a frozen batch norm in a model that trains
    before = {name: value.clone() for name, value in other.state_dict().items()}
    again = export_onnx(other, tmp_path / "train.onnx")
    assert again.read_bytes() == path.read_bytes()
    assert [module.training for module in (other, other.convolution, other.norm, other.dropout)] == [
        True,
        True,
        False,
        True,
    ]
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert all(parameter.requires_grad for parameter in other.parameters())
    half = export_onnx(copy.deepcopy(model).half(), tmp_path / "half.onnx")
    np.testing.assert_allclose(run(half, images(2)), run(path, images(2)), atol=0.02)


def test_what_a_model_cached_is_computed_anew(tmp_path: Path) -> None:
    model = Caching().eval()
    model(images(2))  # fills the cache with a tensor that has a gradient, which cannot be copied
    with torch.no_grad():
        model.offset.fill_(5.0)
    path = export_onnx(model, tmp_path / "caching.onnx")
    with torch.no_grad():
        expected = TinyNetwork.read(model, model.prepare(images(2)), Request()).logits + 10.0
    np.testing.assert_allclose(run(path, images(2)), expected.numpy(), atol=1e-5)


def test_the_inference_copy_shares_no_memory_with_the_model() -> None:
    model = tiny_network().train()
    frozen = inference_copy(model)
    assert not frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    frozen.classifier.weight.zero_()
    assert model.classifier.weight.abs().sum() > 0


@pytest.mark.parametrize("opset", [18, 23])
def test_the_asked_opset_is_written(opset: int, tmp_path: Path) -> None:
    model = tiny_network()
    path = export_onnx(model, tmp_path / "tiny.onnx", opset=opset)
    assert {entry.domain: entry.version for entry in onnx.load(path).opset_import}[""] == opset
    with torch.no_grad():
        np.testing.assert_allclose(run(path, images(3)), model(images(3)).logits.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Centred, r"tiny was exported, but a batch of 2 gives other logits than the same images in a batch of 5"),
        (Branching, r"tiny cannot be exported to ONNX: .* Python branch"),
        (FixedBatch, r"tiny cannot be exported to ONNX: its code works for batches of 2 images only"),
        (Unsupported, r"tiny cannot be exported to ONNX: No ONNX function found for .*linalg_eig"),
    ],
)
def test_what_cannot_be_exported_is_explained_and_the_old_file_stays(
    network: type[TinyNetwork], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(b"the old file")
    with pytest.raises(UserError, match=message) as caught:
        export_onnx(network().eval(), path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 11}, "opset 11 was asked for; tiny can be exported with opset 18 to"),
        ({"class_names": ["a", "b"]}, "2 class names were given for tiny, which has 10 classes"),
    ],
)
def test_impossible_wishes_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        export_onnx(tiny_network(), tmp_path / "tiny.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder; name the file to write"):
        export_onnx(tiny_network(), tmp_path)


def test_more_than_one_file_can_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.exporting.onnx.MAX_FILE_BYTES", 1000)
    with pytest.raises(UserError, match="an ONNX file in one piece holds at most"):
        export_onnx(tiny_network(), tmp_path / "tiny.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_file_and_the_need(tmp_path: Path) -> None:
    """A real limit on the size of files, below the 3 MB that the weights take."""
    path = tmp_path / "wide.onnx"
    path.write_bytes(b"the old file")
    model = tiny_network(num_classes=1000, width=48)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        with pytest.raises(UserError, match=r"No space to write .*wide\.onnx.* wide\.onnx needs 3\.1 MB"):
            export_onnx(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]


def test_exporting_is_quiet(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    level = logging.getLogger("onnxscript").level
    export_onnx(tiny_network(), tmp_path / "tiny.onnx")
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []
    assert list(recwarn) == []
    assert logging.getLogger("onnxscript").level == level
