"""A small comparison that fits into given minutes: from fewer images and fewer epochs, the same for every method.

Of the work of a whole run, images times epochs, only a share fits. Images and epochs are cut by the same factor, its square root,
as far as the smallest numbers allow from which a network still learns something; what the schedule counts in epochs (warm-up,
steps, the methods' own warm-ups) is cut with the epochs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.comparing.probe import Pace
from limbeck.comparing.recipe import CompareRecipe
from limbeck.comparing.runner import duration
from limbeck.errors import UserError

LEAST_EPOCHS = 3
LEAST_IMAGES_PER_CLASS = 10
LEAST_STEPS_PER_EPOCH = 4

# Of the time that is left, this much is planned with: processes wait for each other, and disks for nobody.
RESERVE = 0.1

UNSCALED = "The averages of --ema and options that a method counts in epochs or steps are as in whole runs."


@dataclass(frozen=True)
class Whole:
    """A run that nothing is cut of.

    Attributes:
        images: that it learns from; None where they cannot be made fewer, and an epoch counts as one image.
        epochs: of its recipe.
        classes: of the images.
        batch_size: images of a step.
    """

    images: int | None
    epochs: int
    classes: int = 1
    batch_size: int = 1

    @property
    def least(self) -> "Size":
        """The smallest run that is made."""
        epochs = min(self.epochs, LEAST_EPOCHS)
        if self.images is None:
            return Size(None, epochs)
        images = max(LEAST_IMAGES_PER_CLASS * self.classes, LEAST_STEPS_PER_EPOCH * self.batch_size)
        return Size(min(self.images, images), epochs)


@dataclass(frozen=True)
class Size:
    """What is left of a run: images to learn from (None: all), and epochs."""

    images: int | None
    epochs: int

    @property
    def passes(self) -> int:
        """Images that are looked at; epochs where images are not cut."""
        return (self.images or 1) * self.epochs


def size_of_share(whole: Whole, passes: float) -> Size:
    """The largest run of at most so many passes in which images and epochs are cut alike, but not below the least.

    Args:
        whole: the run that is cut.
        passes: images times epochs; epochs where images cannot be cut.
    """
    least = whole.least
    if whole.images is None or least.images is None:
        return Size(None, min(whole.epochs, max(least.epochs, math.floor(passes))))
    factor = math.sqrt(min(1.0, passes / (whole.images * whole.epochs)))
    # Epochs first, since they are whole numbers and few; the images then take up what is left.
    epochs = max(least.epochs, round(whole.epochs * factor))
    epochs = min(epochs, max(least.epochs, math.floor(passes / least.images)))
    images = min(whole.images, max(least.images, math.floor(passes / epochs)))
    return Size(images, min(whole.epochs, max(epochs, math.floor(passes / images))))


def fit_into(
    whole: Whole, paces: Sequence[Pace], runs: Sequence[int], *, seconds: float, jobs: int, spent: float = 0.0
) -> Size:
    """The size at which all runs end in time.

    Args:
        whole: a run that nothing is cut of.
        paces: of the methods.
        runs: how many there are of each.
        seconds: the whole budget.
        jobs: runs at a time.
        spent: of the budget, so far.

    Raises:
        UserError: even the smallest runs take longer; it names the minutes that they need.
    """
    rounds = max(1.0, sum(runs) / math.ceil(sum(runs) / jobs))  # runs at a time, when the last round is not full
    fixed = sum(count * pace.fixed_seconds for count, pace in zip(runs, paces, strict=True)) / rounds
    slope = sum(count * pace.seconds_per_image for count, pace in zip(runs, paces, strict=True)) / rounds
    usable = (seconds - spent) * (1 - RESERVE)
    least = whole.least
    if usable < fixed + slope * least.passes:
        needed = spent + (fixed + slope * least.passes) / (1 - RESERVE)
        from_images = f" on {least.images} images" if least.images is not None else ""
        raise UserError(
            f"--budget {seconds / 60:g} is too small: {sum(runs)} runs of {least.epochs} epochs{from_images}, the least from "
            f"which anything is learned, take about {duration(needed)} here ({duration(spent)} of it for finding out how fast "
            f"the methods are, which with --resume is not done again). Give --budget {math.ceil(needed / 60)} or more, or fewer "
            "methods or seeds."
        )
    return size_of_share(whole, (usable - fixed) / slope)


def changes_for(recipe: CompareRecipe, size: Size) -> dict[str, Any]:
    """The options of a run of this size, instead of the recipe's; measured at the end only."""
    factor = size.epochs / recipe.epochs
    changes: dict[str, Any] = {"epochs": size.epochs, "eval_every": size.epochs, "loggers": []}
    if size.images is not None:
        changes["max_train_images"] = size.images
    if recipe.warmup_epochs != "auto":
        changes["warmup_epochs"] = round(recipe.warmup_epochs * factor, 4)
    if recipe.step_epochs != "auto":
        changes["step_epochs"] = [round(epoch * factor, 4) for epoch in recipe.step_epochs]
    return changes


def describe(whole: Whole, size: Size) -> str:
    """What was cut, in a sentence."""
    if size == Size(whole.images, whole.epochs):
        return "The budget is enough for whole runs: nothing is cut."
    share = size.passes / ((whole.images or 1) * whole.epochs)
    of_images = (
        f"on {size.images} of {whole.images} training images (the same in all of them), "
        if whole.images is not None
        else ""
    )
    return (
        f"Short runs: {of_images}{size.epochs} of {whole.epochs} epochs, {100 * share:.2g} % of a whole run's training. "
        f"Warm-ups and steps are shortened with the epochs. {UNSCALED}"
    )
