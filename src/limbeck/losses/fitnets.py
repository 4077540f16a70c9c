"""FitNets: regress the teacher's map in the middle of the network from the student's.

Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550.

This is the form in which later papers report it as a baseline on CIFAR-100: the hint is learnt together with the
labels rather than in a stage of its own, at the second stage, with weight 100, through a 1x1 convolution with batch
norm even where the widths agree. Inferred, not published: detectors, plain transformers, resizing where sizes differ (the
baseline has strided and transposed convolutions), and leaving out the regressor's ReLU where it is not known that
the teacher's map is read after one, since maps of transformers have negative values.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.losses.levels import LevelLoss, choose
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts


def fitnets_loss(student_map: Float[Tensor, "B C H W"], teacher_map: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """L = mean over all entries of (student - teacher)².

    Args:
        student_map: (B, C, H, W), the regressor's output.
        teacher_map: (B, C, H, W); receives no gradient.

    Returns:
        A scalar in at least float32.
    """
    with no_autocast(student_map):
        return F.mse_loss(*comparable(student_map, teacher_map))


class HintRegressor(nn.Module):
    """1x1 convolution, batch norm and, for a map read after an activation, ReLU.

    Args:
        in_channels: of the student's map.
        out_channels: of the teacher's map.
        rectify: whether the teacher's map has no negative values.
    """

    def __init__(self, in_channels: int, out_channels: int, *, rectify: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, 1)
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU() if rectify else nn.Identity()

    def forward(self, student_map: Float[Tensor, "B Ci H W"]) -> Float[Tensor, "B Co H W"]:
        """(B, in_channels, H, W) as (B, out_channels, H, W).

        Raises:
            UserError: there is one image only and a 1x1 map, over which batch norm cannot be trained.
        """
        batch, _, height, width = student_map.shape
        if self.training and batch * height * width < 2:
            raise UserError(
                "fitnets normalises each channel over images and positions and needs at least two values; this batch "
                "has 1 image with a 1x1 map. Raise the batch size, or leave out the last, partial batch."
            )
        convolved = self.convolution(student_map.to(self.convolution.weight.dtype))
        regressed: Tensor = self.activation(self.norm(convolved))
        return regressed


class FitNets(LevelLoss):
    """Sum of `fitnets_loss` over pairs of levels, by default one: the hint.

    Without `pairs`: of the stages paired by nearest stride, the second of three or four (in general the middle one,
    the shallower of two); a plain transformer is read at the middle of its depth. Of what detectors' heads or decoders
    read, the middle one of the maps of equal stride.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        pairs: explicit (student level, teacher level) names instead of the rule above.

    Raises:
        UserError: no level can be paired.
    """

    def __init__(
        self, student: ModelFacts, teacher: ModelFacts, *, pairs: Sequence[tuple[str, str]] | None = None
    ) -> None:
        chosen = choose(student, teacher, "fitnets", pairs)
        if pairs is None:
            chosen = chosen[(len(chosen) - 1) // 2 :][:1]
        super().__init__(student, teacher, "fitnets", chosen)
        self.regressors = nn.ModuleList(
            # A level that can also be read before its activation ends with one.
            HintRegressor(
                own.channels, other.channels, rectify=other.preactivation is not None and pair.teacher == other.name
            )
            for pair, (own, other) in zip(self.pairs, self.levels, strict=True)
        )

    @property
    def default_weight(self) -> float:
        """100, as in the baseline on CIFAR-100."""
        return 100.0

    def compare(self, index: int, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """`fitnets_loss` of the regressed student's map."""
        return fitnets_loss(self.regressors[index](student_map), teacher_map)
