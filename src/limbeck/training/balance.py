"""Keeps chosen shares of the pull: weights of distillation terms that follow from the measured gradients.

The *pull* of a term is w ||g||, its weight times the norm of its gradient with respect to the student's parameters. Of a term
with a chosen share s_i, the weight is set so that

    w_i ||g_i|| = s_i S,      S = R / (1 - sum of the s),

where R is the pull of everything that was not named: the supervised term and the other distillation terms, which keep their
own weights and so hold the rest between them, in their own proportion. Where nothing else pulls (no labels, every term
named), shares are relative to each other and S is what the named terms pull with their own weights.

||g|| does not depend on the weights, so this is a formula and no control loop: one measurement is enough, and further ones
follow its change. They are noisy, so the logarithms of the norms are smoothed. Nothing is published for this; it is our own,
near to GradNorm (Chen et al. 2018, arXiv:1711.02257), which learns its weights.
"""

import math
from collections.abc import Mapping
from typing import Any

from limbeck.distiller import Distillation
from limbeck.errors import UserError
from limbeck.gradients import TASK, Gradients

EVERY = 50
"""Steps between measurements, beside the one at an epoch's start. With 32 images and three terms one costs about as much as one
step of 128 images, so 2 % of the time."""

KEPT = 0.7
"""Share of the past in the smoothed logarithm of a norm, per measurement: half of a change is followed after two."""

BOUND = 1e4
"""The most by which a weight is multiplied or divided. A term that needs more does not reach the student."""


class Balancer:
    """Sets the factors of a distiller's weights so that terms keep their shares of the pull.

    Warm-up multiplies the weight found, so during it a term has less than its share. A named term whose gradient is zero keeps
    its factor, and its share goes to nobody.

    Args:
        distiller: whose factors are set.
        shares: term to share, from `check_shares`.
    """

    def __init__(self, distiller: Distillation[Any], shares: Mapping[str, float]) -> None:
        self.distiller = distiller
        self.shares = dict(shares)
        self.weights = {name: weight for name, weight, _ in distiller.schedule}
        self.logarithms: dict[str, float] = {}

    def is_due(self, batch: int) -> bool:
        """Whether the norms are to be measured before this batch of the epoch, counted from 0."""
        return batch % EVERY == 0

    def factors(self, gradients: Gradients) -> dict[str, float]:
        """Take note of a measurement, and give the factors that follow from all so far."""
        for name, length in gradients.lengths.items():
            if length > 0 and math.isfinite(length):
                before = self.logarithms.get(name, math.log(length))
                self.logarithms[name] = KEPT * before + (1 - KEPT) * math.log(length)
        lengths = {name: math.exp(value) for name, value in self.logarithms.items()}
        own = self.weights | {TASK: self.distiller.task_weight}
        rest = sum(own[name] * length for name, length in lengths.items() if name not in self.shares)
        reached = {name: share for name, share in self.shares.items() if name in lengths}
        factors = dict(self.distiller.factors)
        if not reached:
            return factors
        pull = rest or sum(own[name] * lengths[name] for name in reached)
        whole = pull / (1 - sum(self.shares.values()) if rest else sum(reached.values()))
        for name, share in reached.items():
            wanted = share * whole / (own[name] * lengths[name])
            factors[name] = min(BOUND, max(1 / BOUND, wanted))
        return factors

    def state_dict(self) -> dict[str, Any]:
        """The smoothed norms and the factors, as plain values."""
        return {"logarithms": dict(self.logarithms), "factors": dict(self.distiller.factors)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up again."""
        self.logarithms = dict(state["logarithms"])
        self.distiller.set_factors(state["factors"])


def check_shares(shares: Mapping[str, float], distiller: Distillation[Any]) -> dict[str, float]:
    """The shares, once they are known to fit a distiller.

    Args:
        shares: term to share, each above 0; from `limbeck.losses.names.parse_shares`.
        distiller: with the terms.

    Raises:
        UserError: a name is no distillation term or its weight is 0, or nothing is left for the other terms.
    """
    weights = {name: weight for name, weight, _ in distiller.schedule}
    if unknown := [name for name in shares if name not in weights]:
        known = f"The terms are {', '.join(weights)}" if weights else "This method has no distillation term"
        task = " The supervised loss keeps what the others leave." if TASK in unknown else ""
        raise UserError(f"--balance names {', '.join(unknown)}, which the method does not have. {known}.{task}")
    if silent := [name for name in shares if not weights[name] > 0]:
        raise UserError(
            f"--balance gives a share to {', '.join(silent)}, whose weight is 0. Give it a weight, or leave it out."
        )
    others = [TASK] if distiller.supervised and distiller.task_weight > 0 else []
    others += [name for name, weight in weights.items() if name not in shares and weight > 0]
    whole = sum(shares.values())
    if others and whole > 1 - 1e-6:
        raise UserError(
            f"--balance gives away {100 * whole:.4g} % of the pull, and nothing is left for {', '.join(others)}. "
            "Let the shares add up to less than 1."
        )
    return dict(shares)
