"""CMI's contrast of a picture with all earlier ones (Fang et al., IJCAI 2021, arXiv:2105.08584, section 3.3).

Two views of a picture shall be alike, and unlike all other pictures, in a small learned projection of the means of the
teacher's channels. The published choice of channels is what enters the BatchNorm layers, or the stages of a ResNet-34;
here it is up to four of the network's levels, which every network has.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.outputs import ModelFacts, Outputs

MOST_LEVELS = 4


def info_nce(anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean over pictures i of −log( exp(a_i·p_i/τ) / ( Σ_j exp(a_i·p_j/τ) + Σ_n exp(a_i·n/τ) ) ).

    Args:
        anchors: (B, D) of length 1, of one view of each picture.
        positives: (B, D) of length 1, of another view; those of the other pictures are negatives.
        negatives: (M, D) of length 1, of other pictures; M may be 0.
        temperature: τ > 0.

    Returns:
        A scalar; log(B + M) where all are equal.
    """
    logits = anchors @ torch.cat([positives, negatives]).T / temperature
    return F.cross_entropy(logits, torch.arange(len(anchors), device=logits.device))


def contrast_levels(facts: ModelFacts) -> tuple[str, ...]:
    """The names of up to four levels, evenly spaced, the deepest among them."""
    count = len(facts.levels)
    kept = min(count, MOST_LEVELS)
    return tuple(facts.levels[(index + 1) * count // kept - 1].name for index in range(kept))


def channel_means(outputs: Outputs, levels: tuple[str, ...]) -> Tensor:
    """(B, D): the mean of every channel of these levels' maps, one after the other."""
    return torch.cat([outputs.maps[name].float().mean((2, 3)) for name in levels], dim=1)


class ProjectionHead(nn.Module):
    """Linear -> ReLU -> Linear, to length 1.

    Args:
        entering: D of the channel means.
        width: of the hidden layer and of the result.
    """

    def __init__(self, entering: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(entering, width), nn.ReLU(inplace=True), nn.Linear(width, width))

    def forward(self, means: Tensor) -> Tensor:
        """(B, entering) to (B, width)."""
        return F.normalize(self.layers(means), dim=1)


class FeatureBank:
    """The channel means of the newest pictures, on the CPU; the oldest make room.

    Args:
        capacity: how many are kept.
        width: D of each.
    """

    def __init__(self, capacity: int, width: int) -> None:
        self.capacity = capacity
        self.rows = torch.zeros(0, width)
        self._next = 0

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, rows: Tensor) -> None:
        """Take in (B, D), in their order."""
        rows = rows.detach().cpu()[-self.capacity :]
        room = self.capacity - len(self.rows)
        self.rows = torch.cat([self.rows, rows[:room]])
        rest = rows[room:]
        places = (self._next + torch.arange(len(rest))) % self.capacity
        self.rows[places] = rest
        self._next = (self._next + len(rest)) % self.capacity

    def draw(self, count: int) -> Tensor:
        """(min(count, len), D), different ones, by torch's random numbers of the CPU."""
        return self.rows[torch.randperm(len(self.rows))[:count]]

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {"rows": self.rows.clone(), "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up again."""
        self.rows, self._next = state["rows"].clone(), int(state["next"])
