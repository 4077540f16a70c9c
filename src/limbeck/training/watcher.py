"""Gathers, epoch after epoch, what `limbeck.training.watch` judges, and says and writes down what is found.

It writes records of two kinds: `watch`, what it measured itself (the length of the parameter vector after every epoch, and what
the probe says after the first, the middle and the last one), and `finding`. It runs in the first process only, takes part in
no exchange between processes, and draws no random number. It keeps no state but the records, so a resumed run goes on.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from limbeck.distiller import Distillation, describe_weights
from limbeck.losses.names import parse_shares
from limbeck.recipe import NO_DATA, DistillRecipe, TrainingRecipe
from limbeck.training.evidence import Evidence, Facts, Finding, finding_of
from limbeck.training.records import Records
from limbeck.training.watch import look

Probe = Callable[[], dict[str, float]]
"""Measures both models on a few images: `agreement` and `chance`, and `cka/STUDENT LEVEL|TEACHER LEVEL`, each where it can."""


class Watcher:
    """Watches one run.

    Args:
        facts: what does not change during it; see `gather_facts`.
        given: what was found before training, for instance about the teacher.
        probe: measures the two models after the first, the middle and the last epoch.
        say: is told what is found, in sentences, when it is seen first.
    """

    def __init__(
        self,
        facts: Facts,
        *,
        given: Sequence[Finding] = (),
        probe: Probe | None = None,
        say: Callable[[list[str]], None] | None = None,
    ) -> None:
        self.facts = facts
        self.given = tuple(given)
        self.probe = probe
        self.say = say

    def begin(self, records: Records, step: int) -> None:
        """Say what is known before training; in a resumed run, only what has not been said."""
        known = findings(records)
        said = {(finding.name, finding.subject) for finding in known}
        new = [finding for finding in self.given if (finding.name, finding.subject) not in said]
        new += look(Evidence(self.facts), [*known, *new])
        self._tell(new, records, 0, step, "")

    def end_epoch(self, records: Records, epoch: int, step: int, student: nn.Module) -> None:
        """Measure and judge after an epoch and its validation.

        Args:
            records: of the run, to which this adds.
            epoch: the one that has ended, from 0.
            step: updates so far.
            student: as it is trained.
        """
        measured = {"parameters": _length(student)}
        if self.probe is not None and epoch in (0, self.facts.epochs // 2, self.facts.epochs - 1):
            measured |= self.probe()
        records.add("watch", epoch, step, {name: value for name, value in measured.items() if math.isfinite(value)})
        new = look(Evidence.from_records(self.facts, epoch, records.rows), findings(records))
        self._tell(new, records, epoch, step, f"After epoch {epoch}: ")

    def _tell(self, new: Sequence[Finding], records: Records, epoch: int, step: int, when: str) -> None:
        for finding in new:
            records.add("finding", epoch, step, finding.record())
        if new and self.say is not None:
            self.say([f"{when}{finding.text}" for finding in new])


def findings(records: Records) -> list[Finding]:
    """What has been found so far, oldest first."""
    return [finding_of(row) for row in records.of("finding")]


def gather_facts(distiller: Distillation[Any], recipe: TrainingRecipe, *, chance: float | None = None) -> Facts:
    """What of a run does not change.

    Args:
        distiller: student, teacher and losses.
        recipe: fully resolved.
        chance: what agreement always giving the teacher's commonest answer reaches; None where that is not known.
    """
    losses = distiller.distillation_losses
    return Facts(
        weights=dict(describe_weights(distiller)),
        epochs=recipe.epochs,
        warmup_epochs=float(recipe.warmup_epochs),
        has_teacher=any(loss.needs_teacher for loss in losses.values()),
        trainable=any(p.requires_grad for p in distiller.student.parameters()),
        drop_path=drop_path_of(distiller.student),
        matches_blocks=tuple(name for name, loss in losses.items() if loss.matches_blocks),
        chosen=parse_shares(recipe.balance) if isinstance(recipe, DistillRecipe) and recipe.balance else {},
        chance=chance,
        images_change=recipe.data == NO_DATA,
    )


def drop_path_of(network: nn.Module) -> float:
    """The largest rate of stochastic depth within a network, by whatever library it is made."""
    rates = [
        getattr(module, "drop_prob", getattr(module, "p", None))
        for module in network.modules()
        if type(module).__name__.endswith(("DropPath", "StochasticDepth"))
    ]
    return max((float(rate) for rate in rates if rate is not None), default=0.0)


@torch.no_grad()
def _length(network: nn.Module) -> float:
    """Euclidean length of all parameters together; it changes with nearly any change of one of them."""
    squares = [torch.linalg.vector_norm(p.detach(), dtype=_accurate(p)).square() for p in network.parameters()]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def _accurate(tensor: torch.Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64
