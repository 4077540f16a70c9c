"""`limbeck methods`: the distillation methods and the ways to make images, what each needs, and its options."""

import inspect
import re
from typing import Any

from limbeck.errors import UserError
from limbeck.losses.catalogue import METHODS
from limbeck.losses.names import parse_methods
from limbeck.synthesis.names import SYNTHESES, parse_synthesis
from limbeck.verbs import screen

MOMENTS = {"before": "before training", "between": "before, or between epochs", "during": "during training"}


def methods(name: str | None = None) -> dict[str, dict[str, Any]]:
    """List the distillation methods and the ways to make images without data, or explain one.

    Args:
        name: of one, to see its formula, options and defaults.

    Returns:
        Summary, paper and needs of each one listed.

    Raises:
        UserError: there is none of this name.
    """
    if name is not None:
        return {name: _explain_way(name) if _is_way(name) else _explain(name)}
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
    screen.table(
        "Ways to make images without data: --method of synthesize, --synthesis of distill --data none",
        ("name", "what it does", "when", "needs", "paper"),
        [(name, i.summary, MOMENTS[i.moment], i.needs, i.reference) for name, i in SYNTHESES.items()],
    )
    return {n: vars(info) for n, info in (METHODS | SYNTHESES).items()}


def _is_way(name: str) -> bool:
    return name.partition("(")[0].strip().lower() in SYNTHESES


def _explain_way(name: str) -> dict[str, Any]:
    task = SYNTHESES[name.partition("(")[0].strip().lower()].task
    specs = parse_synthesis(name, task)
    if len(specs) != 1:
        raise UserError(f"Name one way, such as invert; {name!r} is {len(specs)}.")
    from limbeck.synthesis.build import import_synthesis

    way = import_synthesis(specs[0])
    screen.say("\n\n".join([name, inspect.getdoc(inspect.getmodule(way)) or "", f"{inspect.getdoc(way)}\n"]))
    return {"options": _show_options(name, way)}


def _explain(name: str) -> dict[str, Any]:
    specs = parse_methods(name)
    if len(specs) != 1:
        raise UserError(f"Name one method, such as kd; {name!r} is {len(specs)}.")
    from limbeck.losses.build import import_loss

    loss = import_loss(specs[0])
    module = inspect.getmodule(loss)
    screen.say("\n\n".join([name, inspect.getdoc(module) or "", *_formulas(module, loss), f"{inspect.getdoc(loss)}\n"]))
    return {"options": _show_options(name, loss), "needs_labels": loss.needs_labels}


def _show_options(name: str, wanted: type) -> dict[str, Any]:
    options = {
        parameter.name: "(to be given)" if parameter.default is parameter.empty else parameter.default
        for parameter in inspect.signature(wanted).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    screen.settings(f"Options of {name}, with defaults", options)
    return options


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
