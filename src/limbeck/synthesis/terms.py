"""The loss of pictures that are being made: a weighted sum of terms, of which those that weigh nothing are not even made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.synthesis.priors.base import Prior, Seen


@dataclass(frozen=True)
class Term:
    """One weighted part of the loss.

    Attributes:
        name: for logs.
        weight: of its value.
        prior: what computes it.
    """

    name: str
    weight: float
    prior: Prior

    @property
    def reads_student(self) -> bool:
        """Whether it is nothing without a student."""
        return self.prior.needs.student or self.prior.needs.student_attention


def term(name: str, weight: float, make: Callable[[], Prior]) -> list[Term]:
    """The term, or none where its weight is 0: it is then neither made, which may be refused, nor paid for."""
    return [Term(name, weight, make())] if weight else []


def weighed(terms: Sequence[Term], seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and every term by name with the weighted sum as `loss`."""
    values = {term.name: term.prior(seen) for term in terms}
    loss = torch.stack([term.weight * values[term.name] for term in terms]).sum()
    return loss, {name: value.detach() for name, value in {**values, "loss": loss}.items()}
