"""RT-DETR, its second version and D-FINE: a hybrid encoder of three strides and a decoder of queries picked from it.

Sources: Zhao et al., 2023 (RT-DETR); Lv et al., 2024 (v2); Peng et al., 2024 (D-FINE: box sides as distributions).
A query is a cell of the encoder's maps, so these networks can be asked about the queries of another one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor

from limbeck.detection import Predictions, ScoreKind, Tokens
from limbeck.models.detection.transformers.encoder_cells import Cells
from limbeck.models.detection.transformers.queries import Canvas, QueryDetector, Reading
from limbeck.models.detection.transformers.watching import watched
from limbeck.outputs import Request


class RTDetrDetector(QueryDetector):
    """RT-DETR: levels `encoder.0` ... are the maps that the decoder attends to, fine to coarse."""

    scores: ClassVar[ScoreKind] = "sigmoid"
    statistics: ClassVar[tuple[tuple[float, ...], tuple[float, ...]]] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    terms: ClassVar[tuple[str, ...]] = ("loss_vfl", "loss_bbox", "loss_giou")

    def __init__(self, network: Any, config: Any, **settings: Any) -> None:
        # With anchors of one size, kept at its making, the network could be evaluated at that size only.
        config.anchor_image_size = None
        super().__init__(network, config, **settings)

    @property
    def _divisor(self) -> int:
        return int(max(self.network.config.feat_strides))

    @property
    def _weights(self) -> dict[str, float]:
        # The library's criterion has weighted them already.
        return dict.fromkeys(self.terms, 1.0)

    @property
    def _reads_queries(self) -> bool:
        # Learned query contents belong to no cell.
        return not self.network.config.learn_initial_query

    def read_maps(self, canvas: Canvas, *, final: bool) -> Reading:
        """See `QueryDetector.read_maps`."""
        model = self.network.model
        features = model.backbone(canvas.pixels, canvas.mask)
        projected = [model.encoder_input_proj[level](map_) for level, (map_, _) in enumerate(features)]
        return Reading(_maps(model.encoder(projected).last_hidden_state))

    def read(self, canvas: Canvas, labels: list[dict[str, Tensor]] | None, request: Request) -> Reading:
        """See `QueryDetector.read`."""
        self.check_cells(canvas)
        model, asks = self.network.model, request.queries and self._reads_queries
        with (
            watched(model.enc_output if asks else None) as contents,
            watched(model.decoder if asks else None) as decoder,
            self.every_layer(),
        ):
            whole = self.network(canvas.pixels, labels=labels, return_dict=True)
        real = self.network.config.num_queries
        reading = Reading(_maps(whole.encoder_last_hidden_state), output=whole, layers=self.layers(whole, real))
        if asks:
            cells = Cells.of(decoder["given"]["spatial_shapes_list"], self.network.config.feat_strides)
            chosen = whole.enc_outputs_class.max(-1).values.topk(real, dim=1).indices
            reading.tokens = cells.tokens(chosen)
            reading.read_queries = self._reader(whole, contents["result"], decoder["given"], cells)
        return reading

    def _reader(
        self, whole: Any, contents: Tensor, given: dict[str, Any], cells: Cells
    ) -> Callable[[Tokens], tuple[Predictions, ...]]:
        memory = {name: given[name] for name in _MEMORY}

        def read_queries(tokens: Tokens) -> tuple[Predictions, ...]:
            places = cells.places(tokens)[..., None]
            starts = whole.enc_outputs_coord_logits
            with self.every_layer():
                answer = self.network.model.decoder(
                    inputs_embeds=contents.gather(1, places.expand(-1, -1, contents.shape[-1])).detach(),
                    reference_points=starts.gather(1, places.expand(-1, -1, 4)).detach(),
                    **memory,
                )
            return self.layers(answer, places.shape[1])

        return read_queries

    @contextmanager
    def every_layer(self) -> Iterator[None]:
        """While this lasts, every layer of the decoder answers."""
        yield

    def layers(self, answer: Any, count: int) -> tuple[Predictions, ...]:
        """Each decoder layer's answers on the last `count` queries; before them come those that learn to denoise."""
        logits = answer.intermediate_logits[:, :, -count:].unbind(1)
        boxes = answer.intermediate_reference_points[:, :, -count:].unbind(1)
        return tuple(Predictions(*layer) for layer in zip(logits, boxes, strict=True))


class DFineDetector(RTDetrDetector):
    """D-FINE: as RT-DETR, with the distributions of the box sides."""

    terms: ClassVar[tuple[str, ...]] = ("loss_vfl", "loss_bbox", "loss_giou", "loss_fgl", "loss_ddf")

    def _corner_facts(self) -> dict[str, Any]:
        config = self.network.config
        scale = (float(config.up), float(config.reg_scale))
        return {"corner_bins": int(config.max_num_bins) + 1, "corner_scale": scale}

    @contextmanager
    def every_layer(self) -> Iterator[None]:
        """In evaluation mode the library's decoder keeps the last layer's answer only; its own flag decides that."""
        decoder = self.network.model.decoder
        was_training, decoder.training = decoder.training, True
        try:
            yield
        finally:
            decoder.training = was_training

    def layers(self, answer: Any, count: int) -> tuple[Predictions, ...]:
        """See `RTDetrDetector.layers`; the library's first answer, made before the first layer, is left out."""
        corners = answer.intermediate_predicted_corners[:, :, -count:].unflatten(-1, (4, -1)).unbind(1)
        found = super().layers(answer, count)[1:]
        for layer, sides in zip(found, corners, strict=True):
            layer.corners = sides
        decoder = self.network.model.decoder
        return found if self.training else found[: decoder.eval_idx + 1]


_MEMORY = ("encoder_hidden_states", "spatial_shapes", "spatial_shapes_list", "level_start_index")


def _maps(maps: list[Tensor]) -> dict[str, Tensor]:
    return {f"encoder.{number}": map_ for number, map_ in enumerate(maps)}
