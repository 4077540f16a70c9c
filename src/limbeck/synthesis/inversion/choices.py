"""Options that several inversions share: how they are checked, and how terms of weight 0 are left out."""

from collections.abc import Callable

from limbeck.call_checks import require_at_least
from limbeck.synthesis.inversion.engine import Term
from limbeck.synthesis.priors.base import Prior


def require_roll(method: str, roll: int | str) -> None:
    """Refuse a roll in pixels that is negative; a word stands for a choice made elsewhere.

    Raises:
        UserError: it is.
    """
    if not isinstance(roll, str):
        require_at_least(method, 0, roll=roll)


def term(name: str, weight: float, make: Callable[[], Prior]) -> list[Term]:
    """The term, or none where its weight is 0: it is then neither made, which may be refused, nor paid for."""
    return [Term(name, weight, make())] if weight else []
