"""What all ways of making pictures have in common, whether a classifier or a detector is to answer for them."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from limbeck.synthesis.pace import Pace
from limbeck.training.randomness import seed_everything


class AnySetting(Protocol):
    """What every way must be told."""

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""

    @property
    def seed(self) -> int:
        """Of everything random."""

    @property
    def say(self) -> Callable[[str], None] | None:
        """Takes a line for a person about what takes long; None says nothing."""


SettingType = TypeVar("SettingType", bound=AnySetting)
MadeType = TypeVar("MadeType", covariant=True)


@contextmanager
def seeded(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Random numbers (torch's, numpy's, Python's) that depend on these parts only.

    The generators' own state comes back afterwards.

    Args:
        device: whose generator is set beside the CPU's.
        parts: a setting's seed, and what tells this place from others.
    """
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_everything("synthesis", *parts)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class Way(ABC, Generic[SettingType, MadeType]):
    """A way of making pictures, batch after batch.

    Attributes:
        setting: as given.
        notes: sentences for the user about what was decided (a prior that this teacher cannot give, a fallback, ...).
    """

    def __init__(self, setting: SettingType) -> None:
        self.setting = setting
        self.notes: list[str] = []
        self._pace = Pace(setting.say)

    @abstractmethod
    def make(self, count: int, done: int = 0) -> Iterator[MadeType]:
        """Finished pictures, batch after batch, without any student that learns.

        The same whatever happened before: each batch seeds its own random numbers.

        Args:
            count: pictures in all.
            done: the first so many were already written by an earlier run that was stopped (whole batches), and are
                left out.
        """

    def log(self) -> dict[str, float]:
        """Numbers about the last batch or step (losses by name), for metrics; empty before it."""
        return {}

    def tell(self, what: str, step: int, steps: int) -> None:
        """Say how far something long is, with `log`, where the setting has a listener and every few seconds only.

        Args:
            what: as it goes on after "left of": "these 64 pictures".
            step: that is over, counted from 1.
            steps: in all.
        """
        self._pace.tell(what, step, steps, self.log)

    @contextmanager
    def seeded(self, *parts: int | str) -> Iterator[None]:
        """Random numbers that depend on the setting's seed and these parts only; see the function `seeded`."""
        with seeded(self.setting.device, self.setting.seed, *parts):
            yield
