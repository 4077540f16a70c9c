"""Errors meant for the person at the keyboard: what was wrong, what was expected, what to do.

The command line prints these as one paragraph without a traceback; every other exception is a bug of ours
and keeps its traceback.
"""


class UserError(ValueError):
    """Something the user gave cannot be used; the message names it, the expectation and the remedy."""


class MissingExtraError(UserError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {library}, which is not installed. Install it with: pip install 'limbeck[{extra}]'"
        )
