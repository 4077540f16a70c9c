"""Token moments: mean and variance of what a network computes on its training images, channel by channel.

They are to a network without BatchNorm what the running statistics are to one with it, a few kilobytes that the owner of
the images can give away with the network; no image can be read from them. Per level, for the last map ("final") and for
the vector that enters the classifier ("pooled"), over all images and positions; where labels are known, also each class's
mean of that vector (after Dream Distillation, Bhardwaj et al. 2019, arXiv:1905.07072).
"""

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limbeck.errors import UserError
from limbeck.files import whole_or_nothing
from limbeck.models.base import VisionModel
from limbeck.models.weights import weights_hash
from limbeck.outputs import Outputs, Request

POOLED = "pooled"
FINAL = "final"

_KEY = "limbeck_token_moments"


@dataclass(frozen=True)
class Moment:
    """Of one level.

    Attributes:
        mean, variance: (C,) float32; the variance is the biased one.
    """

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Moments:
    """What is known of a network's training images.

    Attributes:
        levels: by name, shallow to deep; also "final", where the network has it, and "pooled".
        model: name of the network.
        weights_sha256: of its weights.
        images: how many were read.
        view_size: (height, width) of the pictures that it was shown.
        class_means: (K, D) float32, mean of the pooled vector over each class's images, zero for classes without any;
            None where no image had a label.
        class_counts: (K,) int64, images of each class; None likewise.
    """

    levels: dict[str, Moment]
    model: str
    weights_sha256: str
    images: int
    view_size: tuple[int, int]
    class_means: Tensor | None = None
    class_counts: Tensor | None = None


def request_for(model: VisionModel) -> Request:
    """Everything of which there are moments."""
    levels = tuple(level.name for level in model.facts.levels)
    return Request(levels, pooled=True, final=model.facts.final is not None)


def values(outputs: Outputs) -> dict[str, Tensor]:
    """What was requested by `request_for`: maps (B, C, H, W) by level, "final", and "pooled" (B, D)."""
    found = dict(outputs.maps)
    if outputs.final is not None:
        found[FINAL] = outputs.final
    if outputs.pooled is not None:
        found[POOLED] = outputs.pooled
    return found


