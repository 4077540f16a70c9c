"""Fast-DFKD's blend of this batch's moments with those of what was made before."""

import torch

from limbeck.outputs import Outputs
from limbeck.synthesis.base import Setting
from limbeck.synthesis.generators.blended_statistics import BlendedStatistics
from limbeck.synthesis.priors.base import LayerStatistics, Seen


def seen(mean: float) -> Seen:
    pictures, layer = torch.zeros(1, 3, 4, 4), LayerStatistics
    statistics = [
        layer(torch.full((2,), mean, requires_grad=True), torch.ones(2), torch.zeros(2), torch.ones(2)),
    ]
    return Seen(pictures, pictures, Outputs(torch.zeros(1, 2)), statistics=statistics)


def test_it_follows_the_formula(resnet_setting: Setting) -> None:
    prior = BlendedStatistics(resnet_setting.teacher, 0.75)
    # ||mean|| of two equal channels, and the variances agree.
    root = 2**0.5
    torch.testing.assert_close(prior(seen(1.0)).item(), root)
    prior.remember()
    torch.testing.assert_close(prior(seen(5.0)).item(), root * (0.75 * 1 + 0.25 * 5))
    prior.remember()
    blended = 0.75 * 1 + 0.25 * 5
    torch.testing.assert_close(prior(seen(3.0)).item(), root * (0.75 * blended + 0.25 * 3))
    again = BlendedStatistics(resnet_setting.teacher, 0.75)
    again.load_state_dict(prior.state_dict())
    assert again(seen(3.0)).item() == prior(seen(3.0)).item()
    prior.forget()
    torch.testing.assert_close(prior(seen(4.0)).item(), root * 4)


def test_only_this_batch_has_a_gradient(resnet_setting: Setting) -> None:
    prior = BlendedStatistics(resnet_setting.teacher, 0.75)
    prior(seen(1.0))
    prior.remember()
    now = seen(1.0)
    prior(now).backward()
    # d||blend|| / d mean = (1 - m) · (1, 1) / sqrt(2)
    torch.testing.assert_close(now.statistics[0].mean.grad, torch.full((2,), 0.25 / 2**0.5))


def test_without_momentum_nothing_is_remembered(resnet_setting: Setting) -> None:
    prior = BlendedStatistics(resnet_setting.teacher, 0.0)
    prior(seen(1.0))
    prior.remember()
    assert prior.moments == []
