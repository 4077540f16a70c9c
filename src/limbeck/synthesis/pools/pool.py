"""The images of an unrelated pool that the teacher is surest of, balanced over its classes.

Attention Probe (Wang et al., ICASSP 2022) and, by confidence alone, DFND (Chen et al., CVPR 2021). Both choose by score
only; the quotas for the classes are ours, since a teacher sees a few of its classes in most of what it does not know.
The second half of both methods is a loss of the student, `noise_adaptation`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.data.options import ViewOptions
from limbeck.data.split import evenly
from limbeck.data.views import eval_view, train_view
from limbeck.errors import UserError
from limbeck.models.attention import Attention, attention_blocks, reading_attention
from limbeck.synthesis.base import Made, Setting
from limbeck.synthesis.pools.numbered import Numbered
from limbeck.synthesis.pools.selection import (
    Indices,
    attention_probe_score,
    flatness,
    relative_blocks,
    select,
    unsureness,
)
from limbeck.synthesis.pools.sources import BadImages, open_images, read_images, read_one
from limbeck.training.randomness import stable_seed

Selection = Literal["attention_probe", "confidence", "none"]


@dataclass
class Scores:
    """What the teacher says about every image of a pool: (N,) each."""

    score: NDArray[np.float64]
    confidence: NDArray[np.float64]
    predicted: Indices


class Pool(Numbered):
    """Chosen images of a pool, in the pool's order.

    Args:
        setting: as everywhere.
        images: a folder, searched at any depth, or any data set by name; its training images where it has a split.
            Labels are not looked at.
        selection: "attention_probe" scores 0.90 CE(t, argmax t) + 0.05 (v_3 + v_7), where v is the cosine between the
            class token's attention and an even one; "confidence" (DFND) by CE(t, argmax t) alone; "none" takes
            images evenly spaced.
        balance: as many images of each of the teacher's classes as the pool allows, instead of the best of all.
        keep: largest share of the pool that is chosen, above 0 and at most 1.
        crops: pictures of each chosen image: the whole one, then random crops, until there are enough.
        crop_scale: smallest and largest share of the area in such a crop.
        blocks: of the two v, counted from 0; "auto" are those as deep in the teacher as 3 and 7 in twelve blocks.
        heads: the attention of the "first" head (as published), or the "mean" over all.
        bad_images: "stop" at an image that cannot be decoded, or "skip" all of those beforehand.

    Attributes:
        record: how the choice came out, plain values, after `make` began.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        images: str,
        selection: Selection = "attention_probe",
        balance: bool = True,
        keep: float = 1.0,
        crops: int = 1,
        crop_scale: tuple[float, float] = (0.25, 1.0),
        blocks: tuple[int, int] | Literal["auto"] = "auto",
        heads: Literal["first", "mean"] = "first",
        bad_images: BadImages = "stop",
    ) -> None:
        super().__init__(setting)
        if not 0 < keep <= 1:
            raise UserError(f"pool: keep is {keep}; it must be a share of the images, above 0 and at most 1.")
        if crops < 1:
            raise UserError(f"pool: crops is {crops}; it must be at least 1, the whole image.")
        self.balance, self.keep, self.crops, self.heads = balance, keep, crops, heads
        self.images = open_images(images, bad_images)
        self.notes += self.images.notes
        self.selection, self.blocks = self._resolve(selection, blocks)
        self.whole = eval_view(ViewOptions(eval_crop=1.0), setting.size, setting.size)
        # No flip: the training's views know whether the teacher's classes can be mirrored.
        cropped = ViewOptions(crop="resized", crop_scale=crop_scale, flip=0.0)
        self.crop = train_view(cropped, setting.size, setting.size, "")
        self.record: dict[str, Any] = {}
        self.chosen = np.arange(len(self.images), dtype=np.int64)
        self._scores: Scores | None = None

    def prepare(self, count: int) -> int:
        """Score the pool (once) and choose from it."""
        most = min(max(int(len(self.images) * self.keep), 1), count)
        if self.selection == "none":
            self.chosen = evenly(len(self.images), most)
        else:
            self._scores = self._scores or self.score()
            predicted = self._scores.predicted
            self.chosen = select(self._scores.score, predicted if self.balance else np.zeros_like(predicted), most)
        total = min(count, len(self.chosen) * self.crops)
        self._report(count, total)
        return total

    def pictures(self, numbers: range) -> Made:
        """The chosen images, whole, in the first round; random crops of them in each further one."""
        turns = [number // len(self.chosen) for number in numbers]
        indices = [int(self.chosen[number % len(self.chosen)]) for number in numbers]
        whole = turns.count(0)
        shown = read_images(self.images.source, indices[:whole], self.whole)
        for index, turn in zip(indices[whole:], turns[whole:], strict=True):
            seed = stable_seed("pool", self.setting.seed, index, turn)
            shown.append(self.crop(read_one(self.images.source, index), seed))
        return Made(torch.stack(shown), None, [self.images.name(index) for index in indices])

    @torch.no_grad()
    def score(self) -> Scores:
        """What the teacher says about every image of the pool.

        Raises:
            UserError: its answer to one is not finite.
        """
        parts = list(self._score_batches())
        score, confidence, predicted = (torch.cat([part[i] for part in parts]).cpu() for i in range(3))
        if wrong := (~score.isfinite()).nonzero().flatten().tolist():
            raise UserError(
                f"The teacher's answer to {len(wrong)} images of {self.images.root} is not finite, the first of them "
                f"{self.images.name(wrong[0])}. Check the teacher's weights."
            )
        return Scores(score.double().numpy(), confidence.double().numpy(), predicted.numpy())

    def _score_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        teacher, size = self.setting.teacher, self.setting.batch_size
        reading: AbstractContextManager[list[Attention]] = (
            reading_attention(teacher) if self.blocks else nullcontext([])
        )
        with reading as read:
            for start in range(0, len(self.images), size):
                indices = range(start, min(start + size, len(self.images)))
                shown = torch.stack(read_images(self.images.source, indices, self.whole)).to(self.setting.device)
                logits = teacher(shown).logits.float()
                score = unsureness(logits)
                confidence = torch.exp(-score)
                if self.blocks:
                    flat = torch.stack([self._flatness(read[block], len(shown)) for block in self.blocks])
                    score = attention_probe_score(score, flat)
                yield score, confidence, logits.argmax(1)

    def _flatness(self, attention: Attention, batch: int) -> Tensor:
        """(B,) of one block; the mean over the windows of windowed attention."""
        rows = attention.class_attention().float()
        row = rows[:, 0] if self.heads == "first" else rows.mean(1)
        return flatness(row).view(batch, -1).mean(1)

    def _resolve(
        self, selection: Selection, blocks: tuple[int, int] | Literal["auto"]
    ) -> tuple[Selection, tuple[int, ...]]:
        """The selection that this teacher allows, and the blocks whose attention it reads."""
        depth = len(attention_blocks(self.setting.teacher)) if selection == "attention_probe" else 0
        if selection == "attention_probe" and depth == 0:
            self.note("The teacher's attention cannot be read; the pool is chosen by its confidence alone.")
            selection = "confidence"
        if selection != "none" and self.setting.num_classes == 1:
            self.note("The teacher has one class, of which it is always sure; its confidence chooses nothing.")
            selection = selection if depth else "none"
        if not depth:
            return selection, ()
        found = relative_blocks(depth) if blocks == "auto" else blocks
        if not all(0 <= block < depth for block in found):
            raise UserError(f"pool: blocks is {blocks}; the teacher has {depth} blocks, counted from 0 to {depth - 1}.")
        return selection, tuple(found)

    def _report(self, count: int, total: int) -> None:
        images, kept = len(self.images), len(self.chosen)
        self.record = {
            "pool": self.images.root,
            "pool_images": images,
            "chosen_images": kept,
            "selection": self.selection,
            "blocks": list(self.blocks),
            "balance": self.balance and self.selection != "none",
        }
        if total < count:
            self.note(
                f"There are {total} pictures instead of {count}: {kept} of {images} images are chosen, and each gives at "
                f"most {self.crops}. Raise crops or keep, or give more images."
            )
        if self.selection == "none" or self._scores is None:
            return
        if kept == images:
            self.note(f"All {images} images are used, so nothing was selected; keep=0.5 would take the better half.")
        confidence, predicted = self._scores.confidence, self._scores.predicted
        counts = np.bincount(predicted[self.chosen], minlength=self.setting.num_classes)
        self.record |= {
            "confidence": {"pool": float(confidence.mean()), "chosen": float(confidence[self.chosen].mean())},
            "pool_class_counts": np.bincount(predicted, minlength=self.setting.num_classes).tolist(),
            "chosen_class_counts": counts.tolist(),
        }
        present = counts[counts > 0]
        self.note(
            f"Chosen: {kept} of {images} images, by {self.selection.replace('_', ' ')}; the teacher's mean confidence is "
            f"{confidence[self.chosen].mean():.2f} ({confidence.mean():.2f} in the whole pool). It sees {len(present)} of "
            f"{len(counts)} classes in them, with {present.min()} to {present.max()} images each."
        )
