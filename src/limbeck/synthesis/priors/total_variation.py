"""Total variation: neighbouring pixels of photographs are alike.

Mahendran and Vedaldi, CVPR 2015; in the forms of DeepInversion (Yin et al., CVPR 2020), PSAQ-ViT (Li et al., ECCV 2022)
and MimiQ (Choi et al., AAAI 2025).

The published values are norms of a whole batch, so that their weights belong to one batch size and one resolution. Here
each image counts for itself, in the published units:

    a batch of B images, each with P_d neighbouring pairs of values in direction d and the same root mean square r_d of
    their differences, has the published value  Σ_d ‖Δ_d‖₂ = Σ_d sqrt(B · P_d) · r_d

so with `reference` = (B, H, W) of the publication, the published weight applies to

    TV(x) = sqrt(B_ref) · Σ_d sqrt(P_d(H_ref, W_ref)) · r_d(x)

averaged over images. At the reference's size and batch the two agree, in value and in the gradient beside a class loss
averaged over the batch, where the images vary alike; elsewhere this one depends on neither.
"""

import math

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.synthesis.priors.base import Needs, Prior, Seen
from limbeck.synthesis.priors.pictures import Which, pictures

Reference = tuple[int, int, int]
IMAGENET: Reference = (32, 224, 224)
"""Batch, height and width to which the weights of PSAQ-ViT, MimiQ and SMI belong."""


def absolute_variation(images: Tensor) -> Tensor:
    """Σ over four directions of mean |Δ|.

    Args:
        images: (B, C, H, W), at least 2 pixels high and wide.

    Returns:
        A scalar. It depends neither on the batch's size nor on the resolution, so published weights apply as they are.
    """
    return torch.stack([difference.abs().mean() for difference in _differences(images)]).sum()


def total_variation(images: Tensor, reference: Reference = IMAGENET, diagonal: float = 1.0) -> Tensor:
    """sqrt(B_ref) · Σ_d c_d · sqrt(P_d(ref) / P_d) · ‖Δ_d‖₂ of each image.

    Args:
        images: (B, C, H, W), at least 2 pixels high and wide.
        reference: (batch, height, width) to which the weight belongs.
        diagonal: c_d of the two diagonal directions; 1 in DeepInversion and PSAQ-ViT, 1/√2 in MimiQ.

    Returns:
        (B,), in units of a norm over the reference's batch.
    """
    batch, height, width = reference
    total = images.new_zeros(len(images))
    for difference, pairs, factor in zip(
        _differences(images), _pairs(height, width), (1.0, 1.0, diagonal, diagonal), strict=True
    ):
        here = difference.shape[-2] * difference.shape[-1]
        norm = torch.linalg.vector_norm(difference.flatten(1), dim=1)
        total = total + factor * math.sqrt(batch * pairs / here) * norm
    return total


class AbsoluteVariation(Prior):
    """`absolute_variation` (TV-L1).

    Args:
        of: the pictures as they are made, or as they were shown.
    """

    needs = Needs()

    def __init__(self, *, of: Which = "shown") -> None:
        self.of: Which = of

    def __call__(self, seen: Seen) -> Tensor:
        """See `absolute_variation`."""
        return absolute_variation(pictures(seen, self.of))


class TotalVariation(Prior):
    """`total_variation` (TV-L2), averaged over images. The published weight applies with the publication's `reference`.

    Args:
        of: the pictures as they are made (MimiQ), or as they were shown (DeepInversion, PSAQ-ViT).
        reference: (batch, height, width) to which the weight belongs: (32, 224, 224) in PSAQ-ViT, MimiQ and SMI,
            (84, 224, 224) and on CIFAR (256, 32, 32) in DeepInversion.
        diagonal: weight of the two diagonal directions.
    """

    needs = Needs()

    def __init__(self, *, of: Which = "images", reference: Reference = IMAGENET, diagonal: float = 1.0) -> None:
        self.of: Which = of
        self.reference = reference
        self.diagonal = diagonal

    def __call__(self, seen: Seen) -> Tensor:
        """See `total_variation`."""
        return total_variation(pictures(seen, self.of), self.reference, self.diagonal).mean()


class TargetVariation(Prior):
    """PSAQ-ViT's |TV - U|: as much variation as photographs have, neither less nor more.

    U is uniform between `low` and `high`, drawn once for each batch of pictures. The published range is that of a batch
    of 32 at 224 x 224, hence of `total_variation` with that reference. Inferred: that each image has to come near U on
    its own; published is the batch as a whole. Published weight 0.05.

    Args:
        low, high: of U, in units of a norm over 32 images of 224 x 224.
        of: the pictures as they are made, or as they were shown.

    Raises:
        UserError: the range is empty or negative.
    """

    needs = Needs()

    def __init__(self, *, low: float = 2500.0, high: float = 3000.0, of: Which = "shown") -> None:
        if not 0 <= low <= high:
            raise UserError(f"The range of the total variation is {low} to {high}; it must be 0 <= low <= high.")
        self.low, self.high = low, high
        self.of: Which = of
        self.target = (low + high) / 2  # until a batch begins

    def advance(self, progress: float) -> None:
        """Draw another target where a new batch begins."""
        if progress == 0:
            self.target = self.low + (self.high - self.low) * float(torch.rand(()))

    def __call__(self, seen: Seen) -> Tensor:
        """Mean over images of |TV - U|."""
        return (total_variation(pictures(seen, self.of)) - self.target).abs().mean()


def _differences(images: Tensor) -> list[Tensor]:
    """To the right, downwards, and along both diagonals."""
    assert min(images.shape[-2:]) >= 2, "single rows or columns have no neighbours"
    return [
        images[..., :, 1:] - images[..., :, :-1],
        images[..., 1:, :] - images[..., :-1, :],
        images[..., 1:, 1:] - images[..., :-1, :-1],
        images[..., 1:, :-1] - images[..., :-1, 1:],
    ]


def _pairs(height: int, width: int) -> tuple[int, int, int, int]:
    inner = (height - 1) * (width - 1)
    return height * (width - 1), (height - 1) * width, inner, inner
