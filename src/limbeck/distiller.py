"""Teacher + student + weighted losses = one module with one forward, for any training loop."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Self, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.detection import DetectionOutputs, Pictures, Target
from limbeck.errors import UserError
from limbeck.gradients import Gradients, measure_gradients
from limbeck.losses.base import DistillationLoss
from limbeck.losses.build import BuiltLoss, build_losses
from limbeck.losses.names import parse_methods
from limbeck.models.base import VisionModel
from limbeck.models.detection.base import Detector
from limbeck.models.detection.door import load_detector
from limbeck.models.door import load_model
from limbeck.models.kept_patches import can_keep_patches, cannot_rank_patches, keeping_patches
from limbeck.models.several import load_teacher
from limbeck.outputs import Outputs, Request

TaskLoss = Callable[[Tensor, Tensor], Tensor]
ModelT = TypeVar("ModelT", VisionModel, Detector)


class Distillation(nn.Module, ABC, Generic[ModelT]):
    """A frozen teacher, a student, and the losses between them, whatever the two predict.

    The teacher is always in eval mode, whatever `train()` says, and is not a submodule: it is in no optimiser, no
    state_dict and no gradient synchronisation. It follows `.to(...)`.

    Args:
        teacher: a model; None trains the student alone.
        student: a model.
        losses: a method such as "vitkd+nkd(gamma=1.0)", or what `build_losses` returned.
        supervised: the student also learns from targets.
        task_weight: weight of that; "auto" is what the method was published with (of several methods the largest), 1
            without any.

    Raises:
        UserError: a loss cannot be built for this pair, or reads targets that are not there.
    """

    loss_weights: Tensor

    def __init__(
        self,
        teacher: ModelT | None,
        student: ModelT,
        losses: str | Sequence[BuiltLoss],
        *,
        supervised: bool,
        task_weight: float | str,
    ) -> None:
        super().__init__()
        if teacher is student:
            raise UserError(
                "Teacher and student are the same object; the teacher would be frozen and nothing learned. Load it twice."
            )
        self.student: ModelT = student
        self._outside: dict[str, ModelT | None] = {
            "teacher": teacher.requires_grad_(False).eval() if teacher is not None else None
        }
        if isinstance(losses, str):
            specs = parse_methods(losses)
            losses = build_losses(specs, student.facts, teacher.facts if teacher is not None else student.facts)
        taught = [loss.name for loss in losses if loss.module.needs_teacher]
        if taught and teacher is None:
            raise UserError(f"{' + '.join(taught)} needs a teacher; give one, or use the method none.")
        self.schedule = tuple((loss.name, loss.weight, loss.warmup_epochs) for loss in losses)
        self.losses = nn.ModuleList(loss.module for loss in losses)
        if self._chooser is not None:
            _require_choosable_patches(losses, teacher, student)
        self._asks_teacher = bool(taught) and self._chooser is None  # before the student, about whole pictures
        self.supervised = supervised
        self.task_weight = _task_weight(task_weight, losses, labelled=supervised)
        if not supervised:
            if needy := [loss.name for loss in losses if loss.module.needs_labels]:
                raise UserError(
                    f"{', '.join(needy)} reads labels, and there are none. Use label-free losses (see `limbeck methods`)."
                )
            if not losses:
                raise UserError("Without labels and without a distillation loss there is nothing to learn from.")
        self.student_request = Request.union(loss.module.student_request for loss in losses)
        self.teacher_request = Request.union(loss.module.teacher_request for loss in losses)
        if self.student_request.heads and not self.task_weight:
            raise UserError(
                "The labels, which teach the other head, have no weight here, so the distillation head alone would learn and "
                "half of the student's answer would stay random. Use deit(token=False), with which the mean of both heads learns."
            )
        self.register_buffer("loss_weights", torch.zeros(len(self.schedule)), persistent=False)
        self._teacher_forward: Callable[..., Any] = self._run_teacher
        self._student_forward: Callable[..., tuple[dict[str, Tensor], Any]] = self._run_student
        self.factors: dict[str, float] = {}
        self.set_epoch(0.0)

    @abstractmethod
    def _answer(self, inputs: Any, target: Any) -> tuple[Any, dict[str, Tensor], Any]:
        """The student's outputs, the supervised terms (`task`, and `task/...` as parts of it), and what to hand out."""

    @property
    def teacher(self) -> ModelT | None:
        """The frozen teacher."""
        return self._outside["teacher"]

    @property
    def distillation_losses(self) -> dict[str, DistillationLoss]:
        """The loss modules by their names."""
        return {name: cast(DistillationLoss, loss) for name, loss in zip(self.loss_names, self.losses, strict=True)}

    @property
    def _chooser(self) -> DistillationLoss | None:
        """The loss that chooses the patches which the teacher is shown."""
        return next((loss for loss in self.distillation_losses.values() if loss.chooses_patches), None)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the distillation terms, in the order of `losses`."""
        return tuple(name for name, _, _ in self.schedule)

    def set_epoch(self, epoch: float) -> None:
        """Set the warm-up of the losses' weights: weight * min(1, epoch / warm-up epochs), epochs counted from 0.

        Factors of `set_factors` stay.
        """
        self._epoch = epoch
        self.current_weights = {
            name: self.factors.get(name, 1.0) * weight * (min(1.0, max(0.0, epoch) / warmup) if warmup else 1.0)
            for name, weight, warmup in self.schedule
        }
        self.loss_weights.copy_(torch.tensor(list(self.current_weights.values())))

    def set_factors(self, factors: Mapping[str, float]) -> None:
        """Multiply the weights of some distillation terms, beside their warm-up, from now on; the others are left at 1."""
        self.factors = dict(factors)
        self.set_epoch(self._epoch)

    def forward(self, inputs: Any, target: Any = None, numbers: Tensor | None = None) -> dict[str, Tensor]:
        """The loss terms of one batch.

        Args:
            inputs: what both models are shown.
            target: what the student learns from beside the teacher; None for unlabelled images.
            numbers: (B,) int64, the images' places in the training set; needed only by losses that remember images.

        Returns:
            `task` and each distillation term by name, unweighted, and `total`, their weighted sum; scalars.
        """
        return self.student_step(inputs, target, self.teacher_step(inputs), numbers)[0]

    def teacher_step(self, inputs: Any) -> Any:
        """What the teacher says about the images, without gradient; None where no loss asks it, or not before the student.

        (Where a loss chooses the patches that the teacher is shown, it is asked within `student_step`.)
        """
        if self.teacher is None or not self._asks_teacher:
            return None
        self.teacher.eval()  # somebody may hold it and have switched it
        with torch.no_grad():
            return self._teacher_forward(inputs, self.teacher_request)

    def student_step(
        self, inputs: Any, target: Any, teacher_outputs: Any, numbers: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Any]:
        """The terms as in `forward`, and the student's answers."""
        return self._student_forward(inputs, target, teacher_outputs, numbers)

    def calibrate(self, batches: Callable[[], Iterable[Any]]) -> None:
        """Let the losses that ask for it hear the teacher's answers to some training images, before training.

        Args:
            batches: gives the same inputs anew whenever it is called, at least `calibration_images` of them.
        """
        if self.teacher is not None:
            self.teacher.eval()  # somebody may hold it and have switched it
        for loss in self.distillation_losses.values():
            if loss.calibration_images and self.teacher is not None:
                with torch.no_grad():
                    loss.calibrate(self._run_teacher(inputs, loss.teacher_request) for inputs in batches())

    @property
    def calibration_images(self) -> int:
        """The most that any loss asks for; 0 where `calibrate` need not be called."""
        return max((loss.calibration_images for loss in self.distillation_losses.values()), default=0)

    def expect_images(self, count: int) -> None:
        """Tell the losses that remember images how many there are; before training, and before a state is loaded."""
        for loss in self.distillation_losses.values():
            loss.expect_images(count)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the student with its losses as one graph and the teacher as another, both whole.

        Raises:
            UserError: a loss cannot be compiled.
        """
        if refusing := [name for name, loss in self.distillation_losses.items() if not loss.compiles]:
            raise UserError(f"{', '.join(refusing)} cannot be compiled. Leave --compile out.")
        kwargs = {"fullgraph": True, "dynamic": False, **kwargs}
        self._student_forward = torch.compile(self._run_student, *args, **kwargs)
        self._teacher_forward = torch.compile(self._run_teacher, *args, **kwargs)

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of the student and of the losses' projectors: what an optimiser is given."""
        yield from ((f"student.{name}", p) for name, p in self.student.named_parameters() if p.requires_grad)
        yield from ((f"losses.{name}", p) for name, p in self.losses.named_parameters() if p.requires_grad)

    def measure_gradients(self, inputs: Any, target: Any = None, numbers: Tensor | None = None) -> Gradients:
        """The terms' gradients with respect to the student's parameters: how hard each pulls, and in which direction.

        Leaves parameters, gradients, buffers (the running statistics of BatchNorm) and the random state as they were. Takes
        the memory of one backward pass and of at most one more copy of the student's parameters than there are terms.
        """
        if self.teacher is not None:
            self.teacher.eval()
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        devices = [inputs.device] if inputs.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices), torch.enable_grad():
                with torch.no_grad():
                    teacher_outputs = self._run_teacher(inputs, self.teacher_request) if self._asks_teacher else None
                terms, _ = self._run_student(inputs, target, teacher_outputs, numbers)
                weights = dict(self.current_weights)
                if "task" in terms:
                    weights["task"] = self.task_weight
                return measure_gradients(terms, weights, parameters)
        finally:
            with torch.no_grad():
                for name, buffer in self.named_buffers():
                    buffer.copy_(buffers[name])

    def gradient_norms(self, inputs: Any, target: Any = None, numbers: Tensor | None = None) -> dict[str, float]:
        """Euclidean norm of each weighted term's gradient; see `measure_gradients`."""
        return self.measure_gradients(inputs, target, numbers).norms

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

    def _run_teacher(self, inputs: Any, request: Request) -> Any:
        assert self.teacher is not None
        return self.teacher(inputs, request)

    @torch.no_grad()
    def _show_patches(self, inputs: Any, kept: Tensor | None) -> Any:
        assert isinstance(self.teacher, VisionModel)
        self.teacher.eval()
        with keeping_patches(self.teacher, kept):
            return self._run_teacher(inputs, self.teacher_request)

    def _run_student(
        self, inputs: Any, target: Any, teacher_outputs: Any, numbers: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Any]:
        outputs, terms, answers = self._answer(inputs, target)
        if isinstance(outputs, Outputs):
            outputs.numbers = numbers
        if self._chooser is not None:
            teacher_outputs = self._show_patches(inputs, self._chooser.choose_patches(outputs))
        total = torch.zeros((), device=inputs.device)
        if "task" in terms:
            total = total + self.task_weight * terms["task"]
        for index, (name, loss) in enumerate(self.distillation_losses.items()):
            if teacher_outputs is not None or not loss.needs_teacher:
                terms[name] = loss(outputs, teacher_outputs, target)
                total = total + self.loss_weights[index] * terms[name]
        terms["total"] = total
        return terms, answers


