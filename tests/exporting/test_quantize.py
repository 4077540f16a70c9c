"""An int8 file has int8 weights, ranges found on the images it was given, and nearly the float file's answers."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tiny_network import SIDE, TinyNetwork
from torch import Tensor

from limbeck.data.digits import open_digits
from limbeck.errors import UserError
from limbeck.exporting.latency import onnx_latency
from limbeck.exporting.onnx import export_onnx
from limbeck.exporting.quantize import quantize_int8
from limbeck.models.door import load_model
from limbeck.outputs import Outputs, Request

Digits = tuple[list[Tensor], list[Tensor]]


def logits(path: Path, images: Tensor) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {"images": images.numpy()})[0]
    return found


def correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Over all logits, each class centred: a constant offset of a class is no answer."""
    centred = [values - values.mean(0) for values in (first, second)]
    return float(np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1])


@pytest.fixture(scope="module")
def training_images() -> Tensor:
    """96 training digits (96, 3, 16, 16), spread over the set."""
    source = open_digits().train
    pixels = [np.asarray(source.read(index)) for index in np.linspace(0, len(source) - 1, 96).astype(int)]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    return F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True).clamp(0, 1)


@pytest.fixture(scope="module")
def int8_file(reader_file: Path, training_images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_int8(
        reader_file, training_images.split(32), tmp_path_factory.mktemp("int8") / "reader.int8.onnx", max_images=96
    )


def weights_of(graph: onnx.ModelProto) -> dict[str, tuple[NDArray[np.int8], NDArray[np.float32], int]]:
    """For each layer its int8 weights, their scales and the axis of these."""
    values = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.graph.initializer}
    made_by = {output: node for node in graph.graph.node for output in node.output}
    found = {}
    for node in graph.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in made_by:
            source = made_by[node.input[1]]
            if source.op_type == "DequantizeLinear" and source.input[0] in values:
                axis = next((entry.i for entry in source.attribute if entry.name == "axis"), 1)
                found[node.op_type] = (values[source.input[0]], values[source.input[1]], axis)
    return found


def test_weights_are_int8_with_a_scale_per_output_channel(int8_file: Path, reader: TinyNetwork) -> None:
    graph = onnx.load(int8_file)
    layers = weights_of(graph)
    expected = {"Conv": reader.convolution.weight, "Gemm": reader.classifier.weight}
    assert set(layers) == set(expected)
    for kind, (stored, scales, axis) in layers.items():
        assert stored.dtype == np.int8
        assert scales.shape == (stored.shape[axis],) == (12 if kind == "Conv" else 10,)
        scale = scales.reshape([-1 if place == axis else 1 for place in range(stored.ndim)])
        if kind == "Gemm":
            difference = np.abs(stored * scale - expected[kind].detach().numpy())
            assert (difference <= 0.5001 * scale).all()
        assert np.abs(stored).max() == 127, "the range of no channel is used up"
    floats = [entry for entry in graph.graph.initializer if entry.data_type == onnx.TensorProto.FLOAT]
    assert sum(int(np.prod(entry.dims)) for entry in floats) < 100, "weights in float are left in the file"


def test_its_logits_are_nearly_the_float_file_s(int8_file: Path, reader_file: Path, digits: Digits) -> None:
    images, labels = torch.cat(digits[0]), torch.cat(digits[1]).numpy()
    before, after = logits(reader_file, images), logits(int8_file, images)
    assert correlation(before, after) > 0.999
    assert (before != after).any(), "nothing was quantised"
    assert (after.argmax(1) == labels).mean() > 0.95
    assert (after.argmax(1) == before.argmax(1)).mean() > 0.97


