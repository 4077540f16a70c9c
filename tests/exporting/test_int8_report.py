"""The drop, the agreement and the ratios are those anyone else would compute, and a limit on the drop is kept."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

import limbeck
from limbeck.errors import UserError
from limbeck.exporting.int8_report import (
    AccuracyDropError,
    Quantization,
    measure_quantization,
    require_drop,
    write_quantization,
)

Digits = tuple[list[Tensor], list[Tensor]]


def favouring(path: Path, out: Path, label: int) -> Path:
    """The same file, but nearly sure of one class."""
    graph = onnx.load(path)
    (bias,) = [entry for entry in graph.graph.initializer if entry.name.endswith("classifier.bias")]
    values = onnx.numpy_helper.to_array(bias).copy()
    values[label] += 1e4
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(graph, out)
    return out


@pytest.fixture(scope="module")
def stubborn(reader_file: Path, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Quantization:
    """As if the int8 file answered 3 to everything."""
    path = favouring(reader_file, tmp_path_factory.mktemp("stubborn") / "reader.int8.onnx", 3)
    return measure_quantization(reader_file, path, *digits, latency_runs=3)


def test_a_file_compared_with_itself_loses_nothing(reader_file: Path, digits: Digits) -> None:
    found = measure_quantization(reader_file, reader_file, *digits, latency_runs=30)
    assert (found.drop, found.agreement) == (0.0, 1.0)
    assert found.accuracy_float == found.accuracy_int8
    assert found.float_bytes == found.int8_bytes == reader_file.stat().st_size
    assert 1 / 3 < found.latency_ratio < 3
    assert found.calibration_images is None
    require_drop(found, 0.0)


def test_the_drop_is_the_share_of_images_lost(stubborn: Quantization, reader_file: Path, digits: Digits) -> None:
    images, labels = torch.cat(digits[0]).numpy(), torch.cat(digits[1]).numpy()
    answers = onnxruntime.InferenceSession(str(reader_file)).run(None, {"images": images})[0].argmax(1)
    assert stubborn.images == len(labels)
    assert stubborn.accuracy_float == pytest.approx((answers == labels).mean())
    assert stubborn.accuracy_int8 == pytest.approx((labels == 3).mean())
    assert stubborn.drop == pytest.approx(100 * ((answers == labels).mean() - (labels == 3).mean()))
    assert stubborn.agreement == pytest.approx((answers == 3).mean())
    assert stubborn.latency_ratio == pytest.approx(stubborn.int8_ms / stubborn.float_ms)


def test_a_limit_on_the_drop_is_kept(stubborn: Quantization) -> None:
    drop = stubborn.drop
    assert drop is not None and 80 < drop < 95
    require_drop(stubborn, drop)
    with pytest.raises(AccuracyDropError, match=rf"a drop of {drop:.2f} points, more than max_drop = 2\. Do not ship"):
        require_drop(stubborn, 2.0)
    better = dataclasses.replace(stubborn, drop=-0.5)
    require_drop(better, 0.0)


def test_without_labels_there_is_no_drop_to_limit(stubborn: Quantization, reader_file: Path, digits: Digits) -> None:
    found = measure_quantization(reader_file, reader_file, digits[0][:1], latency_runs=1)
    assert (found.accuracy_float, found.accuracy_int8, found.drop) == (None, None, None)
    assert found.agreement == 1.0
    with pytest.raises(UserError, match="the images have no labels"):
        require_drop(found, 1.0)


def test_the_json_holds_every_number(stubborn: Quantization, tmp_path: Path) -> None:
    beside = write_quantization(stubborn, tmp_path / "reader.int8.onnx")
    assert beside == tmp_path / "reader.int8.onnx.json"
    assert Quantization(**json.loads(beside.read_text())) == stubborn


def test_what_cannot_be_compared_is_explained(reader_file: Path, digits: Digits, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.onnx"):
        measure_quantization(reader_file, tmp_path / "absent.onnx", *digits)
    with pytest.raises(UserError, match="no images to measure"):
        measure_quantization(reader_file, reader_file, [])
    with pytest.raises(UserError, match=r"reader\.onnx and reader\.onnx cannot be compared: .*invalid dimensions"):
        measure_quantization(reader_file, reader_file, [torch.rand(1, 3, 20, 20)])


def test_the_verb_writes_and_measures_both_files(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real run: its validation images, its training images, one command."""
    path = limbeck.export(
        str(trained_run), dynamic_size=True, quantize="int8", calibration_images=64, max_drop=5.0, batch_size=50
    )
    folder = trained_run / "export"
    assert path == folder / "resnet8.int8.onnx"
    assert sorted(file.name for file in folder.iterdir()) == [
        "resnet8.int8.onnx",
        "resnet8.int8.onnx.json",
        "resnet8.onnx",
        "resnet8.onnx.json",
    ]
    verified = json.loads((folder / "resnet8.onnx.json").read_text())
    assert verified["passed"]
    assert [(size["height"], size["width"]) for size in verified["other_sizes"]] == [(4, 4), (12, 12), (4, 12)]
    measured = Quantization(**json.loads((folder / "resnet8.int8.onnx.json").read_text()))
    assert measured.calibration_images == 64
    assert measured.accuracy_float == verified["accuracy_onnx"]
    assert measured.accuracy_float is not None and measured.accuracy_float > 0.8, "the run learned nothing to lose"
    assert measured.drop is not None and abs(measured.drop) <= 5
    assert measured.agreement > 0.95
    assert measured.int8_bytes == path.stat().st_size < 0.5 * measured.float_bytes
    for side in (8, 12):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert session.run(None, {"images": np.zeros((3, 3, side, side), np.float32)})[0].shape == (3, 10)
    shown = capsys.readouterr().out
    assert f"Accuracy lost: {measured.drop:+.2f} points" in shown
    assert "At other sizes than 8x8" in shown


def test_the_verb_refuses_a_larger_drop_and_keeps_the_files(trained_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    with pytest.raises(AccuracyDropError, match=r"small\.int8\.onnx answers .* more than max_drop = -50"):
        limbeck.export(str(trained_run), out=str(out), quantize="int8", calibration_images=16, max_drop=-50.0)
    assert out.is_file()
    assert (tmp_path / "small.int8.onnx.json").is_file()


def test_options_that_would_do_nothing_are_refused(trained_run: Path) -> None:
    with pytest.raises(UserError, match=r"max_drop is 1\.0, but nothing is quantised"):
        limbeck.export(str(trained_run), max_drop=1.0)
    with pytest.raises(UserError, match="calibration_images is 0; at least 1"):
        limbeck.export(str(trained_run), quantize="int8", calibration_images=0)
