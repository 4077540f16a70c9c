"""What all transformers detectors with box queries share: pixels in, labels in, canonical answers out.

Networks without a padding mask see the padding as a part of the picture, so their boxes are shares of the padded
picture; networks with one answer in shares of each image's own area. Outwards all boxes are shares of the own area.
"""

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.detection import (
    DetectionOutputs,
    DetectorFacts,
    Found,
    Pictures,
    Predictions,
    Resize,
    ScoreKind,
    Size,
    Target,
    Tokens,
)
from limbeck.errors import UserError
from limbeck.models.base import Provenance
from limbeck.models.detection.base import Detector, evaluating, over_padding
from limbeck.models.detection.transformers.class_slots import class_slots
from limbeck.outputs import Level, LevelKind, Request

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_LAYER_OF_TERM = re.compile(r"_(aux_\d+|dn_\d+|enc|\d+)$")


@dataclass
class Canvas:
    """The rectangle that a network sees.

    Attributes:
        pixels: (B, 3, H, W), normalised, 0 beyond an image's own area.
        mask: (B, H, W) int64, 1 on an image's own area.
        pictures: what it was made of.
    """

    pixels: Tensor
    mask: Tensor
    pictures: Pictures

    @property
    def size(self) -> Size:
        """(height, width)."""
        return int(self.pixels.shape[-2]), int(self.pixels.shape[-1])


@dataclass
class Reading:
    """One pass of a network in its own terms.

    Attributes:
        maps: by level name, over the canvas.
        final: the last map after the final norm.
        output: the library's output; None where only maps were wanted.
        layers: each decoder layer's answers: all label slots, boxes as shares of what the network takes for the image.
        tokens: which encoder cells became queries.
        read_queries: the decoder's layers' answers, in the same terms, on the queries that tokens name.
    """

    maps: dict[str, Tensor]
    final: Tensor | None = None
    output: Any = None
    layers: tuple[Predictions, ...] = ()
    tokens: Tokens | None = None
    read_queries: Any = None


