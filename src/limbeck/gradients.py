"""How hard each term of a loss pulls on the student's parameters, and whether two terms pull the same way.

The total's gradient is the sum of w_i g_i over its terms. Its parts are compared by their lengths w_i ||g_i||, the *pull* of a
term, and by the cosine of the angle between two of them, <g_i, g_j> / (||g_i|| ||g_j||), which no weight changes: 1 is one
direction, 0 is indifference, -1 is one term undoing what the other does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor, nn

TASK = "task"
"""The name of the supervised term, to which the others are compared."""

CHUNK = 1 << 20
"""Numbers that are multiplied in double precision at a time."""


@dataclass(frozen=True)
class Gradients:
    """The gradients of a loss's terms with respect to the student's parameters, measured on one batch.

    Attributes:
        lengths: Euclidean norm of each unweighted term's gradient; 0 for a term that does not reach the student.
        weights: what each term was multiplied by; the same names.
        cosines: of each pair of terms whose gradients are not zero, the supervised term first.
    """

    lengths: dict[str, float]
    weights: dict[str, float]
    cosines: dict[tuple[str, str], float]

    @property
    def norms(self) -> dict[str, float]:
        """The pull of each term: its weight times its length."""
        return {name: self.weights[name] * length for name, length in self.lengths.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """Each other term's pull relative to the supervised one's; empty where that one does not pull."""
        norms = self.norms
        task = norms.pop(TASK, 0.0)
        return {name: norm / task for name, norm in norms.items()} if task > 0 else {}

    def weighted(self, weights: Mapping[str, float]) -> "Gradients":
        """The same gradients under other weights, those of terms that were not measured left out."""
        return replace(self, weights={name: weights[name] for name in self.lengths})

    def record(self) -> dict[str, float]:
        """All of it as one flat record: the pull under a term's name, then `weight/`, `ratio/` and `cosine/a|b`."""
        return {
            **self.norms,
            **{f"weight/{name}": weight for name, weight in self.weights.items()},
            **{f"ratio/{name}": ratio for name, ratio in self.ratios.items()},
            **{f"cosine/{a}|{b}": cosine for (a, b), cosine in self.cosines.items()},
        }


def measure_gradients(
    terms: Mapping[str, Tensor], weights: Mapping[str, float], parameters: Sequence[nn.Parameter]
) -> Gradients:
    """Compare the gradients of terms that share one graph, which is kept.

    Memory: one flat copy of the parameters for each term, and one more while a copy is made.

    Args:
        terms: unweighted scalars.
        weights: of the terms to be measured, 0 or more.
        parameters: with respect to which; terms and parameters may be independent of each other.
    """
    names = sorted(weights, key=lambda name: name != TASK)
    flat = {name: one for name in names if (one := _flat_gradient(terms[name], parameters)) is not None}
    squares = [_dot(gradient, gradient) for gradient in flat.values()]
    pairs = list(combinations(flat, 2))
    products = [_dot(flat[a], flat[b]) for a, b in pairs]
    # One journey to the host for all numbers.
    numbers = torch.stack([*squares, *products]).tolist() if squares else []
    found = {name: number**0.5 for name, number in zip(flat, numbers, strict=False)}
    cosines = {
        (a, b): max(-1.0, min(1.0, product / (found[a] * found[b])))
        for (a, b), product in zip(pairs, numbers[len(flat) :], strict=True)
        if found[a] > 0 and found[b] > 0
    }
    return Gradients({name: found.get(name, 0.0) for name in names}, {name: weights[name] for name in names}, cosines)


def _flat_gradient(term: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor | None:
    """(P,) of all parameters in their order, zeros where the term does not reach; None where it reaches none."""
    if not parameters or not term.requires_grad:
        return None
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        return None
    pieces = [
        parameter.new_zeros(parameter.numel()) if gradient is None else gradient.reshape(-1)
        for gradient, parameter in zip(gradients, parameters, strict=True)
    ]
    return torch.cat(pieces)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of two flat tensors, in double precision where the device has it; a scalar."""
    accurate = torch.float32 if a.device.type == "mps" else torch.float64
    parts = [
        x.to(accurate) @ y.to(accurate) for x, y in zip(a.detach().split(CHUNK), b.detach().split(CHUNK), strict=True)
    ]
    return torch.stack(parts).sum()
