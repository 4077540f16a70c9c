"""Features of a frozen teacher brought to mean 0 and variance 1, with statistics taken before training.

A few channels of large networks are tens of times as large as all others; a plain squared error would copy those and nothing
else. Two ways: `channel` divides each channel by its own standard deviation (Theia, arXiv:2407.20179, and UNIC,
arXiv:2408.05088). `phi_s` (Ranzinger et al., "PHI-S: Distribution Balancing for Label-Free Multi-Teacher Distillation",
2024, arXiv:2410.01680) rotates the features so that every channel has the same variance and then divides all of them by one
number, so that what the teacher finds small stays small, and the map back is a rotation.

Inferred, not published: the floor under a channel's standard deviation, and that the statistics are taken once, from images
that are not augmented (UNIC follows them with a moving average during training).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.losses.phi_s import phi_s_rotation
from limbeck.losses.precision import no_autocast

Standardisation = Literal["channel", "phi_s", "off"]

SMALLEST_VARIANCE = 1e-13
"""Of the mean square: features whose variance is below it are rounding errors around one vector."""

SMALLEST_SHARE = 1e-2
"""A channel is divided by at least so much of the channels' mean standard deviation: one that hardly ever stirred on the images
that were looked at must not drown all others when it does."""


class Moments:
    """Mean and covariance of vectors that come batch after batch, in float64; nothing of the batches is kept.

    Batches are joined by the exact formula for two groups: with n and m vectors, means a and b, and sums S and T of outer
    products of deviations, the sum of both is S + T + (a - b)(a - b)ᵀ·n·m/(n + m).

    Args:
        channels: C.
        whole: the whole covariance (C, C); otherwise its diagonal only.
    """

    def __init__(self, channels: int, *, whole: bool) -> None:
        self.whole = whole
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self._sum = torch.zeros((channels, channels) if whole else (channels,), dtype=torch.float64)

    def add(self, vectors: Float[Tensor, "*N C"]) -> None:
        """Take in vectors (..., C), those of their device."""
        # Apple's GPUs know no float64.
        rows = vectors.detach().to("cpu" if vectors.device.type == "mps" else vectors.device).double().flatten(0, -2)
        self.mean, self._sum = self.mean.to(rows.device), self._sum.to(rows.device)
        new, old = rows.shape[0], self.count
        if not new:
            return
        mean = rows.mean(0)
        rows = rows - mean
        apart = mean - self.mean
        self.count = old + new
        self._sum += self._products(rows) + (torch.outer(apart, apart) if self.whole else apart.square()) * (
            old * new / self.count
        )
        self.mean = self.mean + apart * (new / self.count)

    @property
    def covariance(self) -> Tensor:
        """(C, C), or (C,) of the diagonal; divided by the number of vectors."""
        return self._sum / max(1, self.count)

    def _products(self, rows: Tensor) -> Tensor:
        return rows.T @ rows if self.whole else rows.square().sum(0)


class Standardiser(nn.Module):
    """Features with the teacher's mean taken away and its spread evened out; see the top of the file.

    `channel`: (x - mean) / std, std of each channel. `phi_s`: R(x - mean) / s. `off`: x.

    Args:
        channels: C.
        how: which of them.
        method: the method's name, for messages.
    """

    mean: Tensor
    seen: Tensor
    spread: Tensor
    rotation: Tensor

    def __init__(self, channels: int, how: Standardisation, method: str) -> None:
        super().__init__()
        self.channels, self.how, self.method = channels, how, method
        self.ready = how == "off"
        if how == "off":
            return
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels if how == "channel" else ()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        if how == "phi_s":
            self.register_buffer("rotation", torch.eye(channels))

    def moments(self) -> Moments:
        """Empty ones, to be filled and given to `fit`."""
        return Moments(self.channels, whole=self.how == "phi_s")

    def fit(self, moments: Moments) -> None:
        """Take the statistics that have been gathered.

        Raises:
            UserError: there is no vector among them, or one that is not finite.
        """
        if self.how == "off":
            return
        if moments.count < 2:
            raise UserError(
                f"{self.method} was given {moments.count} features to measure the teacher's spread on. Give at least two images."
            )
        covariance = moments.covariance
        if not bool(covariance.isfinite().all()):
            raise UserError(
                f"{self.method}: the teacher's features on the training images are not finite, so nothing can be learnt from "
                "them. Check its weights and its precision."
            )
        variance = covariance.diagonal() if self.how == "phi_s" else covariance
        if float(variance.mean()) <= SMALLEST_VARIANCE * float(moments.mean.square().mean()):
            raise UserError(
                f"{self.method}: the teacher gives the same features for all of the images that it was measured on, so their "
                "spread cannot be evened out. Are the images all alike?"
            )
        if self.how == "channel":
            std = covariance.sqrt()
            self.spread.copy_(std.clamp_min(max(float(SMALLEST_SHARE * std.mean()), 1e-12)))
        else:
            rotation, scale = phi_s_rotation(covariance)
            self.rotation.copy_(rotation)
            self.spread.copy_(scale)
        self.mean.copy_(moments.mean)
        self.seen.fill_(moments.count)
        self.ready = True

    def forward(self, features: Float[Tensor, "*N C"]) -> Float[Tensor, "*N C"]:
        """(..., C) standardised, in at least float32.

        Raises:
            UserError: nothing has been measured yet.
        """
        with no_autocast(features):
            features = features if features.dtype == torch.float64 else features.float()
            if self.how == "off":
                return features
            if not self.ready:
                raise UserError(
                    f"{self.method} standardises the teacher's features and has not seen any yet. Before the first step, call "
                    "distiller.calibrate(batches) with a function that returns batches of some training images "
                    "(`limbeck distill` does it by itself), or switch it off with standardise=off."
                )
            centred = features - self.mean.to(features.dtype)
            if self.how == "phi_s":
                centred = centred @ self.rotation.to(features.dtype).T
            return centred / self.spread.to(features.dtype)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        # A plain boolean, since a graph that is compiled whole cannot ask a tensor.
        self.ready = self.how == "off" or int(self.seen) > 0


def fit_all(standardisers: Sequence[Standardiser], batches: Iterable[Sequence[Tensor]]) -> None:
    """Fill several standardisers in one pass.

    Args:
        standardisers: what is to be filled.
        batches: for each batch one tensor (..., C) for each of them.
    """
    gathered = [standardiser.moments() for standardiser in standardisers]
    for features in batches:
        for moments, of, standardiser in zip(gathered, features, standardisers, strict=True):
            if standardiser.how != "off":
                moments.add(of)
    for standardiser, moments in zip(standardisers, gathered, strict=True):
        standardiser.fit(moments)
