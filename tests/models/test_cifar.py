"""Facts about our own networks for small images: published sizes, tap points, shapes, gradients, whole graphs."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.cifar import NETWORKS, create
from limbeck.models.cifar.base import CifarNetwork
from limbeck.models.cifar.shufflenet import ChannelShuffle
from limbeck.outputs import Request

# Millions of parameters with 100 classes, as the distillation literature prints them.
PUBLISHED_MILLIONS = {
    "resnet8x4": 1.23,
    "resnet32x4": 7.43,
    "resnet110": 1.74,
    "wrn_16_2": 0.70,
    "wrn_40_1": 0.57,
    "wrn_40_2": 2.26,
    "vgg8": 3.97,
    "vgg13": 9.46,
    "mobilenetv2_half": 0.81,
    "shufflenetv1": 0.95,
    "shufflenetv2": 1.36,
    "resnet50_cifar": 23.71,
}

# Channels and sides of the levels at 32 pixels, shallow to deep, and the pooled channels.
RESNET = ((16, 32, 64), (32, 16, 8), 64)
RESNET_X4 = ((64, 128, 256), (32, 16, 8), 256)
VGG = ((128, 256, 512, 512), (16, 8, 4, 4), 512)
LEVELS = {
    **dict.fromkeys(
        ("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "wrn_40_1"), RESNET
    ),
    **dict.fromkeys(("resnet8x4", "resnet32x4"), RESNET_X4),
    **dict.fromkeys(("wrn_16_2", "wrn_40_2"), ((32, 64, 128), (32, 16, 8), 128)),
    **dict.fromkeys(("vgg8", "vgg13"), VGG),
    "resnet50_cifar": ((256, 512, 1024, 2048), (32, 16, 8, 4), 2048),
    "mobilenetv2_half": ((12, 16, 48, 160), (16, 8, 4, 2), 1280),
    "shufflenetv1": ((240, 480, 960), (16, 8, 4), 960),
    "shufflenetv2": ((116, 232, 464), (16, 8, 4), 1024),
}
# The rest differ from these only in depth.
ONE_OF_EACH = ("resnet20", "resnet8x4", "wrn_16_2", "vgg13", "mobilenetv2_half", "shufflenetv1", "shufflenetv2")
RECTIFIED = ("resnet20", "resnet8x4", "vgg8", "vgg13", "resnet50_cifar")


def network(name: str, num_classes: int = 10, **options: object) -> CifarNetwork:
    torch.manual_seed(0)
    model = create(name, num_classes, **options)  # type: ignore[arg-type]
    assert isinstance(model, CifarNetwork)
    return model


def everything(model: CifarNetwork) -> Request:
    names = [name for level in model.facts.levels for name in (level.name, level.preactivation) if name]
    return Request(tuple(names), pooled=True, final=True)


def images(size: tuple[int, int] = (32, 32), batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def wake_norms(model: nn.Module) -> None:
    """Give every batch norm statistics and parameters that are not its initial ones."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_(generator=generator).mul_(0.3)
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 1.5, generator=generator)


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_parameter_count_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in create(name, 100).parameters())
    assert count / 1e6 == pytest.approx(PUBLISHED_MILLIONS[name], rel=0.01)


@pytest.mark.parametrize("depth", [8, 14, 20, 32, 44, 56, 110])
def test_resnet_parameter_count_is_its_closed_form(depth: int) -> None:
    def convolution_and_norm(in_channels: int, out_channels: int, kernel: int) -> int:
        return in_channels * out_channels * kernel**2 + 2 * out_channels

    count = convolution_and_norm(3, 16, 3) + 64 * 100 + 100
    for channels in (16, 32, 64):
        count += (depth - 2) // 3 * convolution_and_norm(channels, channels, 3)
    for channels in (16, 32):
        count -= convolution_and_norm(channels * 2, channels * 2, 3) - convolution_and_norm(channels, channels * 2, 3)
        count += convolution_and_norm(channels, channels * 2, 1)
    assert sum(parameter.numel() for parameter in create(f"resnet{depth}", 100).parameters()) == count


