"""A file passes exactly when it gives the model's answers, and the numbers are those anyone else would compute."""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from tiny_network import TinyNetwork, tiny_network
from torch import Tensor

from limbeck.errors import UserError
from limbeck.exporting.onnx import export_onnx
from limbeck.exporting.verify import ExportMismatchError, Verification, require, verify_onnx, write_verification

Digits = tuple[list[Tensor], list[Tensor]]
Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Tamper = Callable[[str, Change], Path]


@pytest.fixture
def tampered(reader_file: Path, tmp_path: Path) -> Tamper:
    """The exported reader with one of its weights, found by the end of its name, replaced."""

    def change(name: str, how: Change) -> Path:
        graph = onnx.load(reader_file)
        (weight,) = [entry for entry in graph.graph.initializer if entry.name.endswith(name)]
        values = how(onnx.numpy_helper.to_array(weight).copy())
        weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), weight.name))
        onnx.save(graph, tmp_path / "tampered.onnx")
        return tmp_path / "tampered.onnx"

    return change


@pytest.fixture(scope="module")
def genuine(reader: TinyNetwork, reader_file: Path, digits: Digits) -> Verification:
    return verify_onnx(reader_file, reader, *digits)


def outside_logits(file: Path, images: Tensor) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"images": image[None].numpy()})[0] for image in images])


def test_the_numbers_are_those_of_an_independent_computation(
    genuine: Verification, reader: TinyNetwork, reader_file: Path, digits: Digits
) -> None:
    images, labels = torch.cat(digits[0]), torch.cat(digits[1]).numpy()
    with torch.no_grad():
        ours = reader(images).logits.numpy()
    theirs = outside_logits(reader_file, images)
    assert genuine.passed
    assert genuine.images == len(labels) > 300
    assert genuine.accuracy_torch == pytest.approx((ours.argmax(1) == labels).mean(), abs=1e-9)
    assert genuine.accuracy_onnx == pytest.approx((theirs.argmax(1) == labels).mean(), abs=1e-9)
    assert genuine.accuracy_onnx > 0.9, "the reader cannot read, so agreement would mean little"
    assert genuine.top1_agreement == pytest.approx((ours.argmax(1) == theirs.argmax(1)).mean(), abs=1e-9)
    assert genuine.max_abs_difference == pytest.approx(np.abs(ours - theirs).max(), abs=2e-5)
    assert genuine.tolerance == pytest.approx(1e-3 * np.abs(ours).max(), rel=1e-4)
    assert (genuine.top1_flips, genuine.not_finite) == (0, 0)
    require(genuine)


def test_the_file_is_identified(genuine: Verification, reader_file: Path) -> None:
    content = reader_file.read_bytes()
    assert genuine.file == reader_file.name
    assert genuine.file_bytes == len(content)
    assert genuine.sha256 == hashlib.sha256(content).hexdigest()
    assert genuine.opset == onnx.load(reader_file).opset_import[0].version
    assert genuine.onnxruntime == onnxruntime.__version__


def test_single_images_small_and_partial_batches_are_all_run(genuine: Verification, digits: Digits) -> None:
    assert genuine.batch_sizes == tuple(sorted({1, 2, 5, *(len(batch) for batch in digits[0])}))


@pytest.mark.parametrize(("shift", "passes"), [(0.25, False), (0.002, True)])
def test_a_shifted_bias_is_measured_exactly(
    shift: float, passes: bool, tampered: Tamper, reader: TinyNetwork, digits: Digits
) -> None:
    def change(bias: NDArray[np.float32]) -> NDArray[np.float32]:
        bias[3] += shift
        return bias

    found = verify_onnx(tampered("classifier.bias", change), reader, *digits)
    assert found.max_abs_difference == pytest.approx(shift, abs=2e-5)
    assert found.mean_abs_difference == pytest.approx(shift / 10, abs=2e-5)
    assert found.passed is passes
    if not passes:
        with pytest.raises(
            ExportMismatchError, match=r"tampered\.onnx does not .* a logit differs by 0\.25, more than"
        ):
            require(found)
        assert (
            verify_onnx(tampered("classifier.bias", change), reader, *digits, tolerance=0.3).max_abs_difference <= 0.3
        )


