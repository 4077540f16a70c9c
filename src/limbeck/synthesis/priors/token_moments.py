"""What a network computes on pictures has the moments that it had on its training images: for networks without BatchNorm.

The counterpart of `batch_statistics`, with stored moments (see `limbeck.synthesis.moments`) in place of running ones.
Inferred: the form and the weight.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.outputs import Request
from limbeck.synthesis.moments import FINAL, POOLED, Moment, Moments, check, size_notes, values
from limbeck.synthesis.priors.base import Needs, Prior, Seen
from limbeck.synthesis.priors.precision import full


def moment_distance(value: Tensor, stored: Moment) -> Tensor:
    """‖μ - μ̂‖₂ / ‖σ̂‖₂ + ‖σ² - σ̂²‖₂ / ‖σ̂²‖₂, μ and σ² over all axes but the channels'.

    Relative to the spread of the level's channels: scaling a level changes nothing, and all count alike.

    Args:
        value: (B, C) or (B, C, H, W).
        stored: (C,) each.

    Returns:
        A scalar.
    """
    value = full(value)
    axes = [axis for axis in range(value.ndim) if axis != 1]
    variance, mean = torch.var_mean(value, axes, correction=0)
    expected, spread = stored.mean.to(value), stored.variance.to(value)
    tiny = torch.finfo(value.dtype).tiny
    off = torch.linalg.vector_norm(mean - expected) / spread.sum().sqrt().clamp_min(tiny)
    strange = torch.linalg.vector_norm(variance - spread) / torch.linalg.vector_norm(spread).clamp_min(tiny)
    total: Tensor = off + strange
    return total


def class_distance(pooled: Tensor, means: Tensor, spread: Tensor) -> Tensor:
    """Mean over images of ‖p - m‖₂² / Σ_c σ̂²_c.

    Args:
        pooled: (B, D), p.
        means: (B, D), m, of the class that each image was asked for.
        spread: (D,), σ̂² over all classes.

    Returns:
        A scalar; about the share of variance within classes on real images.
    """
    return (full(pooled) - means.to(full(pooled))).square().sum(1).mean() / spread.sum().to(full(pooled))


class TokenMoments(Prior):
    """Mean over levels of `moment_distance`.

    Args:
        model: the teacher.
        moments: of its training images.
        levels: names of those to compare; "all" is every one stored, with the last map and the pooled vector.

    Raises:
        UserError: the moments are another network's, or a level is not among them.
    """

    def __init__(self, model: VisionModel, moments: Moments, *, levels: Sequence[str] | str = "all") -> None:
        check(moments, model)
        names = list(moments.levels) if levels == "all" else [levels] if isinstance(levels, str) else list(levels)
        unknown = [name for name in names if name not in moments.levels]
        if unknown or not names:
            raise UserError(
                f"There are no token moments of level {unknown[0] if unknown else '(none given)'}. There are: "
                f"{', '.join(moments.levels)}."
            )
        self.stored = {name: moments.levels[name] for name in names}
        plain = tuple(name for name in names if name not in (FINAL, POOLED))
        self.needs = Needs(Request(plain, pooled=POOLED in names, final=FINAL in names))
        self.notes = size_notes(moments, model)

    def __call__(self, seen: Seen) -> Tensor:
        """See `moment_distance`."""
        found = values(seen.outputs)
        return torch.stack([moment_distance(found[name], stored) for name, stored in self.stored.items()]).mean()


class ClassMeans(Prior):
    """`class_distance` of what the teacher sees from the mean of the class asked for (after Dream Distillation).

    Args:
        model: the teacher.
        moments: of its training images, which were labelled; classes without any image pull nowhere.

    Raises:
        UserError: the moments are another network's, or hold no class means.
    """

    needs = Needs(Request(pooled=True))

    def __init__(self, model: VisionModel, moments: Moments) -> None:
        check(moments, model)
        if moments.class_means is None or moments.class_counts is None:
            raise UserError(
                f"The token moments of {moments.model} hold no class means, since the images they come from had no labels. "
                "Collect them from labelled images, or leave the term out (weight 0)."
            )
        self.means, self.known = moments.class_means, moments.class_counts > 0
        self.spread = moments.levels[POOLED].variance
        self.notes = size_notes(moments, model)

    def __call__(self, seen: Seen) -> Tensor:
        """Of the pictures whose class has a mean; zero where none has."""
        assert seen.asked is not None and seen.outputs.pooled is not None
        asked = seen.asked.to(self.known.device)
        known = self.known[asked]
        pooled = seen.outputs.pooled[known.to(seen.outputs.pooled.device)]
        if not len(pooled):
            return full(seen.outputs.pooled).sum() * 0
        return class_distance(pooled, self.means[asked[known]], self.spread)
