"""Fast-DFKD's target for BatchNorm: what was made lately, together with the pictures of now, has the moments of training.

Each batch alone need not look like the whole of the training data; the code of Fast-DFKD and NAYER (arXiv:2112.06253,
arXiv:2310.00258) therefore compares a mixture of a running mean over earlier batches with the one at hand.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.synthesis.priors.base import LayerStatistics, Needs, Prior, Seen
from limbeck.synthesis.priors.batch_statistics import BatchStatistics


class BlendedStatistics(Prior):
    """`BatchStatistics` of m·(running mean of synthetic moments) + (1 - m)·(this batch's).

    Until the first call of `remember`, that of the batch's own moments.

    Args:
        model: the teacher.
        momentum: m in [0, 1); 0 is `BatchStatistics` itself.

    Raises:
        UserError: the teacher has no BatchNorm layer.
    """

    needs = Needs(batchnorm=True)

    def __init__(self, model: nn.Module, momentum: float) -> None:
        # The published code weighs all layers alike, unlike DeepInversion.
        self.compare = BatchStatistics(model, first_weight=1.0)
        self.momentum = momentum
        self.moments: list[tuple[Tensor, Tensor]] = []
        self._latest: list[tuple[Tensor, Tensor]] = []

    def __call__(self, seen: Seen) -> Tensor:
        """See above; gradients go through this batch's part only."""
        self._latest = [(layer.mean.detach(), layer.variance.detach()) for layer in seen.statistics]
        return self.compare(replace(seen, statistics=self.blended(seen.statistics)))

    def blended(self, statistics: Sequence[LayerStatistics]) -> list[LayerStatistics]:
        """The mixture, layer by layer."""
        if not self.moments:
            return list(statistics)
        m = self.momentum
        return [
            replace(
                layer,
                mean=m * mean.to(layer.mean.device) + (1 - m) * layer.mean,
                variance=m * variance.to(layer.variance.device) + (1 - m) * layer.variance,
            )
            for layer, (mean, variance) in zip(statistics, self.moments, strict=True)
        ]

    def remember(self) -> None:
        """Take the last pass into the running means: a batch is finished."""
        if not self.momentum or not self._latest:
            return
        if not self.moments:
            self.moments = self._latest
            return
        m = self.momentum
        self.moments = [
            (
                m * mean.to(new_mean.device) + (1 - m) * new_mean,
                m * variance.to(new_mean.device) + (1 - m) * new_variance,
            )
            for (mean, variance), (new_mean, new_variance) in zip(self.moments, self._latest, strict=True)
        ]

    def forget(self) -> None:
        """As new."""
        self.moments, self._latest = [], []

    def state_dict(self) -> dict[str, Any]:
        """The running means."""
        return {"moments": [[mean.clone(), variance.clone()] for mean, variance in self.moments]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up again."""
        self.moments = [(torch.as_tensor(mean), torch.as_tensor(variance)) for mean, variance in state["moments"]]
        self._latest = []
