"""Choosing from several groups fairly."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def in_turn(groups: Sequence[Sequence[T]]) -> list[T]:
    """The first of every group, then the second of every group, and so on."""
    longest = max((len(group) for group in groups), default=0)
    return [group[turn] for turn in range(longest) for group in groups if turn < len(group)]