def test_the_range_of_the_input_is_the_mean_of_the_batches_extremes(int8_file: Path, training_images: Tensor) -> None:
    """96 images are 6 batches of 16, each with every sixth image; what enters the convolution is normalised."""
    normalised = (training_images - torch.tensor([0.3, 0.4, 0.5]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.5]).view(
        3, 1, 1
    )
    batches = [normalised[start::6] for start in range(6)]
    low, high = (float(np.mean([float(extreme(batch)) for batch in batches])) for extreme in (torch.min, torch.max))
    graph = onnx.load(int8_file)
    values = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.graph.initializer}
    divided = next(node.output[0] for node in graph.graph.node if node.op_type == "Div")
    (rounding,) = [node for node in graph.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == divided]
    scale, zero = values[rounding.input[1]], values[rounding.input[2]]
    assert zero.dtype == np.uint8
    assert float(scale) == pytest.approx((high - low) / 255, rel=1e-5)
    assert int(zero) == round(-low / float(scale))


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_any_batch_gives_the_same_logits(batch: int, int8_file: Path, digits: Digits) -> None:
    together = logits(int8_file, digits[0][0])
    found = logits(int8_file, digits[0][0][:batch])
    assert found.shape == (batch, 10)
    # A number on the edge between two steps may fall to either side.
    assert np.abs(found - together[:batch]).max() < 0.02 * np.abs(together).max()


def test_the_metadata_are_the_float_file_s_and_say_how_it_was_quantised(int8_file: Path, reader_file: Path) -> None:
    before, after = (
        onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map for path in (reader_file, int8_file)
    )
    assert {name: after[name] for name in before} == before
    assert "int8 weights per channel" in after["quantisation"]
    assert json.loads(after["calibration_images"]) == 96
    assert {entry.domain for entry in onnx.load(int8_file).opset_import} <= {"", "ai.onnx", "com.microsoft"}
    assert [file.name for file in int8_file.parent.iterdir()] == ["reader.int8.onnx"]


def test_how_the_images_come_makes_no_difference(
    int8_file: Path, reader_file: Path, training_images: Tensor, tmp_path: Path
) -> None:
    batches = ({"image": images} for images in training_images.split(7))
    again = quantize_int8(reader_file, batches, tmp_path / "again.onnx", max_images=96)
    assert again.read_bytes() == int8_file.read_bytes()


def test_no_more_images_are_read_than_asked(reader_file: Path, training_images: Tensor, tmp_path: Path) -> None:
    read = []

    def loader() -> Iterator[Tensor]:
        for images in training_images.split(16):
            read.append(len(images))
            yield images

    path = quantize_int8(reader_file, loader(), tmp_path / "few.onnx", max_images=20)
    assert read == [16, 16]
    metadata = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    assert metadata["calibration_images"] == "20"


def test_seven_bits_where_asked(reader_file: Path, training_images: Tensor, tmp_path: Path) -> None:
    path = quantize_int8(reader_file, [training_images], tmp_path / "seven.onnx", reduce_range=True)
    for stored, _, _ in weights_of(onnx.load(path)).values():
        assert np.abs(stored.astype(int)).max() == 64


