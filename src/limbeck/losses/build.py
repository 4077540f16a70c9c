"""From method specs and two models' facts to loss modules with their weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.call_checks import checked_options, fits, import_class
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
        options = checked_options(spec.name, loss_class, options, skip=2, reserved=RESERVED_OPTIONS, kind="method")
        module = loss_class(student, teacher, **options)
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
    return import_class(
        spec.path,
        DistillationLoss,  # type: ignore[type-abstract]
        kind="method",
        noun="loss",
        public="limbeck.losses.DistillationLoss",
    )


def _reserved(spec: MethodSpec, option: str) -> float | None:
    value = spec.options.get(option)
    if value is None:
        return None
    if not fits(value, float) or value < 0:
        raise UserError(f"{spec.name}: {option} is {value!r}; it must be a number, 0 or more.")
    return float(value)
