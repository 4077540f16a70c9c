"""The verbs as commands; each command's options are its function's arguments, each also a name in a YAML file.

Nothing heavy is imported here: help and usage errors answer at once, and the verb that runs imports what it needs.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

VERBS = {
    "distill": "Distil a teacher into a student, and report on it.",
    "compare": "Distil with several methods and seeds, and say which method helps.",
    "train": "Train or fine-tune a model without a teacher, for instance the one that will teach.",
    "evaluate": "Measure a model on the validation images of a data set.",
    "predict": "Classify images or find objects in them: answers and an annotated contact sheet.",
    "export": "Export a model and verify the artefact on real images.",
    "synthesize": "Make images for a teacher, without any of its data.",
    "statistics": "Save a few kilobytes about a model's data, for making images later.",
    "report": "Write one self-contained HTML page about a run.",
    "methods": "List distillation methods and ways to make images, and their options.",
}

POSITIONAL = {"evaluate", "predict", "export", "report", "methods", "statistics"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 for a failed run, 2 for a wrong use, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from limbeck import __version__

        print(f"limbeck {__version__}")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        import difflib

        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        print(f"limbeck: there is no command {verb!r}.{hint} Commands: {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    return _run(verb, arguments[1:])


def _run(verb: str, arguments: list[str]) -> int:
    from limbeck.errors import UserError

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    function = getattr(import_module(f"limbeck.verbs.{verb}"), verb)
    try:
        values = _parse(verb, function, arguments)
        function(**values)
    except (UserError, FileNotFoundError) as error:
        print(f"\nlimbeck {verb}: {error}", file=sys.stderr)
        return 130 if type(error).__name__ == "StoppedByUserError" else 1
    except KeyboardInterrupt:
        print(f"\nlimbeck {verb}: stopped at once.", file=sys.stderr)
        return 130
    return 0


def _parse(verb: str, function: Callable[..., Any], arguments: list[str]) -> dict[str, Any]:
    from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    parser = ArgumentParser(prog=f"limbeck {verb}", description=VERBS[verb], default_env=False)
    parser.add_argument("--config", action="config", help="a YAML file with the same names as these options")
    described = getattr(function, "recipe_class", None)
    if described is not None:
        parser.add_class_arguments(described, as_group=False)
    else:
        parser.add_function_arguments(function, as_group=False, as_positional=verb in POSITIONAL)
    parsed: Namespace = parser.parse_args(_spell_out(described or function, arguments))
    values = parsed.as_dict()
    values.pop("config", None)
    return values


def _spell_out(described: Callable[..., Any], arguments: list[str]) -> list[str]:
    """Short forms in full.

    `--bad-images` is `--bad_images`, `--resume` is `--resume=true`, `--control A --control B` a list of both,
    and `methods kd` is `methods --name kd`.
    """
    import typing

    hints = typing.get_type_hints(described)
    switches = {f"--{name}" for name, hint in hints.items() if hint is bool}
    lists = {f"--{name}" for name, hint in hints.items() if "list[" in str(hint)}
    spelt = []
    if "name" in hints and arguments and not arguments[0].startswith("-"):
        arguments = ["--name", *arguments]
    for position, argument in enumerate(arguments):
        following = arguments[position + 1] if position + 1 < len(arguments) else "--"
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = f"--{name[2:].replace('-', '_')}"
            argument = f"{name}{equals}{value}"
        value = value if equals else following
        if argument in switches and following.startswith("-"):
            spelt.append(f"{argument}=true")
        elif name in lists and not value.startswith(("[", "auto")):
            spelt.append(f"{name}+{equals}{argument.partition('=')[2]}")
        else:
            spelt.append(argument)
    return spelt


def _overview() -> str:
    width = max(map(len, VERBS))
    commands = "\n".join(f"  {verb:<{width}}  {purpose}" for verb, purpose in VERBS.items())
    return (
        "usage: limbeck COMMAND [options]\n\nMakes small vision models out of large ones.\n\ncommands:\n"
        f"{commands}\n\n`limbeck COMMAND --help` lists a command's options; --config FILE.yaml takes the same names.\n"
        "A first try, without any download:\n"
        "  limbeck train --model limbeck:resnet20 --data digits --epochs 15 --out runs/teacher\n"
        "  limbeck distill --teacher runs/teacher --student limbeck:resnet8 --data digits --epochs 15"
    )


if __name__ == "__main__":
    sys.exit(main())
