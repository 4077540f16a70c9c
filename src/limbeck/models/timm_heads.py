"""timm's networks with a distillation head beside their classifier, and what the two heads say apart.

DeiT's and PiT's distilled networks have a distillation token, which the second head reads; LeViT, EfficientFormer and
SwiftFormer let both heads read one pooled vector. All answer with the mean of both.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

HeadInput = Literal["tokens", "pooled"]


def head_input(network: Any, features: Any, pooled: Tensor) -> HeadInput | None:
    """What the two heads of a network read.

    Args:
        network: timm's, in any mode.
        features: what its `forward_features` returned.
        pooled: what its `forward_head` makes of them before the heads, in evaluation mode.

    Returns:
        `tokens`: the first two tokens; `pooled`: both the pooled vector; None without a second head, or where it is otherwise.
    """
    heads = [getattr(network, name, None) for name in ("head", "head_dist")]
    if not all(isinstance(head, nn.Module) for head in heads) or not isinstance(features, Tensor):
        return None
    read: list[Tensor] = []
    handles = [head.register_forward_pre_hook(lambda _, given: read.append(given[0])) for head in heads if head]
    modes = [(part, part.training) for part in network.modules()]
    try:
        network.eval().forward_head(features)
    finally:
        for handle in handles:
            handle.remove()
        for part, mode in modes:
            part.train(mode)  # and not the flag, since some parts forget cached values in it
    if len(read) != 2:
        return None
    # Their inputs and not their answers are compared, since fresh heads may answer nothing but zeros.
    if all(torch.equal(own, pooled) for own in read):
        return "pooled"
    if features.ndim == 3 and all(torch.equal(own, features[:, place]) for place, own in enumerate(read)):
        return "tokens"
    return None


def two_heads(network: Any, features: Any, kind: HeadInput) -> tuple[Tensor, Tensor]:
    """What each head says; timm itself tells it in training only, by a switch.

    Args:
        network: timm's.
        features: what its `forward_features` returned.
        kind: from `head_input`.

    Returns:
        (B, K) logits of the classifier and of the distillation head.
    """
    if kind == "tokens":
        drop = getattr(network, "head_drop", nn.Identity())
        own, distilled = drop(features[:, 0]), drop(features[:, 1])
    else:
        own = distilled = network.forward_head(features, pre_logits=True)
    return network.head(own), network.head_dist(distilled)
