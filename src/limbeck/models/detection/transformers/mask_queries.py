"""Mask2Former, MaskFormer and EoMT of transformers: a set of queries, each a class and a mask.

Levels are the pixel decoder's maps (`encoder.0` is the one that masks are read from, the others are coarser) or EoMT's
blocks. What the library leaves open or does otherwise is decided here:

* Mask2Former and MaskFormer take a padding mask and do nothing with it, so none is given to them. Their padding is 0
  after normalisation, EoMT's is black before it, as in their processors.
* EoMT sees a square of the size that it wants its images to have. A smaller picture lies in the upper left corner, a
  larger one widens the square; maps and masks are cut back to the picture. Its position embeddings are stretched to
  squares of another size than the published one.
* Images without objects are no exception to the library's losses: their queries all learn "no object".
* In evaluation mode EoMT predicts before a block only if masks are still attended with there (`attn_mask_probs`);
  published weights have that annealed to 0, so the last prediction is the only one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.detection import DetectionOutputs, DetectorFacts, Found, Pictures, Predictions, Resize, Size, Target
from limbeck.errors import UserError
from limbeck.models.base import Provenance
from limbeck.models.detection.base import Detector, evaluating
from limbeck.models.detection.transformers import eomt_pass
from limbeck.models.detection.transformers.class_slots import class_slots
from limbeck.models.detection.transformers.mask_instances import instances
from limbeck.models.detection.transformers.queries import IMAGENET_MEAN, IMAGENET_STD
from limbeck.outputs import Level, Request

_DIVISOR = 32


@dataclass
class _Reading:
    """What a pass gave: the maps by name, and class and mask logits over the canvas, the answer last."""

    maps: dict[str, Tensor]
    final: Tensor | None
    answers: list[tuple[Tensor, Tensor]]


class MaskQueryDetector(Detector):
    """A mask segmenter of transformers behind our interface.

    Args:
        network: the bare network.
        config: its configuration.
        text: the name the user gave.
        class_names: of the slots that are classes, in label order.
        resize: the size at which it wants to see an image.
        provenance: licence and source of the weights.
    """

    mean: Tensor
    std: Tensor
    slots: Tensor

    def __init__(
        self,
        network: nn.Module,
        config: Any,
        *,
        text: str,
        class_names: tuple[str, ...],
        resize: Resize,
        provenance: Provenance,
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.config = config
        self.provenance = provenance
        self.resize = resize
        slots = class_slots(config)
        assert tuple(slots) == class_names, "the configuration's classes are the ones promised"
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("slots", torch.tensor([*slots.values(), config.num_labels]), persistent=False)
        size = (_rounded_up(resize.short), _rounded_up(resize.long))
        levels, final = self._levels(size)
        self.facts = DetectorFacts(
            name=text,
            num_classes=len(class_names),
            input_size=size,
            levels=levels,
            pooled_channels=0,
            final=final,
            class_names=class_names,
            family="mask_queries",
            scores="softmax",
            has_masks=True,
            num_queries=self._num_queries,
        )

    def forward(
        self, pictures: Pictures, targets: Sequence[Target] | None = None, request: Request | None = None
    ) -> DetectionOutputs:
        """See `Detector.forward`.

        Raises:
            UserError: a target has no masks, or EoMT is given a picture that its patches do not divide.
            KeyError: a requested level is not one of this network's.
        """
        request = request or Request()
        for name in request.levels:
            self.facts.level(name)
        labels = None if targets is None else self._labels(pictures, targets)
        reading = self._read(pictures, request, answers=labels is not None or request.predictions)
        outputs = DetectionOutputs(pictures.size, pictures.sizes, maps=reading.maps, final=reading.final)
        if labels is not None:
            outputs.losses = self._losses(reading.answers, *labels)
        if request.predictions:
            outputs.predictions = tuple(
                Predictions(logits[..., self.slots], masks=self._cut(masks, pictures))
                for logits, masks in reading.answers
            )
        return outputs

    @torch.no_grad()
    def detect(self, pictures: Pictures, sizes: Sequence[Size]) -> list[Found]:
        """See `Detector.detect`, and `mask_instances.instances` for how queries become instances."""
        with evaluating(self):
            answer = self(pictures, request=Request(predictions=True)).predictions[-1]
        return [
            instances(logits, masks, pictures.size, own, size)
            for logits, masks, own, size in zip(answer.logits, answer.masks, pictures.sizes, sizes, strict=True)
        ]

    @property
    def _is_eomt(self) -> bool:
        return self.config.model_type in ("eomt", "eomt_dinov3")

    @property
    def _num_queries(self) -> int:
        of_maskformer = self.config.model_type == "maskformer"
        return int((self.config.decoder_config if of_maskformer else self.config).num_queries)

    def _canvas(self, size: Size) -> Size:
        """What the network sees: the picture, for EoMT at least its square."""
        if not self._is_eomt:
            return size
        patch = self.config.patch_size
        if size[0] % patch or size[1] % patch:
            raise UserError(
                f"{self.facts.name} cuts pictures into patches of {patch} pixels and cannot take one of "
                f"{size[0]}x{size[1]}. Pad it to a multiple of {patch}."
            )
        side = -(-max(self.resize.short, self.resize.long) // patch) * patch
        return max(size[0], side), max(size[1], side)

    def _prepare(self, pictures: Pictures) -> Tensor:
        """(B, 3, *canvas), normalised, padded as the library does."""
        if self._is_eomt:
            return (_widened(pictures.images, self._canvas(pictures.size)) - self.mean) / self.std
        return ((pictures.images - self.mean) / self.std).masked_fill(~pictures.inside()[:, None], 0)

    def _read(self, pictures: Pictures, request: Request, answers: bool) -> _Reading:
        pixels = self._prepare(pictures)
        if self._is_eomt:
            numbers = {int(name.removeprefix("blocks.")): name for name in request.levels}
            found = eomt_pass.read(
                self.network, pixels, blocks=tuple(numbers), final=request.final, predictions=answers
            )
            maps = {name: self._cut(found.blocks[number], pictures) for number, name in numbers.items()}
            final = None if found.final is None else self._cut(found.final, pictures)
            return _Reading(maps, final, found.predictions)
        if not answers:
            if not request.levels:
                return _Reading({}, None, [])
            level = self.network.model.pixel_level_module(pixels, output_hidden_states=True)
            maps = self._pyramid(level.decoder_last_hidden_state, level.decoder_hidden_states)
            return _Reading({name: maps[name] for name in request.levels}, None, [])
        # With output_hidden_states=False, transformers 5.23 cannot do without (Mask2Former) or with (MaskFormer)
        # auxiliary losses.
        out = self.network(pixel_values=pixels, output_hidden_states=True, output_auxiliary_logits=True)
        maps = self._pyramid(out.pixel_decoder_last_hidden_state, out.pixel_decoder_hidden_states)
        earlier = [(each["class_queries_logits"], each["masks_queries_logits"]) for each in out.auxiliary_logits]
        last = (out.class_queries_logits, out.masks_queries_logits)
        return _Reading({name: maps[name] for name in request.levels}, None, [*earlier, last])

    def _pyramid(self, finest: Tensor, decoded: Sequence[Tensor]) -> dict[str, Tensor]:
        """The map that masks are read from, and the coarser ones, by name."""
        # The last of MaskFormer's is what `finest` is projected from.
        coarser = decoded[:-1] if self.config.model_type == "maskformer" else decoded
        return {f"encoder.{number}": map_ for number, map_ in enumerate((finest, *reversed(coarser)))}

    def _cut(self, maps: Tensor, pictures: Pictures) -> Tensor:
        """(B, C, h, w) over the canvas -> over the pictures; exact, since patches divide both."""
        canvas, size = self._canvas(pictures.size), pictures.size
        return maps[..., : maps.shape[-2] * size[0] // canvas[0], : maps.shape[-1] * size[1] // canvas[1]]

    def _labels(self, pictures: Pictures, targets: Sequence[Target]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks (N, *canvas), float, and class numbers (N,) of each image, as the library wants them."""
        masks, classes = [], []
        for target in targets:
            if target.masks is None:
                raise UserError(
                    f"{self.facts.name} learns from masks, but the data has boxes only. Give annotations with masks "
                    "(COCO polygons or RLE), or train a detector of boxes."
                )
            masks.append(_widened(target.masks.to(pictures.images.dtype), self._canvas(pictures.size)))
            classes.append(self.slots[target.labels])
        return masks, classes

    def _losses(
        self, answers: list[tuple[Tensor, Tensor]], masks: list[Tensor], classes: list[Tensor]
    ) -> dict[str, Tensor]:
        """The library's terms, weighted; those of earlier predictions end in their number.

        EoMT's are summed there prediction by prediction, so that its loss equals the sum of these up to rounding.
        """
        earlier, (logits, drawn) = answers[:-1], answers[-1]
        if not self._is_eomt:
            auxiliary = [{"class_queries_logits": c, "masks_queries_logits": m} for c, m in earlier]
            losses: dict[str, Tensor] = self.network.get_loss_dict(drawn, logits, masks, classes, auxiliary)
            return losses
        losses = {}
        for number, (logits, drawn) in enumerate(answers):
            terms = self.network.get_loss_dict(drawn, logits, masks, classes, None)
            ending = f"_{number}" if number < len(earlier) else ""
            losses |= {f"{name}{ending}": value for name, value in terms.items()}
        return losses

    @torch.no_grad()
    def _levels(self, size: Size) -> tuple[tuple[Level, ...], Level | None]:
        if self._is_eomt:
            stride, channels = self.config.patch_size, self.config.hidden_size
            grid = (size[0] // stride, size[1] // stride)
            blocks = [f"blocks.{number}" for number in range(self.config.num_hidden_layers)]
            levels = [Level(name, channels, stride, grid, "block") for name in (*blocks, "final")]
            return tuple(levels[:-1]), levels[-1]
        side = 4 * _DIVISOR
        was_training = self.network.training
        module = self.network.model.pixel_level_module.eval()
        decoded = module(torch.zeros(1, 3, side, side), output_hidden_states=True)
        self.network.train(was_training)
        levels = []
        for name, map_ in self._pyramid(decoded.decoder_last_hidden_state, decoded.decoder_hidden_states).items():
            stride = side // map_.shape[-1]
            levels.append(Level(name, map_.shape[1], stride, (size[0] // stride, size[1] // stride), "encoder"))
        return tuple(levels), None


def _widened(maps: Tensor, size: Size) -> Tensor:
    """(..., h, w) with zeros to the right and below."""
    return F.pad(maps, (0, size[1] - maps.shape[-1], 0, size[0] - maps.shape[-2]))


def _rounded_up(side: int) -> int:
    return -(-side // _DIVISOR) * _DIVISOR
