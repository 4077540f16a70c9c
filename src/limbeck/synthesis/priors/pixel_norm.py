"""The l2 term of DeepInversion (Yin et al., CVPR 2020, arXiv:1912.08795): pixels stay near the data's mean."""

import math

import torch
from torch import Tensor

from limbeck.synthesis.priors.base import Needs, Prior, Seen
from limbeck.synthesis.priors.pictures import Which, pictures


def pixel_norm(images: Tensor, reference: tuple[int, int] = (224, 224)) -> Tensor:
    """sqrt(H_ref · W_ref / (H · W)) · mean_b ‖x_b‖₂.

    The published term is the mean norm alone, which does not depend on the batch but grows with the side of the image;
    the factor makes it what it is at the publication's resolution.

    Args:
        images: (B, C, H, W), normalised, so that 0 is the data's mean colour.
        reference: (height, width) to which the weight belongs.

    Returns:
        A scalar.
    """
    norms = torch.linalg.vector_norm(images.flatten(1), dim=1)
    mean: Tensor = norms.mean() * math.sqrt(math.prod(reference) / math.prod(images.shape[-2:]))
    return mean


class PixelNorm(Prior):
    """`pixel_norm`. Published weight 1e-5 on ImageNet, 0 on CIFAR.

    Args:
        of: the pictures as they are made, or as they were shown.
        reference: (height, width) to which the weight belongs.
    """

    needs = Needs()

    def __init__(self, *, of: Which = "shown", reference: tuple[int, int] = (224, 224)) -> None:
        self.of: Which = of
        self.reference = reference

    def __call__(self, seen: Seen) -> Tensor:
        """See `pixel_norm`."""
        return pixel_norm(pictures(seen, self.of), self.reference)
