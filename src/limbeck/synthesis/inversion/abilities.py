"""What a teacher can give to an inversion, and what to say to people where it cannot."""

from collections.abc import Sequence

import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.models.kept_patches import can_keep_patches
from limbeck.outputs import Request
from limbeck.synthesis.base import Setting
from limbeck.synthesis.inversion.sparse import Sparsity
from limbeck.synthesis.priors.head_similarity import most_heads
from limbeck.synthesis.terms import Term


def require_attention(teacher: VisionModel, method: str, heads: int = 1) -> None:
    """Refuse a teacher without readable attention, or with too few heads in every block.

    Raises:
        UserError: it has none, or fewer than `heads`.
    """
    found = most_heads(teacher)
    if 0 < found < heads:
        raise UserError(
            f"{method} compares the heads of attention blocks, and those of {teacher.facts.name} have {found}. Use invert or "
            "psaq, which need no second head."
        )
    if found == 0:
        raise UserError(
            f"{method} compares what attention blocks compute, and none can be read of {teacher.facts.name}. Use invert, which "
            "takes what each teacher can give, or deepinversion or fast where it has BatchNorm."
        )


def reads_half_size(teacher: nn.Module) -> bool:
    """Whether the network takes pictures of half its own height and width."""
    assert isinstance(teacher, VisionModel)
    height, width = teacher.facts.input_size
    blank = torch.zeros(1, 3, height // 2, width // 2, device=teacher.mean.device)
    try:
        with torch.no_grad():
            teacher.read(blank, Request())
    except (RuntimeError, ValueError, AssertionError):
        return False
    return True


def why_dense(setting: Setting, terms: Sequence[Term]) -> str | None:
    """Why all patches must be fed: the teacher, the pictures' size or a term of the loss; None where they need not.

    Returns:
        A reason that goes on after "because", or None.
    """
    teacher = setting.teacher
    reason = can_keep_patches(teacher)
    if reason is not None:
        return reason
    rows, columns = teacher.facts.levels[-1].grid
    if setting.size[0] % rows or setting.size[1] % columns:
        height, width = setting.size
        return f"pictures of {height} x {width} pixels cannot be cut into its {rows} x {columns} patches evenly"
    whole = [term.name for term in terms if term.prior.needs.request.levels or term.prior.needs.request.final]
    if whole:
        return f"the loss reads whole maps ({', '.join(whole)})"
    return None


def sparsity_or_note(
    setting: Setting, terms: Sequence[Term], sparsity: Sparsity, method: str
) -> tuple[Sparsity | None, list[str]]:
    """The sparsity where it is possible; else none, and a note that says why."""
    reason = why_dense(setting, terms)
    if reason is None:
        return sparsity, []
    return None, [f"{method} feeds all patches of {setting.teacher.facts.name} at every step, because {reason}."]
