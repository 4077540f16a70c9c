"""What is wrong with annotations: either the end, or counted by reason and left out; never passed over in silence."""

from collections import Counter
from typing import Literal

from limbeck.errors import UserError

BadImages = Literal["stop", "skip"]


class Problems:
    """Collects the bad annotations and images of one set.

    Args:
        source: the file or folder that is read, for messages.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.reasons: Counter[str] = Counter()
        self.clipped = 0
        self.largest_overshoot = 0.0
        self._first = ""

    def add(self, reason: str, detail: str) -> None:
        """Count one bad annotation or image, which the caller then leaves out.

        Args:
            reason: what it is counted under.
            detail: which one it is, and what is wrong with it.
        """
        if not self.reasons:
            self._first = detail
        self.reasons[reason] += 1

    def clip(self, overshoot: float) -> None:
        """Count one box that reached so many pixels outside its image and was clipped."""
        self.clipped += 1
        self.largest_overshoot = max(self.largest_overshoot, overshoot)

    def finish(self, policy: BadImages) -> list[str]:
        """Notes on what was left out or clipped.

        Raises:
            UserError: something is bad and the policy is "stop"; the message shows the first and counts all.
        """
        counts = ", ".join(f"{count} x {reason}" for reason, count in self.reasons.most_common())
        if self.reasons and policy == "stop":
            raise UserError(
                f"{self.source}: {self._first}. In all: {counts}. Correct them, or leave them out with --bad-images "
                "skip."
            )
        notes = []
        if self.reasons:
            notes.append(f"{self.source}: left out {counts}; the first: {self._first}.")
        if self.clipped:
            notes.append(
                f"{self.source}: {self.clipped} boxes reach outside their images, by up to "
                f"{self.largest_overshoot:.3g} pixels, and are clipped."
            )
        return notes
