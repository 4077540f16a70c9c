"""KD-DETR: student and teacher are asked the same queries, so that nothing has to be matched.

Wang, Li, Weng, Zhang, Yue, Feng, Han, Ding, "KD-DETR: Knowledge Distillation for Detection Transformer with Consistent
Distillation Points Sampling", CVPR 2024, arXiv:2211.08071. Published for models whose queries are points: the teacher's
own ("specific") and 300 random ones, drawn anew at every step ("general"); classes at temperature 10 (times its square),
weighted by the teacher's highest score, weight 1; L1 5; GIoU 2; each student layer learns from the teacher's last.

Inferred, not published: the RT-DETR family, whose queries are cells of the encoder's maps. The same cell of the same
stride is asked of both; each makes the query's content and first box from its own map there. Where the student lacks a
stride of the teacher's (D-FINE-N has two maps, its siblings three), both are asked about the cell of a shared map at the
same place.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.call_checks import require_positive
from limbeck.detection import DetectionOutputs, DetectorFacts, Predictions, Size, Target, Tokens
from limbeck.errors import UserError
from limbeck.losses.class_names import foreground
from limbeck.losses.precision import comparable, no_autocast
from limbeck.losses.query_loss import QueryLoss, boxes_of, soft_prediction_loss
from limbeck.outputs import ModelFacts, Request


class SharedQueries(QueryLoss):
    """`soft_prediction_loss` of the two models' answers on the same queries, summed over the student's layers.

    The teacher's own queries and the random ones are asked apart, since queries see each other; the two terms are added.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        temperature: τ > 0 of the class scores.
        num_random: random queries per picture; 0 asks the teacher's own only.
        class_weight: of the class scores.
        l1_weight: of the boxes' L1 distance.
        giou_weight: of the boxes' generalised IoU.

    Raises:
        UserError: an option is out of range, a model cannot be asked about another's queries, no stride of the two
            encoders meets, or no class name does.
    """

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        temperature: float = 10.0,
        num_random: int = 300,
        class_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
    ) -> None:
        super().__init__(student, teacher, "shared_queries")
        require_positive("shared_queries", temperature=temperature)
        if num_random < 0:
            raise UserError(f"shared_queries: num_random is {num_random}; it must not be negative.")
        own, other = _strides("student", student), _strides("teacher", teacher)
        self.strides = tuple(sorted(own & other))
        if (own or other) and not self.strides:
            raise UserError(
                f"shared_queries: the teacher {teacher.name} chooses queries from maps of strides {_text(other)}, the student "
                f"{student.name} from {_text(own)}; none is shared. Use query_kd, which matches the queries instead."
            )
        self.moves = not other <= own
        if self.moves:
            self.notes += (
                f"shared_queries: the student has no map of stride {_text(other - own)}; queries that the teacher takes from "
                f"there are asked about at stride {_text(own & other)}, of both models.",
            )
        self.student_request = Request(queries=True)
        self.teacher_request = Request(predictions=True, queries=True)
        self.temperature = temperature
        self.num_random = num_random
        # At a high temperature a softmax's divergence tends to the mean over the classes of squared differences, the sum
        # of K sigmoids' to their sum; divided by K, the published weight means the same for both.
        share = 1 / self.classes.num_shared if self.classes.scores == "sigmoid" else 1
        self.weights = {"class_weight": class_weight * share, "l1_weight": l1_weight, "giou_weight": giou_weight}

    def forward(
        self, student: DetectionOutputs, teacher: DetectionOutputs, target: Sequence[Target] | None = None
    ) -> Tensor:
        """The term of the teacher's queries plus that of random ones (global random state); the target is not read."""
        assert teacher.tokens is not None and teacher.read_queries is not None and student.read_queries is not None
        tokens, answer = teacher.tokens, teacher.predictions[-1]
        if self.moves:
            tokens = moved(tokens, self.strides)
            answer = _ask(teacher.read_queries, tokens)
        total = self._compare(student.read_queries(tokens), answer)
        if self.num_random:
            drawn = random_tokens(student.sizes, self.strides, self.num_random, tokens.rows.device)
            total = total + self._compare(student.read_queries(drawn), _ask(teacher.read_queries, drawn))
        return total

    def _compare(self, layers: Sequence[Predictions], teacher: Predictions) -> Float[Tensor, ""]:
        terms = []
        with no_autocast(teacher.logits):
            for layer in layers:
                own_logits, other_logits = self.logits(layer.logits, teacher.logits)
                own_boxes, other_boxes = comparable(boxes_of(layer), boxes_of(teacher))
                terms.append(
                    soft_prediction_loss(
                        own_logits.flatten(0, 1),
                        own_boxes.flatten(0, 1),
                        other_logits.flatten(0, 1),
                        other_boxes.flatten(0, 1),
                        foreground(other_logits, self.classes.scores).flatten(),
                        self.classes.scores,
                        temperature=self.temperature,
                        **self.weights,
                    )
                )
            return torch.stack(terms).sum()


