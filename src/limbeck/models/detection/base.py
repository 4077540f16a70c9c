"""The one interface behind which every library's detector stands.

A detector takes pictures in [0, 1] that somebody has resized, and normalises for itself; so teacher and student see the
same picture at the same size, and their maps lie on the same grid.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.detection import DetectionOutputs, DetectorFacts, Found, Pictures, Resize, Size, Target
from limbeck.models.base import Provenance
from limbeck.outputs import Request


class Detector(nn.Module, ABC):
    """A detector or instance segmenter that can return what it computes on the way.

    Attributes:
        facts: classes and levels, known before any picture is seen.
        provenance: licence and source of the weights.
        rebuild: plain values from which `limbeck.models.detection.door.rebuild` makes the same architecture without
            weights (written to a run's `model.json`).
        resize: the size at which it wants to see an image.
        network: the library's own module, whose tensors are saved.
    """

    facts: DetectorFacts
    provenance: Provenance
    rebuild: dict[str, Any]
    resize: Resize
    network: nn.Module

    @abstractmethod
    def forward(
        self, pictures: Pictures, targets: Sequence[Target] | None = None, request: Request | None = None
    ) -> DetectionOutputs:
        """The losses, if there are targets, and whatever is requested, of one batch; nothing else is computed.

        In training mode the losses, their gradients and the random numbers they draw are exactly those of the
        library's own training forward on these pictures.

        Args:
            pictures: already resized; any size.
            targets: one for each picture; None computes no loss.
            request: what to return.

        Raises:
            UserError: a mask is missing that the detector learns from.
        """

    @abstractmethod
    def detect(self, pictures: Pictures, sizes: Sequence[Size]) -> list[Found]:
        """What it finds, as the library's own inference would say, in pixels of images of the given sizes.

        Args:
            pictures: already resized; any size.
            sizes: (height, width) of each image before it was resized.
        """


def over_padding(map_: Tensor, grid: Size, filling: float = 0.0) -> Tensor:
    """A map of what a network saw as one over the padded pictures, of which it saw less or more; by whole cells.

    Args:
        map_: (B, C, H, W).
        grid: (rows, columns) that the padded pictures have.
        filling: of cells that nothing was computed for.
    """
    rows, columns = grid
    if map_.shape[-2:] == (rows, columns):
        return map_
    return F.pad(map_, (0, columns - map_.shape[-1], 0, rows - map_.shape[-2]), value=filling)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for (
            part,
            mode,
        ) in modes:  # parents come first; `train` and not the flag, since some parts forget cached values in it
            part.train(mode)
