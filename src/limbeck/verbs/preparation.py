"""From a recipe to a course: names opened, every "auto" decided, the run's folder made."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from limbeck.data.base import DataSet, ImageSource
from limbeck.data.door import open_data
from limbeck.data.loader import ResumableLoader, default_workers, make_train_loader, make_val_loader
from limbeck.data.measured_on import are_numbers
from limbeck.data.options import ViewOptions, resolve_options
from limbeck.data.split import spread
from limbeck.distiller import Distillation, Distiller, describe_weights
from limbeck.errors import UserError
from limbeck.losses.build import import_loss
from limbeck.losses.catalogue import METHODS
from limbeck.losses.names import parse_methods, parse_shares
from limbeck.models.base import Provenance, VisionModel
from limbeck.models.door import class_names_of, load_model
from limbeck.models.names import has_own_weights, split_model_names
from limbeck.models.several import load_teacher
from limbeck.recipe import (
    NO_DATA,
    NO_TEACHER,
    DistillRecipe,
    TrainingRecipe,
    TrainRecipe,
    as_plain,
    defaults_of,
    differences,
    resolve_training,
)
from limbeck.run import Run, process_rank
from limbeck.tasks.classification import ClassificationTask, Measurement
from limbeck.training.balance import check_shares
from limbeck.training.fit import choose_accelerator, choose_precision, main_device
from limbeck.training.randomness import seed_everything
from limbeck.verbs import provenance
from limbeck.verbs.without_data import (
    MadeImages,
    make_loader,
    make_online_task,
    mixing,
    open_no_data,
    plan_images,
)

FREE_ON_RESUME = {"resume", "out", "progress", "report", "control", "loggers", "num_workers", "checkpoint_steps"}


@dataclass
class Course:
    """Everything a run is made of, once all names are opened and every "auto" is decided."""

    recipe: TrainRecipe | DistillRecipe
    run: Run
    data: DataSet
    student: VisionModel
    teacher: VisionModel | None
    distiller: Distiller
    device: torch.device
    student_origin: Provenance
    teacher_logits: NDArray[np.float32] | None = None
    teacher_measured: Measurement | None = None
    images: MadeImages | None = None

    @property
    def notes(self) -> list[str]:
        """What the user should know, from data, models and losses."""
        models = [model for model in (self.teacher, self.student) if model is not None]
        found = [*self.data.notes]
        for model in models:
            found += [f"{model.facts.name}: {note}" for note in model.provenance.notes]
        for name, loss in self.distiller.distillation_losses.items():
            found += [f"{name}: {note}" for note in loss.notes]
        return found + self._untaught_classifier()

    def _untaught_classifier(self) -> list[str]:
        """What to do next, where neither labels nor a loss on the student's answers teach its classifier.

        A loss of the user's own may teach it; nobody can know.
        """
        supervised, losses = self.distiller.supervised, self.distiller.distillation_losses
        methods = [METHODS.get(name.partition("#")[0]) for name in losses]
        on_features = [info is not None and info.kind in ("features", "relations") for info in methods]
        if not losses or not all(on_features) or (supervised and self.distiller.task_weight):
            return []
        why = "the labels have no weight" if supervised else "the images have no labels"
        return [
            f"{' + '.join(losses)} teaches the student's features and not its classifier, and {why}, so its answers stay random. "
            f"Train a classifier on the features afterwards: limbeck train --model {self.run.path} --data LABELLED_IMAGES."
        ]


def prepare(recipe: TrainRecipe | DistillRecipe, run: Run) -> Course:
    """Open data and models, decide every "auto", make the distiller and the run's folder."""
    data = _open_data(recipe)
    seed_everything("initialisation", recipe.seed)
    teacher, student = _open_models(recipe, data)
    images = _plan_images(recipe, run, data, teacher)
    recipe = _resolve(recipe, data, student, teacher, images)
    method = recipe.method if isinstance(recipe, DistillRecipe) else "none"
    distiller = Distiller(
        teacher,
        student,
        method,
        task_loss=make_task(recipe, student).loss if learns_labels(recipe, data) else None,
        task_weight=recipe.task_weight if isinstance(recipe, DistillRecipe) else "auto",
    )
    _refuse_what_cannot_be_remembered(recipe, distiller, images)
    refuse_unknown_shares(recipe, distiller)
    if isinstance(recipe, DistillRecipe):
        recipe = dataclasses.replace(recipe, task_weight=distiller.task_weight)
    recipe = dataclasses.replace(recipe, out=str(run.path))
    device = main_device(recipe.accelerator)
    record_start(run, recipe, device, data.record, distiller)
    origin = dataclasses.replace(student.provenance)
    return Course(recipe, run, data, student, teacher, distiller, device, origin, images=images)


