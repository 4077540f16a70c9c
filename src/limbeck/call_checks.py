"""From the text of a call to what it makes: a class by its path, and options in the types that the class asks for."""

import importlib
import inspect
import os
import sys
import types
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from limbeck.errors import UserError

ClassT = TypeVar("ClassT")


def import_class(path: str, base: type[ClassT], *, kind: str, noun: str, public: str) -> type[ClassT]:
    """The class that `package.module:Class` names.

    Args:
        path: where it is.
        base: what it must be derived from.
        kind: what the text is called, for messages: "method".
        noun: what it should be, for messages: "loss".
        public: where people find the base class.

    Raises:
        UserError: it cannot be found, is not derived from `base`, or leaves something undefined.
    """
    module_name, _, class_name = path.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        # A user's own class usually lies where they stand; appended, so that it can hide no installed package.
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A missing import inside the user's module is their bug and keeps its traceback.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"The {kind} {path!r} names the module {module_name!r}, which cannot be found. It must be installed "
            "or lie in the current folder."
        ) from None
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(
            f"The {kind} {path!r} is not a {noun}: {module_name} must define {class_name} as a subclass of {public}."
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))  # type: ignore[attr-defined]
        raise UserError(f"The {kind} {path!r} cannot be used as it stands: {class_name} defines no {missing}.")
    return found


def checked_options(
    name: str, wanted: type[Any], options: dict[str, Any], *, skip: int, reserved: Sequence[str], kind: str
) -> dict[str, Any]:
    """The options of a call in the types that the class asks for.

    Args:
        name: of the call, for messages.
        wanted: the class.
        options: as written.
        skip: its constructor's first parameters, which are not options.
        reserved: options that every one of its kind understands, for messages.
        kind: "method", for messages.

    Raises:
        UserError: one is unknown, missing or of the wrong type.
    """
    parameters = dict(list(inspect.signature(wanted).parameters.items())[skip:])
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    known = {n: p for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    hints = _hints(wanted)
    listing = ", ".join(_show(parameter) for parameter in known.values()) or "none of its own"
    for option, value in options.items():
        if option not in known and not anything:
            raise UserError(
                f"{name} has no option {option!r}. Its options: {listing}; and for every {kind}: {', '.join(reserved)}."
            )
        if option in hints and not fits(value, hints[option]):
            raise UserError(f"{name}: {option} is {value!r}; it must be {_describe(hints[option])}.")
    missing = [n for n, p in known.items() if p.default is inspect.Parameter.empty and n not in options]
    if missing:
        raise UserError(f"{name} needs {', '.join(missing)}. Its options: {listing}.")
    return {option: _convert(value, hints[option]) if option in hints else value for option, value in options.items()}


def require_at_least(method: str, least: float, **options: float) -> None:
    """Refuse options below `least`.

    Raises:
        UserError: one is.
    """
    for option, value in options.items():
        if not value >= least:
            raise UserError(f"{method}: {option} is {value}; it must be at least {least:g}.")


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


def _hints(wanted: type[Any]) -> dict[str, Any]:
    try:
        return get_type_hints(wanted.__init__)
    except NameError:
        # A user's class may name types that are imported for the type checker only.
        return {}


def _show(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return parameter.name
    return f"{parameter.name}={parameter.default!r}"


def fits(value: Any, hint: Any) -> bool:
    """Whether a literal may be given for an annotation; annotations that are not understood take anything."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if hint is float:
        # A comparison is also right for whole numbers beyond float's range, and false for nan.
        largest = sys.float_info.max
        return isinstance(value, int | float) and not isinstance(value, bool) and -largest <= value <= largest
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple and Ellipsis not in arguments:
        same_length = isinstance(value, tuple | list) and len(value) == len(arguments)
        return same_length and all(fits(v, a) for v, a in zip(value, arguments, strict=True))
    if _is_list(origin, arguments):
        return isinstance(value, tuple | list) and all(fits(item, arguments[0]) for item in value)
    try:
        return isinstance(value, hint) if isinstance(hint, type) else True
    except TypeError:
        # `Any` and protocols are types that nothing can be checked against.
        return True


def _is_list(origin: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether an annotation, taken apart, is a sequence that says what it holds."""
    return bool(arguments) and isinstance(origin, type) and issubclass(origin, Sequence)


def _convert(value: Any, hint: Any) -> Any:
    """A value that fits, exactly in the annotated type: 2 as 2.0 for a float, a list as a tuple for a tuple."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert(value, next(argument for argument in arguments if fits(value, argument)))
    if hint is float:
        return float(value)
    if origin is tuple and Ellipsis not in arguments:
        return tuple(_convert(v, a) for v, a in zip(value, arguments, strict=True))
    if _is_list(origin, arguments):
        items = [_convert(item, arguments[0]) for item in value]
        return tuple(items) if origin is tuple else items
    return value


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    plain = {float: "a finite number", int: "a whole number", str: "a quoted text", bool: "True or False"}
    if hint in plain:
        return plain[hint]
    if hint is types.NoneType:
        return "None"
    if origin is tuple and Ellipsis not in arguments:
        return f"({', '.join(_describe(argument) for argument in arguments)})"
    if _is_list(origin, arguments):
        return f"a list of {_describe(arguments[0])}"
    return getattr(hint, "__name__", str(hint))