class Distiller(Distillation[VisionModel]):
    """A frozen teacher, a student, and the losses between them, for classification.

    `forward`, `student_step` and `gradient_norms` take images (B, 3, H, W), float in [0, 1], augmented, and as target class
    indices (B,) or soft labels (B, K); the student's answers are its logits (B, K).

    Args:
        teacher: a model or its name, or the names of several joined by ` + `; None trains the student alone.
        student: a model or its name.
        losses: a method such as "vitkd+nkd(gamma=1.0)", or what `build_losses` returned.
        task_loss: student logits (B, K) and target to a scalar; cross-entropy by default. None for unlabelled images.
        task_weight: its weight; "auto" is what the method was published with (of several methods the largest), 1 without any.

    Raises:
        UserError: a loss cannot be built for this pair, or compares logits of different classes.
    """

    def __init__(
        self,
        teacher: VisionModel | str | None,
        student: VisionModel | str,
        losses: str | Sequence[BuiltLoss] = "kd",
        *,
        task_loss: TaskLoss | None = F.cross_entropy,
        task_weight: float | str = "auto",
    ) -> None:
        super().__init__(
            load_teacher(teacher) if isinstance(teacher, str) else teacher,
            load_model(student, pretrained=False) if isinstance(student, str) else student,
            losses,
            supervised=task_loss is not None,
            task_weight=task_weight,
        )
        self.task_loss = task_loss

    def _answer(self, inputs: Tensor, target: Tensor | None) -> tuple[Outputs, dict[str, Tensor], Tensor]:
        outputs: Outputs = self.student(inputs, self.student_request)
        if self.task_loss is None or target is None:
            return outputs, {}, outputs.logits
        # Where a loss asks for the two heads of a network with a distillation token apart, labels teach the class token's.
        logits = outputs.logits if outputs.class_logits is None else outputs.class_logits
        return outputs, {"task": self.task_loss(logits.float(), target)}, outputs.logits


