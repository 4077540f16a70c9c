"""What is known of a run while it learns, and what may be found in it: the two sides of `limbeck.training.watch`."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["warning", "note"]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """Something a person should know.

    Attributes:
        name: of the kind of fault, such as `term_vanishes`.
        severity: warning or note.
        words: what is seen.
        remedy: what to do about it.
        subject: which term, pair or level; empty where there is only one.
    """

    name: str
    severity: Severity
    words: str
    remedy: str
    subject: str = ""

    @property
    def text(self) -> str:
        """Both sentences."""
        return f"{self.words} {self.remedy}"

    def record(self) -> dict[str, str]:
        """As plain values, for metrics.jsonl and summary.json."""
        return asdict(self)


def finding_of(record: Record) -> Finding:
    """A finding that was written as a record, which may hold more."""
    return Finding(**{name: record[name] for name in Finding.__dataclass_fields__})


@dataclass(frozen=True)
class Facts:
    """What of a run does not change.

    Attributes:
        weights: of every term at full warm-up, `task` among them where labels are learned.
        epochs: of the whole run.
        warmup_epochs: of the learning rate.
        has_teacher: a loss asks a teacher.
        trainable: any of the student's parameters may change.
        drop_path: the largest rate of stochastic depth within the student.
        matches_blocks: the terms that compare intermediate blocks.
        chosen: the terms whose share of the pull the user has chosen, with these shares.
        chance: what agreement with the teacher always giving its commonest answer reaches; None where it is not known.
        images_change: images are made while the student learns, so that its losses need not fall.
    """

    weights: Mapping[str, float]
    epochs: int
    warmup_epochs: float = 0.0
    has_teacher: bool = True
    trainable: bool = True
    drop_path: float = 0.0
    matches_blocks: tuple[str, ...] = ()
    chosen: Mapping[str, float] = field(default_factory=dict)
    chance: float | None = None
    images_change: bool = False


@dataclass(frozen=True)
class Evidence:
    """What is known of a run at the end of an epoch.

    Attributes:
        facts: what does not change.
        epoch: the epoch that has ended, from 0; -1 before training.
        train, val, gradients, watch: the records so far of these kinds, oldest first.
    """

    facts: Facts
    epoch: int = -1
    train: Sequence[Record] = field(default=())
    val: Sequence[Record] = field(default=())
    gradients: Sequence[Record] = field(default=())
    watch: Sequence[Record] = field(default=())

    @classmethod
    def from_records(cls, facts: Facts, epoch: int, rows: Sequence[Record]) -> "Evidence":
        """From all records of a run. One that was killed may repeat a measurement of the gradients; the later one counts."""

        def of(kind: str) -> tuple[Record, ...]:
            return tuple(row for row in rows if row["kind"] == kind)

        gradients = {row["step"]: row for row in of("gradients")}
        return cls(facts, epoch, of("train"), of("val"), tuple(gradients.values()), of("watch"))

    def pulls(self, without: Collection[str] = ()) -> list[dict[str, float]]:
        """At each measurement of the gradients, the share of each term at its full weight; terms at weight 0 are left out.

        Args:
            without: terms to leave out; the shares are those of the others among themselves.
        """
        shares = []
        for row in self.gradients:
            norms = {}
            for name, full in self.facts.weights.items():
                now = row.get(f"weight/{name}", full)
                if name in row and now > 0 and name not in without:
                    norms[name] = row[name] * full / now
            whole = sum(norms.values())
            if whole > 0:
                shares.append({name: norm / whole for name, norm in norms.items()})
        return shares

    def cosines(self) -> dict[tuple[str, str], list[float]]:
        """The cosines of each pair of terms, oldest first."""
        found: dict[tuple[str, str], list[float]] = {}
        for row in self.gradients:
            for key, value in row.items():
                if key.startswith("cosine/"):
                    a, _, b = key.removeprefix("cosine/").partition("|")
                    found.setdefault((a, b), []).append(value)
        return found

    def agreements(self) -> list[tuple[float, float]]:
        """Agreement with the teacher and what chance reaches, oldest first: on validation images, else on the watched ones."""
        chance = self.facts.chance
        if chance is not None and any("agreement" in row for row in self.val):
            return [(row["agreement"], chance) for row in self.val if "agreement" in row]
        return [(row["agreement"], row["chance"]) for row in self.watch if "agreement" in row]

    def epoch_losses(self) -> dict[str, list[float]]:
        """The mean of each unweighted term in each epoch, oldest first.

        The parts of a detector's own loss are left out, and what is not finite.
        """
        values: dict[str, dict[int, list[float]]] = {}
        for row in self.train:
            for name in self.facts.weights:
                loss = row.get(f"loss/{name}", math.nan)
                if math.isfinite(loss):
                    values.setdefault(name, {}).setdefault(row["epoch"], []).append(loss)
        return {name: [sum(of) / len(of) for of in epochs.values()] for name, epochs in values.items()}

    @property
    def least(self) -> int:
        """Measurements from which on something noisy is judged."""
        return min(2, self.facts.epochs)
