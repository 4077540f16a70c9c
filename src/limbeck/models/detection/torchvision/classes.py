"""Which of a torchvision head's slots are classes, and class heads for other classes.

torchvision's published detectors have 91 slots: the background, 80 classes, and 10 numbers of COCO that name nothing. Heads
that score by softmax always have the background first; those that score by sigmoid have it only where they were published.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.detection import ScoreKind, name_pairs
from limbeck.models.weights import State

NO_CLASS = ("__background__", "N/A")


@dataclasses.dataclass(frozen=True)
class Slots:
    """The slots of a head.

    Attributes:
        class_names: in label order.
        slots: of each class.
        count: all slots; torchvision's `num_classes`.
        scores: with softmax, slot 0 is the background.
    """

    class_names: tuple[str, ...]
    slots: tuple[int, ...]
    count: int
    scores: ScoreKind

    @staticmethod
    def contiguous(class_names: Sequence[str], scores: ScoreKind) -> "Slots":
        """One slot for each class, after the background's if there is one."""
        first = int(scores == "softmax")
        count = len(class_names) + first
        return Slots(tuple(class_names), tuple(range(first, count)), count, scores)

    @staticmethod
    def published(categories: Sequence[str], scores: ScoreKind) -> "Slots":
        """Those of a published list, the ones that name nothing left out."""
        named = [(name, slot) for slot, name in enumerate(categories) if name not in NO_CLASS]
        return Slots(tuple(name for name, _ in named), tuple(slot for _, slot in named), len(categories), scores)

    def values(self) -> dict[str, Any]:
        """Plain values for `Detector.rebuild`."""
        return {"class_names": list(self.class_names), "slots": list(self.slots), "num_slots": self.count}

    @staticmethod
    def from_values(values: dict[str, Any], scores: ScoreKind, class_names: tuple[str, ...] | None) -> "Slots":
        """The slots that `values` recorded, or, for other classes than those, contiguous ones."""
        if class_names is not None and class_names != tuple(values["class_names"]):
            return Slots.contiguous(class_names, scores)
        return Slots(tuple(values["class_names"]), tuple(values["slots"]), values["num_slots"], scores)

    def columns(self, device: torch.device) -> Tensor:
        """Which slots make canonical logits, in order: the classes, then the background of softmax heads."""
        return torch.tensor([*self.slots, *([0] if self.scores == "softmax" else [])], device=device)

    def to_slots(self, labels: Tensor) -> Tensor:
        """(N,) labels in the order of the class names, as the slots that torchvision trains with."""
        return torch.tensor(self.slots, device=labels.device)[labels]

    def to_labels(self, slots: Tensor) -> Tensor:
        """(N,) slots as labels in the order of the class names; -1 for those that name nothing."""
        labels = torch.full((self.count,), -1, dtype=torch.long)
        labels[torch.tensor(self.slots)] = torch.arange(len(self.slots))
        return labels.to(slots.device)[slots]


def other_classes(state: State, own: State, theirs: Slots, ours: Slots, heads: dict[str, int]) -> State:
    """The state of a network with other slots, brought to this one's.

    Args:
        state: of the network whose slots are `theirs`.
        own: of the network whose slots are `ours`; gives the rows that nobody had.
        theirs, ours: the slots.
        heads: anchors of each tensor that has rows of classes.

    Returns:
        The state with the rows of classes that both have (and the background) in their new places.
    """
    old_rows, new_rows = [], []
    if theirs.scores == "softmax":
        old_rows, new_rows = [0], [0]
    for own_label, their_label in name_pairs(ours.class_names, theirs.class_names).items():
        old_rows.append(theirs.slots[their_label])
        new_rows.append(ours.slots[own_label])
    moved = dict(state)
    for name, anchors in heads.items():
        if name in state:
            moved[name] = _copy_rows(
                state[name],
                own[name],
                old_rows,
                new_rows,
                old_slots=theirs.count,
                new_slots=ours.count,
                anchors=anchors,
            )
    return moved


def _copy_rows(
    old: Tensor,
    new: Tensor,
    old_rows: Sequence[int],
    new_rows: Sequence[int],
    *,
    old_slots: int,
    new_slots: int,
    anchors: int = 1,
) -> Tensor:
    """`new` with some of its classes' rows taken from `old`.

    Args:
        old, new: (anchors * slots * n, ...), weights or biases of a class head; the slots are the head's classes, the
            background among them, and n the numbers that it gives for each.
        old_rows, new_rows: slots, equally many; the first of the one becomes the first of the other, and so on.
        old_slots, new_slots: slots of the heads.
        anchors: groups of the head's rows, each with all slots.
    """
    source = old.view(anchors, old_slots, -1, *old.shape[1:])
    result = new.clone()
    target = result.view(anchors, new_slots, -1, *new.shape[1:])
    rows = torch.as_tensor(new_rows, dtype=torch.long)
    target[:, rows] = source[:, torch.as_tensor(old_rows, dtype=torch.long)].to(target.dtype)
    return result
