"""DeepInversion's prior: what enters the BatchNorm layers has the moments that it had in training.

Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020, arXiv:1912.08795.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.synthesis.batchnorm import batchnorm_layers
from limbeck.synthesis.priors.base import LayerStatistics, Needs, Prior, Seen
from limbeck.synthesis.priors.precision import full


def batch_statistics(statistics: Sequence[LayerStatistics], first_weight: float = 10.0) -> Tensor:
    """Σ_l w_l · (‖μ_l - μ̂_l‖₂ + ‖σ²_l - σ̂²_l‖₂), w = `first_weight` for the first layer and 1 for the others.

    Args:
        statistics: of the layers, in the order in which they ran; at least one.
        first_weight: w_0.

    Returns:
        A scalar. Moments of a batch are means over its images, so its size does not matter beyond their noise.
    """
    terms = torch.stack(
        [
            torch.linalg.vector_norm(full(layer.mean) - full(layer.running_mean))
            + torch.linalg.vector_norm(full(layer.variance) - full(layer.running_variance))
            for layer in statistics
        ]
    )
    return first_weight * terms[0] + terms[1:].sum()


class BatchStatistics(Prior):
    """`batch_statistics` of the teacher. Published weights 0.01 on ImageNet, 10 on CIFAR-10.

    Args:
        model: the teacher.
        first_weight: of the first layer, relative to the others.

    Raises:
        UserError: it has no BatchNorm layer.
    """

    needs = Needs(batchnorm=True)

    def __init__(self, model: nn.Module, *, first_weight: float = 10.0) -> None:
        if not batchnorm_layers(model):
            name = getattr(getattr(model, "facts", None), "name", type(model).__name__)
            raise UserError(
                f"{name} has no BatchNorm layers, so nothing is known of what entered them in training. For transformers use "
                "mimiq, psaq or invert; or collect its token moments on some real images (`limbeck statistics`)."
            )
        self.first_weight = first_weight

    def __call__(self, seen: Seen) -> Tensor:
        """See `batch_statistics`."""
        return batch_statistics(seen.statistics, self.first_weight)