class DetectionDistiller(Distillation[Detector]):
    """A frozen teacher, a student, and the losses between them, for object detection and instance segmentation.

    `forward`, `student_step` and `gradient_norms` take `Pictures` and as target a list of `Target`, one for each picture; the
    student's answers are its `DetectionOutputs`. The supervised loss is the student library's own, and its parts are
    returned beside it as `task/...`.

    Args:
        teacher: a detector or its name; None trains the student alone.
        student: a detector or its name.
        losses: a method such as "pkd" or "reviewkd(weight=1.2)", or what `build_losses` returned.
        supervised: the student also learns from targets (boxes, labels, masks).
        task_weight: weight of that; "auto" is what the method was published with.

    Raises:
        UserError: a loss cannot be built for this pair.
    """

    def __init__(
        self,
        teacher: Detector | str | None,
        student: Detector | str,
        losses: str | Sequence[BuiltLoss] = "pkd",
        *,
        supervised: bool = True,
        task_weight: float | str = "auto",
    ) -> None:
        super().__init__(
            load_detector(teacher) if isinstance(teacher, str) else teacher,
            load_detector(student, pretrained=False) if isinstance(student, str) else student,
            losses,
            supervised=supervised,
            task_weight=task_weight,
        )

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: a detector's graph depends on what it sees.

        Raises:
            UserError: always.
        """
        raise UserError("Detectors are not compiled: their graphs change with the pictures. Leave --compile out.")

    def _run_teacher(self, inputs: Pictures, request: Request) -> DetectionOutputs:
        assert self.teacher is not None
        outputs: DetectionOutputs = self.teacher(inputs, None, request)
        return outputs

    def _answer(
        self, inputs: Pictures, target: Sequence[Target] | None
    ) -> tuple[DetectionOutputs, dict[str, Tensor], DetectionOutputs]:
        outputs: DetectionOutputs = self.student(inputs, target if self.supervised else None, self.student_request)
        if not outputs.losses:
            return outputs, {}, outputs
        parts = {f"task/{name}": value for name, value in outputs.losses.items()}
        return outputs, {"task": torch.stack(list(parts.values())).sum(), **parts}, outputs


def _require_choosable_patches(losses: Sequence[BuiltLoss], teacher: Any, student: Any) -> None:
    """Refuse a loss that chooses what the teacher is shown where the models or other losses do not allow it."""
    choosers = [loss.name for loss in losses if loss.module.chooses_patches]
    if len(choosers) > 1:
        raise UserError(
            f"{' and '.join(choosers)} each choose the patches that the teacher is shown. Take one of them."
        )
    asked = {loss.name: loss.module.teacher_request for loss in losses}
    if readers := [name for name, request in asked.items() if request.levels or request.final]:
        raise UserError(
            f"{choosers[0]} shows the teacher only some patches, which are no map, and {', '.join(readers)} reads its maps. "
            "Join it with losses on logits (nkd, dist, ...), or use kd(temperature=1.0) in its place."
        )
    wanted = (
        (teacher, "be shown some patches only", can_keep_patches),
        (student, "say how much it attends to each patch", cannot_rank_patches),
    )
    for model, what, why_not in wanted:
        if (reason := why_not(model)) is not None:
            raise UserError(
                f"{choosers[0]}: {model.facts.name} cannot {what}, since {reason}. Use kd(temperature=1.0), which shows the "
                "teacher whole pictures."
            )


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


def describe_weights(distiller: Distillation[Any]) -> Mapping[str, float]:
    """Final weight of every term, for the recipe."""
    weights = {name: weight for name, weight, _ in distiller.schedule}
    return {"task": distiller.task_weight, **weights} if distiller.supervised else weights
