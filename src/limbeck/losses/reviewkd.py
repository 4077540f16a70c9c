"""ReviewKD: every student level learns from the teacher's shallower levels through a chain of fusions.

Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv:2104.09044.

Published settings: CIFAR-100 taps the teacher before each stage's last activation and the student after it, and
raises the weight linearly over 20 epochs; ImageNet has no warm-up. The weight of VGG13 to VGG8 is a maintainer's
suggestion in a later benchmark, not the authors'. For detectors all levels of the feature pyramid are read and nothing
is pooled; the published weights on COCO are 1.2 (Faster R-CNN, ResNet-101 to ResNet-18), 1.0 (to ResNet-50), 2.0
(ResNet-50 to MobileNetV2), 1.0 (RetinaNet, ResNet-101 to ResNet-50), and for Mask R-CNN 1.5, 0.8 and 1.0, all without
warm-up. Inferred, not published: transformers, unequal stage counts, detectors of unequal widths.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.detection import DetectionOutputs
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss, Pairing
from limbeck.losses.grids import Grid, grid_of
from limbeck.losses.levels import require_levels
from limbeck.losses.pairing import (
    LevelPair,
    Levels,
    by_stride,
    counterparts,
    is_neck,
    is_plain,
    named,
    stages,
    stride_notes,
)
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts, Outputs, Request

# Weights by (teacher, student), for our CIFAR networks; None where the pair is published without its weight.
PUBLISHED_WEIGHTS: dict[tuple[str, str], float | None] = {
    ("resnet56", "resnet20"): 0.6,
    ("resnet110", "resnet32"): 1.0,
    ("resnet32x4", "resnet8x4"): 5.0,
    ("wrn_40_2", "wrn_16_2"): 5.0,
    ("wrn_40_2", "wrn_40_1"): 5.0,
    ("wrn_40_2", "shufflenetv1"): 5.0,
    ("resnet32x4", "shufflenetv1"): 5.0,
    ("resnet32x4", "shufflenetv2"): 8.0,
    ("vgg13", "vgg8"): 5.0,
    ("vgg13", "mobilenetv2_half"): None,
    ("resnet50_cifar", "mobilenetv2_half"): None,
    ("resnet50_cifar", "vgg8"): None,
}
CIFAR_WARMUP_EPOCHS = 20.0
DETECTOR_MID_CHANNELS = 256


def hcl_loss(student_map: Float[Tensor, "B C H W"], teacher_map: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """Hierarchical context loss of one level: squared error of the maps and of their averages on coarser grids.

    With MSE_l the mean squared error after adaptive average pooling to l x l, the terms are the full map with
    weight 1 and, for l = 4, 2, 1 as far as l < H, weights 1/2, 1/4, 1/8 in the order in which they are used:

        L = Σ w·MSE / Σ w

    Only the height decides which pools are used, as published.

    Args:
        student_map: (B, C, H, W), the student's transformed map.
        teacher_map: (B, C, H, W); receives no gradient.

    Returns:
        A scalar in at least float32.
    """
    with no_autocast(student_map):
        student, teacher = comparable(student_map, teacher_map)
        difference = student - teacher
        # Not the difference's mean square: this has one pass backward instead of four.
        loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
        # Pooling is linear: one pooling of the difference instead of one of each map. And where all cells of a grid
        # are equal, the next coarser one is the average of its cells.
        equal = difference.shape[2] % 4 == 0 and difference.shape[3] % 4 == 0
        pooled = difference
        for side in (4, 2, 1):
            if side >= difference.shape[2]:
                continue
            weight /= 2
            pooled = F.adaptive_avg_pool2d(pooled if equal else difference, side)
            loss = loss + weight * pooled.square().mean()
            total += weight
        return loss / total


class AttentionFusion(nn.Module):
    """Attention-based fusion (ABF) of a student level with the residual from the next deeper one.

    Args:
        in_channels: of the student's map.
        mid_channels: of the residual path.
        out_channels: of the teacher's map.
        fuse: whether a deeper level exists; the deepest level has no attention.
    """

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, *, fuse: bool) -> None:
        super().__init__()
        reduce = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        output = nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False)
        for convolution in (reduce, output):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.reduce = nn.Sequential(reduce, nn.BatchNorm2d(mid_channels))
        self.attention = nn.Conv2d(2 * mid_channels, 2, 1) if fuse else None
        self.output = nn.Sequential(output, nn.BatchNorm2d(out_channels))

    def forward(
        self,
        student_map: Float[Tensor, "B Ci Hs Ws"],
        residual: Float[Tensor, "B Cm Hr Wr"] | None,
        out_size: Grid,
    ) -> tuple[Float[Tensor, "B Co Ht Wt"], Float[Tensor, "B Cm Ht Wt"]]:
        """The map to compare with the teacher, and the residual for the next shallower level.

        Args:
            student_map: (B, in_channels, Hs, Ws).
            residual: (B, mid_channels, ·, ·) from the next deeper level; None exactly for the deepest.
            out_size: (Ht, Wt) of the teacher's map.

        Returns:
            (B, out_channels, Ht, Wt) and (B, mid_channels, Ht, Wt).
        """
        fused = self.reduce(student_map)
        if self.attention is not None:
            assert residual is not None
            maps = torch.sigmoid(self._logits(self.attention, fused, residual))
            fused = _GatedSum.apply(fused, _nearest(residual, grid_of(fused)).to(fused.dtype), maps.to(fused.dtype))
        fused = _nearest(fused, out_size)
        return self.output(fused), fused

    def _logits(self, attention: nn.Conv2d, fused: Tensor, residual: Tensor) -> Tensor:
        """What the attention says about the fused map and the residual resized to it, one beside the other.

        A pointwise convolution commutes with nearest resizing and splits over its inputs, so that the largest
        tensor of the method, both maps in one, is never made.
        """
        own, other = attention.weight.split(self.reduce[0].out_channels, dim=1)
        return F.conv2d(fused, own, attention.bias) + _nearest(F.conv2d(residual, other), grid_of(fused))


class ReviewKD(nn.Module):
    """The chain of fusions from the deepest level to the shallowest, and the sum of their `hcl_loss`.

    Args:
        student_channels: of the student's maps, shallow to deep; the pooled vector counts as the last map.
        teacher_channels: of the teacher's maps, as many.
        mid_channels: of the residual path; min(512, deepest student channels) if None.

    Raises:
        UserError: the numbers of levels differ or are zero.
    """

    def __init__(
        self, student_channels: Sequence[int], teacher_channels: Sequence[int], mid_channels: int | None = None
    ) -> None:
        super().__init__()
        if len(student_channels) != len(teacher_channels) or not student_channels:
            raise UserError(
                f"ReviewKD needs equally many levels of both models, at least one; it was given "
                f"{len(student_channels)} student and {len(teacher_channels)} teacher levels."
            )
        self.mid_channels = min(512, student_channels[-1]) if mid_channels is None else mid_channels
        deepest = len(student_channels) - 1
        self.fusions = nn.ModuleList(
            AttentionFusion(own, self.mid_channels, other, fuse=level < deepest)
            for level, (own, other) in enumerate(zip(student_channels, teacher_channels, strict=True))
        )

    def forward(self, student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Float[Tensor, ""]:
        """Sum over levels of `hcl_loss`.

        Args:
            student_maps: (B, Cs, Hs, Ws) each, shallow to deep, the pooled vector last as a 1x1 map; any sizes.
            teacher_maps: (B, Ct, Ht, Wt) each, in the same order; receive no gradient.

        Returns:
            A scalar in at least float32.
        """
        reviewed = self.review(student_maps, [grid_of(teacher_map) for teacher_map in teacher_maps])
        levels = [hcl_loss(own, other) for own, other in zip(reviewed, teacher_maps, strict=True)]
        return torch.stack(levels).sum()

    def review(self, student_maps: Sequence[Tensor], sizes: Sequence[Grid]) -> list[Tensor]:
        """The student's transformed maps, shallow to deep, on grids of the given (height, width).

        Raises:
            UserError: there is one image only and a 1x1 map, over which batch norm cannot be trained.
        """
        if self.training and student_maps[0].shape[0] == 1 and (1, 1) in [*map(grid_of, student_maps), *sizes]:
            raise UserError(
                "reviewkd normalises pooled vectors and maps of one cell over the images of one device and needs at "
                "least two of them in every training batch; this one has 1. Raise the batch size, or leave out the last, "
                "partial batch; of a detector, larger pictures or pairs without the coarsest level also help."
            )
        residual: Tensor | None = None
        reviewed: list[Tensor] = []
        for fusion, own, size in reversed(list(zip(self.fusions, student_maps, sizes, strict=True))):
            own = own.to(next(fusion.parameters()).dtype)
            output, residual = fusion(own, residual, size)
            reviewed.append(output)
        return reviewed[::-1]


class ReviewKDLoss(DistillationLoss):
    """`ReviewKD` between two models: their stages, and of classifiers the pooled vector as the deepest level.

    Without `pairs`: equally many stages are paired in order (as published, even where strides differ), unequal
    counts by nearest stride; of a plain transformer, `num_levels` evenly spaced blocks that end with the last
    stand for its stages, and the other model's deepest ones are paired with them in order. The pyramid that a
    detector's heads or decoder read is paired by equal stride.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        mid_channels: of the residual path; min(512, pooled student channels) if None, and where nothing is pooled 256 or
            the teacher's channels if these are fewer.
        taps: `auto` reads the teacher before each level's last activation where it offers that, the student after
            it (as published for CIFAR-100); `post` reads both after it.
        pairs: explicit (student level, teacher level) names, shallow to deep, read exactly as named.
        num_levels: blocks taken of a plain transformer.

    Raises:
        UserError: an option is out of range, or no level can be paired.
    """

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        mid_channels: int | None = None,
        taps: Literal["auto", "post"] = "auto",
        pairs: Sequence[tuple[str, str]] | None = None,
        num_levels: int = 4,
    ) -> None:
        super().__init__(student, teacher)
        if mid_channels is not None and mid_channels < 1:
            raise UserError(f"reviewkd: mid_channels is {mid_channels}; it must be at least 1.")
        if num_levels < 1:
            raise UserError(f"reviewkd: num_levels is {num_levels}; it must be at least 1.")
        self._pair = (_bare(teacher.architecture or teacher.name), _bare(student.architecture or student.name))
        if pairs is not None:
            chosen = named(student, teacher, pairs)
            _check_order(student, chosen)
        else:
            require_levels("reviewkd", student, teacher)
            levels = counterparts(student.levels, teacher.levels, num_levels, _in_order)
            chosen = tuple((s.name, (t.preactivation if taps == "auto" else None) or t.name) for s, t in levels)
        self.pairs = tuple(Pairing(*pair) for pair in chosen)
        self.pooled = min(student.pooled_channels, teacher.pooled_channels) > 0
        self.student_request = Request(tuple(pair.student for pair in self.pairs), pooled=self.pooled)
        self.teacher_request = Request(tuple(pair.teacher for pair in self.pairs), pooled=self.pooled)
        self.notes = self._notes(student, teacher)
        own = [student.level(pair.student).channels for pair in self.pairs]
        other = [teacher.level(pair.teacher).channels for pair in self.pairs]
        if self.pooled:
            own, other = [*own, student.pooled_channels], [*other, teacher.pooled_channels]
        elif mid_channels is None:
            mid_channels = min(DETECTOR_MID_CHANNELS, other[-1])
        self.reviewkd = ReviewKD(own, other, mid_channels)

    @property
    def default_weight(self) -> float:
        """The published weight of a known CIFAR-100 pair; 1.0 for every other."""
        return PUBLISHED_WEIGHTS.get(self._pair) or 1.0

    @property
    def default_warmup_epochs(self) -> float:
        """20 for the published CIFAR-100 pairs; 0 for every other."""
        return CIFAR_WARMUP_EPOCHS if self._pair in PUBLISHED_WEIGHTS else 0.0

    def forward(
        self, student: Outputs | DetectionOutputs, teacher: Outputs | DetectionOutputs, target: object = None
    ) -> Tensor:
        """See `ReviewKD.forward`; the target is not read."""
        own = [student.maps[pair.student] for pair in self.pairs]
        other = [teacher.maps[pair.teacher] for pair in self.pairs]
        if self.pooled:
            own, other = [*own, _pooled(student)], [*other, _pooled(teacher)]
        loss: Tensor = self.reviewkd(own, other)
        return loss

    def _notes(self, student: ModelFacts, teacher: ModelFacts) -> tuple[str, ...]:
        notes = []
        if PUBLISHED_WEIGHTS.get(self._pair, 1.0) is None:
            notes.append("reviewkd: this pair was published without its weight; 1.0 is used unless you set weight.")
        own, other = student.levels, teacher.levels
        if len(own) != len(other) and not any(of(levels) for of in (is_plain, is_neck) for levels in (own, other)):
            notes.append(
                f"reviewkd: the student has {len(own)} stages, the teacher {len(other)}; see the table of pairs."
            )
        names = [(pair.student, pair.teacher) for pair in self.pairs]
        return (*notes, *stride_notes("reviewkd", student, teacher, names))


def _in_order(student: Levels, teacher: Levels) -> tuple[LevelPair, ...]:
    return stages(student, teacher) if len(student) == len(teacher) else by_stride(student, teacher)


def _pooled(outputs: Outputs | DetectionOutputs) -> Tensor:
    assert isinstance(outputs, Outputs)
    assert outputs.pooled is not None
    return outputs.pooled[:, :, None, None]


def _check_order(student: ModelFacts, pairs: Sequence[tuple[str, str]]) -> None:
    """The residual flows from deep to shallow, so an order the other way round would be another method."""
    depths = [student.levels.index(student.level(name)) for name, _ in pairs]
    if depths != sorted(depths):
        raise UserError(f"reviewkd: pairs go from shallow to deep, but the student levels are {[n for n, _ in pairs]}.")


def _bare(name: str) -> str:
    """`limbeck:resnet20@file` as `resnet20`; the empty string for a model of any other origin."""
    origin, _, rest = name.partition(":")
    return rest.partition("@")[0] if origin == "limbeck" else ""


class _GatedSum(torch.autograd.Function):
    """own * gates[:, :1] + other * gates[:, 1:], of (B, C, H, W) twice and (B, 2, H, W), all of one dtype.

    Half of autograd's time for the formula goes into full-size products that are summed over C at once; on CPUs the
    fresh memory for them costs more than the arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, other: Tensor, gates: Tensor) -> Tensor:
        ctx.save_for_backward(own, other, gates)
        return (own * gates[:, :1]).addcmul_(other, gates[:, 1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own, other, gates = ctx.saved_tensors
        (gradient,) = gradients
        to_gates = [torch.einsum("bchw,bchw->bhw", gradient, gated) for gated in (own, other)]
        return gradient * gates[:, :1], gradient * gates[:, 1:], torch.stack(to_gates, dim=1)


def _nearest(feature_map: Tensor, size: Grid) -> Tensor:
    return feature_map if grid_of(feature_map) == size else F.interpolate(feature_map, size, mode="nearest")
