"""All images of a folder, for instance of an external generator (after DM-KD, Li et al., arXiv:2305.12954).

A generator that has learned from data brings that data's knowledge with it: what is distilled so is without *the
teacher's* data, not without data.
"""

import torch

from limbeck.data.options import ViewOptions
from limbeck.data.split import evenly
from limbeck.data.views import eval_view
from limbeck.synthesis.base import Made, Setting
from limbeck.synthesis.pools.numbered import Numbered
from limbeck.synthesis.pools.sources import BadImages, open_images, read_images


class Folder(Numbered):
    """The images of a folder in order, each once, resized and cropped to the pictures' size.

    Where the folder has more images than are asked for, they are taken evenly spaced; where its subfolders are called as
    the teacher's classes, the pictures are said to be made for them.

    Args:
        setting: as everywhere.
        images: a folder, searched at any depth, or any data set by name; its training images where it has a split.
        bad_images: "stop" at an image that cannot be decoded, or "skip" all of those beforehand.
    """

    def __init__(self, setting: Setting, *, images: str, bad_images: BadImages = "stop") -> None:
        super().__init__(setting)
        self.images = open_images(images, bad_images)
        self.notes += [
            "External generator: the pictures are images that were made or taken elsewhere, and count as data of their own.",
            *self.images.notes,
        ]
        self.asked = self._asked()
        self.view = eval_view(ViewOptions(eval_crop=1.0), setting.size, setting.size)
        self.chosen = evenly(len(self.images), len(self.images))

    def prepare(self, count: int) -> int:
        """Choose evenly spaced images."""
        self.chosen = evenly(len(self.images), count)
        if len(self.chosen) < count:
            self.note(f"{self.images.root} holds {len(self.images)} images, fewer than {count}; each is used once.")
        return len(self.chosen)

    def pictures(self, numbers: range) -> Made:
        """Images of the folder."""
        indices = self.chosen[numbers.start : numbers.stop]
        shown = torch.stack(read_images(self.images.source, indices, self.view))
        asked = None if self.asked is None else self.asked[indices]
        return Made(shown, asked, [self.images.name(int(index)) for index in indices])

    def _asked(self) -> torch.Tensor | None:
        """(N,) the teacher's class that each image's folder is called by; None unless all of them are."""
        known, own = self.setting.class_names, self.images.class_names
        labels = self.images.source.labels
        if known is None or own is None or labels is None or not set(own) <= set(known):
            return None
        return torch.tensor([known.index(name) for name in own])[torch.from_numpy(labels)]
