"""Options that several inversions share: how they are checked, and how terms of weight 0 are left out."""

from collections.abc import Callable

from limbeck.errors import UserError
from limbeck.synthesis.inversion.engine import Term
from limbeck.synthesis.priors.base import Prior


def require_at_least(method: str, least: float, **options: float) -> None:
    """Refuse options below `least`.

    Raises:
        UserError: one is.
    """
    for option, value in options.items():
        if not value >= least:
            raise UserError(f"{method}: {option} is {value}; it must be at least {least:g}.")


def require_roll(method: str, roll: int | str) -> None:
    """Refuse a roll in pixels that is negative; a word stands for a choice made elsewhere.

    Raises:
        UserError: it is.
    """
    if not isinstance(roll, str):
        require_at_least(method, 0, roll=roll)


def require_share(method: str, **options: float) -> None:
    """Refuse options outside [0, 1].

    Raises:
        UserError: one is.
    """
    for option, value in options.items():
        if not 0 <= value <= 1:
            raise UserError(f"{method}: {option} is {value}; it must be between 0 and 1.")


def require_positive(method: str, **options: float) -> None:
    """Refuse options that are not above 0.

    Raises:
        UserError: one is.
    """
    for option, value in options.items():
        if not value > 0:
            raise UserError(f"{method}: {option} is {value}; it must be above 0.")


def term(name: str, weight: float, make: Callable[[], Prior]) -> list[Term]:
    """The term, or none where its weight is 0: it is then neither made, which may be refused, nor paid for."""
    return [Term(name, weight, make())] if weight else []
