"""`--data none`: what a run learns from where there is no data, before its training and during it."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from limbeck.data.base import DataSet
from limbeck.data.door import open_without_images
from limbeck.data.loader import ResumableLoader, make_train_loader
from limbeck.data.names import SYNTHESIS_FILE
from limbeck.data.options import ViewOptions
from limbeck.data.synthetic import open_synthetic
from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.models.door import class_names_of
from limbeck.recipe import NO_DATA, DistillRecipe, TrainingRecipe
from limbeck.run import process_rank
from limbeck.synthesis.bank import BankWriter, recipe_of
from limbeck.synthesis.base import GrownSynthesis, Made, Setting, StreamedSynthesis, Synthesis
from limbeck.synthesis.build import choose_synthesis, shares_of
from limbeck.synthesis.growing import GrowingLoader, GrowingTask, PoolSource, make_growing_loader
from limbeck.synthesis.journal import is_of_recipe
from limbeck.synthesis.names import SynthesisSpec, check_moments, parse_synthesis
from limbeck.synthesis.streaming import StreamedTask, make_step_loader
from limbeck.tasks.classification import ClassificationTask
from limbeck.verbs import screen
from limbeck.verbs.made_images import build_ways, fill_folder, learns_with_student, make_setting, notes_of

SAMPLES = 500
"""Of the images made during training, so many are kept as files."""

FOLDER = "synthetic"
"""In the run's folder: the images made before training, and the rounds made during it."""


@dataclass
class MadeImages:
    """How a run's images are made.

    Attributes:
        text: the ways as text, "auto" decided.
        setting: given to every way.
        before: those whose images are made before training, with what the user asked for.
        online: the one that goes on during training, likewise; None without.
        online_share: its share of the images.
        count: images in all, or in an epoch.
        folder: where they are kept.
    """

    text: str
    setting: Setting
    before: list[tuple[SynthesisSpec, Synthesis]]
    online: tuple[SynthesisSpec, Synthesis] | None
    online_share: float
    count: int
    folder: Path

    def count_before(self) -> int:
        """Images made before training; where others follow during it, as many as their share leaves of an epoch."""
        return self.count if self.online is None else round(self.count * (1 - self.online_share))

    def make_before(self, data: DataSet, *, resume: bool) -> None:
        """Make what is made before training, unless it is there, and let `data` learn from it.

        Args:
            data: of the run.
            resume: the run goes on, so its images must be those of its recipe; otherwise what an earlier, failed start left in
                its folder is made anew.

        Raises:
            UserError: a run that goes on has lost its images, or has others.
        """
        if not self.before:
            return
        specs, ways = (list(each) for each in zip(*self.before, strict=True))
        finished = self.folder / SYNTHESIS_FILE
        if process_rank() == 0:
            counts = shares_of(self.count_before(), specs)
            if not is_of_recipe(self.folder, recipe_of(self.setting, specs, counts)):
                if resume:
                    raise UserError(
                        f"{self.folder} holds images that were made otherwise than the run's recipe says, so the run cannot be "
                        "resumed. Put its own images back, or start a new run."
                    )
                shutil.rmtree(self.folder)
            if not finished.is_file():
                notes = fill_folder(self.folder, specs, ways, self.count_before(), self.setting)
                data.notes += [note for note in notes if note not in data.notes]
        while not finished.is_file():
            time.sleep(1.0)  # of several processes the first makes the images; the record is written last
        made = open_synthetic(self.folder)
        data.train = made.train
        data.record |= {"made": made.record | {"images": len(made.train)}}

    def keep_samples(self, loader: ResumableLoader) -> None:
        """Write some of the images that were made during training, to look at and to measure.

        Args:
            loader: of the training.
        """
        if self.online is None or (self.folder / "samples" / SYNTHESIS_FILE).is_file():
            return
        spec, way = self.online
        count = min(SAMPLES, self.count)
        writer = BankWriter(self.folder / "samples", self.setting, [spec], counts=[count])
        if isinstance(loader, GrowingLoader):
            chosen = loader.pool.source.images[-count:]
            pixels = torch.from_numpy(np.stack(chosen)).permute(0, 3, 1, 2).float() / 255
            count = len(chosen)
        else:
            assert isinstance(way, StreamedSynthesis)
            with way.seeded("samples"):
                sizes = [
                    min(self.setting.batch_size, count - done) for done in range(0, count, self.setting.batch_size)
                ]
                pixels = torch.cat([way.draw(size).cpu() for size in sizes])
        if writer.done(0) < count:
            writer.write(Made(pixels[writer.done(0) :]), 0)
        writer.finish(notes=[f"The last images that {spec.name} made during training."])


