"""The options that a timm model's name may carry, and what is said where they cannot be.

They are arguments of the network's own class, handed on by `timm.create_model`. Those of its arguments that Limbeck sets
by other means are refused, so that nothing has two values.
"""

import difflib
import inspect
import re
import sys
from typing import Any

from timm.models import get_arch_name, model_entrypoint

from limbeck.errors import UserError
from limbeck.models.names import SET_ELSEWHERE, refuse_options

_WEIGHTS = "Name published weights by their tag, NAME.TAG, and a file of your own as NAME@weights.safetensors."
_MAPS = "Limbeck opens whole classifiers and reads their feature maps by itself."
_EXPORT = "limbeck export makes a network exportable by itself."
_ELSEWHERE = SET_ELSEWHERE | {
    "img_size": SET_ELSEWHERE["input_size"],
    "drop_path_rate": SET_ELSEWHERE["drop_path"],
    "in_chans": "Images have three channels here; grey ones are converted to RGB.",
    # Those of weights could also make timm open a pickle that a stranger's recipe or model.json names.
    "checkpoint_path": _WEIGHTS,
    "pretrained_cfg": _WEIGHTS,
    "pretrained_cfg_overlay": _WEIGHTS,
    "pretrained_filter_fn": _WEIGHTS,
    "pretrained_model_args": _WEIGHTS,
    "pretrained_strict": _WEIGHTS,
    "cache_dir": "Set the environment variable HF_HOME.",
    "features_only": _MAPS,
    "feature_cfg": _MAPS,
    "feature_cls": _MAPS,
    "out_indices": _MAPS,
    "kwargs_filter": "Leave out the options that you do not mean.",
    "device": "Use --accelerator.",
    "dtype": "Use --precision.",
    "scriptable": _EXPORT,
    "exportable": _EXPORT,
    "no_jit": _EXPORT,
}

OPTION_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What networks raise on values that they cannot be made with."""

_UNEXPECTED = re.compile(r"(?:(\w+)\.__init__\(\) )?got (?:an )?unexpected keyword argument(?:\(s\): \[)?\s*'(\w+)'")
_TWICE = re.compile(r"multiple values for keyword argument '(\w+)'")


def check_options(options: dict[str, Any], text: str) -> None:
    """Refuse options that Limbeck sets by other means, and None, which timm drops without a word.

    Args:
        options: those of a model's name.
        text: the name the user gave.

    Raises:
        UserError: one of them is given.
    """
    refuse_options(options, _ELSEWHERE, text)
    for option, value in options.items():
        if value is None:
            raise UserError(f"{option} is None in {text!r}, which means timm's own default. Leave the option out.")


def unexpected_argument(error: BaseException) -> str | None:
    """The argument that a class did not know, where that is what an error says."""
    match = _UNEXPECTED.search(str(error)) if isinstance(error, TypeError) else None
    return match[2] if match else None


def bad_options(name: str, text: str, options: dict[str, Any], error: BaseException) -> UserError:
    """What to tell the user of options with which a network could not be made.

    Args:
        name: timm's name of it.
        text: the name the user gave.
        options: those in the name.
        error: what was raised on making it.
    """
    unknown, twice = _UNEXPECTED.search(str(error)), _TWICE.search(str(error))
    if unknown is not None and unknown[2] in options:
        known = _options_of(name, unknown[1])
        close = difflib.get_close_matches(unknown[2], known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        listing = f" Its options: {', '.join(known)}." if known else ""
        return UserError(f"{name} has no option {unknown[2]!r}, which {text!r} gives.{hint}{listing}")
    if twice is not None and twice[1] in options:
        return UserError(
            f"{name} fixes {twice[1]} itself, so it cannot be an option, and {text!r} gives it. Leave it out."
        )
    given = ", ".join(f"{option}={value!r}" for option, value in options.items())
    reason = f"{type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]}"
    return UserError(f"timm cannot make {text}: with {given} it fails ({reason}). Choose other values.")


def _options_of(name: str, class_name: str | None) -> list[str]:
    """The arguments of the class that refused one, as far as they are options here."""
    found = getattr(sys.modules[model_entrypoint(get_arch_name(name)).__module__], class_name or "", None)
    if not inspect.isclass(found):
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(found).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in named and parameter.name not in _ELSEWHERE]
