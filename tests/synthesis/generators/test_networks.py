"""Generators' networks: exact sizes, published widths, and pictures that depend on nothing but parameters and latents."""

import math

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.synthesis.generators.networks import (
    AttentionGeneratorNetwork,
    ChannelExchange,
    ConvGenerator,
    first_grid,
)

NETWORKS = [ConvGenerator, AttentionGeneratorNetwork]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [(28, 28), (32, 32), (48, 48), (64, 64), (224, 224), (30, 50), (8, 8)])
def test_pictures_have_the_size_asked_for_and_lie_in_the_unit_interval(
    network: type[nn.Module], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    images = network(5, 2, size=size)(torch.randn(2, 5) * 10)
    assert images.shape == (2, 3, *size)
    assert 0 <= images.min() < images.max() <= 1


@pytest.mark.parametrize(
    ("size", "grid", "doublings"),
    [
        ((28, 28), (7, 7), 2),
        ((32, 32), (8, 8), 2),
        ((48, 48), (6, 6), 3),
        ((64, 64), (8, 8), 3),
        ((224, 224), (7, 7), 5),
        ((30, 50), (4, 7), 3),
    ],
)
def test_first_grid_has_at_most_eight_cells_a_side(
    size: tuple[int, int], grid: tuple[int, int], doublings: int
) -> None:
    assert first_grid(size) == (grid, doublings)


def test_convolutional_generator_has_the_published_parameters_at_32_pixels() -> None:
    linear, norm = 257 * 128 * 64, 2 * 128
    first, second, picture = 128 * 128 * 9 + 2 * 128, 128 * 64 * 9 + 2 * 64, 64 * 3 * 9 + 3
    network = ConvGenerator(256, size=(32, 32))
    assert sum(p.numel() for p in network.parameters()) == linear + norm + first + second + picture


def test_attention_generator_begins_with_64_tokens_of_256_at_32_pixels() -> None:
    network = AttentionGeneratorNetwork(256, size=(32, 32))
    assert network.positions.shape == (1, 64, 256)
    assert [layer.weight.shape[:2] for layer in network.modules() if isinstance(layer, nn.Conv2d)] == [
        (128, 64),
        (64, 128),
        (3, 64),
    ]


@pytest.mark.parametrize("network", NETWORKS)
def test_state_is_the_parameters_and_modes_change_nothing(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    made, latents = network(5, 2, size=(16, 16)), torch.randn(4, 5)
    assert set(made.state_dict()) == {name for name, _ in made.named_parameters()}
    learning = made(latents)
    torch.testing.assert_close(made.eval()(latents), learning, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_size_that_is_no_multiple_is_the_middle_of_the_next_that_is(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    whole, part = network(5, 2, size=(32, 32)), network(5, 2, size=(30, 26))
    # The grid of 26 pixels is 7 cells wide: only the height is cut.
    tall = network(5, 2, size=(30, 32))
    tall.load_state_dict(whole.state_dict())
    latents = torch.randn(3, 5)
    assert torch.equal(tall(latents), whole(latents)[:, :, 1:31])
    assert part(latents).shape == (3, 3, 30, 26)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_picture_depends_on_its_latent_vector(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    images = network(5, 4, size=(32, 32))(torch.randn(6, 5))
    assert all(math.isfinite(value) and value > 1e-4 for value in torch.pdist(images.flatten(1)).tolist())


def test_channel_exchange_takes_whole_channels_of_the_next_picture() -> None:
    torch.manual_seed(0)
    maps = torch.randn(5, 400, 2, 3)
    assert torch.equal(ChannelExchange(0.0)(maps), maps)
    assert torch.equal(ChannelExchange(1.0)(maps), maps.roll(1, 0))
    mixed = ChannelExchange(0.25)(maps)
    own = (mixed == maps).all(-1).all(-1)
    foreign = (mixed == maps.roll(1, 0)).all(-1).all(-1)
    assert torch.equal(own, ~foreign)
    assert 0.2 < foreign.float().mean() < 0.3


@pytest.mark.parametrize("network", NETWORKS)
def test_without_exchange_no_random_number_is_drawn(network: type[nn.Module]) -> None:
    made, exchanging = network(5, 2, size=(32, 32)), network(5, 2, size=(32, 32), exchange=0.5)
    latents = torch.randn(3, 5)
    before = torch.get_rng_state()
    made(latents)
    assert torch.equal(torch.get_rng_state(), before)
    exchanging(latents)
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "options",
    [
        {"latent": 0},
        {"channels": 0},
        {"size": (4, 32)},
        {"exchange": 1.5},
        {"exchange": -0.1},
    ],
)
@pytest.mark.parametrize("network", NETWORKS)
def test_impossible_numbers_are_named(network: type[nn.Module], options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"generator"):
        network(**{"latent": 5, "channels": 2, "size": (32, 32)} | options)


@pytest.mark.parametrize("options", [{"heads": 3}, {"heads": 0}, {"depth": 0}])
def test_heads_must_divide_the_channels(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="heads must divide 4"):
        AttentionGeneratorNetwork(5, 2, size=(32, 32), **options)