def test_every_network_is_in_the_table() -> None:
    assert set(LEVELS) == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_levels_are_those_of_the_published_table(name: str) -> None:
    channels, sides, pooled = LEVELS[name]
    model = network(name).eval()
    facts = model.facts
    assert facts.name == f"limbeck:{name}"
    assert [level.name for level in facts.levels] == [f"stages.{index}" for index in range(len(channels))]
    assert tuple(level.channels for level in facts.levels) == channels
    assert [level.grid for level in facts.levels] == [(side, side) for side in sides]
    assert [level.stride for level in facts.levels] == [32 // side for side in sides]
    assert facts.pooled_channels == pooled == model.classifier.in_features
    with torch.no_grad():
        outputs = model(images(batch=1), everything(model))
    for level in facts.levels:
        assert outputs.maps[level.name].shape == (1, level.channels, *level.grid)
        if level.preactivation:
            assert outputs.maps[level.preactivation].shape == (1, level.channels, *level.grid)
    assert facts.final is not None
    assert outputs.final.shape == (1, facts.final.channels, *facts.final.grid)
    assert (facts.final.grid, facts.final.stride) == (facts.levels[-1].grid, facts.levels[-1].stride)


@pytest.mark.parametrize("size", [(64, 64), (40, 32), (8, 8)])
@pytest.mark.parametrize("name", [*ONE_OF_EACH, "resnet50_cifar"])
def test_grids_are_known_beforehand_at_any_multiple_of_8(name: str, size: tuple[int, int]) -> None:
    model = network(name, input_size=size).eval()
    with torch.no_grad():
        outputs = model(images(size, batch=1), everything(model))
    for level in model.facts.levels:
        assert tuple(outputs.maps[level.name].shape[1:]) == (level.channels, *level.grid)
    assert model.facts.final is not None
    assert tuple(outputs.final.shape[-2:]) == model.facts.final.grid
    assert outputs.logits.shape == (1, 10)


@pytest.mark.parametrize("name", RECTIFIED)
def test_plain_map_is_the_rectified_preactivation(name: str) -> None:
    model = network(name)
    outputs = model(images(), everything(model))
    for level in model.facts.levels:
        assert level.preactivation is not None
        preactivation = outputs.maps[level.preactivation]
        assert (preactivation < 0).any()
        assert torch.equal(F.relu(preactivation), outputs.maps[level.name])
    assert torch.equal(outputs.final, outputs.maps[model.facts.levels[-1].name])


@pytest.mark.parametrize("name", ["wrn_16_2", "wrn_40_1"])
def test_wide_resnet_is_read_raw_and_through_the_norm_that_follows(name: str) -> None:
    model = network(name).eval()
    wake_norms(model)
    with torch.no_grad():
        outputs = model(images(), everything(model))
        for index, stage in enumerate(model.stages):
            norm = stage.blocks[-1].norm_after
            raw, normed = outputs.maps[f"stages.{index}"], outputs.maps[f"stages.{index}.pre"]
            shape = (1, -1, 1, 1)
            scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).view(shape)
            expected = (raw - norm.running_mean.view(shape)) * scale + norm.bias.view(shape)
            torch.testing.assert_close(normed, expected, rtol=1e-5, atol=1e-5)
            assert (raw < 0).any()
    assert torch.equal(outputs.final, F.relu(outputs.maps["stages.2.pre"]))


def test_wide_resnet_equals_the_usual_form_whose_blocks_own_the_norm_before() -> None:
    model = network("wrn_16_2").eval()
    wake_norms(model)
    with torch.no_grad():
        map_ = model.stem.convolution(model.prepare(images()))
        norm_before = model.stem.norm_after
        for block in (block for stage in model.stages for block in stage.blocks):
            activated = F.relu(norm_before(map_))
            first, norm, _ = block.branch[0]
            branch = block.branch[1](F.relu(norm(first(activated))))
            map_ = branch + (map_ if block.projection is None else block.projection(activated))
            norm_before = block.norm_after
        logits = model.classifier(F.relu(norm_before(map_)).mean((2, 3)))
        torch.testing.assert_close(model(images()).logits, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["wrn_16_2", "resnet20"])
