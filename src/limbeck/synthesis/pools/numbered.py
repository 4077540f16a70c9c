"""Pictures with numbers, each of which depends on the seed and its own number alone.

A run that was stopped then goes on without making anything again, and pictures are the same in batches of any size.
"""

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np

from limbeck.synthesis.base import Made, Synthesis
from limbeck.training.randomness import stable_seed


class Numbered(Synthesis):
    """A way whose pictures are numbered from 0; `make` gives them in that order."""

    def make(self, count: int, done: int = 0) -> Iterator[Made]:
        """Pictures `done` to `count` in batches of the setting's size; fewer where there are not as many."""
        total = self.prepare(count)
        for start in range(done, total, self.setting.batch_size):
            yield self.pictures(range(start, min(start + self.setting.batch_size, total)))

    def prepare(self, count: int) -> int:
        """Whatever must be known before the first of `count` pictures; how many of them there will be."""
        return count

    @abstractmethod
    def pictures(self, numbers: range) -> Made:
        """These pictures; `prepare` was called before."""

    def random(self, number: int) -> np.random.Generator:
        """The random numbers of one picture."""
        return np.random.default_rng(stable_seed(type(self).__name__, self.setting.seed, number))

    def note(self, sentence: str) -> None:
        """Tell the user, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)
