"""`limbeck methods`: the distillation methods and the ways to make images, what each needs, and its options."""

import inspect
import re
from typing import Any

from limbeck.errors import UserError
from limbeck.losses.catalogue import METHODS, MethodInfo
from limbeck.losses.names import parse_methods
from limbeck.synthesis.names import SYNTHESES, parse_synthesis
from limbeck.verbs import screen

KINDS = {
    "logits": "Methods on logits",
    "features": "Methods on features",
    "relations": "Methods on relations between images or places",
    "none": "Methods without a teacher",
    "predictions": "Methods on what detectors predict",
}
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
    for kind, title in KINDS.items():
        rows = [_row(name, info) for name, info in METHODS.items() if info.kind == kind]
        if rows:
            screen.table(title, ("name", "what it does, and when to take it", "needs", "paper, and its numbers"), rows)
    screen.say("'none' is the control: no distillation. Methods are joined with +, for instance --method vitkd+nkd.")
    screen.say(
        "Options: --method 'nkd(gamma=1.0, weight=0.5)'. `limbeck methods NAME` shows a method's formula and options."
    )
    screen.table(
        "Ways to make images without data: --method of synthesize, --synthesis of distill --data none",
        ("name", "what it does", "when", "needs", "paper"),
        [(name, i.summary, MOMENTS[i.moment], i.needs, i.reference) for name, i in SYNTHESES.items()],
    )
    return {n: vars(info) for n, info in (METHODS | SYNTHESES).items()}


def _row(name: str, info: MethodInfo) -> tuple[str, str, str, str]:
    tasks = "" if "classification" in info.tasks else "detectors"
    needs = "; ".join(need for need in ("labels" if info.needs_labels else "", tasks, info.needs) if need)
    when = f"{info.summary}\nWhen: {info.when}" if info.when else info.summary
    return name, when, needs, f"{info.reference}\n{info.published}".rstrip()


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
    known = METHODS.get(specs[0].name)
    facts = [f"{label}: {text}" for label, text in _facts(known) if text] if known is not None else []
    texts = [
        name,
        "\n".join(facts),
        inspect.getdoc(module) or "",
        *_formulas(module, loss),
        f"{inspect.getdoc(loss)}\n",
    ]
    screen.say("\n\n".join(text for text in texts if text))
    return {"options": _show_options(name, loss), "needs_labels": loss.needs_labels}


def _facts(info: MethodInfo) -> tuple[tuple[str, str], ...]:
    return ("Needs", _row("", info)[2]), ("Published", info.published), ("When", info.when)


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
