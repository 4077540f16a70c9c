"""`limbeck methods`: the distillation methods, what each needs, and its options."""

import inspect
import re
from typing import Any

from limbeck.errors import UserError
from limbeck.losses.names import METHODS, parse_methods
from limbeck.verbs import screen


def methods(name: str | None = None) -> dict[str, dict[str, Any]]:
    """List the distillation methods, or explain one.

    Args:
        name: a method's name, to see its formula, options and defaults.

    Returns:
        Summary, paper, tasks and needs of each method listed.

    Raises:
        UserError: there is no such method.
    """
    if name is not None:
        return {name: _explain(name)}
    screen.table(
        "Methods for --method, alone or joined with +",
        ("name", "what it does", "tasks", "labels", "paper"),
        [
            ("none", "the control: no distillation", "both", "needed", ""),
            *(
                (
                    name,
                    i.summary,
                    "both" if len(i.tasks) > 1 else i.tasks[0],
                    "needed" if i.needs_labels else "",
                    i.reference,
                )
                for name, i in METHODS.items()
            ),
        ],
    )
    screen.say(
        "Options: --method 'nkd(gamma=1.0, weight=0.5)'. `limbeck methods NAME` shows a method's formula and options."
    )
    return {n: vars(info) for n, info in METHODS.items()}


def _explain(name: str) -> dict[str, Any]:
    specs = parse_methods(name)
    if len(specs) != 1:
        raise UserError(f"Name one method, such as kd; {name!r} is {len(specs)}.")
    from limbeck.losses.build import import_loss

    loss = import_loss(specs[0])
    module = inspect.getmodule(loss)
    screen.say("\n\n".join([name, inspect.getdoc(module) or "", *_formulas(module, loss), f"{inspect.getdoc(loss)}\n"]))
    options = {
        parameter.name: parameter.default
        for parameter in inspect.signature(loss).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    screen.settings(f"Options of {name}, with defaults", options)
    return {"options": options, "needs_labels": loss.needs_labels}


def _formulas(module: Any, loss: type) -> list[str]:
    """What the file's public functions and modules say before their arguments: that is where its formula stands."""
    texts = []
    for name, member in vars(module).items():
        public = inspect.isfunction(member) or inspect.isclass(member)
        if public and not name.startswith("_") and member.__module__ == module.__name__ and member is not loss:
            text = re.split(r"\n(?:Args|Returns|Raises):", inspect.getdoc(member) or "")[0].rstrip()
            if re.search("[=·Σ‖²]", text):
                texts.append(f"{name}: {text}")
    return texts
