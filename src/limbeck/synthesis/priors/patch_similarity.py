"""Patches of a photograph are unlike each other; those of noise are all alike: two measures of it.

`patch_entropy` is PSAQ-ViT's (Li, Ma, Chen, Xiao, Gu, ECCV 2022, arXiv:2203.02250): the differential entropy of the
cosines between patches, by kernel density. Its published bandwidth of 0.01 on ten points between the least and the largest
cosine leaves most pairs far from every point, hence without gradient; "auto", half the points' distance, leaves none.
`spread_of_cosines` is MaskAQ's (ICML 2026, arXiv:2606.04373): the entropy of a Gaussian with the cosines' variance.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.losses.precision import no_autocast
from limbeck.models.attention import Attention, attention_blocks
from limbeck.models.base import VisionModel
from limbeck.outputs import Request
from limbeck.synthesis.priors.attention_rows import among_patches, patch_scores, require_attention
from limbeck.synthesis.priors.base import Needs, Prior, Seen
from limbeck.synthesis.priors.precision import full
from limbeck.synthesis.priors.recomputing import recomputed

Bandwidth = float | Literal["auto"]

_POINTS = 10
_SYMMETRY = 1e-2
"""Size of the noise on rows, relative to them; see `GaussianDiversity`."""


def kernel_density(samples: Tensor, points: Tensor, bandwidth: float | Tensor) -> Tensor:
    """f(x) = 1 / (n · h · sqrt(2π)) · Σ_i exp(-(x - s_i)² / 2h²).

    Args:
        samples: (B, n), s.
        points: (P,), x.
        bandwidth: h > 0.

    Returns:
        (B, P).
    """
    # Point by point: all at once would hold P times the samples.
    sums = [torch.exp(-0.5 * ((point - samples) / bandwidth) ** 2).mean(1) for point in points]
    return torch.stack(sums, 1) / (bandwidth * math.sqrt(2 * math.pi))


def patch_entropy(vectors: Tensor, bandwidth: Bandwidth = 0.01) -> Tensor:
    """H = ∫ -(f + 1e-4) log(f + 1e-4) of the density f of all N² cosines of an image, by the trapezoid rule on ten points.

    The points run from the least to the largest cosine of the whole batch and receive no gradient.

    Args:
        vectors: (B, N, D), one for each patch.
        bandwidth: of the kernels, or "auto".

    Returns:
        (B,); zero, without gradient, where all vectors of the batch point the same way.
    """
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    cosines = (unit @ unit.transpose(1, 2)).flatten(1)
    low, high = cosines.detach().min(), cosines.detach().max()
    steps = torch.linspace(0, 1, _POINTS, dtype=cosines.dtype, device=cosines.device)
    points = low + (high - low) * steps
    width = ((high - low) / (_POINTS - 1) / 2).clamp_min(1e-6) if bandwidth == "auto" else bandwidth
    density = kernel_density(cosines, points, width) + 1e-4
    return torch.trapezoid(-density * density.log(), points, dim=1)


def spread_of_cosines(rows: Tensor, noise: Tensor | None = None) -> Tensor:
    """½ · log(2πe · (Var + 1e-8)), Var the variance of all M² cosines between an image's rows.

    Args:
        rows: (B, M, D).
        noise: (M, D), added to the rows after scaling by their root mean square; None without.

    Returns:
        (B,).
    """
    square = rows.detach().square().mean((1, 2), keepdim=True)
    if noise is not None:
        rows = rows + noise * (square + 1e-12).sqrt()
    # A row of zeros (behind a ReLU) has no direction; it shall have no infinite gradient either.
    norms = (rows.square().sum(-1, keepdim=True) + 1e-6 * rows.shape[-1] * square + 1e-12).sqrt()
    unit = rows / norms
    cosines = (unit @ unit.transpose(1, 2)).flatten(1)
    return 0.5 * (2 * math.pi * math.e * (cosines.var(1, correction=0) + 1e-8)).log()


def why_no_diversity(model: VisionModel) -> str | None:
    """Why `GaussianDiversity` has nothing to compare in this network, as a sentence without its end; None where it has."""
    if attention_blocks(model) or _levels_with_positions(model):
        return None
    return f"{model.facts.name} has neither attention that can be read nor a feature map of more than one position"


class PatchSimilarity(Prior):
    """- Σ over blocks of the mean over images of `patch_entropy`, of attention · V averaged over heads. Published weight 1.

    Windows count as images. Only a block's queries, keys and values are kept for the backward pass, in which the rest is
    computed again, so that 32 images of 224 x 224 fit beside a large teacher.

    Args:
        model: the teacher.
        bandwidth: of the kernels; "auto" is half the distance of the points.

    Raises:
        UserError: the teacher has no attention that can be read, or the bandwidth is not positive.
    """

    needs = Needs(attention=True)

    def __init__(self, model: nn.Module, *, bandwidth: Bandwidth = 0.01) -> None:
        require_attention(model, "The patch-similarity prior")
        if bandwidth != "auto" and not (isinstance(bandwidth, int | float) and bandwidth > 0):
            raise UserError(f"The bandwidth of the patch similarity is {bandwidth!r}; it must be above 0, or auto.")
        self.bandwidth: Bandwidth = bandwidth

    def __call__(self, seen: Seen) -> Tensor:
        """Lower where patches are more unlike."""
        with no_autocast(seen.shown):
            blocks = among_patches(seen.attentions)
            entropies = [recomputed(_block_entropy, one, self.bandwidth).mean() for one in blocks]
            return -torch.stack(entropies).sum()


class GaussianDiversity(Prior):
    """- mean over blocks and images of `spread_of_cosines`. Published weight 1.

    Of attention, a row is what a patch's query scores with all patches' keys, averaged over heads. Of feature maps, which
    any network has, it is the vector at one position (inferred: MaskAQ knows attention only). Windows count as images.

    Where all rows are equal, as those of a picture of one colour can be, every cosine has its maximum and a symmetric
    measure no gradient. A little noise on the rows (1 % of them, the same for all images, drawn at every step) breaks the
    tie; on others its effect is far below that of the random choice of rows.

    Args:
        model: the teacher.
        source: "attention", "maps", or "auto": attention where it can be read.
        rows: how many of an image are drawn at random at every step.

    Raises:
        UserError: the teacher has no such source, or fewer than 2 rows are asked for.
    """

    def __init__(
        self, model: VisionModel, *, source: Literal["auto", "attention", "maps"] = "auto", rows: int = 64
    ) -> None:
        if source not in ("auto", "attention", "maps"):
            raise UserError(f"The diversity's source is {source!r}; it must be auto, attention or maps.")
        if rows < 2:
            raise UserError(f"The diversity was asked for {rows} rows of each image; it compares at least 2.")
        self.rows = rows
        if source == "attention":
            require_attention(model, "The diversity with source=attention")
        self.source = source if source != "auto" else "attention" if attention_blocks(model) else "maps"
        if self.source == "attention":
            self.needs = Needs(attention=True)
            return
        names = _levels_with_positions(model)
        if not names:
            raise UserError(
                f"{model.facts.name} has no feature map of more than one position, and the diversity compares positions. Leave "
                "it out: diversity=0."
            )
        self.needs = Needs(Request(levels=names))
        if source == "auto":
            self.notes = (
                f"{model.facts.name} has no attention that can be read: diversity is that of its feature maps",
            )

    def __call__(self, seen: Seen) -> Tensor:
        """Lower where patches are more unlike; random rows and noise come from torch's generator."""
        with no_autocast(seen.shown):
            if self.source == "attention":
                rows = [self._attention_rows(one) for one in among_patches(seen.attentions)]
            else:
                rows = [self._map_rows(seen.outputs.maps[name]) for name in self.needs.request.levels]
            spreads = [spread_of_cosines(one, _SYMMETRY * _random_like(one[0])).mean() for one in rows]
            return -torch.stack(spreads).mean()

    def _attention_rows(self, attention: Attention) -> Tensor:
        return patch_scores(attention, self._drawn(attention.key.shape[2] - attention.prefix, attention.key)).mean(1)

    def _map_rows(self, map_: Tensor) -> Tensor:
        tokens = full(map_).flatten(2)
        return tokens.index_select(2, self._drawn(tokens.shape[2], tokens)).transpose(1, 2)

    def _drawn(self, count: int, like: Tensor) -> Tensor:
        # On the CPU, so that every device draws the same.
        return torch.randperm(count)[: self.rows].to(like.device)


def _levels_with_positions(model: VisionModel) -> tuple[str, ...]:
    return tuple(level.name for level in model.facts.levels if math.prod(level.grid) > 1)


def _block_entropy(attention: Attention, bandwidth: Bandwidth) -> Tensor:
    mixed = full(attention.mixed()).mean(1)
    return patch_entropy(mixed[:, attention.prefix :], bandwidth)


def _random_like(rows: Tensor) -> Tensor:
    return torch.randn(rows.shape, dtype=rows.dtype).to(rows.device)
