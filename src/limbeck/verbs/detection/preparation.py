"""From a recipe to a detection course: names opened, pseudo-labels made, every "auto" decided, the run's folder made."""

import dataclasses
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from limbeck.data.detection.base import Scenes, SceneSource
from limbeck.data.detection.door import open_pseudo_labels, open_scenes, open_unlabelled_scenes
from limbeck.data.detection.loader import make_scene_train_loader, make_scene_val_loader
from limbeck.data.detection.names import check_scenes_name
from limbeck.data.detection.options import SceneViewOptions
from limbeck.data.detection.pseudo_labels import FILE_NAME, write_pseudo_labels
from limbeck.data.loader import ResumableLoader, default_workers
from limbeck.data.names import SYNTHESIS_FILE
from limbeck.detection import Resize
from limbeck.distiller import DetectionDistiller
from limbeck.errors import UserError
from limbeck.models.base import Provenance
from limbeck.models.detection.base import Detector
from limbeck.models.detection.door import load_detector
from limbeck.models.detection.names import has_own_weights, stands_for_weights
from limbeck.recipe import NO_DATA, DistillRecipe, TrainRecipe
from limbeck.run import Run, process_rank
from limbeck.synthesis.detection.base import DetectionSetting
from limbeck.tasks.base import Batch
from limbeck.tasks.detection import DetectionTask, predict_detections
from limbeck.tasks.detection_scores import Detections, DetectionScores
from limbeck.training.fit import main_device
from limbeck.training.randomness import seed_everything
from limbeck.verbs import screen
from limbeck.verbs.detection.made_scenes import BATCH_SIZE, fill_scene_folder, is_made, picture_size
from limbeck.verbs.preparation import record_start, refuse_unknown_shares, resolve_for_any_task
from limbeck.verbs.without_data import FOLDER


