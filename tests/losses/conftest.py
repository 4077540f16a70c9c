"""Facts of imaginary models, and random outputs that fit them."""

from collections.abc import Callable

import pytest
import torch

from limbeck.detection import DetectionOutputs, DetectorFacts
from limbeck.outputs import Level, LevelKind, ModelFacts, Outputs, Request

MakeFacts = Callable[..., ModelFacts]
MakeDetector = Callable[..., DetectorFacts]
MakeOutputs = Callable[..., Outputs]


def _plain(name: str = "vit", depth: int = 12, width: int = 8, grid: int = 4, num_classes: int = 5) -> ModelFacts:
    levels = tuple(Level(f"blocks.{i}", width, 16, (grid, grid), "block") for i in range(depth))
    final = Level("final", width, 16, (grid, grid), "block")
    return ModelFacts(name, num_classes, (16 * grid, 16 * grid), levels, width, final)


def _pyramid(
    name: str = "cnn",
    channels: tuple[int, ...] = (4, 6, 8),
    grids: tuple[int, ...] = (8, 4, 2),
    side: int = 8,
    preactivation: bool = False,
    num_classes: int = 5,
    pooled: int | None = None,
) -> ModelFacts:
    levels = tuple(
        Level(f"stages.{i}", c, side // g, (g, g), "stage", f"stages.{i}.pre" if preactivation else None)
        for i, (c, g) in enumerate(zip(channels, grids, strict=True))
    )
    final = Level("final", channels[-1], side // grids[-1], (grids[-1], grids[-1]), "stage")
    return ModelFacts(name, num_classes, (side, side), levels, pooled or channels[-1], final)


def _outputs(
    facts: ModelFacts, request: Request, batch: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Outputs:
    """Everything requested, with gradient, random."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return Outputs(
        logits=random(batch, facts.num_classes),
        pooled=random(batch, facts.pooled_channels) if request.pooled else None,
        maps={n: random(batch, facts.level(n).channels, *facts.level(n).grid) for n in request.levels},
        final=random(batch, facts.final.channels, *facts.final.grid) if request.final and facts.final else None,
        class_tokens={
            n: random(batch, facts.level(n).channels)
            for n in request.levels
            if request.class_tokens and facts.level(n).kind == "block"
        },
    )


def _detector(
    name: str = "detector",
    strides: tuple[int, ...] = (8, 16, 32),
    channels: int = 8,
    kind: LevelKind = "fpn",
    family: str = "dense",
    size: tuple[int, int] = (64, 96),
    class_names: tuple[str, ...] = ("cat", "dog", "bird"),
    **more: object,
) -> DetectorFacts:
    """Levels `p0`, `p1`, ... of the given strides; of kind `block` with a final map."""
    levels = tuple(
        Level(f"p{i}", channels, stride, (-(-size[0] // stride), -(-size[1] // stride)), kind)
        for i, stride in enumerate(strides)
    )
    return DetectorFacts(
        name,
        len(class_names),
        size,
        levels,
        0,
        levels[-1] if kind == "block" else None,
        class_names=class_names,
        family=family,
        scores="sigmoid" if family == "dense" else "softmax",
        **more,
    )


def _seen(
    facts: DetectorFacts,
    request: Request,
    size: tuple[int, int] = (96, 128),
    batch: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> DetectionOutputs:
    """Random maps, with gradient, of padded pictures of (height, width), whatever size the facts were measured at."""
    generator = torch.Generator().manual_seed(seed)

    def random(level: Level) -> torch.Tensor:
        shape = (batch, level.channels, -(-size[0] // level.stride), -(-size[1] // level.stride))
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return DetectionOutputs(
        size,
        (size,) * batch,
        maps={name: random(facts.level(name)) for name in request.levels},
        final=random(facts.final) if request.final and facts.final else None,
    )


@pytest.fixture
def detector() -> MakeDetector:
    return _detector


@pytest.fixture
def seen() -> Callable[..., DetectionOutputs]:
    return _seen


@pytest.fixture
def plain() -> MakeFacts:
    return _plain


@pytest.fixture
def pyramid() -> MakeFacts:
    return _pyramid


@pytest.fixture
def make_outputs() -> MakeOutputs:
    return _outputs


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
