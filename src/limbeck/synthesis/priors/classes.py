"""The teacher recognises the class that was asked for."""

import torch.nn.functional as F
from torch import Tensor

from limbeck.outputs import ModelFacts
from limbeck.synthesis.priors.base import Needs, Prior, Seen
from limbeck.synthesis.priors.precision import full


class ClassLoss(Prior):
    """Cross-entropy of the teacher's logits to the classes asked for, averaged over what it was shown.

    Zero for a teacher with a single class: its softmax is 1 whatever the picture.

    Args:
        facts: of the teacher.
    """

    needs = Needs()

    def __init__(self, facts: ModelFacts) -> None:
        if facts.num_classes == 1:
            self.notes = (f"{facts.name} has one class only, which says nothing about pictures: no class loss",)

    def __call__(self, seen: Seen) -> Tensor:
        """Mean of -log softmax(t)[asked]."""
        assert seen.asked is not None, "the class loss wants classes to be asked for"
        return F.cross_entropy(full(seen.outputs.logits), seen.asked)
