"""What stands between a backbone and torchvision's heads: maps of one width at strides from 4 (or 8) to 64 (or 128).

Backbones with several maps get a feature pyramid network (Lin et al., arXiv:1612.03144), plain vision transformers the
simple pyramid of ViTDet (Li et al., arXiv:2203.16527), which makes every map from the last one.
"""

import itertools
from collections import OrderedDict
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from limbeck.models.detection.backbones import STRIDES, Body

Top = Literal["pool", "p6p7"]
"""What is added above stride 32: every second cell of the last map, or two more convolutions."""


class Pyramid(nn.Module):
    """A backbone and its pyramid, as torchvision's detectors take them.

    Args:
        body: the backbone.
        out_channels: of every map.
        first: the least stride that is used.
        top: what is added above.

    Attributes:
        out_channels: of every map.
        names: of the maps that are the backbone's own strides (RoIs are read from these).
        strides: of all maps.
    """

    def __init__(self, body: Body, out_channels: int, *, first: int, top: Top) -> None:
        super().__init__()
        self.body = body
        self.out_channels = out_channels
        extra: ExtraFPNBlock = LastLevelMaxPool() if top == "pool" else LastLevelP6P7(out_channels, out_channels)
        if body.plain:
            used = tuple(stride for stride in STRIDES if stride >= first)
            self._used = len(body.strides)
            self.fpn: nn.Module = SimplePyramid(body.channels[-1], body.strides[-1], used, out_channels, extra)
        else:
            used = tuple(stride for stride in body.strides if stride >= first)
            self._used = len(used)
            channels = list(body.channels[-self._used :])
            self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=extra)
        self.names = [str(index) for index in range(len(used))]
        deepest = used[-1]
        self.strides = (*used, *((2 * deepest,) if top == "pool" else (2 * deepest, 4 * deepest)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps by torchvision's names, shallow to deep, each (B, out_channels, h, w)."""
        maps = self.body(images)[-self._used :]
        # One map of a plain network becomes all of its pyramid's.
        found: dict[str, Tensor] = self.fpn(OrderedDict(zip(self.names, maps, strict=False)))
        return found


class SimplePyramid(nn.Module):
    """ViTDet's pyramid: the last map enlarged by deconvolutions or shrunk by pooling, then 1x1 and 3x3 convolutions.

    Args:
        in_channels: of the map.
        stride: of the map.
        strides: of the pyramid's maps.
        out_channels: of the pyramid's maps.
        extra: makes the maps above.
    """

    def __init__(
        self, in_channels: int, stride: int, strides: tuple[int, ...], out_channels: int, extra: ExtraFPNBlock
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_level(in_channels, stride, target, out_channels) for target in strides)
        self.extra_blocks = extra

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """As `FeaturePyramidNetwork`, for one map."""
        (map_,) = maps.values()
        results = [level(map_) for level in self.levels]
        names = [str(index) for index in range(len(results))]
        results, names = self.extra_blocks(results, [map_], names)
        return OrderedDict(zip(names, results, strict=True))


class ExtraLevels(nn.Module):
    """SSDLite's maps: the backbone's last two and four more, each half as large, without a pyramid.

    Args:
        body: the backbone.
        channels: of the four added maps.

    Attributes:
        out_channels: of each map.
        strides: of each map.
    """

    def __init__(self, body: Body, channels: list[int]) -> None:
        super().__init__()
        self.body = body
        widths = [*body.channels[-2:], *channels]
        self.extra = nn.ModuleList(_halving(a, b) for a, b in itertools.pairwise(widths[1:]))
        for layer in self.extra.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.03)
        self.out_channels = widths
        self.strides = (*body.strides[-2:], *(body.strides[-1] * 2**power for power in range(1, len(channels) + 1)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps by torchvision's names, shallow to deep."""
        maps = self.body(images)[-2:]
        for block in self.extra:
            maps.append(block(maps[-1]))
        return OrderedDict((str(index), map_) for index, map_ in enumerate(maps))


def _level(channels: int, stride: int, target: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    while stride > target:
        if layers:
            layers += [LayerNorm2d(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, 2))
        channels, stride = channels // 2, stride // 2
    while stride < target:
        layers.append(_HalfByMaximum())
        stride *= 2
    return nn.Sequential(
        *layers,
        nn.Conv2d(channels, out_channels, 1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    )


class _HalfByMaximum(nn.Module):
    """Half the size, rounded up as strided convolutions do."""

    def forward(self, map_: Tensor) -> Tensor:
        return F.max_pool2d(map_, 2, 2, ceil_mode=True)


def _halving(channels: int, out_channels: int) -> nn.Sequential:
    """SSDLite's added map: 1x1 to half the width, 3x3 depthwise over every second cell, 1x1."""

    def layer(wide: int, out: int, size: int, stride: int = 1, groups: int = 1) -> Conv2dNormActivation:
        return Conv2dNormActivation(
            wide, out, size, stride, groups=groups, norm_layer=ssd_norm, activation_layer=nn.ReLU6
        )

    middle = out_channels // 2
    return nn.Sequential(
        layer(channels, middle, 1), layer(middle, middle, 3, 2, middle), layer(middle, out_channels, 1)
    )


def ssd_norm(channels: int) -> nn.BatchNorm2d:
    """The batch norm of SSDLite's head and added maps."""
    return nn.BatchNorm2d(channels, eps=0.001, momentum=0.03)
