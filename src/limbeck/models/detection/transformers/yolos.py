"""YOLOS: a plain vision transformer whose extra tokens become boxes (Fang et al., 2021)."""

from typing import Any, ClassVar

from torch import Tensor

from limbeck.detection import Predictions, ScoreKind
from limbeck.models.detection.transformers.queries import Canvas, QueryDetector, Reading
from limbeck.outputs import Request


class YolosDetector(QueryDetector):
    """YOLOS: levels `blocks.0` ... are its patch tokens after each block, `final` those after the last norm."""

    scores: ClassVar[ScoreKind] = "softmax"

    @property
    def _divisor(self) -> int:
        return _side(self.network.config.patch_size)

    @property
    def _num_queries(self) -> int:
        return int(self.network.config.num_detection_tokens)

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
        whole = self.network.vit(canvas.pixels, output_hidden_states=True, return_dict=True)
        return Reading(self._maps(whole, canvas), self._map(whole.last_hidden_state, canvas))

    def read(self, canvas: Canvas, labels: list[dict[str, Tensor]] | None, request: Request) -> Reading:
        """See `QueryDetector.read`."""
        wants_maps = bool(request.levels)
        whole = self.network(canvas.pixels, labels=labels, output_hidden_states=wants_maps, return_dict=True)
        return Reading(
            self._maps(whole, canvas) if wants_maps else {},
            self._map(whole.last_hidden_state, canvas),
            whole,
            (Predictions(whole.logits, whole.pred_boxes),),
        )

    def _maps(self, whole: Any, canvas: Canvas) -> dict[str, Tensor]:
        return {f"blocks.{n}": self._map(state, canvas) for n, state in enumerate(whole.hidden_states[1:])}

    def _map(self, tokens: Tensor, canvas: Canvas) -> Tensor:
        """The patch tokens on their grid, the class token before and the detection tokens behind them left out."""
        height, width = (side // self._divisor for side in canvas.size)
        patches = tokens[:, 1 : 1 + height * width]
        return patches.transpose(1, 2).reshape(len(tokens), -1, height, width)


def _side(size: Any) -> int:
    return int(size) if isinstance(size, int) else int(size[0])
