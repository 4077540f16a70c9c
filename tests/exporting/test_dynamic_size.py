"""A file with a dynamic size gives the network's logits at every size; a network made for one size is refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from tiny_network import SIDE, TinyNetwork
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.exporting.latency import onnx_latency
from limbeck.exporting.onnx import export_onnx
from limbeck.exporting.sizes import logits_as_given, other_sizes, traced_size
from limbeck.exporting.verify import ExportMismatchError, SizeVerification, require, verify_onnx, write_verification
from limbeck.models.door import load_model
from limbeck.outputs import Outputs, Request

Digits = tuple[list[Tensor], list[Tensor]]


class Averaging(TinyNetwork):
    """Convolutional, and pooled over whatever map there is."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(12, 10)

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        return Outputs(self.classifier(F.relu(self.norm(self.convolution(inputs))).mean((2, 3))))


class ChannelMeans(TinyNetwork):
    """Logits are the means of the normalised channels."""

    def __init__(self) -> None:
        super().__init__(num_classes=3)

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        return Outputs(inputs.mean((2, 3)))


class Positioned(Averaging):
    """Adds a table of positions, resized to the map where the switch says so."""

    def __init__(self) -> None:
        super().__init__()
        self.dynamic_size = False
        self.positions = nn.Parameter(torch.randn(1, 3, SIDE, SIDE))

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        positions = self.positions
        if self.dynamic_size:
            positions = F.interpolate(positions, inputs.shape[-2:], mode="bilinear")
        return super().read(inputs + positions, request)


class Fixed(Averaging):
    """Adds a table of positions that fits its own size only."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 3, SIDE, SIDE))

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        return super().read(inputs + self.positions, request)


class Growing(Averaging):
    """As `Averaging` at the own size, and more and more another network away from it."""

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        return Outputs(super().read(inputs, request).logits + 0.01 * (inputs.shape[-2] - SIDE))


class Branching(Averaging):
    """Small images are treated otherwise."""

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        return super().read(inputs * 2 if inputs.shape[-1] < SIDE else inputs, request)


def made(network: type[TinyNetwork]) -> TinyNetwork:
    torch.manual_seed(0)
    return network().eval()


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(made(Averaging), tmp_path_factory.mktemp("dynamic") / "dynamic.onnx", dynamic_size=True)


def test_the_graph_starts_with_the_normalisation_and_takes_any_size(file: Path) -> None:
    (entry,), (result,) = session(file).get_inputs(), session(file).get_outputs()
    assert (entry.name, entry.type, entry.shape) == ("images", "tensor(float)", ["batch", 3, "height", "width"])
    assert result.shape == ["batch", 10]
    nodes = onnx.load(file).graph.node
    assert [node.op_type for node in nodes[:2]] == ["Sub", "Div"]
    assert nodes[0].input[0] == "images"
    assert not {node.op_type for node in nodes} & {"Resize", "Upsample", "Loop", "If", "Scan"}


def test_the_metadata_say_which_sizes_were_tried(file: Path) -> None:
    metadata = session(file).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["dynamic_size"]) is True
    assert json.loads(metadata["input_size"]) == [SIDE, SIDE]
    assert json.loads(metadata["tried_sizes"]) == [[16, 16], [8, 8], [24, 24], [8, 24]]
    assert "(batch, 3, height, width)" in metadata["input"]
    assert "the size they have" in metadata["resize"]


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 16, 16), (3, 8, 24), (2, 17, 31), (5, 40, 9)])
def test_channel_means_are_those_of_the_images_as_they_are(
    batch: int, height: int, width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In closed form, also at sizes that were not tried."""
    path = tmp_path_factory.getbasetemp() / "dynamic_means.onnx"
    if not path.exists():
        export_onnx(made(ChannelMeans), path, dynamic_size=True)
    shown = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))
    expected = (shown.double().mean((2, 3)) - torch.tensor([0.3, 0.4, 0.5])) / torch.tensor([0.2, 0.25, 0.5])
    np.testing.assert_allclose(session(path).run(None, {"images": shown.numpy()})[0], expected.numpy(), atol=1e-5)


def test_at_its_own_size_it_is_the_file_of_a_fixed_size(file: Path, digits: Digits, tmp_path: Path) -> None:
    fixed = export_onnx(made(Averaging), tmp_path / "fixed.onnx")
    images = {"images": digits[0][0].numpy()}
    np.testing.assert_allclose(session(file).run(None, images)[0], session(fixed).run(None, images)[0], atol=1e-5)


