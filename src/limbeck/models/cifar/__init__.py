"""Our own networks for small images: those that the distillation literature measures itself with on CIFAR-100.

Their names are known without importing torch; a network's file is imported when one is made.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from limbeck.errors import UserError

if TYPE_CHECKING:
    from limbeck.models.base import VisionModel

Factory = Callable[[str, int, float, tuple[int, int]], "VisionModel"]
"""From (name, num_classes, drop_path, input_size) to a network with random weights."""


def create(
    name: str,
    num_classes: int,
    drop_path: float = 0.0,
    input_size: tuple[int, int] = (32, 32),
    others: Iterable[str] = (),
) -> "VisionModel":
    """One of our networks, with random weights.

    Args:
        name: a key of `NETWORKS`, or `wrn_DEPTH_WIDENING` with any depth 6n + 4 from 10 on.
        num_classes: K of the logits.
        drop_path: stochastic depth of the deepest residual block in [0, 1), growing linearly from 0 at the first; a
            network without residual branches notes in its provenance that this has no effect.
        input_size: (height, width) in pixels, positive multiples of 8.
        others: names of networks made elsewhere, for the message about a name that is none.

    Raises:
        UserError: there is no such network, or an argument is out of range.
    """
    factory = NETWORKS.get(name) or _other_wide_resnet(name)
    if factory is None:
        known = (*NETWORKS, *others)
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise UserError(f"There is no network limbeck:{name}. {hint}The networks are {', '.join(known)}.")
    return factory(name, num_classes, drop_path, input_size)


def _resnet(depth: int, stem_channels: int = 16, channels: tuple[int, int, int] = (16, 32, 64)) -> Factory:
    def build(name: str, num_classes: int, drop_path: float, input_size: tuple[int, int]) -> "VisionModel":
        from limbeck.models.cifar.resnet import cifar_resnet

        return cifar_resnet(
            name,
            num_classes,
            drop_path,
            input_size,
            depth=depth,
            stem_channels=stem_channels,
            channels=channels,
        )

    return build


def _wide_resnet(depth: int, widening: int) -> Factory:
    def build(name: str, num_classes: int, drop_path: float, input_size: tuple[int, int]) -> "VisionModel":
        from limbeck.models.cifar.wide_resnet import wide_resnet

        return wide_resnet(name, num_classes, drop_path, input_size, depth=depth, widening=widening)

    return build


def _other_wide_resnet(name: str) -> Factory | None:
    match = re.fullmatch(r"wrn_([1-9]\d{1,2})_([1-9]\d?)", name)
    if match is None or (int(match[1]) - 4) % 6:
        return None
    return _wide_resnet(int(match[1]), int(match[2]))


def _vgg(convolutions: int) -> Factory:
    def build(name: str, num_classes: int, drop_path: float, input_size: tuple[int, int]) -> "VisionModel":
        from limbeck.models.cifar.vgg import cifar_vgg

        return cifar_vgg(name, num_classes, drop_path, input_size, convolutions=convolutions)

    return build


def _mobilenetv2_half(name: str, num_classes: int, drop_path: float, input_size: tuple[int, int]) -> "VisionModel":
    from limbeck.models.cifar.mobilenetv2 import mobilenetv2_half

    return mobilenetv2_half(name, num_classes, drop_path, input_size)


def _shufflenetv1(name: str, num_classes: int, drop_path: float, input_size: tuple[int, int]) -> "VisionModel":
    from limbeck.models.cifar.shufflenet import shufflenetv1

    return shufflenetv1(name, num_classes, drop_path, input_size)


def _shufflenetv2(name: str, num_classes: int, drop_path: float, input_size: tuple[int, int]) -> "VisionModel":
    from limbeck.models.cifar.shufflenet import shufflenetv2

    return shufflenetv2(name, num_classes, drop_path, input_size)


def _resnet50(name: str, num_classes: int, drop_path: float, input_size: tuple[int, int]) -> "VisionModel":
    from limbeck.models.cifar.resnet50 import cifar_resnet50

    return cifar_resnet50(name, num_classes, drop_path, input_size)


NETWORKS: dict[str, Factory] = {
    "resnet8": _resnet(8),
    "resnet14": _resnet(14),
    "resnet20": _resnet(20),
    "resnet32": _resnet(32),
    "resnet44": _resnet(44),
    "resnet56": _resnet(56),
    "resnet110": _resnet(110),
    "resnet8x4": _resnet(8, 32, (64, 128, 256)),
    "resnet32x4": _resnet(32, 32, (64, 128, 256)),
    "wrn_16_2": _wide_resnet(16, 2),
    "wrn_40_1": _wide_resnet(40, 1),
    "wrn_40_2": _wide_resnet(40, 2),
    "vgg8": _vgg(1),
    "vgg13": _vgg(2),
    "mobilenetv2_half": _mobilenetv2_half,
    "shufflenetv1": _shufflenetv1,
    "shufflenetv2": _shufflenetv2,
    "resnet50_cifar": _resnet50,
}
"""Our networks by name."""