def test_reading_taps_does_not_change_what_training_mode_records(name: str) -> None:
    bare, read = network(name).train(), network(name).train()
    logits, outputs = bare(images()).logits, read(images(), everything(read))
    assert torch.equal(logits, outputs.logits)
    for key, value in bare.state_dict().items():
        assert torch.equal(value, read.state_dict()[key]), key


@pytest.mark.parametrize("name", ["mobilenetv2_half", "shufflenetv1", "shufflenetv2"])
def test_networks_without_a_preactivation_say_so(name: str) -> None:
    model = network(name).eval()
    assert all(level.preactivation is None for level in model.facts.levels)
    with pytest.raises(KeyError, match=r"stages\.0\.pre"):
        model(images(), Request(("stages.0.pre",)))


def test_shufflenetv1_is_read_after_its_relu_and_mobilenetv2_before_any() -> None:
    for name, negative in (("shufflenetv1", False), ("mobilenetv2_half", True)):
        model = network(name)
        maps = model(images(), everything(model)).maps
        assert all(bool((map_ < 0).any()) is negative for map_ in maps.values())


def test_shufflenetv2_shuffles_the_kept_half_to_the_even_channels() -> None:
    model = network("shufflenetv2").eval()
    unit = model.stages[0].body[1]
    inputs = torch.randn(1, 116, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        outputs = unit(inputs)
    assert torch.equal(outputs[:, 0::2], inputs[:, :58])
    assert torch.equal(outputs[:, 1::2], unit.branch(inputs[:, 58:]))


def test_channel_shuffle_interleaves_the_groups_and_is_undone_by_its_transpose() -> None:
    channels = torch.arange(12.0).view(1, 12, 1, 1)
    shuffled = ChannelShuffle(3)(channels)
    assert shuffled.flatten().tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert torch.equal(ChannelShuffle(4)(shuffled), channels)


@pytest.mark.parametrize("name", [*ONE_OF_EACH, "resnet50_cifar"])
def test_pooled_is_the_mean_of_the_final_map_and_enters_the_classifier(name: str) -> None:
    model = network(name).eval()
    with torch.no_grad():
        outputs = model(images(), everything(model))
        assert (outputs.final >= 0).all()
        torch.testing.assert_close(outputs.pooled, outputs.final.mean((2, 3)))
        torch.testing.assert_close(model.classifier(outputs.pooled), outputs.logits, rtol=0, atol=0)


def test_only_what_is_requested_is_returned() -> None:
    model = network("resnet8").eval()
    outputs = model(images())
    assert (outputs.pooled, outputs.final, outputs.maps) == (None, None, {})
    assert set(model(images(), Request(("stages.2", "stages.0.pre"))).maps) == {"stages.2", "stages.0.pre"}
    with pytest.raises(KeyError, match="stages\\.3"):
        model(images(), Request(("stages.3",)))


@pytest.mark.parametrize("name", [*ONE_OF_EACH, "resnet50_cifar"])
def test_gradient_reaches_every_parameter(name: str) -> None:
    model = network(name).train()
    F.cross_entropy(model(images(batch=4)).logits, torch.tensor([0, 3, 5, 9])).backward()
    # A bias in front of a batch norm has a gradient, which is zero up to rounding.
    idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert idle == []
    still = [key for key, p in model.named_parameters() if p.grad is not None and not p.grad.any() and p.ndim > 1]
    assert still == []


def test_convolutions_start_kaiming_normal_by_fan_out_and_norms_as_identity() -> None:
    model = network("vgg13")
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            expected = (2 / (module.out_channels * 9)) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.03)
            assert module.bias is not None
            assert not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert not module.bias.any()


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "mobilenetv2_half", "shufflenetv1"])
def test_drop_path_grows_with_depth_and_is_silent_in_eval(name: str) -> None:
    dropping, keeping = network(name, drop_path=0.4), network(name)
    rates = [module.drop_path.p for module in dropping.modules() if getattr(module, "drop_path", None) is not None]
    assert len(rates) > 2
    assert rates == sorted(rates)
    assert 0 < rates[-1] <= 0.4
    assert not dropping.provenance.notes
    x = images(batch=8)
    with torch.no_grad():
        assert not torch.equal(dropping(x).logits, keeping(x).logits)
        dropping, keeping = network(name, drop_path=0.4).eval(), network(name).eval()
        assert torch.equal(dropping(x).logits, keeping(x).logits)


