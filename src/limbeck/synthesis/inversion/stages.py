"""The course of an inversion as data: stages of so many iterations, each with its learning rate, size and rolls."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stage:
    """One part of the course; each starts with a fresh optimiser.

    Attributes:
        iterations: steps.
        lr: highest learning rate, in the teacher's normalised units per step.
        final_lr: where the cosine ends; equal to `lr`, the rate is constant after the warm-up.
        warmup: steps of a linear rise from lr / warmup.
        rolls: largest rolls, each (rows, columns) in pixels of what is shown; several share the stage out evenly.
        pool: the picture is shown averaged over squares of this side, to a teacher that takes any size.
        canvas: (height, width) of what is optimised; None is the whole picture. A later stage's larger canvas has the
            earlier result in its centre and fresh noise around it.
    """

    iterations: int
    lr: float
    final_lr: float = 0.0
    warmup: int = 0
    rolls: tuple[tuple[int, int], ...] = ((0, 0),)
    pool: int = 1
    canvas: tuple[int, int] | None = None

    def learning_rate(self, step: int) -> float:
        """Of the step, counted from 0: linear warm-up, then a cosine from `lr` to `final_lr`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        course = (step - self.warmup) / max(self.iterations - self.warmup, 1)
        return self.final_lr + (self.lr - self.final_lr) * 0.5 * (1 + math.cos(math.pi * course))

    def roll(self, step: int) -> tuple[int, int]:
        """The largest roll at the step."""
        return self.rolls[min(step * len(self.rolls) // self.iterations, len(self.rolls) - 1)]


def total(stages: Sequence[Stage]) -> int:
    """Iterations of all stages."""
    return sum(stage.iterations for stage in stages)


def scaled(stages: Sequence[Stage], iterations: int) -> tuple[Stage, ...]:
    """The same course in another number of iterations: every stage and warm-up in proportion.

    Each stage keeps at least one step, and the last takes the rounding's rest; where there are fewer steps than stages, the
    first ones are left out, so that the course ends as published.
    """
    published = total(stages)
    if iterations == published:
        return tuple(stages)
    stages = tuple(stages)[-iterations:]
    made: list[Stage] = []
    left = iterations
    for index, stage in enumerate(stages):
        behind = len(stages) - 1 - index
        own = left if not behind else min(max(1, round(stage.iterations * iterations / published)), left - behind)
        made.append(replace(stage, iterations=own, warmup=round(stage.warmup * own / stage.iterations)))
        left -= own
    return tuple(made)


def growing(size: tuple[int, int], first: int, parts: int) -> list[tuple[int, int]]:
    """Canvases of `first`/`parts`, (`first`+1)/`parts`, ... of a size, the last exactly it; equal ones once."""
    height, width = size
    found = [(max(1, height * k // parts), max(1, width * k // parts)) for k in range(first, parts)] + [size]
    return list(dict.fromkeys(found))
