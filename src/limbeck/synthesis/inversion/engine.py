"""The loop that all inversions share: pixels are the parameters, the teacher's opinion and priors are the loss.

Every step: show the pictures (augmented), let the teacher look, weigh and add the terms, follow the gradient, put every
channel back into the range that real pixels have. The last matters: outside of it no picture exists, and a network is
easily convinced there.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.models.kept_patches import keeping_patches
from limbeck.synthesis.asked_classes import asked_classes, checked_classes
from limbeck.synthesis.base import GrownSynthesis, Made, Setting
from limbeck.synthesis.best import Best
from limbeck.synthesis.inversion.augment import Augmentation, Drawn, at_input_size, draw, show
from limbeck.synthesis.inversion.sparse import PatchCourse, Sparsity, class_attention, moved_patches
from limbeck.synthesis.inversion.stages import Stage, total
from limbeck.synthesis.priors.base import Needs
from limbeck.synthesis.seeing import Eyes
from limbeck.synthesis.terms import Term, weighed

_JUDGEMENTS = 20
"""How often in the last stage pictures are judged where the best are kept; each costs a pass without gradient."""


@dataclass(frozen=True)
class Plan:
    """An inversion method, as data.

    Attributes:
        terms: the loss; those that read a student are left out while there is none.
        stages: the course.
        augmentation: what each step does to the pictures; the stages say how far they roll.
        betas: of Adam.
        weight_decay: of AdamW; 0 is Adam.
        keep: the last iterate, or that of the last stage with the lowest loss, judged without augmentation.
        sparsity: which patches are fed when; None is all, always.
    """

    terms: tuple[Term, ...]
    stages: tuple[Stage, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    keep: Literal["last", "best"] = "last"
    sparsity: Sparsity | None = None


class PixelInversion(GrownSynthesis):
    """Pictures by optimising their pixels; the published methods are subclasses that fix the plan.

    Args:
        setting: as of every way.
        plan: the method.
        classes: those to ask for, by number; None is all. They are asked for in turn, so that batches and the whole
            are balanced.

    Raises:
        UserError: no term of the loss is left, or a class is none of the teacher's.
    """

    def __init__(self, setting: Setting, plan: Plan, *, classes: Sequence[int] | None = None) -> None:
        whole = all(stage.canvas is None and stage.pool == 1 for stage in plan.stages)
        assert plan.sparsity is None or (whole and plan.keep == "last"), "patches leave pictures of one size, for good"
        super().__init__(setting)
        self.name = type(self).__name__.lower()
        self.plan = plan
        self.classes = checked_classes(classes, setting.num_classes, self.name)
        self.reads_student = any(term.reads_student for term in plan.terms)
        self._log: dict[str, float | Tensor] = {}
        if not plan.terms:
            raise UserError(f"{self.name}: every term of the loss has weight 0, and nothing is left to optimise.")
        self.notes += dict.fromkeys(note for term in plan.terms for note in term.prior.notes)
        self._teacher_notes()

    def grow(self, student: VisionModel | None, round: int) -> Made:
        """One batch; its numbers depend on the seed, the round and, where a term reads it, the student.

        Raises:
            UserError: the optimisation left the numbers.
        """
        batch = self.setting.batch_size
        asked = asked_classes(self.classes, round * batch, batch, self.setting.seed).to(self.setting.device)
        # Lightning calls between epochs in inference mode, in which nothing has a gradient.
        with self.seeded(self.name, round), torch.inference_mode(False), torch.enable_grad():
            terms = [term for term in self.plan.terms if student is not None or not term.reads_student]
            if not terms:
                raise UserError(f"{self.name}: every term of the loss reads a student, and there is none yet.")
            images, copies = self._optimise(terms, student, asked)
        if not images.isfinite().all():
            raise UserError(f"{self.name}: the pictures of round {round} are not finite. Give a lower lr.")
        teacher = self.setting.teacher
        pixels = (images * teacher.std + teacher.mean).clamp(0, 1)
        asked = asked.repeat(copies)
        with torch.no_grad():
            self._log["agreement"] = (teacher(pixels).logits.argmax(1) == asked).float().mean().item()
        return Made(pixels, asked)

    def log(self) -> dict[str, float]:
        """Of the last batch: each term unweighted and the `loss`, at the last step; `agreement`, the share of finished
        pictures that the teacher reads as asked; `fed`, patches fed as a share of a dense course's.

        Of a batch that is being made, the former alone.
        """
        return {name: float(value) for name, value in self._log.items()}

    def _optimise(self, terms: list[Term], student: VisionModel | None, asked: Tensor) -> tuple[Tensor, int]:
        plan, teacher = self.plan, self.setting.teacher
        low, high = -teacher.mean / teacher.std, (1 - teacher.mean) / teacher.std
        steps, done = total(plan.stages), 0
        images: Tensor | None = None
        course: PatchCourse | None = None
        best = Best() if plan.keep == "best" else None
        asked_shown = asked.repeat(plan.augmentation.repeats)
        with Eyes(teacher, Needs.union(term.prior.needs for term in terms), student) as eyes:
            for number, stage in enumerate(plan.stages):
                images = on_canvas(images, stage.canvas or self.setting.size, len(asked), low, high).requires_grad_()
                if plan.sparsity is not None and course is None:
                    course = PatchCourse(plan.sparsity, teacher.facts.levels[-1].grid, images, steps)
                optimiser = torch.optim.AdamW([images], stage.lr, plan.betas, weight_decay=plan.weight_decay)
                for step in range(stage.iterations):
                    if course is not None and course.leaves_at(done):
                        course.leave(done, images, self._attention(images, course))
                    for term in terms:
                        term.prior.advance(done / steps)
                    drawn = draw(
                        plan.augmentation, stage.roll(step), len(asked), 1 - done / steps, teacher.mean, teacher.std
                    )
                    with self._feeding(course, drawn):
                        shown = self._fitted(show(pooled(images, stage.pool), drawn), stage.pool)
                        loss, values = weighed(terms, eyes.look(shown, images, asked_shown))
                    self._log = {**values}
                    # Not backward(): it would fill the gradients of a student that is about to learn.
                    (images.grad,) = torch.autograd.grad(loss, images)
                    for group in optimiser.param_groups:
                        group["lr"] = stage.learning_rate(step)
                    optimiser.step()
                    with torch.no_grad():
                        images.copy_(torch.minimum(torch.maximum(images, low), high))
                        if course is not None:
                            images.copy_(course.hold(images))
                            course.fed += course.kept.shape[1]
                        if best is not None and number == len(plan.stages) - 1 and is_judged(step, stage.iterations):
                            seen = eyes.look(self._fitted(images, 1), images, asked)
                            best.offer(images, weighed(terms, seen)[0])
                    done += 1
                    self.tell(f"these {len(asked)} pictures", done, steps)
        assert images is not None
        self._log = {**self.log()}
        self._log["fed"] = 1.0 if course is None else course.fed / (course.count * steps)
        if best is not None and best.images is not None:
            return best.images, 1
        return (images.detach(), 1) if course is None else course.finish(images)

    def _fitted(self, shown: Tensor, pool: int) -> Tensor:
        """At the size at which the teacher looks; a pooled stage shows a smaller one on purpose."""
        height, width = self.setting.teacher.facts.input_size
        return at_input_size(shown, (height // pool, width // pool), self.setting.teacher.interpolation)

    def _attention(self, images: Tensor, course: PatchCourse) -> Tensor:
        return class_attention(self.setting.teacher, self._fitted(images, 1), course.kept)

    def _feeding(self, course: PatchCourse | None, drawn: Drawn) -> AbstractContextManager[object]:
        if course is None or course.kept.shape[1] == course.count:
            return nullcontext()
        kept = moved_patches(course.kept, course.grid, course.patch, drawn.roll, drawn.flip)
        return keeping_patches(self.setting.teacher, kept.repeat(drawn.repeats, 1))

    def _teacher_notes(self) -> None:
        teacher = self.setting.teacher
        if bool((teacher.mean == 0).all()) and bool((teacher.std == 1).all()):
            self.notes.append(
                f"{teacher.facts.name} normalises with mean 0 and std 1; it is taken to want pixels in [0, 1] as they are. "
                "If it wants another range, give the module attributes mean and std."
            )
        if self.setting.num_classes == 1:
            self.notes.append(f"{teacher.facts.name} knows one class only; no class is asked for.")


def is_judged(step: int, iterations: int) -> bool:
    """Whether the pictures after this step of the last stage may be the best: the last ones, and evenly before."""
    return (iterations - 1 - step) % max(1, math.ceil(iterations / _JUDGEMENTS)) == 0


def pooled(images: Tensor, side: int) -> Tensor:
    """Averages over squares of `side` pixels; what is left over at the edges is not shown."""
    return images if side == 1 else torch.nn.functional.avg_pool2d(images, side)


def on_canvas(earlier: Tensor | None, size: tuple[int, int], batch: int, low: Tensor, high: Tensor) -> Tensor:
    """Fresh noise N(0, 1) in the valid range, with the earlier result in its centre; a new tensor.

    Args:
        earlier: (B, 3, h, w), not larger than `size`; None at the start.
        size: (height, width).
        batch: B.
        low, high: (1, 3, 1, 1), the valid range in normalised units.

    Returns:
        (B, 3, height, width), without gradient.
    """
    if earlier is not None and tuple(earlier.shape[-2:]) == size:
        return earlier.detach().clone()
    # Drawn on the CPU, so that every device starts from the same pictures.
    noise = torch.randn(batch, 3, *size).to(low.device)
    canvas = torch.minimum(torch.maximum(noise, low), high)
    if earlier is not None:
        height, width = earlier.shape[-2:]
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        canvas[:, :, top : top + height, left : left + width] = earlier.detach()
    return canvas