def _refuse_what_cannot_be_remembered(
    recipe: TrainRecipe | DistillRecipe, distiller: Distiller, images: MadeImages | None
) -> None:
    names = [name for name, loss in distiller.distillation_losses.items() if loss.remembers_images]
    if not names:
        return
    remembers = f"{', '.join(names)} remembers every training image"
    if recipe.mixup or recipe.cutmix:
        raise UserError(f"{remembers}, and mixed images are two each. Leave out --mixup and --cutmix.")
    if images is not None and images.online is not None:
        raise UserError(
            f"{remembers}, and here images are made during training. Make them before it (limbeck synthesize)."
        )
    if recipe.devices * recipe.nodes > 1:
        raise UserError(f"{remembers}, on one device; this run has {recipe.devices * recipe.nodes}.")


def refuse_unknown_shares(recipe: TrainRecipe | DistillRecipe, distiller: Distillation[Any]) -> None:
    """Refuse, before the run's folder is made, shares of the pull that do not fit the method."""
    if isinstance(recipe, DistillRecipe) and recipe.balance is not None:
        check_shares(parse_shares(recipe.balance), distiller)


def learns_labels(recipe: TrainRecipe | DistillRecipe, data: DataSet) -> bool:
    """Whether the student learns from the images' labels.

    Those that the teacher itself gave say less than its whole answer, so they are read only by a method that needs labels,
    by none, and where the user gives them a weight.
    """
    if not data.labelled or not data.labels_by_teacher or not isinstance(recipe, DistillRecipe):
        return data.labelled
    specs = parse_methods(recipe.method)
    weighted = recipe.task_weight != "auto" and float(recipe.task_weight) > 0
    return weighted or not specs or any(import_loss(spec).needs_labels for spec in specs)


def _open_data(recipe: TrainRecipe | DistillRecipe) -> DataSet:
    if recipe.data == NO_DATA and isinstance(recipe, DistillRecipe):
        return open_no_data(recipe)
    return open_data(
        recipe.data,
        val_fraction=recipe.val_fraction,
        seed=recipe.split_seed,
        bad_images=recipe.bad_images,
        max_train_images=recipe.max_train_images,
        val_data=recipe.val_data,
    )


def _plan_images(
    recipe: TrainRecipe | DistillRecipe, run: Run, data: DataSet, teacher: VisionModel | None
) -> MadeImages | None:
    if recipe.data != NO_DATA or not isinstance(recipe, DistillRecipe):
        return None
    assert teacher is not None
    teacher.to(main_device(choose_accelerator(recipe.accelerator)))
    if recipe.resume and recipe.statistics == "auto":  # whatever has come or gone since it was started
        recipe = dataclasses.replace(recipe, statistics=run.recipe.get("statistics", "auto"))
    return plan_images(recipe, teacher, data, run.path)


def record_start(
    run: Run,
    recipe: TrainRecipe | DistillRecipe,
    device: torch.device,
    data_record: dict[str, Any],
    distiller: Distillation[Any],
) -> None:
    """Make the folder and write down what the run is made of; one to be resumed must have the same recipe."""
    if process_rank() > 0:
        return
    run.make()
    _write_or_compare_recipe(run, recipe)
    teacher = distiller.teacher
    record = {
        "environment": provenance.environment(device),
        "data": data_record,
        "teacher": provenance.of_model(teacher) if teacher is not None else None,
        "student": provenance.of_model(distiller.student),
        "loss_weights": dict(describe_weights(distiller)),
        "loss_warmup_epochs": {name: warmup for name, _, warmup in distiller.schedule},
    }
    run.write_text("provenance.yaml", yaml.safe_dump(record, sort_keys=False, allow_unicode=True))


