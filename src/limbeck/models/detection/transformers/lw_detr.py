"""LW-DETR and RF-DETR: a plain transformer, a projector of its maps, and a light decoder trained in groups of queries.

Sources: Chen et al., 2024 (LW-DETR); Robinson et al., 2025 (RF-DETR). Only the first group answers outside training, so
only the first is shown. A query's content belongs to its number and not to a cell; these networks cannot be asked about
another's queries.
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.detection import Predictions, ScoreKind, Size, Target
from limbeck.errors import UserError
from limbeck.models.detection.transformers.queries import Canvas, QueryDetector, Reading
from limbeck.models.detection.transformers.watching import watched
from limbeck.outputs import Request


class LwDetrDetector(QueryDetector):
    """LW-DETR: levels `blocks.N` are the transformer's maps that the projector reads, `encoder.0` ... what it makes of them."""

    scores: ClassVar[ScoreKind] = "sigmoid"
    masks_padding: ClassVar[bool] = True

    def __init__(self, network: Any, config: Any, *, text: str, **settings: Any) -> None:
        super().__init__(network, config, text=text, **settings)
        if not any(level.kind == "encoder" for level in self.facts.levels):
            raise UserError(
                f"{text} has no map for its decoder, since projector_scale_factors is empty. Give that option, "
                "[1.0] for one map of the patches' stride or [2.0, 0.5] for a finer and a coarser one."
            )

    @property
    def boxes(self) -> Any:
        """The library's network of boxes."""
        return self.network

    @property
    def _divisor(self) -> int:
        backbone = self.network.config.backbone_config
        return int(backbone.patch_size) * math.isqrt(backbone.num_windows)

    @property
    def _most(self) -> int:
        # Its processor is Deformable DETR's, which reports 100 objects.
        return 100

    @property
    def _weights(self) -> dict[str, float]:
        config = self.network.config
        return {
            "loss_ce": config.class_loss_coefficient,
            "loss_bbox": config.bbox_loss_coefficient,
            "loss_giou": config.giou_loss_coefficient,
        }

    def read_maps(self, canvas: Canvas, *, final: bool) -> Reading:
        """See `QueryDetector.read_maps`."""
        encoder = self.boxes.model.backbone
        blocks = encoder.backbone(canvas.pixels).feature_maps
        return Reading(self._maps(blocks, encoder.projector(blocks)))

    def read(self, canvas: Canvas, labels: list[dict[str, Tensor]] | None, request: Request) -> Reading:
        """See `QueryDetector.read`."""
        self.check_cells(canvas)
        encoder = self.boxes.model.backbone
        with watched(encoder.backbone) as backbone, watched(encoder.projector) as projector:
            whole = self.network(canvas.pixels, pixel_mask=canvas.mask, labels=labels, return_dict=True)
        maps = self._maps(backbone["result"].feature_maps, projector["result"])
        return Reading(maps, output=whole, layers=self._layers(whole, canvas, projector["result"], request))

    def _layers(self, whole: Any, canvas: Canvas, projected: Any, request: Request) -> tuple[Predictions, ...]:
        first = slice(self._num_queries)
        last = Predictions(whole.logits[:, first], whole.pred_boxes[:, first])
        if not request.predictions:
            return (last,)
        starts = whole.intermediate_reference_points[-1][:, first]
        earlier = (self._answer(state[:, first], starts) for state in whole.intermediate_hidden_states[:-1])
        return (*earlier, last)

    def _answer(self, state: Tensor, starts: Tensor) -> Predictions:
        """The heads on a decoder layer's state; boxes are corrections of the queries' first boxes."""
        centre, extent = self.boxes.bbox_embed(state).split(2, -1)
        start, size = starts.split(2, -1)
        return Predictions(self.boxes.class_embed(state), torch.cat([centre * size + start, extent.exp() * size], -1))

    def _maps(self, blocks: Any, projected: Any) -> dict[str, Tensor]:
        stages = self.boxes.model.backbone.backbone.out_features
        names = [f"blocks.{int(stage.removeprefix('stage')) - 1}" for stage in stages]
        projected = [projected] if isinstance(projected, Tensor) else projected
        maps = dict(zip(names, blocks, strict=True))
        return maps | {f"encoder.{number}": map_ for number, map_ in enumerate(projected)}


class RfDetrDetector(LwDetrDetector):
    """RF-DETR, with masks or without."""

    @property
    def _has_masks(self) -> bool:
        # Only the library's network for instance segmentation has this.
        return hasattr(self.network, "segmentation_bias")

    @property
    def boxes(self) -> Any:
        """The library's network of boxes."""
        return self.network.model if self._has_masks else self.network

    @property
    def _divisor(self) -> int:
        backbone = self.network.config.backbone_config
        return int(backbone.patch_size) * int(backbone.num_windows)

    @property
    def _most(self) -> int:
        return self._num_queries

    @property
    def _weights(self) -> dict[str, float]:
        config = self.network.config
        return super()._weights | {
            "loss_mask_ce": config.mask_class_loss_coefficient,
            "loss_mask_dice": config.mask_dice_loss_coefficient,
        }

    def _is_left_out(self, term: str) -> bool:
        return self._has_masks and term.endswith("_enc") and not self.network.config.auxiliary_loss

    def labels(self, canvas: Canvas, targets: Any) -> list[dict[str, Tensor]]:
        """See `QueryDetector.labels`; masks over the canvas.

        Raises:
            UserError: a target has no masks, and this network learns them.
        """
        labels = super().labels(canvas, targets)
        if self._has_masks:
            for label, target in zip(labels, targets, strict=True):
                label["masks"] = self._widened(target, canvas.size)
        return labels

    def _widened(self, target: Target, size: Size) -> Tensor:
        if target.masks is None:
            raise UserError(
                f"{self.facts.name} learns masks, and the data has boxes only. Give data with masks, or a detector "
                "of boxes."
            )
        height, width = target.masks.shape[-2:]
        return F.pad(target.masks, (0, size[1] - width, 0, size[0] - height))

    def _layers(self, whole: Any, canvas: Canvas, projected: Any, request: Request) -> tuple[Predictions, ...]:
        layers = super()._layers(whole, canvas, projected, request)
        if self._has_masks:
            layers[-1].masks = whole.pred_masks[:, : self._num_queries]
            if request.predictions:
                states = [state[:, : self._num_queries] for state in whole.intermediate_hidden_states]
                drawn = self.network.segmentation_head(projected, states, canvas.pixels.shape[-2:])
                for layer, masks in zip(layers[:-1], drawn[:-1], strict=True):
                    layer.masks = masks
        return layers

    def _found_masks(
        self, last: Predictions, queries: Tensor, number: int, canvas: Canvas, size: Size
    ) -> Tensor | None:
        if last.masks is None:
            return None
        masks = last.masks[number]
        height, width = (
            max(1, round(cells * own / seen))
            for cells, own, seen in zip(masks.shape[-2:], canvas.pictures.sizes[number], canvas.size, strict=True)
        )
        own = masks[:, :height, :width].float()
        # One by one, so that the masks of a large image are never all there as floats.
        drawn = [
            F.interpolate(own[None, [query]], size, mode="bilinear")[0, 0] > 0 for query in queries[number].tolist()
        ]
        return torch.stack(drawn)
