"""DETR: a convolutional backbone, a transformer encoder on its last map, and a decoder of queries (Carion et al., 2020)."""

from typing import Any, ClassVar

from torch import Tensor

from limbeck.detection import Predictions, ScoreKind
from limbeck.models.detection.transformers.queries import Canvas, QueryDetector, Reading
from limbeck.models.detection.transformers.watching import watched
from limbeck.outputs import Request


class DetrDetector(QueryDetector):
    """DETR: levels `encoder.0`, the backbone's last map projected for the encoder, and `encoder.1`, what comes out of it."""

    scores: ClassVar[ScoreKind] = "softmax"
    masks_padding: ClassVar[bool] = True

    @property
    def _weights(self) -> dict[str, float]:
        config = self.network.config
        return {
            "loss_ce": 1.0,
            "loss_bbox": config.bbox_loss_coefficient,
            "loss_giou": config.giou_loss_coefficient,
        }

    def read_maps(self, canvas: Canvas, *, final: bool) -> Reading:
        """See `QueryDetector.read_maps`."""
        model = self.network.model
        features, mask = model.backbone(canvas.pixels, canvas.mask)[-1]
        projected = model.input_projection(features)
        positions = model.position_embedding(
            shape=features.shape, device=features.device, dtype=canvas.pixels.dtype, mask=mask
        )
        encoded = model.encoder(
            inputs_embeds=projected.flatten(2).transpose(1, 2),
            attention_mask=mask.flatten(1),
            spatial_position_embeddings=positions.flatten(2).transpose(1, 2),
        )
        return Reading(_maps(projected, encoded.last_hidden_state))

    def read(self, canvas: Canvas, labels: list[dict[str, Tensor]] | None, request: Request) -> Reading:
        """See `QueryDetector.read`."""
        with watched(self.network.model.input_projection) as projection:
            whole = self.network(
                canvas.pixels,
                pixel_mask=canvas.mask,
                labels=labels,
                output_hidden_states=request.predictions,
                return_dict=True,
            )
        maps = _maps(projection["result"], whole.encoder_last_hidden_state)
        earlier = self._earlier(whole) if request.predictions else ()
        return Reading(maps, output=whole, layers=(*earlier, Predictions(whole.logits, whole.pred_boxes)))

    def _earlier(self, whole: Any) -> tuple[Predictions, ...]:
        """The heads' answers on the normed states between the decoder's layers, as in the auxiliary losses."""
        network = self.network
        states = [network.model.decoder.layernorm(state) for state in whole.decoder_hidden_states[1:-1]]
        return tuple(
            Predictions(network.class_labels_classifier(state), network.bbox_predictor(state).sigmoid())
            for state in states
        )


def _maps(projected: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    return {"encoder.0": projected, "encoder.1": tokens.transpose(1, 2).reshape(projected.shape)}