class QueryDetector(Detector):
    """A transformers network with box queries behind our interface.

    Args:
        network: the library's own network.
        config: its configuration.
        text: the name the user gave.
        class_names: of the slots that are classes, in label order.
        resize: the size at which it wants to see an image.
        provenance: licence and source of the weights.
    """

    scores: ClassVar[ScoreKind]
    masks_padding: ClassVar[bool] = False
    """It is told where the padding is, and its boxes are shares of the rest."""
    statistics: ClassVar[tuple[tuple[float, ...], tuple[float, ...]]] = (IMAGENET_MEAN, IMAGENET_STD)
    """Mean and standard deviation, where the weights' folder names no others."""

    mean: Tensor
    std: Tensor
    slots: Tensor
    columns: Tensor

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
        self.resize = resize
        self.provenance = provenance
        slots = class_slots(config)
        assert tuple(slots) == class_names, "the configuration's classes are the ones promised"
        for name, values in zip(("mean", "std"), self.statistics, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        last = [config.num_labels] if self.scores == "softmax" else []
        self.register_buffer("slots", torch.tensor([*slots.values()]), persistent=False)
        self.register_buffer("columns", torch.tensor([*slots.values(), *last]), persistent=False)
        height, width = (-(-side // 32) * 32 for side in (resize.short, resize.long))
        size = self._fitting((resize.short, resize.long) if resize.stretch else (height, width))
        levels, final = self._find_levels(text, size)
        self.facts = DetectorFacts(
            name=text,
            num_classes=len(class_names),
            input_size=size,
            levels=levels,
            pooled_channels=0,
            final=final,
            class_names=class_names,
            family="queries",
            scores=self.scores,
            has_masks=self._has_masks,
            num_queries=self._num_queries,
            reads_queries=self._reads_queries,
            **self._corner_facts(),
        )

    @abstractmethod
    def read_maps(self, canvas: Canvas, *, final: bool) -> Reading:
        """All feature maps and nothing else; neither decoder nor heads run."""

    @abstractmethod
    def read(self, canvas: Canvas, labels: list[dict[str, Tensor]] | None, request: Request) -> Reading:
        """One pass of the library's own forward."""

    @property
    @abstractmethod
    def _weights(self) -> dict[str, float]:
        """The library's weight of each of its terms, by the term's name without its layer."""

    @property
    def _divisor(self) -> int:
        """Heights and widths must be multiples of this."""
        return 1

    @property
    def _num_queries(self) -> int:
        return int(self.network.config.num_queries)

    @property
    def _most(self) -> int:
        """How many objects the library reports of an image."""
        return self._num_queries

    @property
    def _has_masks(self) -> bool:
        return False

    @property
    def _reads_queries(self) -> bool:
        return False

    def _corner_facts(self) -> dict[str, Any]:
        return {}

    def forward(
        self, pictures: Pictures, targets: Sequence[Target] | None = None, request: Request | None = None
    ) -> DetectionOutputs:
        """See `Detector.forward`."""
        request = request or Request()
        for name in request.levels:
            self.facts.level(name)
        outputs = DetectionOutputs(pictures.size, pictures.sizes)
        canvas = self.canvas(pictures)
        if targets is not None or request.predictions or request.queries:
            labels = None if targets is None else self.labels(canvas, targets)
            reading = self.read(canvas, labels, request)
        elif request.levels or request.final:
            reading = self.read_maps(canvas, final=request.final)
        else:
            return outputs
        outputs.maps = {name: self._over_padding(reading.maps[name], canvas) for name in request.levels}
        if request.final and reading.final is not None:
            outputs.final = self._over_padding(reading.final, canvas)
        if targets is not None:
            outputs.losses = self._terms(reading.output)
        if request.predictions or request.queries:
            outputs.predictions = self.canonical(reading.layers, canvas)
        if request.queries and reading.read_queries is not None:
            outputs.tokens = reading.tokens
            outputs.read_queries = lambda tokens: self.canonical(reading.read_queries(tokens), canvas)
        return outputs

    @torch.no_grad()
    def detect(self, pictures: Pictures, sizes: Sequence[Size]) -> list[Found]:
        """See `Detector.detect`."""
        canvas = self.canvas(pictures)
        with evaluating(self):
            last = self.read(canvas, None, Request()).layers[-1]
        boxes = cast(Tensor, self.canonical((last,), canvas)[0].boxes)
        if self.scores == "softmax":
            # The empty slots take their share of the probability, as in the library, but are never the answer.
            scores, labels = last.logits.softmax(-1)[..., self.slots].max(-1)
            scores, queries = scores.sort(dim=-1, descending=True, stable=True)
            labels = labels.gather(1, queries)
        else:
            each = last.logits[..., self.slots].sigmoid()
            scores, places = each.flatten(1).topk(min(self._most, each[0].numel()), dim=1)
            queries, labels = places // each.shape[-1], places % each.shape[-1]
        found = []
        for number, (height, width) in enumerate(sizes):
            centre, extent = boxes[number, queries[number]].float().split(2, -1)
            corners = torch.cat([centre - extent / 2, centre + extent / 2], -1)
            corners = corners * corners.new_tensor([width, height, width, height])
            masks = self._found_masks(last, queries, number, canvas, (height, width))
            found.append(Found(corners, labels[number], scores[number].float(), masks))
        return found

    def canvas(self, pictures: Pictures) -> Canvas:
        """Normalised pixels of a size that the network can take.

        A size that does not fit becomes the smallest fitting one that holds the images' own areas.
        """
        size = pictures.size
        if size != self._fitting(size):
            size = self._fitting((max(h for h, _ in pictures.sizes), max(w for _, w in pictures.sizes)))
            height, width = pictures.size
            images = F.pad(pictures.images, (0, size[1] - width, 0, size[0] - height))
        else:
            images = pictures.images
        inside = Pictures(images, pictures.sizes).inside()
        pixels = (images - self.mean) / self.std * inside[:, None]
        return Canvas(pixels, inside.long(), pictures)

    def labels(self, canvas: Canvas, targets: Sequence[Target]) -> list[dict[str, Tensor]]:
        """The targets as the library wants them."""
        frames = self._frames(canvas)
        labels = []
        for target, frame in zip(targets, frames, strict=True):
            upper, lower = target.boxes.split(2, -1)
            boxes = torch.cat([(upper + lower) / 2, lower - upper], -1) / frame
            labels.append({"class_labels": self.slots[target.labels], "boxes": boxes})
        return labels

    def canonical(self, layers: tuple[Predictions, ...], canvas: Canvas) -> tuple[Predictions, ...]:
        """The same answers about classes alone, with boxes as shares of the own areas and masks over the padding."""
        own = canvas.pixels.new_tensor([(width, height, width, height) for height, width in canvas.pictures.sizes])
        scale = (self._frames(canvas) / own)[:, None]
        all_columns = len(self.columns) == layers[0].logits.shape[-1] if layers else True
        return tuple(
            Predictions(
                layer.logits if all_columns else layer.logits[..., self.columns],
                None if layer.boxes is None else layer.boxes * scale,
                None if layer.masks is None else self._over_padding(layer.masks, canvas, filling=-10.0),
                layer.corners,
            )
            for layer in layers
        )

    def check_cells(self, canvas: Canvas) -> None:
        """For networks whose queries are cells of their encoder's maps.

        Raises:
            UserError: the pictures are too small to have so many cells.
        """
        config, levels = self.network.config, [level for level in self.facts.levels if level.kind == "encoder"]
        cells = sum((canvas.size[0] // level.stride) * (canvas.size[1] // level.stride) for level in levels)
        if cells < self._num_queries and config.num_feature_levels == len(levels):
            raise UserError(
                f"{self.facts.name} picks {self._num_queries} queries among the cells of its maps, and a picture of "
                f"{canvas.size[0]}x{canvas.size[1]} pixels has {cells} of them. Give larger pictures (the options short "
                "and long), or make the network with a smaller num_queries."
            )

    def _frames(self, canvas: Canvas) -> Tensor:
        """(B, 4) width, height, width, height of what the network's box shares are shares of."""
        sizes = canvas.pictures.sizes if self.masks_padding else [canvas.size] * len(canvas.pictures)
        return canvas.pixels.new_tensor([(width, height, width, height) for height, width in sizes])

    def _terms(self, output: Any) -> dict[str, Tensor]:
        """The library's weighted terms, each summed over the layers it is computed on; their sum is its loss."""
        terms: dict[str, Tensor] = {}
        for name, value in output.loss_dict.items():
            kind = _LAYER_OF_TERM.sub("", name)
            if kind in self._weights and not self._is_left_out(name):
                # Where a batch shows nothing, a mask term is an empty tensor instead of 0.
                weighted = self._weights[kind] * (value.sum() if value.ndim else value)
                terms[kind] = terms[kind] + weighted if kind in terms else weighted
        return terms

    def _is_left_out(self, term: str) -> bool:
        """Whether the library computes this term and leaves it out of its loss."""
        return False

    def _found_masks(
        self, last: Predictions, queries: Tensor, number: int, canvas: Canvas, size: Size
    ) -> Tensor | None:
        """(N, height, width) of the found objects of one image; None of a network without masks."""
        return None

    def _fitting(self, size: Size) -> Size:
        height, width = (-(-side // self._divisor) * self._divisor for side in size)
        return height, width

    def _over_padding(self, map_: Tensor, canvas: Canvas, filling: float = 0.0) -> Tensor:
        """A map over the canvas as one over the padded pictures, where these differ."""
        rows, columns = (
            round(cells * whole / seen)
            for cells, whole, seen in zip(map_.shape[-2:], canvas.pictures.size, canvas.size, strict=True)
        )
        return over_padding(map_, (rows, columns), filling)

    @torch.no_grad()
    def _find_levels(self, text: str, size: Size) -> tuple[tuple[Level, ...], Level | None]:
        """What the maps of a small picture say of those at the full size."""
        side = self._fitting((64, 64))[0]
        was_training = self.network.training
        self.network.eval()
        try:
            picture = Pictures(torch.zeros(1, 3, side, side), ((side, side),))
            reading = self.read_maps(self.canvas(picture), final=True)
        except RuntimeError as error:
            raise UserError(
                f"{text} cannot read pictures: {str(error).splitlines()[0]} Options that belong together (channels, "
                "levels, heads) must fit each other."
            ) from error
        finally:
            self.network.train(was_training)

        def level(name: str, map_: Tensor) -> Level:
            stride = side // map_.shape[-2]
            kind: LevelKind = "block" if name.startswith(("blocks", "final")) else "encoder"
            return Level(name, map_.shape[1], stride, (-(-size[0] // stride), -(-size[1] // stride)), kind)

        levels = tuple(level(name, map_) for name, map_ in reading.maps.items())
        return levels, None if reading.final is None else level("final", reading.final)
