"""The one interface behind which every library's classifier stands.

A model takes images in [0, 1] and normalises and resizes for itself, so that a teacher and a student with
different statistics, sizes or libraries see the same picture.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.models.attention import last_patch_shares, reading_attention
from limbeck.outputs import ModelFacts, Outputs, Request


@dataclass
class Provenance:
    """Where a model's weights come from, for the recipe and the model card.

    Attributes:
        licence: SPDX name or the library's words; "unknown" where nobody says.
        source: hub name, file, run folder or "random initialisation".
        weights_sha256: of the weights as loaded (sorted state_dict bytes); None for random weights.
        notes: what happened on loading that the user should know (a replaced head, ...).
    """

    licence: str = "unknown"
    source: str = "random initialisation"
    weights_sha256: str | None = None
    notes: list[str] = field(default_factory=list)


class VisionModel(nn.Module, ABC):
    """A classifier that knows its own input and can return what it computes on the way.

    Attributes:
        facts: sizes and levels, known before any image is seen.
        provenance: licence and source of the weights.
        rebuild: plain values from which `limbeck.models.rebuild` makes the same architecture without weights
            (written to a run's `model.json`).
        mean, std: (1, 3, 1, 1) buffers, in [0, 1] units.
        interpolation: of the resize to `facts.input_size`, `bilinear` or `bicubic`.
    """

    facts: ModelFacts
    provenance: Provenance
    rebuild: dict[str, Any]
    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], interpolation: str = "bicubic") -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.interpolation = interpolation

    def prepare(self, images: Tensor) -> Tensor:
        """Resize to the model's own input size (antialiased) and normalise.

        Args:
            images: (B, 3, H, W) float in [0, 1].

        Returns:
            (B, 3, *input_size), normalised.
        """
        if tuple(images.shape[-2:]) != self.facts.input_size:
            images = F.interpolate(
                images, self.facts.input_size, mode=self.interpolation, align_corners=False, antialias=True
            ).clamp(0, 1)
        return (images - self.mean) / self.std

    def forward(self, images: Tensor, request: Request | None = None) -> Outputs:
        """Logits, and whatever else is requested, of one batch.

        Args:
            images: (B, 3, H, W) float in [0, 1], any size.
            request: what to return beside the logits. Attention is read here, of every library's networks alike.
        """
        inputs, request = self.prepare(images), request or Request()
        if not request.attention:
            return self.read(inputs, request)
        with reading_attention(self) as found:
            outputs = self.read(inputs, request)
        outputs.attention = last_patch_shares(found)
        return outputs

    @abstractmethod
    def read(self, inputs: Tensor, request: Request) -> Outputs:
        """As `forward`, for inputs already resized and normalised."""