def test_another_first_answer_is_a_flip_where_the_margin_exceeds_the_tolerance(
    tampered: Tamper, reader: TinyNetwork, digits: Digits, genuine: Verification
) -> None:
    """With another first answer counts as a flip only where the margin exceeds the tolerance."""
    favoured = tampered("classifier.bias", lambda bias: np.where(np.arange(10) == 8, bias + 2.0, bias))
    found = verify_onnx(favoured, reader, *digits, tolerance=2.5)
    images = torch.cat(digits[0])
    with torch.no_grad():
        ours = reader(images).logits
    theirs = torch.from_numpy(outside_logits(favoured, images))
    top = ours.topk(2).values
    flipped = (ours.argmax(1) != theirs.argmax(1)) & (top[:, 0] - top[:, 1] > 2.5)
    assert found.max_abs_difference == pytest.approx(2.0, abs=1e-4)
    assert found.top1_flips == int(flipped.sum()) == 0
    assert found.passed
    assert found.top1_agreement == pytest.approx(float((ours.argmax(1) == theirs.argmax(1)).float().mean()), abs=1e-6)
    strict = verify_onnx(favoured, reader, *digits, tolerance=0.1)
    assert strict.top1_flips == int(((ours.argmax(1) != theirs.argmax(1)) & (top[:, 0] - top[:, 1] > 0.1)).sum()) > 0
    assert not strict.passed


def test_one_perturbed_convolution_weight_fails(tampered: Tamper, reader: TinyNetwork, digits: Digits) -> None:
    graph = onnx.load(tampered("classifier.bias", lambda bias: bias))
    (name,) = [entry.name for entry in graph.graph.initializer if list(entry.dims) == [12, 3, 3, 3]]

    def change(weight: NDArray[np.float32]) -> NDArray[np.float32]:
        weight[0, 0, 1, 1] += 0.1
        return weight

    assert not verify_onnx(tampered(name, change), reader, *digits).passed


def test_a_nan_in_the_file_fails_and_is_written_as_valid_json(
    tampered: Tamper, reader: TinyNetwork, digits: Digits
) -> None:
    path = tampered("classifier.bias", lambda bias: np.where(np.arange(10) == 3, np.nan, bias))
    found = verify_onnx(path, reader, *digits, tolerance=1e9)
    assert not found.passed
    assert found.not_finite == found.images
    assert found.max_abs_difference == float("inf")
    assert (found.top1_agreement, found.accuracy_onnx) == (0.0, 0.0)
    written = json.loads(write_verification(found, path).read_text(), parse_constant=pytest.fail)
    assert written["max_abs_difference"] is None
    assert written["passed"] is False
    with pytest.raises(ExportMismatchError, match=rf"{found.images} of {found.images} images have logits that are not"):
        require(found)


def test_a_model_that_gives_nan_itself_has_no_verified_file(
    tampered: Tamper, reader: TinyNetwork, digits: Digits
) -> None:
    broken = copy.deepcopy(reader)
    with torch.no_grad():
        broken.classifier.bias[3] = float("nan")
    path = tampered("classifier.bias", lambda bias: np.where(np.arange(10) == 3, np.nan, bias))
    assert not verify_onnx(path, broken, *digits).passed


def test_a_tie_may_fall_either_way(tampered: Tamper, reader: TinyNetwork, digits: Digits) -> None:
    """Both classes 3 and 8 get the larger of their logits: a difference of 1e-5 decides between them."""
    tied = copy.deepcopy(reader)
    with torch.no_grad():
        tied.classifier.weight[8] = tied.classifier.weight[3]
        tied.classifier.bias[8] = tied.classifier.bias[3]
    file = tampered("classifier.bias", lambda bias: bias)
    export_onnx(tied, file)
    graph = onnx.load(file)
    (bias,) = [entry for entry in graph.graph.initializer if entry.name.endswith("classifier.bias")]
    values = onnx.numpy_helper.to_array(bias).copy()
    values[8] += 1e-4
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(graph, file)
    found = verify_onnx(file, tied, *digits)
    assert found.top1_agreement < 0.99
    assert found.top1_flips == 0
    assert found.passed


def test_the_loader_s_batches_and_plain_tensors_say_the_same(
    genuine: Verification, reader: TinyNetwork, reader_file: Path, digits: Digits
) -> None:
    loader = [{"image": images, "label": labels} for images, labels in zip(*digits, strict=True)]
    assert verify_onnx(reader_file, reader, loader) == genuine


