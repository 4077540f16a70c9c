"""Facts of imaginary detectors with queries, and random predictions that fit them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from limbeck.detection import DetectionOutputs, DetectorFacts, Predictions, Target
from limbeck.outputs import Level

MakeFacts = Callable[..., DetectorFacts]
MakeOutputs = Callable[..., DetectionOutputs]

NAMES = ("person", "traffic light", "dog", "cat")
SIZES = ((96, 64), (64, 96))


def _facts(name: str = "detr", *, classes: tuple[str, ...] = NAMES, scores: str = "softmax", **others) -> DetectorFacts:
    return DetectorFacts(
        name=name,
        num_classes=len(classes),
        input_size=(96, 96),
        levels=others.pop("levels", ()),
        pooled_channels=0,
        class_names=classes,
        family=others.pop("family", "queries"),
        scores=scores,
        **others,
    )


def _encoder(*strides: int) -> tuple[Level, ...]:
    return tuple(Level(f"encoder.{s}", 8, s, (96 // s, 96 // s), "encoder") for s in strides)


def _answers(
    facts: DetectorFacts,
    queries: int = 6,
    layers: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    scale: float = 2.0,
) -> DetectionOutputs:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def layer() -> Predictions:
        batch, slots = len(SIZES), facts.num_classes + (facts.scores == "softmax")
        centre, size = 0.3 + 0.4 * random(batch, queries, 2).sigmoid(), 0.05 + 0.3 * random(batch, queries, 2).sigmoid()
        corners = random(batch, queries, 4, facts.corner_bins) if facts.corner_bins else None
        return Predictions(
            logits=(scale * random(batch, queries, slots)).to(dtype).requires_grad_(),
            boxes=torch.cat([centre, size], dim=-1).to(dtype).requires_grad_(),
            corners=None if corners is None else (2 * corners).to(dtype).requires_grad_(),
        )

    return DetectionOutputs(size=(96, 96), sizes=SIZES, predictions=tuple(layer() for _ in range(layers)))


def _shuffled(outputs: DetectionOutputs, seed: int = 9) -> DetectionOutputs:
    """The same predictions, the queries of each image in another order, the same in all layers."""
    batch, queries = outputs.predictions[0].logits.shape[:2]
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(queries, generator=generator) for _ in range(batch)])
    rows = torch.arange(batch)[:, None]

    def reordered(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[rows, order]

    layers = (Predictions(*map(reordered, vars(layer).values())) for layer in outputs.predictions)
    return replace(outputs, predictions=tuple(layers))


def _targets(*counts: int, labels: int = 4) -> list[Target]:
    generator = torch.Generator().manual_seed(5)
    targets = []
    for count, (height, width) in zip(counts, SIZES, strict=True):
        corner = torch.rand(count, 2, generator=generator) * 0.5
        extent = 0.1 + torch.rand(count, 2, generator=generator) * 0.35
        boxes = torch.cat([corner, corner + extent], dim=1) * torch.tensor([width, height, width, height])
        targets.append(Target(boxes, torch.randint(labels, (count,), generator=generator)))
    return targets


@pytest.fixture
def detector() -> MakeFacts:
    return _facts


@pytest.fixture
def encoder() -> Callable[..., tuple[Level, ...]]:
    return _encoder


@pytest.fixture
def answers() -> MakeOutputs:
    return _answers


@pytest.fixture
def shuffled() -> Callable[..., DetectionOutputs]:
    return _shuffled


@pytest.fixture
def targets() -> Callable[..., list[Target]]:
    return _targets
