import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.torchvision_models import TorchvisionModel, create
from limbeck.outputs import Request

NAMES = ("resnet18", "mobilenet_v3_small", "vit_b_16", "swin_t", "squeezenet1_1")


def opened(name: str, size: int = 64, **options: Any) -> TorchvisionModel:
    """A model of seven classes whose every parameter matters."""
    model = create(
        name, text=f"torchvision:{name}", num_classes=7, pretrained=False, input_size=(size, size), **options
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def everything(model: TorchvisionModel) -> Request:
    return Request(tuple(level.name for level in model.facts.levels), pooled=True, final=True, class_tokens=True)


def images(size: int = 64) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_one_pass_gives_the_librarys_logits_and_the_promised_maps(name: str) -> None:
    model = opened(name)
    outputs = model(images(), everything(model))
    expected = model.network(model.prepare(images()))
    assert expected.std() > 1e-3
    torch.testing.assert_close(outputs.logits, expected, atol=1e-5, rtol=1e-5)
    for level in model.facts.levels:
        assert outputs.maps[level.name].shape == (2, level.channels, *level.grid)
    assert model.facts.final is not None
    assert outputs.final is not None
    assert outputs.final.shape == (2, model.facts.final.channels, *model.facts.final.grid)
    assert outputs.pooled is not None
    assert outputs.pooled.shape == (2, model.facts.pooled_channels)
    last = [module for module in model.network.modules() if isinstance(module, nn.Linear)]
    if name != "squeezenet1_1":
        torch.testing.assert_close(last[-1](outputs.pooled), outputs.logits)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (64, 128, 256, 512)),
        ("mobilenet_v3_small", (16, 24, 48, 576)),
        ("densenet121", (256, 512, 1024, 1024)),
        ("inception_v3", (192, 288, 768, 2048)),
        ("regnet_y_400mf", (48, 104, 208, 440)),
    ],
)
def test_stages_are_the_last_modules_of_their_stride(name: str, channels: tuple[int, ...]) -> None:
    model = opened(name, 299 if name == "inception_v3" else 64)
    assert tuple(level.channels for level in model.facts.levels) == channels
    if name != "inception_v3":
        assert [level.stride for level in model.facts.levels] == [4, 8, 16, 32]


@torch.no_grad()
def test_resnets_maps_are_its_layers_outputs() -> None:
    model = opened("resnet18")
    x = model.prepare(images())
    net: Any = model.network
    x = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))
    expected = [x]
    for layer in (net.layer2, net.layer3, net.layer4):
        expected.append(layer(expected[-1]))
    outputs = model(images(), everything(model))
    assert all(torch.equal(outputs.maps[f"stages.{i}"], value) for i, value in enumerate(expected))
    assert outputs.final is not None
    assert torch.equal(outputs.final, expected[-1])
    torch.testing.assert_close(outputs.pooled, expected[-1].mean((2, 3)))


@torch.no_grad()
def test_a_vits_maps_are_its_patch_tokens_and_final_is_normed() -> None:
    model = opened("vit_b_16")
    encoder: Any = model.network.encoder
    tokens: list[Tensor] = []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda _, __, output: tokens.append(output))
    model.network(model.prepare(images()))
    reference = tokens[:12]
    outputs = model(images(), everything(model))
    assert outputs.final is not None
    for number, sequence in enumerate(reference):
        assert sequence.shape == (2, 17, 768)
        for cell in range(16):
            torch.testing.assert_close(
                outputs.maps[f"blocks.{number}"][:, :, cell // 4, cell % 4], sequence[:, 1 + cell]
            )
    normed = encoder.ln(reference[-1])
    torch.testing.assert_close(outputs.final.flatten(2).transpose(1, 2), normed[:, 1:])
    torch.testing.assert_close(outputs.pooled, normed[:, 0])


@torch.no_grad()
def test_swins_maps_are_channels_first() -> None:
    model = opened("swin_t")
    outputs = model(images(), everything(model))
    net: Any = model.network
    x = net.features[:2](model.prepare(images()))
    torch.testing.assert_close(outputs.maps["stages.0"], x.permute(0, 3, 1, 2))
    torch.testing.assert_close(outputs.final, net.norm(net.features[2:](x)).permute(0, 3, 1, 2))


def test_training_updates_the_bare_network_and_copies_keep_their_mode() -> None:
    model = opened("resnet18")
    twin = copy.deepcopy(model)
    assert not any(module.training for module in twin.modules())
    torch.testing.assert_close(twin(images()).logits, model(images()).logits)
    before = model.network.bn1.running_mean.clone()  # type: ignore[union-attr, operator]
    model.train()(images()).logits.sum().backward()
    assert not torch.equal(before, model.network.bn1.running_mean)  # type: ignore[union-attr, arg-type]
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in twin.parameters())


def test_drop_path_grows_linearly() -> None:
    rates = [m.p for m in opened("swin_t", drop_path=0.2).modules() if type(m).__name__ == "StochasticDepth"]
    assert rates[0] == 0.0
    assert rates[-1] == pytest.approx(0.2)
    assert rates == sorted(rates)
    assert not any(m.p for m in opened("swin_t").modules() if type(m).__name__ == "StochasticDepth")


def test_unknown_names_and_unfetched_weights_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="Did you mean torchvision:resnet"):
        create("resnet19", text="torchvision:resnet19")
    monkeypatch.setattr("limbeck.models.torchvision_models.is_unreachable", lambda host: True)
    monkeypatch.setattr("torch.hub.get_dir", lambda: "does-not-exist")
    with pytest.raises(UserError, match=r"torchvision:resnet18@weights\.safetensors"):
        create("resnet18", text="torchvision:resnet18")


@pytest.mark.compile
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_whole_pass_compiles_as_one_graph(name: str) -> None:
    model = opened(name)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    request = everything(model)
    expected, found = model(images(), request), compiled(images(), request)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    for level, map_ in expected.maps.items():
        torch.testing.assert_close(found.maps[level], map_, atol=1e-4, rtol=1e-4)
