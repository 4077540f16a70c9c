"""FGD: match a detector's maps where the teacher looks, objects and background apart, and their global relations.

Yang, Li, Jiang, Gong, Yuan, Zhao, Yuan, "Focal and Global Knowledge Distillation for Detectors", CVPR 2022,
arXiv:2111.11837.

All terms are sums over a map divided by the batch only, so that the finest level weighs most and the published weights
belong to maps of the published sizes (800 x 1333 pictures, 256 channels). They are sensitive to the data: keep their
ratios, and set `weight` so that the whole term is 0.1 to 2 times the supervised loss. A first level that drowns the
others is tamed by `level_weights="cells"`.

Inferred, not published: detectors with queries and plain transformers (weighted as RetinaNet), resizing where strides
differ, and "cells". The published code lets a box cover one row and one column of cells more than it touches, and scales
boxes by the image's own area while the maps cover its padding too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.detection import DetectionOutputs, DetectorFacts, Size, Target
from limbeck.errors import UserError
from limbeck.losses.grids import Grid, grid_of
from limbeck.losses.levels import PairedLevels, Projector, choose
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts


@dataclass(frozen=True)
class Settings:
    """Published numbers: T of the attention, and the weights α, β, γ, λ of the four terms."""

    temperature: float
    alpha: float
    beta: float
    gamma: float
    lambda_: float


TWO_STAGE = Settings(0.5, 5e-5, 2.5e-5, 5e-5, 5e-7)
RETINANET = Settings(0.5, 1e-3, 5e-4, 5e-4, 5e-6)
FCOS = Settings(0.8, 1.6e-3, 8e-4, 8e-4, 8e-6)

Auto = Literal["auto"]


def spatial_attention(feature_map: Float[Tensor, "B C H W"], temperature: float = 0.5) -> Float[Tensor, "B H W"]:
    """A_sp = H·W · softmax over positions of (mean over channels of |F|) / T; 1 on average.

    Args:
        feature_map: (B, C, H, W).
        temperature: T > 0.
    """
    height, width = grid_of(feature_map)
    shares = F.softmax(feature_map.abs().mean(dim=1).flatten(1) / temperature, dim=1)
    return shares.reshape(-1, height, width) * (height * width)


def channel_attention(feature_map: Float[Tensor, "B C H W"], temperature: float = 0.5) -> Float[Tensor, "B C"]:
    """A_ch = C · softmax over channels of (mean over positions of |F|) / T; 1 on average.

    Args:
        feature_map: (B, C, H, W).
        temperature: T > 0.
    """
    return feature_map.shape[1] * F.softmax(feature_map.abs().mean(dim=(2, 3)) / temperature, dim=1)


def object_masks(
    boxes: Sequence[Float[Tensor, "_ 4"]], size: Size, grid: Grid
) -> tuple[Float[Tensor, "B H W"], Float[Tensor, "B H W"]]:
    """What each cell weighs as part of an object, and as background.

    A cell that boxes touch weighs 1 / (height·width) of the smallest of them, counted in cells; every other cell weighs
    1 / (number of such cells) as background. So small objects and images without any count as much as others.

    Args:
        boxes: of each image (N, 4), x1, y1, x2, y2 in pixels of the padded picture; N may be 0.
        size: (height, width) of the padded picture.
        grid: (H, W) of the map.

    Returns:
        (B, H, W) of objects and (B, H, W) of the background, float32; each cell is 0 in exactly one of them.
    """
    objects = torch.stack([_object_mask(own.float(), size, grid) for own in boxes])
    empty = objects == 0
    return objects, empty / empty.sum(dim=(1, 2), keepdim=True).clamp(min=1)


def focal_loss(
    student_map: Float[Tensor, "B C H W"],
    teacher_map: Float[Tensor, "B C H W"],
    mask: Float[Tensor, "B H W"],
    temperature: float = 0.5,
) -> Float[Tensor, ""]:
    """L = 1/B · Σ mask · A_sp(T) · A_ch(T) · (T - S)², the attention being the teacher's.

    Args:
        student_map: (B, C, H, W).
        teacher_map: (B, C, H, W); receives no gradient.
        mask: (B, H, W), one of `object_masks`.
        temperature: T of the attention.

    Returns:
        A scalar in at least float32.
    """
    with no_autocast(student_map):
        student, teacher = comparable(student_map, teacher_map)
        channels = channel_attention(teacher, temperature)[:, :, None, None]
        errors = ((teacher - student).square() * channels).sum(dim=1)
        return (mask * spatial_attention(teacher, temperature) * errors).sum() / student.shape[0]


def attention_loss(
    student_map: Float[Tensor, "B C H W"], teacher_map: Float[Tensor, "B C H W"], temperature: float = 0.5
) -> Float[Tensor, ""]:
    """L = 1/B · ( Σ |A_sp(T) - A_sp(S)| + Σ |A_ch(T) - A_ch(S)| ).

    Args, returns: as `focal_loss`.
    """
    with no_autocast(student_map):
        student, teacher = comparable(student_map, teacher_map)
        spatial = spatial_attention(teacher, temperature) - spatial_attention(student, temperature)
        channels = channel_attention(teacher, temperature) - channel_attention(student, temperature)
        return (spatial.abs().sum() + channels.abs().sum()) / student.shape[0]


class GlobalContext(nn.Module):
    """What a map says as a whole, as a vector to be added to each of its positions.

    With p the softmax over positions of a learnt 1x1 convolution, W1 and W2 two more and LN layer norm:

        R(F) = F + W2 · ReLU( LN( W1 · Σ p·F ) )

    W2 starts at zero, so that R starts as the identity.

    Args:
        channels: C of the map; C/2 inside.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.attention = nn.Conv2d(channels, 1, 1)
        nn.init.kaiming_normal_(self.attention.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.attention.bias)  # type: ignore[arg-type]
        self.bottleneck = nn.Sequential(
            nn.Conv2d(channels, inner, 1), nn.LayerNorm([inner, 1, 1]), nn.ReLU(), nn.Conv2d(inner, channels, 1)
        )
        for parameter in self.bottleneck[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, feature_map: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C 1 1"]:
        """(B, C, 1, 1), what is added to the map."""
        feature_map = feature_map.to(self.attention.weight.dtype)
        shares = F.softmax(self.attention(feature_map).flatten(2), dim=2)
        pooled = torch.einsum("bcn,bn->bc", feature_map.flatten(2), shares[:, 0].to(feature_map.dtype))
        added: Tensor = self.bottleneck(pooled[:, :, None, None])
        return added


class FocalGlobal(nn.Module):
    """The four terms of one level, with the parts that are learnt.

        L = α · focal(objects) + β · focal(background) + γ · attention + λ/B · Σ ( R_t(T) - R_s(S) )²

    Args:
        student_channels: of the student's map; brought to the teacher's width by a 1x1 convolution where unequal.
        teacher_channels: of the teacher's map.
        settings: temperature and weights.
    """

    def __init__(self, student_channels: int, teacher_channels: int, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.project = Projector(student_channels, teacher_channels, bias=True)
        self.student_context = GlobalContext(teacher_channels)
        self.teacher_context = GlobalContext(teacher_channels)

    def forward(
        self,
        student_map: Float[Tensor, "B Cs H W"],
        teacher_map: Float[Tensor, "B Ct H W"],
        objects: Float[Tensor, "B H W"],
        background: Float[Tensor, "B H W"],
    ) -> Float[Tensor, ""]:
        """The loss of one level; a scalar in at least float32.

        Args:
            student_map: (B, student_channels, H, W).
            teacher_map: (B, teacher_channels, H, W); receives no gradient.
            objects: (B, H, W), see `object_masks`.
            background: (B, H, W), see `object_masks`.
        """
        by = self.settings
        own, other = self.project(student_map), teacher_map.detach()
        return (
            by.alpha * focal_loss(own, other, objects, by.temperature)
            + by.beta * focal_loss(own, other, background, by.temperature)
            + by.gamma * attention_loss(own, other, by.temperature)
            + by.lambda_ * self.relation(own, other)
        )

    def relation(self, own: Float[Tensor, "B C H W"], other: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        """1/B · Σ ( R_t(T) - R_s(S) )² of maps of one width."""
        added = self.teacher_context(other) - self.student_context(own)
        with no_autocast(own):
            student, teacher = comparable(own, other)
            error: Tensor = teacher - student + added.to(student.dtype)
            return error.square().sum() / student.shape[0]


class FGD(PairedLevels):
    """Sum of `FocalGlobal` over pairs of levels, objects being those of the targets.

    Without `pairs`: of what detectors' heads or decoders read, all maps of equal stride; of plain transformers,
    `num_levels` evenly spaced blocks that end with the last.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        alpha: α ≥ 0 of objects; `auto`, as the next four, is what was published for the teacher's kind of detector:
            Faster and Mask R-CNN, FCOS, or RetinaNet for all others.
        beta: β ≥ 0 of the background.
        gamma: γ ≥ 0 of the attention.
        lambda_: λ ≥ 0 of the global relations.
        temperature: T > 0 of the attention.
        level_weights: a factor for each pair, fine to coarse; `equal` is 1 each, as published; `cells` is the number of
            cells of the smallest map over that of the level's own, so that no level weighs more for its size.
        pairs: explicit (student level, teacher level) names instead of the rule above.
        num_levels: blocks taken of a plain transformer.

    Raises:
        UserError: an option is out of range, or no level can be paired.
    """

    needs_labels: ClassVar[bool] = True

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        alpha: float | Auto = "auto",
        beta: float | Auto = "auto",
        gamma: float | Auto = "auto",
        lambda_: float | Auto = "auto",
        temperature: float | Auto = "auto",
        level_weights: Sequence[float] | Literal["equal", "cells"] = "equal",
        pairs: Sequence[tuple[str, str]] | None = None,
        num_levels: int = 4,
    ) -> None:
        _, teacher = _detector("student", student), _detector("teacher", teacher)
        super().__init__(student, teacher, "fgd", choose(student, teacher, "fgd", pairs, num_levels))
        given = {"temperature": temperature, "alpha": alpha, "beta": beta, "gamma": gamma, "lambda_": lambda_}
        published = _published(teacher)
        self.settings = Settings(**{k: getattr(published, k) if v == "auto" else float(v) for k, v in given.items()})
        _check(self.settings, level_weights, len(self.pairs))
        self.level_weights = level_weights
        self.focal_global = nn.ModuleList(
            FocalGlobal(own.channels, other.channels, self.settings) for own, other in self.levels
        )
        if teacher.family not in ("two_stage", "dense") and "auto" in given.values():
            self.notes += (
                "fgd: published for detectors of one or two stages; the teacher is of another kind, so the numbers of "
                "RetinaNet are used. Set weight so that this term is 0.1 to 2 times the supervised loss.",
            )

    def forward(
        self, student: DetectionOutputs, teacher: DetectionOutputs, target: Sequence[Target] | None = None
    ) -> Tensor:
        """Sum over pairs of their factor times `FocalGlobal`; of the targets only the boxes are read."""
        assert target is not None
        maps = self.paired_maps(student, teacher)
        boxes = [own.boxes for own in target]
        terms = [
            level(own, other, *object_masks(boxes, student.size, grid_of(other)))
            for level, (own, other) in zip(self.focal_global, maps, strict=True)
        ]
        factors = self._factors([grid_of(other) for _, other in maps])
        return torch.stack([factor * term for factor, term in zip(factors, terms, strict=True)]).sum()

    def _factors(self, grids: Sequence[Grid]) -> Sequence[float]:
        if self.level_weights == "equal":
            return [1.0] * len(grids)
        if self.level_weights == "cells":
            cells = [height * width for height, width in grids]
            return [min(cells) / count for count in cells]
        return [float(factor) for factor in self.level_weights]


def _object_mask(boxes: Float[Tensor, "N 4"], size: Size, grid: Grid) -> Float[Tensor, "H W"]:
    (height, width), (rows, columns) = size, grid
    # Multiplied before divided: a side on the border of two cells then stays there exactly.
    cells = boxes * boxes.new_tensor([columns, rows] * 2) / boxes.new_tensor([width, height] * 2)
    end = boxes.new_tensor([columns, rows])
    first = torch.minimum(cells[:, :2].floor().clamp(min=0), end - 1)
    last = torch.maximum(torch.minimum(cells[:, 2:].ceil(), end), first + 1)
    (across, down) = (
        (first[:, axis, None] <= place) & (place < last[:, axis, None])
        for axis, place in enumerate(torch.arange(count, device=boxes.device) for count in (columns, rows))
    )
    inside = down[:, :, None] & across[:, None, :]
    share = inside / (last - first).prod(dim=1)[:, None, None]
    # A first box that covers nothing, so that there always is one.
    return torch.cat([boxes.new_zeros(1, rows, columns), share]).amax(dim=0)


def _detector(role: str, facts: ModelFacts) -> DetectorFacts:
    if isinstance(facts, DetectorFacts):
        return facts
    raise UserError(
        f"fgd weighs maps by the boxes of objects, but the {role} {facts.name} is no detector. Use pkd, mgd or another "
        "method on feature maps."
    )


def _published(teacher: DetectorFacts) -> Settings:
    if teacher.family == "two_stage":
        return TWO_STAGE
    return FCOS if "fcos" in (teacher.architecture or teacher.name).lower() else RETINANET


def _check(settings: Settings, level_weights: Sequence[float] | str, num_pairs: int) -> None:
    if not settings.temperature > 0:
        raise UserError(f"fgd: temperature is {settings.temperature}; it must be positive.")
    for name in ("alpha", "beta", "gamma", "lambda_"):
        if not getattr(settings, name) >= 0:
            raise UserError(f"fgd: {name} is {getattr(settings, name)}; a weight must not be negative.")
    if isinstance(level_weights, str):
        return
    if len(level_weights) != num_pairs or not all(factor >= 0 for factor in level_weights):
        raise UserError(
            f"fgd: level_weights is {list(level_weights)}; it must hold {num_pairs} numbers, one for each pair of levels, "
            "none of them negative."
        )
