"""PKD: maximise the Pearson correlation of the two models' maps, channel by channel.

Cao, Zhang, Gao, Cheng, Cheng, Zhang, "PKD: General Distillation Framework for Object Detectors via Pearson
Correlation Coefficient", NeurIPS 2022, arXiv:2207.02039.

Scale and offset of a channel do not count, which is why the method needs no tuning between detectors of different
kinds; its one number is the weight, 6, published for the first four levels of feature pyramids. The student's map is
resized where sizes differ, as published. Inferred, not published: classification, plain transformers, and the
projector between maps of unequal widths.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.losses.levels import LevelLoss, Projector, choose
from limbeck.losses.pairing import is_neck
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts


def pkd_loss(student_map: Float[Tensor, "B C H W"], teacher_map: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """One minus the correlation of the two maps, averaged over channels.

    With s and t the maps standardised over (B, H, W) in each channel (mean 0, variance 1), and r their Pearson
    correlation in that channel:

        L = mean (s - t)² / 2 = mean_c (1 - r_c)

    A constant channel has no correlation: against a varying one it counts 1/2, against a constant one 0. The value
    lies in [0, 2] and depends on the batch, over which channels are standardised.

    Args:
        student_map: (B, C, H, W).
        teacher_map: (B, C, H, W); receives no gradient.

    Returns:
        A scalar in at least float32.

    Raises:
        UserError: there is one image only and a 1x1 map.
    """
    batch, _, height, width = student_map.shape
    if batch * height * width < 2:
        raise UserError(
            "pkd standardises each channel over images and positions and needs at least two values; this batch has 1 "
            "image with a 1x1 map. Raise the batch size, or leave out the last, partial batch."
        )
    with no_autocast(student_map):
        student, teacher = comparable(student_map, teacher_map)
        return F.mse_loss(_standardised(student), _standardised(teacher)) / 2


class PKD(LevelLoss):
    """Sum of `pkd_loss` over pairs of levels.

    Without `pairs`: levels of pyramids by nearest stride; of a plain transformer, `num_levels` evenly spaced blocks
    that end with the last stand for its stages; of what detectors' heads or decoders read, the `num_levels` finest maps
    of equal stride.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        pairs: explicit (student level, teacher level) names instead of the rule above.
        num_levels: blocks taken of a plain transformer, pairs taken of detectors.

    Raises:
        UserError: an option is out of range, or no level can be paired.
    """

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        pairs: Sequence[tuple[str, str]] | None = None,
        num_levels: int = 4,
    ) -> None:
        chosen = choose(student, teacher, "pkd", pairs, num_levels)
        necks = is_neck(student.levels) or is_neck(teacher.levels)
        super().__init__(student, teacher, "pkd", chosen[:num_levels] if pairs is None and necks else chosen)
        self.project = nn.ModuleList(Projector(own.channels, other.channels, bias=False) for own, other in self.levels)

    @property
    def default_weight(self) -> float:
        """6, as published for detectors."""
        return 6.0

    def compare(self, index: int, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """`pkd_loss` of the projected student's map."""
        return pkd_loss(self.project[index](student_map), teacher_map)


def _standardised(feature_map: Tensor) -> Tensor:
    # Batch norm without memory or scale is just this; its epsilon is added to the variance, so that a constant
    # channel becomes zero and has a finite gradient.
    return F.batch_norm(feature_map, None, None, training=True, eps=1e-12)
