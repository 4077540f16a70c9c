"""How good made pictures are, as far as it can be told without any real one: numbers, each with a sentence on what it says.

They compare ways of making pictures for one teacher. None of them says how well a student will learn.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from limbeck.data.base import ImageSource
from limbeck.models.base import VisionModel
from limbeck.outputs import Request

MOST_PICTURES = 1000
"""Everything that needs the pixels is measured on at most so many pictures."""

NEAR = 0.99
"""Pictures are near-duplicates from this cosine on."""

_THUMB = 32  # side in pixels to which larger pictures are reduced before they are compared
_GREY_LEVEL = 1 / 255

MEANINGS = {
    "pictures": "Pictures in all.",
    "empty_classes": "Classes that the teacher sees in no picture; a student hears of them only from the answers' small parts.",
    "class_balance": "Entropy of the class counts over the largest possible: 1 if all classes are equally frequent, 0 if the "
    "teacher sees one class only.",
    "confidence": "The teacher's probability of its first answer, averaged: low for pictures that mean nothing to it.",
    "read_as_asked": "Share of the pictures in which the teacher's first answer is the class that the picture was made for.",
    "similarity": "Cosine of the vectors that enter the teacher's classifier, averaged over pairs of pictures: near 1 if all "
    "look alike to the teacher.",
    "similarity_within_class": "The same over pairs of one class: near 1 if a class has a single look.",
    "near_duplicates": f"Share of the pictures that have another with nearly the same pixels (cosine above {NEAR} after the "
    "mean grey is taken off).",
    "brightness": "Mean of all pixels, 0 black to 1 white.",
    "contrast": "Standard deviation of a picture's pixels, averaged over pictures.",
    "roughness": "Mean difference of a pixel to its right and lower neighbour (total variation per pixel): high for noise.",
    "second_agreement": "Share of the pictures to which a second network of the same classes gives the teacher's first answer: "
    "high if pictures show classes, not only what this teacher reacts to.",
}
"""What each number means; the data card prints them."""


@dataclass(frozen=True)
class Quality:
    """The numbers of `MEANINGS`; None where one does not apply.

    Attributes:
        sampled: pictures on which the numbers from `similarity` on were measured.
    """

    pictures: int
    empty_classes: int
    class_balance: float
    confidence: float
    read_as_asked: float | None
    similarity: float | None
    similarity_within_class: float | None
    near_duplicates: float
    brightness: float
    contrast: float
    roughness: float
    second_agreement: float | None
    sampled: int


def measure(
    pictures: ImageSource,
    logits: NDArray[np.float32],
    asked: NDArray[np.int64],
    teacher: VisionModel,
    *,
    second: VisionModel | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Quality:
    """Every number of a set of pictures of one size.

    Args:
        pictures: N of them.
        logits: (N, K), the teacher's.
        asked: (N,), -1 where no class was asked for.
        teacher: whose vectors are compared.
        second: another network of the same classes.
        seed: of the choice of at most `MOST_PICTURES`.
        batch_size: pictures in a pass.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pictures))[:MOST_PICTURES])
    labels = torch.from_numpy(logits.argmax(1))
    vectors, thumbs, answers, sums = [], [], [], np.zeros(3)
    for images in _batches(pictures, chosen, batch_size, teacher.mean.device):
        vectors.append(_pooled(teacher, images))
        thumbs.append(_thumbs(images).cpu())
        sums += [
            one.sum().item()
            for one in (images.mean((1, 2, 3)), images.flatten(1).std(1, correction=0), roughness(images))
        ]
        if second is not None:
            answers.append(_answers(second, images))
    features = torch.cat(vectors)
    brightness, contrast, rough = (sums / len(chosen)).tolist()
    counts = torch.bincount(labels, minlength=logits.shape[1])
    return Quality(
        len(pictures),
        int((counts == 0).sum()),
        class_balance(counts),
        mean_confidence(logits),
        read_as_asked(logits, asked),
        mean_similarity(features),
        similarity_within(features, labels[chosen]),
        near_duplicates(torch.cat(thumbs)),
        brightness,
        contrast,
        rough,
        float((torch.cat(answers) == labels[chosen]).double().mean()) if answers else None,
        len(chosen),
    )


