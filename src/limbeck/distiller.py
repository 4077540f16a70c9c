"""Teacher + student + weighted losses = one module with one forward, for any training loop."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.build import BuiltLoss, build_losses
from limbeck.losses.names import parse_methods
from limbeck.models.base import VisionModel
from limbeck.models.door import load_model
from limbeck.outputs import Outputs, Request

TaskLoss = Callable[[Tensor, Tensor], Tensor]


class Distiller(nn.Module):
    """A frozen teacher, a student, and the losses between them.

    The teacher is always in eval mode, whatever `train()` says, and is not a submodule: it is in no optimiser, no
    state_dict and no gradient synchronisation. It follows `.to(...)`.

    Args:
        teacher: a model or its name; None trains the student alone.
        student: a model or its name.
        losses: a method such as "vitkd+nkd(gamma=1.0)", or what `build_losses` returned.
        task_loss: student logits (B, K) and target to a scalar; cross-entropy by default. None for unlabelled images.
        task_weight: its weight; "auto" is what the method was published with (of several methods the largest), 1 without any.

    Raises:
        UserError: a loss cannot be built for this pair, or compares logits of different classes.
    """

    loss_weights: Tensor

    def __init__(
        self,
        teacher: VisionModel | str | None,
        student: VisionModel | str,
        losses: str | Sequence[BuiltLoss] = "kd",
        *,
        task_loss: TaskLoss | None = F.cross_entropy,
        task_weight: float | str = "auto",
    ) -> None:
        super().__init__()
        student = load_model(student, pretrained=False) if isinstance(student, str) else student
        teacher = load_model(teacher) if isinstance(teacher, str) else teacher
        if teacher is student:
            raise UserError(
                "Teacher and student are the same object; the teacher would be frozen and nothing learned. Load it twice."
            )
        self.student = student
        self._outside = {"teacher": teacher.requires_grad_(False).eval() if teacher is not None else None}
        if isinstance(losses, str):
            specs = parse_methods(losses)
            losses = build_losses(specs, student.facts, teacher.facts if teacher is not None else student.facts)
        if losses and teacher is None:
            raise UserError(
                f"{' + '.join(loss.name for loss in losses)} needs a teacher; give one, or use the method none."
            )
        self.schedule = tuple((loss.name, loss.weight, loss.warmup_epochs) for loss in losses)
        self.losses = nn.ModuleList(loss.module for loss in losses)
        self.task_loss = task_loss
        self.task_weight = _task_weight(task_weight, losses, labelled=task_loss is not None)
        if task_loss is None:
            if needy := [loss.name for loss in losses if loss.module.needs_labels]:
                raise UserError(
                    f"{', '.join(needy)} reads labels, and there are none. Use label-free losses (see `limbeck methods`)."
                )
            if not losses:
                raise UserError("Without labels and without a distillation loss there is nothing to learn from.")
        self.student_request = Request.union(loss.module.student_request for loss in losses)
        self.teacher_request = Request.union(loss.module.teacher_request for loss in losses)
        self.register_buffer("loss_weights", torch.zeros(len(self.schedule)), persistent=False)
        self._teacher_forward: Callable[..., Outputs] = self._run_teacher
        self._student_forward: Callable[..., tuple[dict[str, Tensor], Tensor]] = self._run_student
        self.set_epoch(0.0)

    @property
    def teacher(self) -> VisionModel | None:
        """The frozen teacher."""
        return self._outside["teacher"]

    @property
    def distillation_losses(self) -> dict[str, DistillationLoss]:
        """The loss modules by their names."""
        return {name: cast(DistillationLoss, loss) for name, loss in zip(self.loss_names, self.losses, strict=True)}

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the distillation terms, in the order of `losses`."""
        return tuple(name for name, _, _ in self.schedule)

    def set_epoch(self, epoch: float) -> None:
        """Set the warm-up of the losses' weights: weight * min(1, epoch / warm-up epochs), epochs counted from 0."""
        self.current_weights = {
            name: weight * min(1.0, max(0.0, epoch) / warmup) if warmup else weight
            for name, weight, warmup in self.schedule
        }
        self.loss_weights.copy_(torch.tensor(list(self.current_weights.values())))

    def forward(self, images: Tensor, target: Tensor | None = None) -> dict[str, Tensor]:
        """The loss terms of one batch.

        Args:
            images: (B, 3, H, W) float in [0, 1], augmented; both models see exactly these.
            target: class indices (B,) or soft labels (B, K); None for unlabelled images.

        Returns:
            `task` and each distillation term by name, unweighted, and `total`, their weighted sum; scalars.
        """
        return self.student_step(images, target, self.teacher_step(images))[0]

    def teacher_step(self, images: Tensor) -> Outputs | None:
        """What the teacher says about the images, without gradient; None where no loss asks it."""
        if self.teacher is None or not self.losses:
            return None
        self.teacher.eval()  # somebody may hold it and have switched it
        with torch.no_grad():
            return self._teacher_forward(images, self.teacher_request)

    def student_step(
        self, images: Tensor, target: Tensor | None, teacher_outputs: Outputs | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms as in `forward`, and the student's logits (B, K)."""
        return self._student_forward(images, target, teacher_outputs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the student with its losses as one graph and the teacher as another, both whole."""
        kwargs = {"fullgraph": True, "dynamic": False, **kwargs}
        self._student_forward = torch.compile(self._run_student, *args, **kwargs)
        self._teacher_forward = torch.compile(self._run_teacher, *args, **kwargs)

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of the student and of the losses' projectors: what an optimiser is given."""
        yield from ((f"student.{name}", p) for name, p in self.student.named_parameters() if p.requires_grad)
        yield from ((f"losses.{name}", p) for name, p in self.losses.named_parameters() if p.requires_grad)

    def gradient_norms(self, images: Tensor, target: Tensor | None = None) -> dict[str, float]:
        """Euclidean norm of each weighted term's gradient with respect to the student's parameters.

        Leaves parameters, gradients, buffers (the running statistics of BatchNorm) and the random state as they were.
        """
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        devices = [images.device] if images.device.type == "cuda" else []
        norms: dict[str, float] = {}
        try:
            with torch.random.fork_rng(devices=devices), torch.enable_grad():
                with torch.no_grad():
                    teacher_outputs = self._run_teacher(images, self.teacher_request) if self.losses else None
                terms, _ = self._run_student(images, target, teacher_outputs)
                weights = dict(self.current_weights)
                if "task" in terms:
                    weights["task"] = self.task_weight
                for name, weight in weights.items():
                    if not terms[name].requires_grad:  # a term that does not depend on the student
                        norms[name] = 0.0
                        continue
                    gradients = torch.autograd.grad(terms[name], parameters, retain_graph=True, allow_unused=True)
                    squares = [g.double().square().sum() for g in gradients if g is not None]
                    norms[name] = weight * float(torch.stack(squares).sum().sqrt()) if squares else 0.0
        finally:
            with torch.no_grad():
                for name, buffer in self.named_buffers():
                    buffer.copy_(buffers[name])
        return norms

    def train(self, mode: bool = True) -> Self:
        """Switch the student and the losses; the teacher stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.teacher is not None:
            self.teacher._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def _run_teacher(self, images: Tensor, request: Request) -> Outputs:
        assert self.teacher is not None
        outputs: Outputs = self.teacher(images, request)
        return outputs

    def _run_student(
        self, images: Tensor, target: Tensor | None, teacher_outputs: Outputs | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        outputs: Outputs = self.student(images, self.student_request)
        terms: dict[str, Tensor] = {}
        total = torch.zeros((), device=images.device)
        if self.task_loss is not None and target is not None:
            terms["task"] = self.task_loss(outputs.logits.float(), target)
            total = total + self.task_weight * terms["task"]
        if teacher_outputs is not None:
            for index, (name, loss) in enumerate(zip(self.loss_names, self.losses, strict=True)):
                terms[name] = loss(outputs, teacher_outputs, target)
                total = total + self.loss_weights[index] * terms[name]
        terms["total"] = total
        return terms, outputs.logits


def _task_weight(asked: float | str, losses: Sequence[BuiltLoss], *, labelled: bool) -> float:
    if not labelled:
        return 0.0
    if not isinstance(asked, str):
        if not (math.isfinite(asked) and asked >= 0):
            raise UserError(f"The task weight is {asked}; it must be a number, 0 or more, or auto.")
        return float(asked)
    if asked != "auto":
        raise UserError(f"The task weight is {asked!r}; it must be a number, 0 or more, or auto.")
    # kd gives most of the weight to the teacher; joined with other losses, the labels keep their full weight.
    return max((loss.module.default_task_weight for loss in losses), default=1.0)


def describe_weights(distiller: Distiller) -> Mapping[str, float]:
    """Final weight of every term, for the recipe."""
    weights = {name: weight for name, weight, _ in distiller.schedule}
    return {"task": distiller.task_weight, **weights} if distiller.task_loss is not None else weights
