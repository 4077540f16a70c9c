"""The course of `limbeck synthesize` for a classifier: teacher opened, ways built, folder filled."""

import shlex
from pathlib import Path

from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.models.door import load_model
from limbeck.recipe import SynthesizeRecipe
from limbeck.synthesis.base import GrownSynthesis
from limbeck.synthesis.build import choose_synthesis
from limbeck.synthesis.names import parse_synthesis
from limbeck.training.fit import choose_accelerator, main_device
from limbeck.verbs import screen
from limbeck.verbs.made_images import build_ways, fill_folder, make_setting, notes_of


def make_images(recipe: SynthesizeRecipe, folder: Path) -> Path:
    """Make the images; see the verb for what is raised."""
    device = main_device(choose_accelerator(recipe.accelerator))
    size = None if recipe.teacher_size == "auto" else (recipe.teacher_size, recipe.teacher_size)
    teacher = load_model(recipe.teacher, input_size=size).to(device)
    screen.notes(f"{teacher.facts.name}: {note}" for note in teacher.provenance.notes)
    method = choose_synthesis(teacher) if recipe.method == "auto" else recipe.method
    specs = parse_synthesis(method)
    setting = make_setting(
        recipe.teacher,
        teacher,
        size=recipe.size,
        batch_size=64 if recipe.batch_size == "auto" else recipe.batch_size,
        seed=recipe.seed,
        student=recipe.student,
        statistics=recipe.statistics,
    )
    ways = build_ways(specs, setting)
    screen.notes(notes_of(specs, ways))
    for spec, way in zip(specs, ways, strict=True):
        if isinstance(way, GrownSynthesis) and way.reads_student and setting.student is None:
            screen.notes(
                [f"{spec.name}: there is no student, so its terms that puzzle one are left out (--student names one)."]
            )
    fill_folder(
        folder,
        specs,
        ways,
        recipe.count,
        setting,
        image_format=recipe.image_format,
        second=_second(recipe, teacher),
        command=_command(recipe, method),
    )
    screen.say(f"Images: {folder}. Data card: {folder / 'README.md'}. To look at: {folder / 'contact_sheet.png'}")
    screen.say(f"Next: limbeck distill --teacher {shlex.quote(recipe.teacher)} --student ... --data {folder}")
    return folder


def _second(recipe: SynthesizeRecipe, teacher: VisionModel) -> VisionModel | None:
    if recipe.second is None:
        return None
    second = load_model(recipe.second).to(teacher.mean.device)
    if second.facts.num_classes != teacher.facts.num_classes:
        raise UserError(
            f"The second network {recipe.second} has {second.facts.num_classes} classes and the teacher "
            f"{teacher.facts.num_classes}; name one with the same classes."
        )
    return second


def _command(recipe: SynthesizeRecipe, method: str) -> str:
    options = {"teacher": recipe.teacher, "method": method, "count": recipe.count, "seed": recipe.seed}
    for name in ("size", "teacher_size", "batch_size", "student", "second", "statistics"):
        if getattr(recipe, name) not in ("auto", None):
            options[name] = getattr(recipe, name)
    if recipe.image_format != SynthesizeRecipe.image_format:
        options["image_format"] = recipe.image_format
    return "limbeck synthesize " + " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in options.items())
