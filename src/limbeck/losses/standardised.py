"""Logit standardisation: any loss on logits, given logits of mean 0 and standard deviation 1.

Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv:2403.01427.

A shared temperature asks the student for logits as large as the teacher's; standardised ones need only be in the same
proportions. Published settings: base temperature 2, weight 9 on the term (of `dkd` on both its parts) and 0.1 on the
labels, on CIFAR-100 and ImageNet alike; the authors advise temperatures 2 to 3 and weights 3 to 15, for transformers 6 to
10. The weight belongs to the method: without standardisation it would be far too large, so that a fair control is
`kd(temperature=2, weight=9)` as well as plain `kd`. The standard deviation is the released code's, which divides by K-1.
Inferred, not published: other losses than `kd` and `dkd`.

A classifier that starts at zero gives equal logits, whose standard deviation is 0, and the first gradient is of the order of
1e6: use AdamW, clip gradients, or start from weights.
"""

import inspect
from dataclasses import replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from limbeck.call_checks import require_positive
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.build import build_losses, import_loss
from limbeck.losses.catalogue import METHODS
from limbeck.losses.kd import require_same_classes
from limbeck.losses.names import RESERVED_OPTIONS, MethodSpec, parse_methods
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts, Outputs


def standardised_logits(logits: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """ẑ = (z - mean of z) / (standard deviation of z + 1e-7), of each image over its classes.

    The deviation is the unbiased one, Σ(z - z̄)² / (K-1) under the root. Equal logits become zeros. Scale and offset of an
    image's logits are lost, so that a loss of softmax(ẑ/τ) works at a temperature of its own for every image and model.

    Args:
        logits: (B, K), K >= 2.

    Returns:
        (B, K) in at least float32.
    """
    with no_autocast(logits):
        wide, _ = comparable(logits, logits)
        return (wide - wide.mean(dim=1, keepdim=True)) / (wide.std(dim=1, keepdim=True) + 1e-7)


class Standardised(DistillationLoss):
    """Another loss on logits, of both models' logits after `standardised_logits`.

    It needs labels where the other loss does, and warms up as long. Of images whose labels are the teacher's own answers
    (made without data, for example), labels are read only where `task_weight` says so, since a method's name alone cannot
    tell what is inside it: give one, such as 0.1, to use `standardised(of=dkd)` there.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        of: the other loss as it is written for `--method`: `kd`, "dkd(beta=2.0)", or a class of yours that reads nothing but
            logits and says so (`on_logits`).
        temperature: τ > 0 of the other loss where it has one and `of` does not set it.

    Raises:
        UserError: `of` is not one loss on logits, or sets a weight or a warm-up, which belong to this one; the temperature
            is not positive; the models' classes differ in number or are fewer than three; or the other loss refuses its options.
    """

    on_logits: ClassVar[bool] = True
    default_task_weight: ClassVar[float] = 0.1

    def __init__(self, student: ModelFacts, teacher: ModelFacts, *, of: str = "kd", temperature: float = 2.0) -> None:
        super().__init__(student, teacher)
        require_same_classes("standardised", student, teacher)
        require_positive("standardised", temperature=temperature)
        spec, wanted = _inner(of)
        if student.num_classes < 3:
            raise UserError(
                f"standardised needs at least three classes, and {student.name} has {student.num_classes}: of two, "
                "standardised logits are always the same two numbers, from which nothing is learnt. Use kd."
            )
        notes: tuple[str, ...] = ()
        if "temperature" not in inspect.signature(wanted).parameters:
            notes = (f"{spec.name} has no temperature, so that none is used.",)
        elif "temperature" in spec.options:
            notes = (f"{spec.name} sets its own temperature, {spec.options['temperature']}.",)
        else:
            spec = replace(spec, options={**spec.options, "temperature": temperature})
        self.of = build_losses([spec], student, teacher)[0].module
        self.notes = (*self.of.notes, *notes)
        # The class knows only what holds for every loss that may be inside.
        self.needs_labels = self.of.needs_labels  # type: ignore[misc]
        self.compiles = self.of.compiles  # type: ignore[misc]
        # A loss that was made to stand in place of the labels still does.
        self.default_task_weight = min(self.default_task_weight, self.of.default_task_weight)  # type: ignore[misc]

    @property
    def default_weight(self) -> float:
        """9, as published."""
        return 9.0

    @property
    def default_warmup_epochs(self) -> float:
        """The other loss's own."""
        return self.of.default_warmup_epochs

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """The other loss's term, of standardised logits.

        Raises:
            UserError: it reads labels and there is no target.
        """
        own, other = Outputs(standardised_logits(student.logits)), Outputs(standardised_logits(teacher.logits.detach()))
        term: Tensor = self.of(own, other, target)
        return term


def _inner(text: str) -> tuple[MethodSpec, type[DistillationLoss]]:
    """The one loss that `of` names, and its class."""
    specs = parse_methods(text)
    if len(specs) != 1:
        raise UserError(
            f"standardised: of is {text!r}, which is {len(specs)} methods; it must be one. "
            "Several are written standardised(of=kd)+standardised(of=dkd)."
        )
    (spec,) = specs
    wanted = import_loss(spec)
    if not wanted.on_logits or issubclass(wanted, Standardised):
        raise UserError(
            f"standardised: of is {text!r}, but {spec.name} is not a plain loss on logits. "
            f"It must be one of {', '.join(_fitting())}, or a class of yours with on_logits = True."
        )
    if outside := [option for option in RESERVED_OPTIONS if option in spec.options]:
        raise UserError(
            f"standardised: of is {text!r}, but {' and '.join(outside)} belong to the whole: "
            "standardised(of=..., weight=9.0, warmup_epochs=0)."
        )
    return spec, wanted


def _fitting() -> list[str]:
    """The methods that can be standardised; this costs the import of those on logits."""
    classes = {
        name: import_loss(MethodSpec(name, info.path)) for name, info in METHODS.items() if info.kind == "logits"
    }
    return [name for name, found in classes.items() if found.on_logits and not issubclass(found, Standardised)]