class Pooling(TinyNetwork):
    """Takes any size, and has few layers."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = torch.nn.Linear(12, 10)

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        return Outputs(self.classifier(F.relu(self.norm(self.convolution(inputs))).mean((2, 3))))


class NoLayers(TinyNetwork):
    """Nothing with weights."""

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        return Outputs(inputs.mean((2, 3)).repeat(1, 4)[:, :10])


def test_a_dynamic_size_stays_dynamic(training_images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = export_onnx(Pooling().eval(), tmp_path / "any.onnx", dynamic_size=True)
    int8 = quantize_int8(path, [training_images])
    assert int8 == tmp_path / "any.int8.onnx"
    for height, width in ((SIDE, SIDE), (8, 24), (31, 17)):
        shown = F.interpolate(training_images[:40], (height, width), mode="bilinear")
        assert correlation(logits(path, shown), logits(int8, shown)) > 0.99
    assert onnx_latency(int8, runs=1).size == (SIDE, SIDE)


@pytest.mark.parametrize("name", ["limbeck:resnet8", "mobilenetv3_small_050", "test_vit"])
def test_families_are_quantised(name: str, training_images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    side = 32 if name.startswith("limbeck") else 64
    model = load_model(name, num_classes=10, pretrained=False, input_size=(side, side)).train()
    shown = F.interpolate(training_images, (side, side), mode="bilinear")
    with torch.no_grad():
        for _ in range(20):  # statistics of batch norms, without which random weights give next to nothing
            model(shown)
    path = export_onnx(model, tmp_path / "model.onnx")
    int8 = quantize_int8(path, [shown[::2]])
    before, after = logits(path, shown[1::2]), logits(int8, shown[1::2])
    assert correlation(before, after) > 0.97
    assert int8.stat().st_size < 0.45 * path.stat().st_size
    graph = onnx.load(int8)
    assert {entry.domain for entry in graph.opset_import} <= {"", "ai.onnx", "com.microsoft"}
    rounded = {output for node in graph.graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    for node in graph.graph.node:
        if node.op_type in ("Softmax", "LayerNormalization", "Gelu"):
            assert not rounded & set(node.input), node.op_type
    if name == "test_vit":
        products = [node for node in graph.graph.node if node.op_type == "MatMul"]
        in_float = [node for node in products if not rounded & set(node.input)]
        assert (len(products), len(in_float)) == (36, 12), "two products of activations in each of six blocks"


def test_what_cannot_be_calibrated_is_refused(reader_file: Path, training_images: Tensor, tmp_path: Path) -> None:
    out = tmp_path / "refused.onnx"
    with pytest.raises(UserError, match=r"no images to calibrate reader\.onnx with; give at least one training image"):
        quantize_int8(reader_file, [], out)
    with pytest.raises(UserError, match=r"0 images were asked for to calibrate reader\.onnx"):
        quantize_int8(reader_file, [training_images], out, max_images=0)
    with pytest.raises(UserError, match=r"calibrate reader\.onnx with are 3x8x8; they must all be 3x16x16"):
        quantize_int8(reader_file, [training_images[:, :, :8, :8]], out)
    with pytest.raises(FileNotFoundError, match=r"absent\.onnx"):
        quantize_int8(tmp_path / "absent.onnx", [training_images], out)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_quantised_is_refused(int8_file: Path, training_images: Tensor, tmp_path: Path) -> None:
    out = tmp_path / "refused.onnx"
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(UserError, match=r"broken\.onnx is not an ONNX file that onnxruntime can run"):
        quantize_int8(tmp_path / "broken.onnx", [training_images], out)
    with pytest.raises(UserError, match=r"reader\.int8\.onnx is quantised already; give the float file"):
        quantize_int8(int8_file, [training_images], out)
    empty = export_onnx(NoLayers().eval(), tmp_path / "empty.onnx")
    with pytest.raises(UserError, match=r"empty\.onnx has no convolution and no linear layer with weights"):
        quantize_int8(empty, [training_images], out)
    assert not out.exists()


def test_a_failure_of_the_quantiser_is_explained_and_the_old_file_stays(
    reader_file: Path, training_images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("Unable to guess a type\nand much more")

    monkeypatch.setattr("limbeck.exporting.quantize.quantize_static", broken)
    (tmp_path / "old.onnx").write_bytes(b"the old file")
    with pytest.raises(UserError, match=r"reader\.onnx could not be quantised to int8: Unable to guess a type\. "):
        quantize_int8(reader_file, [training_images], tmp_path / "old.onnx")
    assert (tmp_path / "old.onnx").read_bytes() == b"the old file"


def test_quantising_is_quiet(
    reader_file: Path,
    training_images: Tensor,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    handlers = list(logging.getLogger().handlers)
    quantize_int8(reader_file, [training_images], tmp_path / "quiet.onnx")
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []
    assert list(recwarn) == []
    assert logging.getLogger().handlers == handlers