def record_data(run: Run, record: dict[str, Any]) -> None:
    """Write down anew what the data was, once it is made."""
    if process_rank() > 0:
        return
    file = run.path / "provenance.yaml"
    values = yaml.safe_load(file.read_text()) | {"data": record}
    run.write_text("provenance.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def val_loader(course: Course, *, rank_share: bool = False, most: int | None = None) -> Any:
    """Batches of the validation images as the models are measured on; None for data without.

    Args:
        course: the run.
        rank_share: of several processes, each gets its share of the images.
        most: only so many images, spread evenly.
    """
    if course.data.val is None:
        return None
    recipe = course.recipe
    ranks = (process_rank(recipe.devices), recipe.devices * recipe.nodes) if rank_share else (0, 1)
    return _plain_loader(course, course.data.val if most is None else spread(course.data.val, most), ranks)


def plain_train_loader(course: Course, *, most: int) -> Any:
    """Batches of so many training images, spread evenly, as images are measured: not augmented."""
    return _plain_loader(course, spread(course.data.train, most), (0, 1))


def _plain_loader(course: Course, source: ImageSource, ranks: tuple[int, int]) -> Any:
    recipe = course.recipe
    return make_val_loader(
        dataclasses.replace(course.data, val=source),
        view_options(recipe),
        int(recipe.view_size),
        batch_size=int(recipe.batch_size),
        num_workers=int(recipe.num_workers),
        rank=ranks[0],
        world_size=ranks[1],
    )


def view_options(recipe: TrainingRecipe) -> ViewOptions:
    """The recipe's augmentation."""
    names = {field.name for field in dataclasses.fields(ViewOptions)}
    return ViewOptions(**{name: value for name, value in vars(recipe).items() if name in names})


def _open_models(recipe: TrainRecipe | DistillRecipe, data: DataSet) -> tuple[VisionModel | None, VisionModel]:
    num_classes = len(data.class_names) if data.class_names is not None else None
    if not data.labelled and (isinstance(recipe, TrainRecipe) or recipe.teacher == NO_TEACHER):
        raise UserError(
            f"{recipe.data} has no labels, and training without a teacher needs them. Give a folder of class folders."
        )
    if isinstance(recipe, TrainRecipe):
        model = load_model(
            recipe.model,
            num_classes=num_classes,
            pretrained=_pretrained(recipe.pretrained, recipe.model),
            input_size=_square(recipe.input_size),
            drop_path=recipe.drop_path,
        )
        return None, model
    teacher = None
    if recipe.teacher != NO_TEACHER:
        teacher = load_teacher(recipe.teacher, input_size=_square(recipe.teacher_size))
        num_classes = num_classes or teacher.facts.num_classes or None
    student = load_model(
        recipe.student,
        num_classes=num_classes,
        pretrained=_pretrained(recipe.student_pretrained, recipe.student),
        input_size=_square(recipe.student_size),
        drop_path=recipe.drop_path,
    )
    if teacher is not None:
        _require_same_class_order(recipe, data)
    return teacher, student


def _require_same_class_order(recipe: DistillRecipe, data: DataSet) -> None:
    for name in split_model_names(recipe.teacher):
        _require_class_order_of(name, recipe, data)


def _require_class_order_of(teacher: str, recipe: DistillRecipe, data: DataSet) -> None:
    """Where the teacher's folder names its classes, they must be the data's, in the same order; numbers are no names."""
    known = class_names_of(teacher)
    if known is None or data.class_names is None or len(known) != len(data.class_names):
        return
    if are_numbers(known) or are_numbers(data.class_names):
        return
    of = recipe.val_data if recipe.data == NO_DATA else recipe.data
    for number, (theirs, ours) in enumerate(zip(known, data.class_names, strict=True)):
        if theirs != ours:
            raise UserError(
                f"The teacher {teacher} was trained with other classes: its class {number} is {theirs!r}, that of "
                f"{of} is {ours!r}. Use data with the same classes in the same order, or train a teacher on this data."
            )


def _resolve(
    recipe: TrainRecipe | DistillRecipe,
    data: DataSet,
    student: VisionModel,
    teacher: VisionModel | None,
    images: MadeImages | None,
) -> TrainRecipe | DistillRecipe:
    """Every "auto" of a classification decided."""
    values = resolve_for_any_task(recipe)
    if recipe.view_size == "auto":
        values["view_size"] = _view_size(data, student, teacher)
    size = int(values.get("view_size", recipe.view_size))
    views = resolve_options(view_options(recipe), size, data.native_size, data.name)
    values |= {"crop": views.crop, "pad": views.pad, "flip": views.flip}
    if recipe.num_workers == "auto":
        online = images is not None and images.online is not None
        values["num_workers"] = 0 if online else default_workers(data.train, data.native_size)
    if images is not None:
        values["synthesis"] = images.text
        values["synthesis_batch_size"] = images.setting.batch_size
        values["statistics"] = images.setting.statistics or "none"
    sizes = {"input_size": student, "student_size": student, "teacher_size": teacher}
    for name, model in sizes.items():
        # Several teachers of unequal sizes have no one side, and each keeps its own.
        sides = {of.input_size[0] for of in model.facts.members or (model.facts,)} if model is not None else set()
        if getattr(recipe, name, None) == "auto" and len(sides) == 1:
            values[name] = sides.pop()
    for name, of in {"pretrained": "model", "student_pretrained": "student"}.items():
        if getattr(recipe, name, None) == "auto":
            values[name] = has_own_weights(getattr(recipe, of))
    return dataclasses.replace(recipe, **values)


def resolve_for_any_task(recipe: TrainRecipe | DistillRecipe) -> dict[str, Any]:
    """The value of every "auto" that depends neither on the data nor on the models.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    accelerator = choose_accelerator(recipe.accelerator)
    if recipe.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("--accelerator gpu was asked for, but torch finds no GPU. Use --accelerator cpu or auto.")
    values = resolve_training(recipe, int(recipe.batch_size) * recipe.devices * recipe.nodes * recipe.accumulate)
    values["accelerator"] = accelerator
    values["precision"] = choose_precision(recipe.precision, accelerator)
    return values


def _view_size(data: DataSet, student: VisionModel, teacher: VisionModel | None) -> int:
    """The student's input side; the larger of both models' where the images hold that much."""
    own = max(student.facts.input_size)
    other = max(teacher.facts.input_size) if teacher is not None else own
    return max(own, min(other, min(data.native_size)))


def _write_or_compare_recipe(run: Run, recipe: TrainRecipe | DistillRecipe) -> None:
    values = as_plain(recipe)
    if recipe.resume:
        kept = {key: value for key, value in values.items() if key not in FREE_ON_RESUME}
        # Options that did not exist yet when the run was started had no effect, and neither have their defaults.
        before = {**defaults_of(recipe), **run.recipe}
        before = {key: before[key] for key in {**kept, **run.recipe} if key in before and key not in FREE_ON_RESUME}
        if changed := differences(before, kept):
            raise UserError(
                f"The run in {run.path} was started with another recipe, so it cannot be resumed: {'; '.join(changed)}. Give the "
                f"same options (for instance with --config {run.path / 'recipe.yaml'}), or start a new run."
            )
    else:
        run.write_recipe(values)


def train_loader(course: Course) -> ResumableLoader:
    """Augmented batches of the training images, resumable within an epoch."""
    recipe = course.recipe
    if course.images is not None and isinstance(recipe, DistillRecipe):
        made = make_loader(course.images, course.data, recipe, view_options(recipe), course.student)
        if made is not None:
            return made
    return make_train_loader(
        course.data,
        view_options(recipe),
        int(recipe.view_size),
        seed=recipe.seed,
        batch_size=int(recipe.batch_size),
        num_workers=int(recipe.num_workers),
        rank=process_rank(recipe.devices),
        world_size=recipe.devices * recipe.nodes,
    )


def make_task(recipe: TrainingRecipe, student: VisionModel) -> ClassificationTask:
    """The recipe's supervised loss and mixing."""
    return ClassificationTask(student.facts.num_classes, **mixing(recipe))


def training_task(course: Course, loader: ResumableLoader) -> ClassificationTask:
    """What the course's steps learn from, batch after batch of the loader."""
    recipe = course.recipe
    if course.images is not None and isinstance(recipe, DistillRecipe):
        with_labels = course.distiller.supervised
        online = make_online_task(course.images, course.student, recipe, loader, with_labels=with_labels)
        if online is not None:
            return online
    return make_task(recipe, course.student)


def _pretrained(asked: bool | str, name: str) -> bool:
    return has_own_weights(name) if asked == "auto" else bool(asked)


def _square(side: int | str) -> tuple[int, int] | None:
    return None if side == "auto" else (int(side), int(side))
