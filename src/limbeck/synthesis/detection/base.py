"""What every way of making annotated pictures for a detector is; the counterpart of `limbeck.synthesis.base`.

A classifier's pictures carry at most the class that they were made for, a detector's carry boxes, and masks where the
detector predicts them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.detection import Found, Pictures, Size, Target
from limbeck.models.detection.base import Detector
from limbeck.synthesis.way import Way

_DIVISOR = 32


@dataclass(frozen=True)
class DetectionSetting:
    """What is given to every way of making annotated pictures.

    Attributes:
        teacher: on its device; frozen and put into evaluation mode here. No way may change it.
        size: (height, width) in pixels of the pictures.
        batch_size: pictures that are made together.
        seed: of everything random.
        say: takes a line for a person about what takes long; None says nothing. The pictures do not depend on it.
    """

    teacher: Detector
    size: Size
    batch_size: int = 8
    seed: int = 0
    say: Callable[[str], None] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        self.teacher.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where the teacher is, and everything is computed."""
        return next(self.teacher.parameters()).device

    @property
    def class_names(self) -> tuple[str, ...]:
        """The teacher's, in label order."""
        return self.teacher.facts.class_names


@dataclass
class MadeScenes:
    """Finished annotated pictures.

    Attributes:
        images: (N, 3, height, width) float in [0, 1], on any device, without gradient.
        targets: of each picture, boxes in its pixels; masks where the teacher predicts masks. At least one object each.
    """

    images: Tensor
    targets: list[Target]

    def __len__(self) -> int:
        return len(self.images)


class SceneSynthesis(Way[DetectionSetting, MadeScenes]):
    """A way of making annotated pictures.

    Subclasses take `setting` first and keyword-only options, and say in their docstring what each option is.
    """


def as_pictures(images: Tensor) -> Pictures:
    """A batch as detectors take it, padded to multiples of 32 as their loaders do; gradients pass.

    Args:
        images: (B, 3, height, width) in [0, 1].
    """
    height, width = (int(side) for side in images.shape[-2:])
    return Pictures(F.pad(images, (0, -width % _DIVISOR, 0, -height % _DIVISOR)), ((height, width),) * len(images))


@torch.no_grad()
def find(teacher: Detector, images: Tensor) -> list[Found]:
    """What a teacher finds in pictures of one size, in their pixels; boxes are clipped to the picture.

    Args:
        teacher: in whatever mode it is.
        images: (B, 3, height, width) in [0, 1].
    """
    pictures = as_pictures(images)
    found = teacher.detect(pictures, pictures.sizes)
    height, width = images.shape[-2:]
    limits = images.new_tensor([width, height, width, height])
    return [replace(one, boxes=one.boxes.clamp(min=0).minimum(limits)) for one in found]