def test_a_dropped_branch_leaves_the_shortcut() -> None:
    model = network("resnet20", drop_path=0.999)
    block = model.stages[2].blocks[2]
    inputs = images(batch=4).new_ones(4, 64, 2, 2)
    torch.manual_seed(0)
    assert torch.equal(block(inputs), inputs)


@pytest.mark.parametrize("name", ["vgg8", "shufflenetv2"])
def test_drop_path_without_residual_branches_is_noted(name: str) -> None:
    assert "drop_path=0.1" in network(name, drop_path=0.1).provenance.notes[0]
    assert network(name).provenance.notes == []


def test_rebuild_makes_the_same_architecture() -> None:
    model = network("wrn_16_2", 7, input_size=(40, 48))
    assert model.rebuild == {"library": "limbeck", "name": "wrn_16_2", "num_classes": 7, "input_size": [40, 48]}
    again = create(model.rebuild["name"], model.rebuild["num_classes"], input_size=tuple(model.rebuild["input_size"]))
    again.load_state_dict(model.state_dict())
    assert again.facts == model.facts
    assert model.provenance.licence == "Apache-2.0"


def test_any_wide_resnet_can_be_named() -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in create("wrn_28_10", 10).parameters())
    assert count == 36_479_194  # 36.5 million in the paper's table 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet21", 10), "resnet20"),
        (("wrn_41_2", 10), r"no network limbeck:wrn_41_2.*wrn_40_2"),
        (("wrn_04_2", 10), "no network"),
        (("resnet20", 0), "0 classes"),
        (("resnet20", 10, 1.0), "drop_path is 1.0"),
        (("vgg8", 10, -0.1), "drop_path is -0.1"),
        (("resnet20", 10, 0.0, (36, 32)), "36x32"),
        (("resnet20", 10, 0.0, (0, 32)), "0x32"),
    ],
)
def test_impossible_requests_are_explained(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create(*arguments)  # type: ignore[arg-type]


def test_names_are_known_without_torch() -> None:
    code = (
        "import sys, types, importlib.util, pathlib, limbeck.errors;"
        "folder = pathlib.Path(limbeck.errors.__file__).parent / 'models' / 'cifar';"
        "spec = importlib.util.spec_from_file_location('networks', folder / '__init__.py');"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module);"
        "assert 'resnet20' in module.NETWORKS; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.compile
@pytest.mark.parametrize("name", [*ONE_OF_EACH, "resnet50_cifar"])
def test_compiles_whole_and_says_the_same(name: str) -> None:
    torch._dynamo.reset()
    model = network(name, drop_path=0.1).eval()
    request = everything(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected, outputs = model(images(), request), compiled(images(), request)
    torch.testing.assert_close(outputs.logits, expected.logits)
    torch.testing.assert_close(outputs.final, expected.final)
    assert outputs.maps.keys() == expected.maps.keys()
    for key, map_ in expected.maps.items():
        torch.testing.assert_close(outputs.maps[key], map_)


@pytest.mark.compile
def test_training_step_with_drop_path_compiles_whole() -> None:
    torch._dynamo.reset()
    model = network("resnet8", drop_path=0.1).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    compiled(images(), everything(model)).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