def open_no_data(recipe: DistillRecipe) -> DataSet:
    """The data of a run without any: nothing to learn from yet, and whatever there is to measure on.

    Raises:
        UserError: the validation data cannot be used.
    """
    data = open_without_images(
        PoolSource(),
        (1, 1),  # until the teacher is opened
        class_names_of(recipe.teacher),
        val_data=recipe.val_data,
        val_fraction=recipe.val_fraction,
        seed=recipe.split_seed,
        bad_images=recipe.bad_images,
    )
    data.name = NO_DATA
    data.record["synthesis"] = recipe.synthesis
    if data.val is None:
        data.notes.append("There is nothing to measure on, so the run ends without an accuracy; --val_data names some.")
    return data


def plan_images(recipe: DistillRecipe, teacher: VisionModel, data: DataSet, folder: Path) -> MadeImages:
    """Build every way that the recipe asks for.

    Args:
        recipe: with data none.
        teacher: on its device.
        data: from `open_no_data`; learns its image size.
        folder: of the run.

    Raises:
        UserError: a way cannot be built for this teacher, or several processes shall make images together.
    """
    if data.class_names is not None and len(data.class_names) != teacher.facts.num_classes:
        raise UserError(
            f"The teacher {recipe.teacher} answers with {teacher.facts.num_classes} classes and {recipe.val_data} has "
            f"{len(data.class_names)}. Measure on images of the teacher's own classes."
        )
    text = choose_synthesis(teacher) if recipe.synthesis == "auto" else recipe.synthesis
    specs = parse_synthesis(text)
    check_moments(specs)
    batch_size = recipe.synthesis_batch_size
    generators = all(".generators." in spec.path for spec in specs)
    setting = make_setting(
        recipe.teacher,
        teacher,
        size="auto",
        batch_size=(256 if generators else 64) if batch_size == "auto" else batch_size,
        seed=recipe.seed,
        statistics=recipe.statistics,
    )
    ways = build_ways(specs, setting)
    data.notes += notes_of(specs, ways)
    pairs = list(zip(specs, ways, strict=True))
    online = [pair for pair in pairs if learns_with_student(pair[1])]
    if len(online) > 1:
        raise UserError(
            f"Only one way may look at the learning student, and {' and '.join(spec.name for spec, _ in online)} do. Leave "
            "one out, or switch its student's terms off."
        )
    if online and recipe.devices * recipe.nodes > 1:
        raise UserError(
            f"{online[0][0].name} makes images during training, which works with one device only. Make them first with `limbeck "
            "synthesize`, and distil from that folder on several."
        )
    data.native_size = setting.size
    data.record |= {"synthesis": text, "native_size": list(setting.size)}
    share = online[0][0].share / sum(spec.share for spec in specs) if online else 0.0
    return MadeImages(
        text,
        setting,
        [pair for pair in pairs if pair not in online],
        online[0] if online else None,
        share,
        int(recipe.synthetic_images),
        folder / FOLDER,
    )


def make_loader(
    images: MadeImages,
    data: DataSet,
    recipe: DistillRecipe,
    options: ViewOptions,
    student: VisionModel,
) -> ResumableLoader | None:
    """Batches of images that are made during training; None where all were made before."""
    match images.online:
        case (_, GrownSynthesis() as way):
            return make_growing_loader(
                way,
                data,
                options,
                int(recipe.view_size),
                before=data.train if images.before else None,
                share_before=1 - images.online_share,
                length=images.count,
                batch_size=int(recipe.batch_size),
                seed=recipe.seed,
                student=student,
                folder=images.folder / "rounds",
                say=screen.say,
            )
        case (_, StreamedSynthesis()):
            others = int(recipe.batch_size) - _drawn(images, recipe)
            if not others:
                return make_step_loader(images.count, batch_size=int(recipe.batch_size))
            return make_train_loader(
                data, options, int(recipe.view_size), batch_size=others, seed=recipe.seed, num_workers=0
            )
    return None


def make_online_task(
    images: MadeImages, student: VisionModel, recipe: DistillRecipe, loader: ResumableLoader, *, with_labels: bool
) -> ClassificationTask | None:
    """What a step learns from where images are made during training, with what its checkpoint must keep; None elsewhere."""
    if images.online is None:
        return None
    if isinstance(loader, GrowingLoader):
        return GrowingTask(student.facts.num_classes, loader.pool, **mixing(recipe))
    way = images.online[1]
    assert isinstance(way, StreamedSynthesis)
    return StreamedTask(
        student.facts.num_classes,
        way,
        student,
        drawn=_drawn(images, recipe),
        with_labels=with_labels,
        **mixing(recipe),
    )


def mixing(recipe: TrainingRecipe) -> dict[str, float]:
    """The options of a classification task that a recipe holds."""
    names = ("label_smoothing", "mixup", "cutmix", "mix_prob", "mix_switch_prob")
    return {name: getattr(recipe, name) for name in names}


def _drawn(images: MadeImages, recipe: DistillRecipe) -> int:
    batch_size = int(recipe.batch_size)
    # Images that were made beforehand have at least one place in every batch.
    return min(max(1, round(images.online_share * batch_size)), batch_size - bool(images.before))
