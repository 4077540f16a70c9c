"""What a model computes of some images on the way, one vector an image and level."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.models.base import VisionModel
from limbeck.outputs import Outputs, Request


@torch.no_grad()
def read_features(
    model: VisionModel, names: Sequence[str], batches: Iterable[dict[str, Tensor]], device: torch.device
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """Logits (N, K), and (N, C) features of each level, averaged over its grid; the model's mode is restored afterwards."""
    levels = tuple(dict.fromkeys(name for name in names if name not in ("pooled", "final")))
    request = Request(levels, pooled="pooled" in names, final="final" in names)
    was_training = model.training
    model.eval()
    logits: list[Tensor] = []
    features: list[list[Tensor]] = [[] for _ in names]
    for batch in batches:
        outputs = model(batch["image"].to(device), request)
        logits.append(outputs.logits.float().cpu())
        for kept, name in zip(features, names, strict=True):
            kept.append(_vectors(outputs, name).float().cpu())
    model.train(was_training)
    return torch.cat(logits).numpy(), [torch.cat(kept).numpy() for kept in features]


def _vectors(outputs: Outputs, name: str) -> Tensor:
    if name == "pooled":
        assert outputs.pooled is not None
        return outputs.pooled
    if name == "final":
        assert outputs.final is not None
        return outputs.final.mean((2, 3))
    return outputs.maps[name].mean((2, 3))