def test_no_more_images_are_read_than_asked(reader: TinyNetwork, reader_file: Path, digits: Digits) -> None:
    read = []

    def loader() -> Iterator[Tensor]:
        for batch in digits[0]:
            read.append(len(batch))
            yield batch

    found = verify_onnx(reader_file, reader, loader(), digits[1], max_images=70)
    assert found.images == 70
    assert read == [64, 64]
    with torch.no_grad():
        right = reader(torch.cat(digits[0])[:70]).logits.argmax(1) == torch.cat(digits[1])[:70]
    assert found.accuracy_torch == pytest.approx(float(right.float().mean()), abs=1e-6)


def test_unlabelled_images_count_for_agreement_only(reader: TinyNetwork, reader_file: Path, digits: Digits) -> None:
    images, labels = digits[0][0], digits[1][0].clone()
    labels[10:] = -1
    found = verify_onnx(reader_file, reader, [images], [labels])
    with torch.no_grad():
        right = reader(images[:10]).logits.argmax(1) == labels[:10]
    assert found.images == 64
    assert found.accuracy_torch == found.accuracy_onnx == pytest.approx(float(right.float().mean()))
    without = verify_onnx(reader_file, reader, [images])
    assert (without.accuracy_torch, without.accuracy_onnx) == (None, None)


def test_other_sizes_are_resized_as_the_model_does(reader: TinyNetwork, reader_file: Path, digits: Digits) -> None:
    large = torch.nn.functional.interpolate(digits[0][0], (40, 28), mode="bilinear")
    found = verify_onnx(reader_file, reader, [large], [digits[1][0]])
    assert found.passed
    with torch.no_grad():
        right = reader(large).logits.argmax(1) == digits[1][0]
    assert found.accuracy_onnx == pytest.approx(float(right.float().mean()), abs=1e-6)


def test_the_model_keeps_its_mode(reader: TinyNetwork, reader_file: Path, digits: Digits) -> None:
    training = copy.deepcopy(reader).train()
    assert verify_onnx(reader_file, training, digits[0]).passed, "dropout was on"
    assert training.training
    assert training.norm.training


def test_the_tolerance_follows_the_largest_logit(digits: Digits, reader: TinyNetwork, tmp_path: Path) -> None:
    large, small = copy.deepcopy(reader), copy.deepcopy(reader)
    with torch.no_grad():
        for model, factor in ((large, 1e3), (small, 1e-4)):
            model.classifier.weight.mul_(factor)
            model.classifier.bias.mul_(factor)
        greatest = float(reader(torch.cat(digits[0])).logits.abs().max())
    for model, tolerance in ((large, greatest), (small, 1e-3)):
        found = verify_onnx(export_onnx(model, tmp_path / "scaled.onnx"), model, *digits)
        assert found.tolerance == pytest.approx(tolerance, rel=1e-4)
        assert found.passed


def test_the_json_holds_every_number(genuine: Verification, tmp_path: Path) -> None:
    beside = write_verification(genuine, tmp_path / "reader.onnx")
    assert beside == tmp_path / "reader.onnx.json"
    values = json.loads(beside.read_text())
    assert Verification(**{**values, "batch_sizes": tuple(values["batch_sizes"]), "other_sizes": ()}) == genuine
    assert set(values) == {field.name for field in dataclasses.fields(Verification)}


def test_what_is_no_file_of_this_model_is_refused(
    reader: TinyNetwork, reader_file: Path, digits: Digits, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.onnx"):
        verify_onnx(tmp_path / "absent.onnx", reader, *digits)
    (tmp_path / "truncated.onnx").write_bytes(reader_file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"truncated\.onnx is not an ONNX file that onnxruntime can run"):
        verify_onnx(tmp_path / "truncated.onnx", reader, *digits)
    with pytest.raises(UserError, match=r"exported from tiny takes 'images' of shape \(batch, 3, 20, 20\)"):
        verify_onnx(reader_file, tiny_network(side=20), *digits)
    with pytest.raises(ExportMismatchError, match=r"logits of shape \(64, 10\) where the model gives \(64, 7\)"):
        verify_onnx(reader_file, tiny_network(num_classes=7), *digits)
    with pytest.raises(UserError, match="no images to verify"):
        verify_onnx(reader_file, reader, [])
    with pytest.raises(UserError, match="64 images came with 3 labels"):
        verify_onnx(reader_file, reader, digits[0], [torch.zeros(3)])
    with pytest.raises(UserError, match=r"tolerance for verifying .* is nan"):
        verify_onnx(reader_file, reader, *digits, tolerance=float("nan"))