def class_balance(counts: Int[Tensor, " classes"]) -> float:
    """Entropy of the counts' shares over log K; 1 of a single class, 0 where nothing is counted."""
    if len(counts) == 1:
        return 1.0
    shares = counts.double() / counts.sum().clamp(min=1)
    return float(torch.special.entr(shares).sum() / math.log(len(counts)))


def mean_confidence(logits: NDArray[np.float32]) -> float:
    """Mean of the largest softmax probability of (N, K) logits."""
    return float(torch.from_numpy(logits).double().softmax(1).amax(1).mean())


def read_as_asked(logits: NDArray[np.float32], asked: NDArray[np.int64]) -> float | None:
    """Share of the first answers that are the class asked for, of those with one (not -1); None without any."""
    known = asked >= 0
    return float((logits.argmax(1) == asked)[known].mean()) if known.any() else None


def mean_similarity(vectors: Float[Tensor, "pictures channels"]) -> float | None:
    """Mean cosine over all pairs of different rows; None of fewer than two.

    Of unit vectors v the sum over pairs is (|sum v|^2 - N) / 2, so that no N x N matrix is needed.
    """
    return similarity_within(vectors, torch.zeros(len(vectors), dtype=torch.int64))


def similarity_within(vectors: Float[Tensor, "pictures channels"], labels: Int[Tensor, " pictures"]) -> float | None:
    """Mean cosine over all pairs of different rows with one label; None where no label is there twice."""
    counts = torch.bincount(labels).double()
    pairs = (counts * (counts - 1)).sum()
    if pairs == 0:
        return None
    unit = F.normalize(vectors.double(), dim=1)
    totals = torch.zeros(len(counts), unit.shape[1], dtype=torch.float64).index_add_(0, labels, unit)
    squares = torch.zeros_like(counts).index_add_(0, labels, unit.square().sum(1))  # 1 each, 0 of a vector of zeros
    return float((totals.square().sum(1) - squares).sum() / pairs)


def near_duplicates(images: Float[Tensor, "pictures rgb height width"]) -> float:
    """Share of the pictures that have another whose pixels, less their mean, make a cosine above `NEAR` with its own.

    A further coordinate of one grey level in every picture makes flat pictures alike, whatever their noise.
    """
    flat = images.flatten(1).double()
    centred = flat - flat.mean(1, keepdim=True)
    level = torch.full((len(flat), 1), _GREY_LEVEL * math.sqrt(flat.shape[1]), dtype=torch.float64)
    unit = F.normalize(torch.cat([centred, level], 1), dim=1).float()
    cosines = (unit @ unit.T).fill_diagonal_(-1)
    return float((cosines > NEAR).any(1).double().mean())


def roughness(images: Float[Tensor, "pictures rgb height width"]) -> Float[Tensor, " pictures"]:
    """Mean absolute difference of neighbours, of each picture: the mean of that along rows and that along columns."""
    along = [images.diff(dim=axis).abs() for axis in (2, 3) if images.shape[axis] > 1]
    return torch.stack([one.mean((1, 2, 3)) for one in along]).mean(0) if along else images.new_zeros(len(images))


def _batches(
    pictures: ImageSource, chosen: NDArray[np.int64], batch_size: int, device: torch.device
) -> Iterator[Tensor]:
    for start in range(0, len(chosen), batch_size):
        pixels = np.stack([np.asarray(pictures.read(int(index))) for index in chosen[start : start + batch_size]])
        yield torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device).float() / 255


@torch.no_grad()
def _pooled(teacher: VisionModel, images: Tensor) -> Tensor:
    """(B, D) float32 on the CPU."""
    pooled = teacher(images, Request(pooled=True)).pooled
    assert pooled is not None
    vectors: Tensor = pooled.flatten(1).float().cpu()
    return vectors


@torch.no_grad()
def _answers(model: VisionModel, images: Tensor) -> Tensor:
    """(B,) int64 on the CPU: the first answers."""
    answers: Tensor = model.eval()(images.to(model.mean.device)).logits.argmax(1).cpu()
    return answers


def _thumbs(images: Tensor) -> Tensor:
    """At most `_THUMB` pixels high and wide, by averaging."""
    height, width = (min(side, _THUMB) for side in images.shape[-2:])
    return F.adaptive_avg_pool2d(images, (height, width))