class RunningMoments:
    """Mean and variance of a stream, exactly, in float64 and batch after batch (Chan, Golub, LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, batch: Tensor) -> None:
        """Take in (B, C) or (B, C, ...): all axes but the second are samples."""
        # Some devices have no float64.
        samples = batch.detach().transpose(0, 1).flatten(1).cpu().double()
        count = samples.shape[1]
        mean = samples.mean(1)
        squares = (samples - mean.unsqueeze(1)).square().sum(1)
        total = self.count + count
        difference = mean - self.mean
        self.squares = self.squares + squares + difference.square() * (self.count * count / total)
        self.mean = self.mean + difference * (count / total)
        self.count = total

    def moment(self) -> Moment:
        """Of everything so far."""
        return Moment(self.mean.float(), (self.squares / self.count).float())


def collect(model: VisionModel, batches: Iterable[Mapping[str, Tensor]], device: torch.device) -> Moments:
    """Read a network's moments from images.

    Args:
        model: in evaluation mode, on `device`.
        batches: each with `image` (B, 3, H, W) in [0, 1] and, where there are labels, `label` (B,) int64, -1 for none.
        device: where to compute.

    Returns:
        The same, up to rounding, however the images are cut into batches.

    Raises:
        UserError: there is no image, or what the network computes is not finite.
    """
    request = request_for(model)
    running: dict[str, RunningMoments] = {}
    sums = torch.zeros(model.facts.num_classes, model.facts.pooled_channels, dtype=torch.float64)
    counts = torch.zeros(model.facts.num_classes, dtype=torch.int64)
    images, size = 0, (0, 0)
    for batch in batches:
        shown = batch["image"].to(device)
        with torch.no_grad():
            found = values(model(shown, request))
        for name, value in found.items():
            running.setdefault(name, RunningMoments()).add(value)
        if "label" in batch:
            known = batch["label"].cpu() >= 0
            labels = batch["label"].cpu()[known]
            sums.index_add_(0, labels, found[POOLED].cpu().double()[known])
            counts.index_add_(0, labels, torch.ones_like(labels))
        images += len(shown)
        size = (shown.shape[-2], shown.shape[-1])
    if not images:
        raise UserError("There are no images to read moments from. Give a data set with training images.")
    levels = {name: one.moment() for name, one in running.items()}
    broken = [name for name, one in levels.items() if not (one.mean.isfinite().all() and one.variance.isfinite().all())]
    if broken:
        raise UserError(
            f"On these images {model.facts.name} computes values that are not finite, first at {broken[0]}. Its weights are "
            "most likely broken."
        )
    labelled = bool(counts.any())
    return Moments(
        levels,
        model.facts.name,
        weights_hash(model),
        images,
        size,
        (sums / counts.clamp_min(1).unsqueeze(1)).float() if labelled else None,
        counts if labelled else None,
    )


def save(path: Path, moments: Moments) -> None:
    """Write one safetensors file, whole or not at all.

    Raises:
        UserError: the disk is full.
    """
    tensors: dict[str, Tensor] = {}
    for name, moment in moments.levels.items():
        tensors[f"mean/{name}"], tensors[f"variance/{name}"] = moment.mean.contiguous(), moment.variance.contiguous()
    if moments.class_means is not None and moments.class_counts is not None:
        tensors["class_means"], tensors["class_counts"] = moments.class_means, moments.class_counts
    record = {
        "model": moments.model,
        "weights_sha256": moments.weights_sha256,
        "images": moments.images,
        "view_size": list(moments.view_size),
        "levels": list(moments.levels),
    }
    with whole_or_nothing(path) as partial:
        save_file(tensors, partial, metadata={_KEY: json.dumps(record)})


def load(path: str | Path) -> Moments:
    """Read such a file.

    Raises:
        FileNotFoundError: it does not exist.
        UserError: it is no such file, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The file of token moments {path} does not exist; `limbeck statistics` writes one.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is no readable safetensors file ({error}). Write it again with `limbeck statistics`."
        ) from error
    if text is None:
        raise UserError(f"{path} holds no token moments (weights, perhaps?). `limbeck statistics` writes such a file.")
    try:
        record = json.loads(text)
        levels = {name: Moment(tensors[f"mean/{name}"], tensors[f"variance/{name}"]) for name in record["levels"]}
        height, width = record["view_size"]
        return Moments(
            levels,
            record["model"],
            record["weights_sha256"],
            record["images"],
            (height, width),
            tensors.get("class_means"),
            tensors.get("class_counts"),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The token moments in {path} are incomplete ({error}). Write the file again with `limbeck statistics`."
        ) from error


def check(moments: Moments, model: VisionModel) -> None:
    """Refuse the moments of another network.

    Raises:
        UserError: levels, their channels or the weights differ.
    """
    expected = {level.name: level.channels for level in model.facts.levels}
    if model.facts.final is not None:
        expected[FINAL] = model.facts.final.channels
    expected[POOLED] = model.facts.pooled_channels
    given = {name: len(moment.mean) for name, moment in moments.levels.items()}
    remedy = f"Collect them for this network: limbeck statistics {shlex.quote(model.facts.name)}"
    if given != expected:
        names = [name for name in {**expected, **given} if given.get(name) != expected.get(name)]
        first = names[0]
        raise UserError(
            f"The token moments belong to another network ({moments.model}): at {len(names)} levels, {first} for one, they have "
            f"{_channels(given.get(first))} and {model.facts.name} has {_channels(expected.get(first))}. {remedy}"
        )
    if moments.weights_sha256 != weights_hash(model):
        raise UserError(
            f"The token moments were collected for other weights ({moments.model}, SHA-256 {moments.weights_sha256[:12]}...) "
            f"than those of {model.facts.name}. {remedy}"
        )


def size_notes(moments: Moments, model: VisionModel) -> tuple[str, ...]:
    """A sentence where a network now reads pictures of another size than those from which its moments come."""
    if moments.view_size == tuple(model.facts.input_size):
        return ()
    return (
        f"Statistics were collected at {_pixels(moments.view_size)}, and {model.facts.name} now reads "
        f"{_pixels(model.facts.input_size)}: what it computes there may differ.",
    )


def _pixels(size: tuple[int, int]) -> str:
    height, width = size
    return f"{height} pixels" if height == width else f"{height} x {width} pixels"


def _channels(count: int | None) -> str:
    return "no such level" if count is None else f"{count} channels"