def test_it_is_verified_at_other_sizes(file: Path, digits: Digits, tmp_path: Path) -> None:
    model = made(Averaging)
    found = verify_onnx(file, model, *digits)
    assert found.passed
    assert [(size.height, size.width) for size in found.other_sizes] == [(8, 8), (24, 24), (8, 24)]
    assert all(size.images == 16 and size.top1_agreement == 1.0 for size in found.other_sizes)
    shown = F.interpolate(digits[0][0][:16], (8, 24), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
    with torch.no_grad():
        ours = logits_as_given(model, shown).numpy()
    theirs = session(file).run(None, {"images": shown.numpy()})[0]
    assert found.other_sizes[2].max_abs_difference == pytest.approx(np.abs(ours - theirs).max(), abs=1e-6)
    written = json.loads(write_verification(found, tmp_path / "dynamic.onnx").read_text())
    assert tuple(SizeVerification(**size) for size in written["other_sizes"]) == found.other_sizes


def test_a_file_that_is_right_at_its_own_size_only_fails(digits: Digits, tmp_path: Path) -> None:
    path = export_onnx(made(Growing), tmp_path / "growing.onnx", dynamic_size=True)
    found = verify_onnx(path, made(Averaging), *digits)
    assert found.max_abs_difference <= found.tolerance, "at its own size"
    assert [size.max_abs_difference for size in found.other_sizes] == pytest.approx([0.08, 0.08, 0.08], abs=1e-4)
    assert not found.passed
    with pytest.raises(ExportMismatchError, match=r"answers: at 8x8 pixels a logit differs by 0\.08, more than"):
        require(found)


def test_a_network_with_a_switch_is_exported_with_it_on(digits: Digits, tmp_path: Path) -> None:
    model = made(Positioned)
    path = export_onnx(model, tmp_path / "positioned.onnx", dynamic_size=True)
    assert model.dynamic_size is False, "the model itself was changed"
    assert verify_onnx(path, model, *digits).passed
    shown = torch.rand(2, 3, 20, 12)
    model.dynamic_size = True
    with torch.no_grad():
        expected = logits_as_given(model, shown).numpy()
    np.testing.assert_allclose(session(path).run(None, {"images": shown.numpy()})[0], expected, atol=1e-5)


def small_vit(num_classes: int) -> nn.Module:
    """A vision transformer of timm whose positions follow the size of the images."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=num_classes,
        dynamic_img_size=True,
    )
    nn.init.normal_(network.pos_embed)  # so that wrongly resized positions would show
    network.input_size = (32, 32)
    return network


def test_positions_of_a_transformer_follow_the_size(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    model = load_model("test_dynamic_size:small_vit", num_classes=10)
    found = verify_onnx(export_onnx(model, tmp_path / "vit.onnx", dynamic_size=True), model, *digits)
    assert found.passed, found
    assert len(found.other_sizes) == 3


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (TinyNetwork, r"at 16x16 pixels the graph fails \(.*\)"),  # pools to a fixed grid, for which ONNX has no words
        (Fixed, r"at 8x8 pixels the network fails \(The size of tensor a \(8\) must match .*\)"),
        (Branching, r"(it cannot be traced|its code, once traced|at 8x8 pixels the graph gives other logits).*"),
    ],
)
def test_a_network_made_for_one_size_is_refused(network: type[TinyNetwork], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    path.write_bytes(b"the old file")
    with pytest.raises(UserError, match=rf"tiny cannot be exported with a dynamic size: {reason}") as caught:
        export_onnx(made(network), path, dynamic_size=True)
    assert "Leave dynamic_size out" in str(caught.value)
    assert "--input_size of limbeck train" in str(caught.value)
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]


def test_a_plain_vision_transformer_is_refused_in_its_own_words(tmp_path: Path) -> None:
    model = load_model("deit_tiny_patch16_224", num_classes=10, pretrained=False)
    with pytest.raises(UserError, match=r"at 112x112 pixels the network fails \(Input height \(112\) doesn't match"):
        export_onnx(model, tmp_path / "deit.onnx", dynamic_size=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "own", "tried"),
    [
        ("limbeck:resnet8", (32, 32), [(16, 16), (48, 48), (16, 48)]),
        ("limbeck:resnet8", (8, 8), [(4, 4), (12, 12), (4, 12)]),
        ("mobilenetv3_small_050", (64, 96), [(32, 64), (96, 160), (32, 160)]),
        ("mobilenetv3_small_050", (32, 32), [(64, 64), (32, 64)]),
    ],
)
def test_tried_sizes_are_multiples_of_the_stride_around_the_own(
    name: str, own: tuple[int, int], tried: list[tuple[int, int]]
) -> None:
    model = load_model(name, num_classes=10, pretrained=False, input_size=own)
    assert other_sizes(model) == tried
    height, width = traced_size(model)
    assert height != width
    assert not {height, width} & set(own)


def test_latency_is_measured_at_the_own_size_or_at_the_asked_one(file: Path, reader_file: Path, tmp_path: Path) -> None:
    quick = {"runs": 5, "warmup": 1, "batch": 32}
    own, large = onnx_latency(file, **quick), onnx_latency(file, size=(64, 96), **quick)
    assert (own.size, large.size) == ((SIDE, SIDE), (64, 96))
    assert large.median_ms > 2 * own.median_ms
    assert onnx_latency(reader_file, runs=1, size=(SIDE, SIDE)).size == (SIDE, SIDE)
    with pytest.raises(UserError, match=r"takes images of 16x16 pixels only; it cannot be timed at \(32, 32\)"):
        onnx_latency(reader_file, size=(32, 32))
    graph = onnx.load(file)
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "silent.onnx")
    with pytest.raises(UserError, match="does not say its model's own; give the size"):
        onnx_latency(tmp_path / "silent.onnx")


def test_a_file_of_any_size_needs_a_model_of_any_size(file: Path, digits: Digits) -> None:
    with pytest.raises(UserError, match="cannot be exported with a dynamic size"):
        verify_onnx(file, made(Fixed), *digits)
