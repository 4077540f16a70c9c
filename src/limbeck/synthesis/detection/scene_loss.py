"""What pictures for a detector are optimised for: the labels, and being like those that the detector has learned from.

    L = a_det · L_det(labels) + a_prior · prior + a_tv · TV + a_l2 · norm        (arXiv:2507.16782)

L_det is the library's own training loss, the whole detector in evaluation mode: norms use and keep their statistics,
nothing is dropped, no denoising queries and no further groups of queries are added, and a region proposal network
proposes as many boxes as at test time. The prior is the distance of BatchNorm statistics where the teacher has such
layers (DIODE), else minus the diversity of its patches. Total variation and norm are those of
`limbeck.synthesis.priors`, in units in which published weights hold at any batch size and resolution.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from limbeck.detection import Target
from limbeck.errors import UserError
from limbeck.models.attention import Attention, attention_blocks, reading_attention
from limbeck.models.detection.base import Detector
from limbeck.outputs import Outputs
from limbeck.synthesis.batchnorm import batchnorm_layers, reading_batchnorm
from limbeck.synthesis.detection.base import as_pictures
from limbeck.synthesis.priors.base import LayerStatistics, Prior, Seen
from limbeck.synthesis.priors.batch_statistics import BatchStatistics
from limbeck.synthesis.priors.patch_similarity import GaussianDiversity, PatchSimilarity
from limbeck.synthesis.priors.pixel_norm import pixel_norm
from limbeck.synthesis.priors.total_variation import total_variation

PriorName = Literal["batch_statistics", "patch_similarity", "diversity"]
"""Moments of BatchNorm layers; PSAQ-ViT's entropy of attention; MaskAQ's variance of attention or of feature maps."""

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of photographs (ImageNet), whatever the teacher itself subtracts and divides by: the pictures are made in this space."""

_FIRST_LAYER = 1.0
"""Weight of the first BatchNorm layer relative to the others, as published for YOLOv5 (YOLO11: 5, DIODE: 2)."""


class SceneLoss:
    """The weighted sum of all terms for one batch of pictures.

    Args:
        teacher: frozen, in evaluation mode.
        prior: by name; "auto" takes BatchNorm statistics if the teacher has any, else diversity; "none" leaves it out.
        detection_weight, prior_weight, tv_weight, norm_weight: see `limbeck.synthesis.detection.scenes.Scenes`.

    Attributes:
        notes: what was decided, for the user.

    Raises:
        UserError: a weight is negative, or the teacher has nothing that the prior reads.
    """

    def __init__(
        self,
        teacher: Detector,
        *,
        prior: PriorName | Literal["auto", "none"],
        detection_weight: float | Literal["auto"],
        prior_weight: float | Literal["auto"],
        tv_weight: float,
        norm_weight: float,
    ) -> None:
        self.teacher = teacher
        self.watched = _seeing_whole_pictures(teacher)
        if prior == "auto":
            prior = "batch_statistics" if batchnorm_layers(self.watched) else "diversity"
        by_statistics = prior == "batch_statistics"
        self.weights = {
            "detection": (0.5 if by_statistics else 10.0) if detection_weight == "auto" else detection_weight,
            "prior": (0.01 if by_statistics else 1.0) if prior_weight == "auto" else prior_weight,
            "total_variation": tv_weight,
            "norm": norm_weight,
        }
        for name, weight in self.weights.items():
            if not isinstance(weight, int | float) or not weight >= 0:
                raise UserError(
                    f"scenes: the weight of the term {name} is {weight!r}; it must be a number of at least 0."
                )
        self.prior = _prior(prior, teacher, self.watched) if self.weights["prior"] else None
        self.notes = [f"What real pictures are like is read from: {_WORDS[prior]}."] if self.prior else []
        self._statistics: list[LayerStatistics] = []
        self._attentions: list[Attention] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While it lasts, what the prior reads of a pass is noted; the loss may only be computed then."""
        with ExitStack() as stack:
            if self.prior is not None and self.prior.needs.batchnorm:
                self._statistics = stack.enter_context(reading_batchnorm(self.watched))
            if self.prior is not None and self.prior.needs.attention:
                self._attentions = stack.enter_context(reading_attention(self.teacher))
            yield
        self._statistics, self._attentions = [], []

    def __call__(
        self, pixels: Tensor, targets: Sequence[Target], normalised: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and unweighted terms, all scalars with gradients to the pictures.

        Args:
            pixels: (B, 3, H, W) in [0, 1], what the teacher is shown.
            targets: one for each.
            normalised: (B, 3, H, W), the pictures as they are made, by `MEAN` and `DEVIATION`.
        """
        request = None if self.prior is None else self.prior.needs.request
        outputs = self.teacher(as_pictures(pixels), targets, request)
        terms: dict[str, Tensor] = {"detection": sum(outputs.losses.values(), pixels.new_zeros(()))}
        if self.prior is not None:
            # A detector has no logits of whole pictures, and no prior of its kind reads any.
            read = Outputs(pixels.new_zeros(len(pixels), 0), maps=outputs.maps)
            terms["prior"] = self.prior(
                Seen(normalised, pixels, read, attentions=list(self._attentions), statistics=list(self._statistics))
            )
        if self.weights["total_variation"]:
            terms["total_variation"] = total_variation(normalised).mean()
        if self.weights["norm"]:
            terms["norm"] = pixel_norm(normalised)
        total = sum((self.weights[name] * term for name, term in terms.items()), pixels.new_zeros(()))
        return total, terms


_WORDS = {
    "batch_statistics": "the statistics that its BatchNorm layers keep of its training",
    "patch_similarity": "how unlike the patches in its attention are (PSAQ-ViT's entropy)",
    "diversity": "how unlike its patches are (variance of their cosines)",
}


def _prior(name: str, teacher: Detector, watched: nn.Module) -> Prior | None:
    model: Any = teacher  # the priors read levels and blocks of whatever has them
    if name == "none":
        return None
    if name == "batch_statistics":
        if not batchnorm_layers(watched):
            raise UserError(
                f"{teacher.facts.name} has no BatchNorm layers to read. Take prior=auto or prior=diversity."
            )
        return BatchStatistics(watched, first_weight=_FIRST_LAYER)
    if name == "patch_similarity":
        if not attention_blocks(teacher):
            raise UserError(f"{teacher.facts.name} has no attention that can be read. Take prior=auto.")
        return PatchSimilarity(model)
    return GaussianDiversity(model)


def _seeing_whole_pictures(teacher: Detector) -> nn.Module:
    """The part whose BatchNorm layers are read: of two stages the backbone, since the heads see chosen boxes only."""
    network: Any = teacher.network
    backbone: nn.Module = network.backbone if teacher.facts.family == "two_stage" else teacher
    return backbone
