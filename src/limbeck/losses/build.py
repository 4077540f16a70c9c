"""From method specs and two models' facts to loss modules with their weights."""

import importlib
import inspect
import os
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.names import RESERVED_OPTIONS, MethodSpec
from limbeck.outputs import ModelFacts


@dataclass(frozen=True)
class BuiltLoss:
    """One term of the total.

    Attributes:
        name: unique among the terms of a run; the second `kd` is `kd#2`.
        module: the loss, projectors included.
        weight: the user's, or the method's default.
        warmup_epochs: over which the weight rises from zero; the user's, or the method's default.
    """

    name: str
    module: DistillationLoss
    weight: float
    warmup_epochs: float


def build_losses(specs: Sequence[MethodSpec], student: ModelFacts, teacher: ModelFacts) -> list[BuiltLoss]:
    """Make every loss of a run.

    Args:
        specs: from `parse_methods`.
        student: facts of the student.
        teacher: facts of the teacher.

    Raises:
        UserError: a class cannot be imported or is no `DistillationLoss`, or an option is unknown or of the wrong
            type; or the loss itself refuses the models.
    """
    built: list[BuiltLoss] = []
    counts: dict[str, int] = {}
    for spec in specs:
        counts[spec.name] = counts.get(spec.name, 0) + 1
        name = spec.name if counts[spec.name] == 1 else f"{spec.name}#{counts[spec.name]}"
        loss_class = import_loss(spec)
        options = {key: value for key, value in spec.options.items() if key not in RESERVED_OPTIONS}
        module = loss_class(student, teacher, **_checked(spec, loss_class, options))
        weight = _reserved(spec, "weight")
        warmup = _reserved(spec, "warmup_epochs")
        built.append(
            BuiltLoss(
                name,
                module,
                module.default_weight if weight is None else weight,
                module.default_warmup_epochs if warmup is None else warmup,
            )
        )
    return built


def import_loss(spec: MethodSpec) -> type[DistillationLoss]:
    """The class that a spec names.

    Raises:
        UserError: it cannot be found, or is no `DistillationLoss`.
    """
    module_name, _, class_name = spec.path.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        # A user's own loss usually lies where they stand; appended, so that it can hide no installed package.
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A missing import inside the user's module is their bug and keeps its traceback.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"The method {spec.path!r} names the module {module_name!r}, which cannot be found. It must be installed "
            "or lie in the current folder."
        ) from None
    loss_class = getattr(module, class_name, None)
    if not (isinstance(loss_class, type) and issubclass(loss_class, DistillationLoss)):
        raise UserError(
            f"The method {spec.path!r} is not a loss: {module_name} must define {class_name} as a subclass of "
            "limbeck.losses.DistillationLoss."
        )
    if inspect.isabstract(loss_class):
        raise UserError(f"The method {spec.path!r} cannot be used as it stands: {class_name} defines no forward.")
    return loss_class


def _checked(spec: MethodSpec, loss_class: type[DistillationLoss], options: dict[str, Any]) -> dict[str, Any]:
    """The options in the types that the class asks for."""
    parameters = dict(list(inspect.signature(loss_class).parameters.items())[2:])
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    known = {n: p for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    hints = _hints(loss_class)
    listing = ", ".join(_show(parameter) for parameter in known.values()) or "none of its own"
    for name, value in options.items():
        if name not in known and not anything:
            raise UserError(
                f"{spec.name} has no option {name!r}. Its options: {listing}; and for every method: "
                f"{', '.join(RESERVED_OPTIONS)}."
            )
        if name in hints and not _fits(value, hints[name]):
            raise UserError(f"{spec.name}: {name} is {value!r}; it must be {_describe(hints[name])}.")
    missing = [n for n, p in known.items() if p.default is inspect.Parameter.empty and n not in options]
    if missing:
        raise UserError(f"{spec.name} needs {', '.join(missing)}. Its options: {listing}.")
    return {name: _convert(value, hints[name]) if name in hints else value for name, value in options.items()}


def _hints(loss_class: type[DistillationLoss]) -> dict[str, Any]:
    try:
        return get_type_hints(loss_class.__init__)
    except NameError:
        # A user's class may name types that are imported for the type checker only.
        return {}


def _reserved(spec: MethodSpec, option: str) -> float | None:
    value = spec.options.get(option)
    if value is None:
        return None
    if not _fits(value, float) or value < 0:
        raise UserError(f"{spec.name}: {option} is {value!r}; it must be a number, 0 or more.")
    return float(value)


def _show(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return parameter.name
    return f"{parameter.name}={parameter.default!r}"


def _fits(value: Any, hint: Any) -> bool:
    """Whether a literal may be given for an annotation; annotations that are not understood take anything."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
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
        return same_length and all(_fits(v, a) for v, a in zip(value, arguments, strict=True))
    if _is_list(origin, arguments):
        return isinstance(value, tuple | list) and all(_fits(item, arguments[0]) for item in value)
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
        return _convert(value, next(argument for argument in arguments if _fits(value, argument)))
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