def random_tokens(sizes: Sequence[Size], strides: Sequence[int], count: int, device: torch.device | str) -> Tokens:
    """Cells drawn at random, each of an image's own area with equal chance; a cell may come twice.

    Args:
        sizes: (height, width) of each image's own area, B of them.
        strides: of the maps to draw from.
        count: cells per image.
        device: where the tokens are wanted; they are drawn on the CPU, so that all devices draw the same.

    Returns:
        (B, count) cells.
    """
    drawn = torch.rand(len(sizes), count)
    tokens = [_cells(row, size, strides) for row, size in zip(drawn, sizes, strict=True)]
    return Tokens(*(torch.stack(parts).to(device) for parts in zip(*tokens, strict=True)))


def _cells(drawn: Tensor, size: Size, strides: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Strides, rows and columns of one image's cells, from numbers in [0, 1)."""
    grids = torch.tensor([[max(1, size[0] // stride), max(1, size[1] // stride)] for stride in strides])
    ends = grids.prod(dim=1).cumsum(dim=0)
    number = (drawn.double() * ends[-1]).long()
    level = torch.searchsorted(ends, number, right=True)
    number = number - (ends - grids.prod(dim=1))[level]
    width = grids[level, 1]
    return torch.tensor(strides)[level], number // width, number % width


def moved(tokens: Tokens, strides: Sequence[int]) -> Tokens:
    """Cells of other strides than the given ones as the cells of the nearest of these at the same place.

    Args:
        tokens: (B, Q) cells.
        strides: of the maps that they shall be on.
    """
    wanted = torch.tensor(strides, device=tokens.strides.device)
    octaves = (tokens.strides.double().log2()[..., None] - wanted.double().log2()).abs()
    stride = wanted[octaves.argmin(dim=-1)]
    # The middle of a cell, in half pixels: whole numbers, so that nothing is lost at an edge.
    rows, columns = ((2 * side + 1) * tokens.strides // (2 * stride) for side in (tokens.rows, tokens.columns))
    return Tokens(stride, rows, columns)


@torch.no_grad()
def _ask(read_queries: Callable[[Tokens], tuple[Predictions, ...]], tokens: Tokens) -> Predictions:
    return read_queries(tokens)[-1]


def _strides(role: str, facts: ModelFacts) -> set[int]:
    """The strides of the maps that a decoder chooses its queries from."""
    if not (isinstance(facts, DetectorFacts) and facts.reads_queries):
        raise UserError(
            f"shared_queries asks both models the same queries, but the {role} {facts.name} cannot be asked about "
            "another's: that takes a model that chooses its queries among the encoder's cells (RT-DETR, D-FINE, ...). "
            "Use query_kd, which matches the queries instead."
        )
    return {level.stride for level in facts.levels if level.kind == "encoder"}


def _text(strides: set[int]) -> str:
    return ", ".join(map(str, sorted(strides)))
