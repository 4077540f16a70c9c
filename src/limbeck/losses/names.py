"""Names of the distillation methods and the text by which they are asked for, without importing torch.

A method is written `name` or `name(option=value, ...)`, several are joined by `+`: `vitkd+nkd(gamma=1.0)`. A name
is one of the catalogue's or an importable class, `package.module:Class`. Values are as in `limbeck.call_text` and never run.
"""

import difflib
from dataclasses import dataclass, field
from typing import Any

from limbeck.call_text import parse_call, split_joined
from limbeck.errors import UserError
from limbeck.losses.catalogue import METHODS

RESERVED_OPTIONS = ("weight", "warmup_epochs")


@dataclass(frozen=True)
class MethodSpec:
    """One method as the user asked for it.

    Attributes:
        name: short name, or the class's name where a class was given.
        path: `module:Class`.
        options: as written; `weight` and `warmup_epochs` are understood for every method.
    """

    name: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)


def parse_methods(text: str) -> list[MethodSpec]:
    """Read what the user wrote for `--method`.

    Args:
        text: `none`, or methods joined by `+`.

    Returns:
        One spec per method, in order; empty for `none`.

    Raises:
        UserError: a part cannot be read or names no method; the message holds the part.
    """
    if text.strip().lower() == "none":
        return []
    return [_parse_one(part.strip(), text) for part in split_joined(text, "+", "method")]


def parse_shares(text: str) -> dict[str, float]:
    """Read what the user wrote for `--balance`: which terms keep which share of the pull.

    Args:
        text: `kd=0.5,vitkd=0.3`; the second of two equal methods is called `kd#2`.

    Raises:
        UserError: a part cannot be read, a name stands twice, a share is not above 0, or they add up to more than 1.
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, sign, value = (piece.strip() for piece in part.partition("="))
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if not (name and sign and 0 < share <= 1):
            raise UserError(
                f"--balance {text!r}: {part.strip()!r} cannot be read. Write term=share, such as kd=0.5,vitkd=0.3."
            )
        if name in shares:
            raise UserError(f"--balance {text!r} names {name} twice. Give each term one share.")
        shares[name] = share
    if sum(shares.values()) > 1 + 1e-9:
        raise UserError(f"--balance {text!r}: the shares add up to {sum(shares.values()):.4g}; they must not exceed 1.")
    return shares


def _parse_one(part: str, text: str) -> MethodSpec:
    name, options = parse_call(part, text, kind="method", plural="methods", example="vitkd+nkd")
    if ":" in name:
        return MethodSpec(name.partition(":")[2], name, options)
    short = name.lower()
    if short == "none":
        raise UserError(f"'none' stands alone: {text!r} asks for no distillation and for some at once.")
    if short not in METHODS:
        close = difflib.get_close_matches(short, METHODS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"There is no method {name!r}.{hint} Known: none, {', '.join(METHODS)}, or a class as package.module:Class."
        )
    return MethodSpec(short, METHODS[short].path, options)