@dataclass
class DetectionCourse:
    """Everything a run is made of, once all names are opened and every "auto" is decided."""

    recipe: TrainRecipe | DistillRecipe
    run: Run
    scenes: Scenes
    student: Detector
    teacher: Detector | None
    distiller: DetectionDistiller
    device: torch.device
    student_origin: Provenance
    resize: Resize
    pseudo_labelled: bool
    teacher_answers: list[Detections] | None = None
    teacher_scores: dict[str, DetectionScores] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What the user should know, from data, models and losses."""
        found = [*self.scenes.notes]
        for model in (self.teacher, self.student):
            if model is not None:
                found += [f"{model.facts.name}: {note}" for note in model.provenance.notes]
        for name, loss in self.distiller.distillation_losses.items():
            found += [f"{name}: {note}" for note in loss.notes]
        return found

    @property
    def with_masks(self) -> bool:
        """Masks are learned and measured."""
        return self.student.facts.has_masks and self.scenes.has_masks

    def task(self) -> DetectionTask:
        """What a step learns from and how its answers are measured."""
        return DetectionTask(self.scenes.val, masks=self.with_masks)


def prepare(recipe: TrainRecipe | DistillRecipe, run: Run) -> DetectionCourse:
    """Open data and detectors, decide every "auto", make the distiller and the run's folder.

    A teacher labels unlabelled images last, once everything else is known to fit.

    Raises:
        UserError: data and models do not fit each other.
    """
    values = resolve_for_any_task(recipe)
    device = main_device(values["accelerator"])
    seed_everything("initialisation", recipe.seed)
    teacher = load_detector(recipe.teacher) if isinstance(recipe, DistillRecipe) else None
    scenes = _open_annotated(recipe)
    class_names, has_masks = _what_is_known(recipe, scenes, teacher)
    seed_everything("initialisation", recipe.seed)
    own_weights = _wants_own_weights(recipe)
    student = load_detector(
        recipe.student if isinstance(recipe, DistillRecipe) else recipe.model,
        class_names=class_names,
        pretrained=own_weights,
        short=None if recipe.short_side == "auto" else recipe.short_side,
        long=None if recipe.long_side == "auto" else recipe.long_side,
        backbone=recipe.backbone,
    )
    if student.facts.has_masks and not has_masks:
        raise UserError(
            f"{student.facts.name} learns masks, but {recipe.data} has boxes only. Give data with polygons or run lengths (or, "
            "for unlabelled images, a teacher with masks), or a detector without masks."
        )
    values["pretrained" if isinstance(recipe, TrainRecipe) else "student_pretrained"] = own_weights
    values |= {"short_side": student.resize.short, "long_side": student.resize.long, "out": str(run.path)}
    values["flip"] = 0.5 if recipe.flip == "auto" else recipe.flip
    distiller = _distiller(recipe, teacher, student)
    refuse_unknown_shares(recipe, distiller)
    if isinstance(recipe, DistillRecipe):
        assert teacher is not None
        values |= {"method": _method(recipe, teacher, student), "task_weight": distiller.task_weight}
    by_people = scenes is not None and (scenes.record["kind"] != "synthetic" or recipe.val_data is not None)
    if scenes is None:
        scenes = (_made if recipe.data == NO_DATA else _pseudo_labelled)(recipe, run, teacher, device)
        by_people = recipe.val_data is not None
    if recipe.num_workers == "auto":
        values["num_workers"] = default_workers(scenes.train, scenes.native_size)
    recipe = dataclasses.replace(recipe, **values)
    record_start(run, recipe, device, scenes.record, distiller)
    origin = dataclasses.replace(student.provenance)
    return DetectionCourse(
        recipe, run, scenes, student, teacher, distiller, device, origin, student.resize, pseudo_labelled=not by_people
    )


def choose_method(student: Detector, teacher: Detector) -> str:
    """The method "auto" stands for: answers of queries where both have such, feature maps otherwise."""
    families = {student.facts.family, teacher.facts.family}
    return {"queries": "query_kd", "mask_queries": "mask_kd"}.get(families.pop() if len(families) == 1 else "", "pkd")


def train_loader(course: DetectionCourse) -> ResumableLoader:
    """Batches of randomly changed training scenes, resumable within an epoch."""
    recipe = course.recipe
    return make_scene_train_loader(
        course.scenes.train,
        SceneViewOptions(
            flip=float(recipe.flip),
            scale_jitter=recipe.scale_jitter,
            short_sides=tuple(recipe.short_sides),
            color_jitter=recipe.color_jitter,
        ),
        course.resize,
        batch_size=int(recipe.batch_size),
        seed=recipe.seed,
        num_workers=int(recipe.num_workers),
        rank=process_rank(recipe.devices),
        world_size=recipe.devices * recipe.nodes,
        with_masks=course.with_masks,
    )


def val_loader(course: DetectionCourse, *, rank_share: bool = False) -> Iterable[Batch]:
    """Batches of the validation scenes as the student wants to see them."""
    recipe = course.recipe
    rank, world_size = (process_rank(recipe.devices), recipe.devices * recipe.nodes) if rank_share else (0, 1)
    return scene_batches(
        course.scenes.val,
        course.resize,
        int(recipe.batch_size),
        int(recipe.num_workers),
        rank=rank,
        world_size=world_size,
    )


def scene_batches(
    source: SceneSource,
    resize: Resize,
    batch_size: int,
    num_workers: int | Literal["auto"],
    *,
    rank: int = 0,
    world_size: int = 1,
) -> Iterable[Batch]:
    """All of a source's scenes in order, only resized."""
    return make_scene_val_loader(
        source, resize, batch_size=batch_size, num_workers=num_workers, rank=rank, world_size=world_size
    )


def _open_annotated(recipe: TrainRecipe | DistillRecipe) -> Scenes | None:
    """The scenes; None for a folder of images that nobody has annotated, and where there is no data."""
    if recipe.data == NO_DATA:
        return None
    annotated = check_scenes_name(recipe.data).kind != "images"
    if isinstance(recipe, DistillRecipe):
        if annotated and recipe.pseudo_score != DistillRecipe.pseudo_score:
            raise UserError(f"--pseudo_score is for unlabelled images, and {recipe.data} is annotated. Leave it out.")
        if not annotated and recipe.teacher_accuracy is not None:
            raise UserError(
                f"--teacher_accuracy needs annotations to be measured on, and {recipe.data} has none. Leave it out."
            )
    if not annotated:
        return None
    return open_scenes(
        recipe.data,
        val_fraction=recipe.val_fraction,
        split_seed=recipe.split_seed,
        bad_images=recipe.bad_images,
        val_data=recipe.val_data,
    )


def _what_is_known(
    recipe: TrainRecipe | DistillRecipe, scenes: Scenes | None, teacher: Detector | None
) -> tuple[tuple[str, ...], bool]:
    """Classes, and whether there are masks; of unlabelled images, what the teacher will give."""
    if scenes is not None:
        return scenes.class_names, scenes.has_masks
    if teacher is None:
        raise UserError(
            f"{recipe.data} holds images without annotations, and training without a teacher needs them. Distil with a "
            "teacher, or give annotated data such as coco:ANNOTATIONS.json,IMAGES."
        )
    return teacher.facts.class_names, teacher.facts.has_masks


