"""What enters BatchNorm layers: of every library, frozen or not, and how far it is from what entered in training."""

import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d
from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d
from transformers.models.rt_detr.modeling_rt_detr import RTDetrFrozenBatchNorm2d

from limbeck.errors import UserError
from limbeck.outputs import Outputs
from limbeck.synthesis.batchnorm import batchnorm_layers, reading_batchnorm
from limbeck.synthesis.priors.base import LayerStatistics, Seen
from limbeck.synthesis.priors.batch_statistics import BatchStatistics, batch_statistics


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LAYERS = (
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    BatchNormAct2d,
    FrozenBatchNormAct2d,
    FrozenBatchNorm2d,
    DetrFrozenBatchNorm2d,
    RTDetrFrozenBatchNorm2d,
)


@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
def test_every_librarys_layer_is_read_at_its_input(kind: type[nn.Module]) -> None:
    layer = kind(5)
    layer.running_mean.copy_(torch.arange(5))
    layer.running_var.copy_(torch.arange(5) + 1)
    network = nn.Sequential(layer, nn.ReLU(inplace=True)).eval()
    entering = noise(4, 5, 3, 2).float()
    expected = network(entering)
    with reading_batchnorm(network) as found:
        torch.testing.assert_close(network(entering), expected)
    (read,) = found
    torch.testing.assert_close(read.mean, entering.mean((0, 2, 3)))
    torch.testing.assert_close(
        read.variance, ((entering - entering.mean((0, 2, 3), keepdim=True)) ** 2).mean((0, 2, 3))
    )
    assert read.running_mean.tolist() == [0, 1, 2, 3, 4]
    assert read.running_variance.tolist() == [1, 2, 3, 4, 5]
    network(entering)
    assert len(found) == 1, "nothing is read afterwards"


@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, ()), (nn.BatchNorm1d, (7,)), (nn.BatchNorm3d, (2, 3, 4))])
def test_moments_are_over_all_axes_but_the_channels(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    network = kind(3).double().eval()
    entering = noise(4, 3, *shape)
    with reading_batchnorm(network) as found:
        network(entering)
    flat = entering.transpose(0, 1).reshape(3, -1)
    torch.testing.assert_close(found[0].mean, flat.mean(1))
    torch.testing.assert_close(found[0].variance, flat.var(1, correction=0))


def test_layers_without_statistics_of_batches_are_left_alone() -> None:
    kept = nn.InstanceNorm2d(3, track_running_stats=True)
    network = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.LayerNorm(3), kept)
    assert batchnorm_layers(network) == []


class Reader(nn.Module):
    """Runs its layers in another order than they were made, one of them twice, and can be read beside its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.first = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def read(self, images: Tensor) -> Tensor:
        return self.first(self.second(self.first(images)))

    def forward(self, images: Tensor) -> Tensor:
        return self.read(images)


def test_every_pass_fills_the_list_anew_in_the_order_in_which_layers_run() -> None:
    network = Reader().eval()
    own_read = network.read
    images = noise(2, 2, 3, 3).float()
    with reading_batchnorm(network) as found:
        for run in (network, network.read, network):
            run(images)
            assert len(found) == 3
            means = [network.first.running_mean, network.second.running_mean, network.first.running_mean]
            assert all(one.running_mean is mean for one, mean in zip(found, means, strict=True))
    assert network.read == own_read
    assert not network._forward_pre_hooks


def test_whole_networks() -> None:
    for network, count in (
        (torchvision.models.resnet18(), 20),
        (timm.create_model("mobilenetv3_small_050"), 34),
        (torchvision.models.detection.retinanet_resnet50_fpn(weights_backbone=None).backbone.body, 53),
    ):
        with reading_batchnorm(network.eval()) as found, torch.no_grad():
            network(torch.rand(2, 3, 32, 32))
        assert len(found) == len(batchnorm_layers(network)) == count
        first = next(part for part in network.modules() if isinstance(part, nn.Conv2d))
        assert len(found[0].mean) == first.out_channels


def statistics(*widths: int) -> list[LayerStatistics]:
    return [
        LayerStatistics(*(noise(width, seed=10 * layer + part).abs() for part in range(4)))
        for layer, width in enumerate(widths)
    ]


def test_equals_a_slow_sum() -> None:
    given = statistics(3, 4, 2)
    expected = 0.0
    for layer, one in enumerate(given):
        for here, there in ((one.mean, one.running_mean), (one.variance, one.running_variance)):
            distance = sum((a - b) ** 2 for a, b in zip(here.tolist(), there.tolist(), strict=True)) ** 0.5
            expected += (10 if layer == 0 else 1) * distance
    assert batch_statistics(given).item() == pytest.approx(expected, rel=1e-12)
    assert batch_statistics(given[:1], 2.0).item() == pytest.approx(2 * batch_statistics(given[:1], 1.0).item())


def test_zero_with_a_finite_gradient_where_the_moments_are_those_of_training() -> None:
    mean = torch.zeros(3, requires_grad=True)
    value = batch_statistics([LayerStatistics(mean, torch.ones(3), torch.zeros(3), torch.ones(3))])
    value.backward()
    assert value == 0
    assert mean.grad.isfinite().all()


def test_the_batchs_size_does_not_matter_and_the_gradient_is_true() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double().eval()
    prior = BatchStatistics(network)

    def value(images: Tensor) -> Tensor:
        with reading_batchnorm(network) as found:
            network(images)
        return prior(Seen(images, images, Outputs(images), statistics=found))

    images = noise(2, 3, 5, 5).requires_grad_()
    torch.testing.assert_close(value(torch.cat([images] * 3)), value(images))
    assert torch.autograd.gradcheck(value, (images,))


def test_a_network_without_batchnorm_is_refused() -> None:
    with pytest.raises(UserError, match=r"no BatchNorm layers.*mimiq"):
        BatchStatistics(nn.Linear(3, 3))
