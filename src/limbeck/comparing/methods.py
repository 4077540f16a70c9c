"""The methods of a comparison: read from what the user wrote, told apart, and written anew with other options."""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.call_text import split_joined, write_call
from limbeck.errors import UserError
from limbeck.losses.catalogue import METHODS
from limbeck.losses.names import MethodSpec, parse_methods, parse_shares
from limbeck.recipe import Task

CONTROL = "none"


def read_methods(texts: Sequence[str], task: Task) -> tuple[list[str], list[str]]:
    """The methods to compare, each once, the control among them.

    Args:
        texts: what the user gave; each may hold several methods, with commas outside brackets between them.
        task: "auto" is kd for classification; for detection it depends on the networks, and stays.

    Returns:
        The methods, in the order given, and what the user should know about them.

    Raises:
        UserError: one cannot be read, or there is nothing beside the control.
    """
    methods: list[str] = []
    known: list[list[MethodSpec] | str] = []
    notes: list[str] = []
    for part in (part.strip() for text in texts for part in split_joined(text, ",", "method")):
        if not part:
            raise UserError(
                f"--methods {','.join(texts)} has an empty part. Write methods with commas between them, such as "
                "none,kd,vitkd+nkd."
            )
        if part.lower() == CONTROL or (part == "auto" and task == "classification"):
            part = CONTROL if part.lower() == CONTROL else "kd"
        meaning = part if part == "auto" else parse_methods(part)
        if meaning in known:
            notes.append(f"{part} is given twice and compared once.")
            continue
        methods.append(part)
        known.append(meaning)
    if methods == [CONTROL] or not methods:
        raise UserError("--methods names no method beside none, the control. Give some, such as none,kd,vitkd+nkd.")
    if CONTROL not in methods:
        methods.insert(0, CONTROL)
        notes.append("The control none is added: how much a method helps is its difference to training without it.")
    return methods, notes


def terms(method: str) -> dict[str, MethodSpec]:
    """The parts of a method by the names that a run gives to its loss terms: the second `kd` is `kd#2`."""
    found: dict[str, MethodSpec] = {}
    counts: dict[str, int] = {}
    for spec in [] if method == "auto" else parse_methods(method):
        counts[spec.name] = counts.get(spec.name, 0) + 1
        found[spec.name if counts[spec.name] == 1 else f"{spec.name}#{counts[spec.name]}"] = spec
    return found


def with_options(method: str, options: Mapping[str, Mapping[str, Any]]) -> str:
    """A method with options of some of its terms set.

    Args:
        method: as the user wrote it.
        options: by the name of the term, as `terms` gives it.
    """
    if not any(options.values()):
        return method
    parts = []
    for name, spec in terms(method).items():
        known = spec.name in METHODS and METHODS[spec.name].path == spec.path
        parts.append(write_call(spec.name if known else spec.path, spec.options | dict(options.get(name, {}))))
    return "+".join(parts)


def with_shorter_warmups(method: str, warmup_epochs: Mapping[str, float], factor: float) -> str:
    """A method whose terms' weights rise from zero over a smaller number of epochs.

    Args:
        method: as the user wrote it.
        warmup_epochs: by the name of the term, the user's own or the method's default.
        factor: what they are multiplied by.
    """
    return with_options(
        method, {name: {"warmup_epochs": round(epochs * factor, 4)} for name, epochs in warmup_epochs.items() if epochs}
    )


def shares_for(method: str, balance: str | None) -> str | None:
    """What `--balance` says of a method's own terms; None where that is nothing."""
    own = terms(method)
    kept = {name: share for name, share in _shares(balance).items() if name in own}
    return ",".join(f"{name}={share:g}" for name, share in kept.items()) or None


def check_shares(methods: Sequence[str], balance: str | None) -> None:
    """Refuse shares of terms that no method has, and those that leave nothing for a method's other terms.

    Raises:
        UserError: naming them.
    """
    shares = _shares(balance)
    known = {name for method in methods for name in terms(method)}
    unknown = [name for name in shares if name not in known]
    if unknown:
        raise UserError(
            f"--balance names {', '.join(unknown)}, which no method has. Their terms: {', '.join(sorted(known))}."
        )
    for method in methods:
        own = terms(method)
        whole = sum(share for name, share in shares.items() if name in own)
        others = [name for name, spec in own.items() if name not in shares and spec.options.get("weight") != 0]
        if whole > 1 + 1e-9:
            raise UserError(
                f"--balance {balance!r}: the shares of {method} add up to {whole:.4g}; they must not exceed 1. Give smaller ones."
            )
        if others and whole > 1 - 1e-6:
            raise UserError(
                f"--balance {balance!r} gives away {100 * whole:.4g} % of the pull of {method}, and nothing is left for "
                f"{', '.join(others)}. Let its shares add up to less than 1."
            )


def _shares(balance: str | None) -> dict[str, float]:
    """What `--balance` says of all methods; only the shares of one method have to fit into one pull."""
    shares: dict[str, float] = {}
    for part in balance.split(",") if balance else ():
        for name, share in parse_shares(part).items():
            if name in shares:
                raise UserError(f"--balance {balance!r} names {name} twice. Give each term one share.")
            shares[name] = share
    return shares
