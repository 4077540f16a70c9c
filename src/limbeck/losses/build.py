"""From method specs and two models' facts to loss modules with their weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.call_checks import checked_options, fits, import_class
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.catalogue import METHODS
from limbeck.losses.names import RESERVED_OPTIONS, MethodSpec
from limbeck.outputs import ModelFacts, Request


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
        _refuse_several(spec, loss_class, student, teacher)
        module = loss_class(student, teacher, **options)
        if teacher.members and not loss_class.reads_members and _reads_more_than_logits(module.teacher_request):
            raise UserError(_needs_one_teacher(spec.name, teacher))
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


def _refuse_several(
    spec: MethodSpec, loss_class: type[DistillationLoss], student: ModelFacts, teacher: ModelFacts
) -> None:
    """Refuse several teachers where the catalogue says that a loss reads features, before it looks for any."""
    if not teacher.members or loss_class.reads_members or not loss_class.needs_teacher:
        return
    kind = METHODS[spec.name].kind if spec.name in METHODS else None
    if kind in ("features", "relations"):
        raise UserError(_needs_one_teacher(spec.name, teacher))
    if kind == "logits" and not teacher.num_classes:
        counts = ", ".join(f"{of.name} has {of.num_classes}" for of in teacher.members)
        raise UserError(
            f"{spec.name} reads the teachers' answers class by class, and their classes differ: {counts}; the student has "
            f"{student.num_classes}. Take teachers of the same classes, or unic, which reads their features."
        )


def _reads_more_than_logits(request: Request) -> bool:
    return bool(request.levels) or request.pooled or request.final or request.class_tokens or request.heads


def _needs_one_teacher(method: str, teacher: ModelFacts) -> str:
    return (
        f"{method} reads the features of one teacher, and there are {len(teacher.members)}: {teacher.name}. Take unic, which has "
        "heads for each of them, or a method on logits (kd, ...), which learns from their mean probabilities; or name one "
        "teacher."
    )


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