def _wants_own_weights(recipe: TrainRecipe | DistillRecipe) -> bool:
    asked = recipe.student_pretrained if isinstance(recipe, DistillRecipe) else recipe.pretrained
    name = recipe.student if isinstance(recipe, DistillRecipe) else recipe.model
    if asked == "auto":
        return has_own_weights(name)
    if asked and not stands_for_weights(name):
        raise UserError(
            f"{name} is an architecture without weights of its own, so it cannot start from them. Name weights with "
            "@FILE.safetensors, take one of the library's published detectors, or start the backbone alone from weights: "
            "--backbone RUN, or backbone_pretrained=True among a torchvision family's options."
        )
    return bool(asked)


def _method(recipe: DistillRecipe, teacher: Detector, student: Detector) -> str:
    return choose_method(student, teacher) if recipe.method == "auto" else recipe.method


def _distiller(recipe: TrainRecipe | DistillRecipe, teacher: Detector | None, student: Detector) -> DetectionDistiller:
    if not isinstance(recipe, DistillRecipe):
        return DetectionDistiller(None, student, "none")
    assert teacher is not None
    return DetectionDistiller(teacher, student, _method(recipe, teacher, student), task_weight=recipe.task_weight)


def _made(recipe: TrainRecipe | DistillRecipe, run: Run, teacher: Detector | None, device: torch.device) -> Scenes:
    """Scenes made for the teacher, in the run's folder; those that are finished are not made again."""
    assert teacher is not None and isinstance(recipe, DistillRecipe)
    folder = run.path / FOLDER
    if process_rank() == 0:
        batch_size = BATCH_SIZE if recipe.synthesis_batch_size == "auto" else recipe.synthesis_batch_size
        setting = DetectionSetting(teacher.to(device), picture_size(teacher), batch_size, recipe.seed, screen.say)
        method = "scenes" if recipe.synthesis == "auto" else recipe.synthesis
        count = int(recipe.synthetic_images)
        if (folder / SYNTHESIS_FILE).is_file() and not is_made(folder, method, setting, count):
            if recipe.resume:
                raise UserError(
                    f"{folder} holds scenes that were made otherwise than the run's recipe says, so the run cannot be resumed. "
                    "Put its own scenes back, or start a new run."
                )
            shutil.rmtree(folder)  # of an earlier start that failed
        if not (folder / SYNTHESIS_FILE).is_file():
            fill_scene_folder(folder, method, setting, count)
    while not (folder / SYNTHESIS_FILE).is_file():
        time.sleep(1.0)  # of several processes the first makes the scenes; the record is written last
    return open_scenes(
        str(folder), val_fraction=recipe.val_fraction, split_seed=recipe.split_seed, val_data=recipe.val_data
    )


def _pseudo_labelled(
    recipe: TrainRecipe | DistillRecipe, run: Run, teacher: Detector | None, device: torch.device
) -> Scenes:
    """An unlabelled folder's images with the teacher's confident detections; a resumed run reads those it has."""
    assert teacher is not None and isinstance(recipe, DistillRecipe)
    if recipe.val_data is not None:
        raise UserError(
            "--val_data is for annotated or made scenes. Of unlabelled images some are held out, labelled by the teacher; "
            "measure the finished student with `limbeck evaluate RUN --data ...`."
        )
    folder, file = Path(recipe.data).expanduser(), run.path / FILE_NAME
    notes: list[str] = []
    if not (recipe.resume and file.is_file()) and process_rank() == 0:
        opened = open_unlabelled_scenes(recipe.data, bad_images=recipe.bad_images)
        screen.say(f"The teacher labels the {len(opened.train)} images of {folder}.")
        batches = scene_batches(opened.train, teacher.resize, int(recipe.batch_size), recipe.num_workers)
        run.make()
        notes = write_pseudo_labels(
            file,
            opened.train,
            folder,
            predict_detections(teacher.to(device), batches, device),
            teacher.facts.class_names,
            teacher=teacher.facts.name,
            min_score=recipe.pseudo_score,
        )
        notes = [*opened.notes, *notes]
    while process_rank() > 0 and not file.is_file():
        time.sleep(1.0)  # of several processes the first writes the labels, whole or not at all
    scenes = open_pseudo_labels(file, folder, val_fraction=recipe.val_fraction, split_seed=recipe.split_seed)
    scenes.notes = [*notes, *scenes.notes]
    return scenes
