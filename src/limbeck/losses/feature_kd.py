"""Feature distillation: the student's last features, pooled and dense, learn to be the teacher's. No labels are needed.

After Shang et al., "Theia: Distilling Diverse Vision Foundation Models for Robot Learning", CoRL 2024, arXiv:2407.20179, whose
loss 0.9·(1 - cosine of the flattened map) + 0.1·smooth L1 on standardised teacher features this is. AM-RADIO (Ranzinger et al.,
CVPR 2024, arXiv:2312.06709) and its successors have the same terms for one pooled vector and the map; their way to standardise is
`standardise="phi_s"` (`limbeck.losses.phi_s`).

Published: the formula, its two weights, and one head for each kind of feature. Inferred: the same formula for the pooled vector
(Theia has none, AM-RADIO takes 1 - cosine alone), a linear head (Theia's translators are small convolutional networks,
AM-RADIO's are MLPs of two layers), and resizing the student's map where the grids differ.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.call_checks import require_at_least
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss, Pairing
from limbeck.losses.feature_scale import Standardisation, Standardiser, fit_all
from limbeck.losses.grids import grid_of, resize, tokens
from limbeck.losses.kd import require_classifiers
from limbeck.losses.last_maps import last_maps, map_of, request_of, resized_notes
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import Level, ModelFacts, Outputs

HeadKind = Literal["linear", "mlp"]


def cosine_smooth_l1(
    student: Float[Tensor, "*N D"], teacher: Float[Tensor, "*N D"], cosine: float = 0.9, smooth_l1: float = 0.1
) -> Float[Tensor, " *N"]:
    """cosine · (1 - cos(student, teacher)) + smooth_l1 · mean over D of h(student - teacher), for each vector.

    h(x) = x²/2 where |x| < 1, |x| - 1/2 beyond.

    Args:
        student: (..., D).
        teacher: (..., D), standardised; receives no gradient.
        cosine: weight of the direction.
        smooth_l1: weight of the entries.

    Returns:
        (...), in at least float32.
    """
    with no_autocast(student):
        student, teacher = comparable(student, teacher)
        direction = 1 - F.cosine_similarity(student, teacher, dim=-1, eps=1e-8)
        entries = F.smooth_l1_loss(student, teacher, reduction="none").mean(-1)
        return cosine * direction + smooth_l1 * entries


class FeatureHead(nn.Module):
    """From the student's width to the teacher's: a linear map, or two with a GELU between them.

    Args:
        in_channels: of the student.
        out_channels: of the teacher.
        kind: which of them.
        hidden: width between the two of an MLP.
    """

    def __init__(self, in_channels: int, out_channels: int, kind: HeadKind, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                [nn.Linear(in_channels, out_channels)]
                if kind == "linear"
                else [nn.Linear(in_channels, hidden), nn.GELU(), nn.Linear(hidden, out_channels)]
            )
        )

    def forward(self, features: Float[Tensor, "*N Ci"]) -> Float[Tensor, "*N Co"]:
        """(..., in_channels) as (..., out_channels)."""
        mapped: Tensor = self.layers(features.to(next(self.layers.parameters()).dtype))
        return mapped


class FeatureKD(DistillationLoss):
    """pooled · mean over images of `cosine_smooth_l1` of the pooled vectors + dense · the same of the flattened maps.

    The pooled vectors are those that enter the classifiers. The maps are the last ones after the final norm where both models
    have such a map, and their last levels elsewhere; the student's is resized to the teacher's grid.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        pooled: weight of the pooled vectors; 0 leaves them out.
        dense: weight of the maps; 0 leaves them out.
        cosine: weight of the directions.
        smooth_l1: weight of the entries.
        standardise: `channel`, `phi_s` or `off`; see `limbeck.losses.feature_scale`.
        calibration_images: training images on which the teacher's features are measured before training.
        head: from the student's width to the teacher's, `linear` or `mlp`.
        hidden: width inside an mlp; None is the larger one of the two models'.

    Raises:
        UserError: a model is a detector, or offers no map while `dense` is above 0, or an option is out of range.
    """

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        pooled: float = 1.0,
        dense: float = 1.0,
        cosine: float = 0.9,
        smooth_l1: float = 0.1,
        standardise: Standardisation = "channel",
        calibration_images: int = 2048,
        head: HeadKind = "linear",
        hidden: int | None = None,
    ) -> None:
        super().__init__(student, teacher)
        require_classifiers("feature_kd", student, teacher)
        require_at_least("feature_kd", 0, pooled=pooled, dense=dense, cosine=cosine, smooth_l1=smooth_l1)
        require_at_least("feature_kd", 2, calibration_images=calibration_images)
        if hidden is not None:
            require_at_least("feature_kd", 1, hidden=hidden)
        if not (pooled or dense) or not (cosine or smooth_l1):
            raise UserError(
                "feature_kd: pooled and dense, or cosine and smooth_l1, are both 0, so nothing would be learnt. Set one."
            )
        self.weights = (pooled, dense)
        self.cosine, self.smooth_l1 = cosine, smooth_l1
        self._calibration_images = calibration_images if standardise != "off" else 0
        self.own: Level | None = None
        self.other: Level | None = None
        if dense:
            self.own, self.other = last_maps("feature_kd", student, teacher)
        self.student_request = request_of(self.own, pooled=pooled > 0)
        self.teacher_request = request_of(self.other, pooled=pooled > 0)

        widths = [(student.pooled_channels, teacher.pooled_channels)] if pooled else []
        self.pairs = (Pairing("pooled", "pooled"),) if pooled else ()
        if self.own is not None and self.other is not None:
            widths.append((self.own.channels, self.other.channels))
            self.pairs += (Pairing(self.own.name, self.other.name),)
            self.notes = resized_notes("feature_kd", self.own, self.other)
        self.heads = nn.ModuleList(
            FeatureHead(own, other, head, max(own, other) if hidden is None else hidden) for own, other in widths
        )
        self.standardisers = nn.ModuleList(Standardiser(other, standardise, "feature_kd") for _, other in widths)

    @property
    def calibration_images(self) -> int:
        """As the option says; 0 without standardising."""
        return self._calibration_images

    def calibrate(self, teacher: Iterable[Outputs]) -> None:
        """Measure the teacher's features; see `limbeck.losses.feature_scale`."""
        fit_all([*self.standardisers], (self._teacher_features(outputs) for outputs in teacher))

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """The weighted terms; the target is not read."""
        others = self._teacher_features(teacher)
        parts = []
        for own, other, head, standardise in zip(
            self._student_features(student, teacher), others, self.heads, self.standardisers, strict=True
        ):
            mapped, wanted = head(own), standardise(other)
            # A map counts as one long vector.
            parts.append(cosine_smooth_l1(mapped.flatten(1), wanted.flatten(1), self.cosine, self.smooth_l1).mean())
        weights = [weight for weight in self.weights if weight]
        return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum()

    def _student_features(self, student: Outputs, teacher: Outputs) -> list[Tensor]:
        """(B, Cs) pooled and (B, N, Cs) dense, on the teacher's grid."""
        features = [student.pooled] if student.pooled is not None and self.weights[0] else []
        if self.own is not None and self.other is not None:
            features.append(tokens(resize(map_of(student, self.own), grid_of(map_of(teacher, self.other)))))
        return features

    def _teacher_features(self, teacher: Outputs) -> Sequence[Tensor]:
        """(B, Ct) pooled and (B, N, Ct) dense."""
        features = [teacher.pooled] if teacher.pooled is not None and self.weights[0] else []
        if self.other is not None:
            features.append(tokens(map_of(teacher, self.other)))
        return features
