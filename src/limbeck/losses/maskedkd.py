"""A cheaper teacher: it sees only the patches that the student attends to (MaskedKD).

Son, Ryu, Lee, Lee, "The Role of Masking for Efficient Supervised Knowledge Distillation of Vision Transformers",
ECCV 2024, arXiv:2302.10494.

The student sees the whole picture, and its last block's class token says how much it attends to each patch. The teacher adds
positions to all patches and then runs its blocks on the best of them. Published settings: half of the patches (98 of 196),
temperature 1, half the loss from the labels and half from the teacher.

Inferred, not published: unequal grids, for which the student's attention is brought to the teacher's (bilinear where it
grows, averaged where it shrinks), and students without a class token, of which the mean attention of all patches counts.
"""

from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from limbeck.call_checks import require_positive, require_share
from limbeck.errors import UserError
from limbeck.losses.grids import Grid, resize
from limbeck.losses.kd import KD
from limbeck.losses.pairing import is_plain
from limbeck.outputs import ModelFacts, Outputs, Request


def attended_patches(attention: Float[Tensor, "B heads h w"], grid: Grid, count: int) -> Int[Tensor, "B count"]:
    """The `count` patches of each picture with most attention, averaged over heads.

    Args:
        attention: of the student's class token to its patches.
        grid: (rows, columns) of the teacher's patches.
        count: how many.

    Returns:
        Their numbers on the teacher's grid, row by row, ascending; (B, count) int64.
    """
    scores = resize(attention.detach().float().mean(dim=1, keepdim=True), grid)
    return scores.flatten(1).topk(count, dim=1).indices.sort(dim=1).values


class MaskedKD(KD):
    """`kd_loss` with a teacher that is shown the `attended_patches` only.

    Losses on logits beside it read what that teacher says too. Not compiled, since the teacher runs in the middle of the
    student's step.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        keep: share of the patches that the teacher sees, above 0 and at most 1; with 1 it is `kd`.
        temperature: τ > 0.

    Raises:
        UserError: an option is out of range, the models' classes differ in number, or one of them is no plain transformer.
    """

    method: ClassVar[str] = "maskedkd"
    on_logits: ClassVar[bool] = False
    chooses_patches: ClassVar[bool] = True
    compiles: ClassVar[bool] = False
    default_task_weight: ClassVar[float] = 0.5

    def __init__(
        self, student: ModelFacts, teacher: ModelFacts, *, keep: float = 0.5, temperature: float = 1.0
    ) -> None:
        super().__init__(student, teacher, temperature=temperature)
        require_share(self.method, keep=keep)
        require_positive(self.method, keep=keep)
        for facts in (student, teacher):
            if not is_plain(facts.levels):
                raise UserError(
                    f"maskedkd needs two plain vision transformers, and {facts.name} is none. Use kd(temperature=1.0), which "
                    "shows the teacher whole pictures."
                )
        own, self.grid = student.levels[-1].grid, teacher.levels[0].grid
        patches = self.grid[0] * self.grid[1]
        self.count = max(1, round(keep * patches))
        self.whole = self.count == patches
        self.student_request = Request(attention=not self.whole)
        if not self.whole:
            self.notes = (f"the teacher is shown {self.count} of its {patches} patches",)
        if own != self.grid:
            self.notes += (
                f"the student's attention on {own[0]}x{own[1]} patches is brought to the teacher's "
                f"{self.grid[0]}x{self.grid[1]}; published are equal grids",
            )

    @property
    def default_weight(self) -> float:
        """0.5, beside 0.5 on the labels."""
        return 0.5

    def choose_patches(self, student: Outputs) -> Tensor | None:
        """See `attended_patches`; None, which is all of them, where `keep` leaves none out."""
        if self.whole:
            return None
        assert student.attention is not None, "it was asked for"
        return attended_patches(student.attention, self.grid, self.count)
