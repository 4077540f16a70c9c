"""A line now and then while something takes long, so that nobody has to guess whether it still runs."""

import time
from collections.abc import Callable, Mapping

EVERY = 10.0
"""Seconds between two lines, and before the first one: what is over sooner needs none."""


class Pace:
    """Says how far a course of steps is, how long its rest will take, and its last numbers.

    Args:
        say: what takes a line for a person; None says nothing.
    """

    def __init__(self, say: Callable[[str], None] | None) -> None:
        self.say = say
        self._course, self._step = ("", 0), 0
        self._since, self._from = 0.0, 0

    def tell(self, what: str, step: int, steps: int, log: Callable[[], Mapping[str, float]]) -> None:
        """A step is over; the first one of a course begins its time.

        Args:
            what: the course, as it goes on after "left of"; another one, or an earlier step, begins anew.
            step: counted from 1.
            steps: of the whole course.
            log: numbers by name; asked only when a line is due, since reading them may wait for the device.
        """
        if self.say is None:
            return
        now = time.monotonic()
        begins = (what, steps) != self._course or step <= self._step
        self._course, self._step = (what, steps), step
        if begins:
            self._since, self._from = now, step
        if now - self._since < EVERY or step >= steps:
            return
        # By the steps since the last line: those of a course are not all equally long.
        left = (now - self._since) / (step - self._from) * (steps - step)
        numbers = "".join(f", {name} {value:.3g}" for name, value in log().items())
        self.say(f"    step {step} of {steps}, about {left:.0f} s left of {what}{numbers}")
        self._since, self._from = now, step
