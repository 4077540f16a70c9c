"""VGG-8 and VGG-13 with batch norm for 32-pixel images (Simonyan and Zisserman, 2015).

Five blocks of 64, 128, 256, 512, 512 channels with one (VGG-8) or two (VGG-13) 3x3 convolutions with bias. A 2x2
max-pool follows the first three; the fourth's pool is left out, which is the 32-pixel form of the distillation
literature, and is done here at every size. The first block is the stem; a level is read before the pool that follows.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.models.cifar.base import CifarNetwork, PlainLast, Tap, without_drop_path


def cifar_vgg(
    name: str,
    num_classes: int,
    drop_path: float = 0.0,
    input_size: tuple[int, int] = (32, 32),
    *,
    convolutions: int,
) -> CifarNetwork:
    """A VGG of five blocks.

    Args:
        name: without the `limbeck:`.
        num_classes: K of the logits.
        drop_path: has no effect on a network without residual branches; the provenance notes it.
        input_size: (height, width), multiples of 8.
        convolutions: in each block, 1 for VGG-8 and 2 for VGG-13.
    """
    widths = (64, 128, 256, 512, 512)
    pooled_before = (False, True, True, True, False)
    blocks = [
        VGGBlock(in_channels, out_channels, convolutions, pool)
        for in_channels, out_channels, pool in zip((3, *widths), widths, pooled_before, strict=False)
    ]
    return CifarNetwork(
        name,
        num_classes,
        input_size,
        stem=VGGStem(blocks[0]),
        stages=blocks[1:],
        last=PlainLast(),
        channels=widths[1:],
        strides=(2, 4, 8, 8),
        final_channels=widths[-1],
        preactivation=True,
        notes=without_drop_path(name, drop_path),
    )


class VGGBlock(nn.Module):
    """A 2x2 max-pool of the input where asked, then convolutions with norm, with ReLU after each."""

    def __init__(self, in_channels: int, out_channels: int, convolutions: int, pool: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
        for index in range(convolutions):
            layers += [nn.ReLU()] if index else []
            layers += [
                nn.Conv2d(out_channels if index else in_channels, out_channels, 3, padding=1),
                nn.BatchNorm2d(out_channels),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, tap: Tap) -> Tap:
        """The last norm's output, with and without ReLU."""
        normed = self.layers(tap.plain)
        return Tap(F.relu(normed), normed)


class VGGStem(nn.Module):
    """The first block, applied to images."""

    def __init__(self, block: VGGBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, images: Tensor) -> Tap:
        """Images (B, 3, H, W) to the first block's map."""
        tap: Tap = self.block(Tap(images))
        return tap
