"""Making annotated pictures for a detector, for `synthesize` and for `distill --data none`."""

import shlex
import time
from pathlib import Path
from typing import Any

from limbeck.detection import Size
from limbeck.errors import UserError
from limbeck.models.detection.base import Detector
from limbeck.models.detection.door import load_detector
from limbeck.recipe import SynthesizeRecipe
from limbeck.synthesis.build import build_synthesis
from limbeck.synthesis.detection.base import DetectionSetting
from limbeck.synthesis.detection.writer import SceneWriter, recipe_of
from limbeck.synthesis.journal import is_of_recipe
from limbeck.synthesis.names import SynthesisSpec, parse_synthesis
from limbeck.training.fit import choose_accelerator, main_device
from limbeck.verbs import screen
from limbeck.verbs.made_images import write_batches

BATCH_SIZE = 8


def make_scenes(recipe: SynthesizeRecipe, folder: Path) -> Path:
    """Make the scenes; see the verb for what is raised."""
    teacher = load_detector(recipe.teacher).to(main_device(choose_accelerator(recipe.accelerator)))
    screen.notes(f"{teacher.facts.name}: {note}" for note in teacher.provenance.notes)
    if recipe.image_format != "png":
        raise UserError("Scenes for detectors are written as PNG; leave --image_format out.")
    size = picture_size(teacher) if recipe.size == "auto" else (recipe.size, recipe.size)
    batch_size = BATCH_SIZE if recipe.batch_size == "auto" else recipe.batch_size
    method = "scenes" if recipe.method == "auto" else recipe.method
    fill_scene_folder(
        folder, method, DetectionSetting(teacher, size, batch_size, recipe.seed, screen.say), recipe.count
    )
    screen.say(f"Scenes: {folder}. Data card: {folder / 'README.md'}. To look at: {folder / 'contact_sheet.png'}")
    screen.say(
        f"Next: limbeck distill --task detection --teacher {shlex.quote(recipe.teacher)} --student ... --data {folder}"
    )
    return folder


def is_made(folder: Path, method: str, setting: DetectionSetting, count: int) -> bool:
    """Whether the scenes of a folder are just these, or there are none."""
    (spec,) = _one(method)
    return is_of_recipe(folder, recipe_of(setting, str(spec), count))


def fill_scene_folder(folder: Path, method: str, setting: DetectionSetting, count: int) -> dict[str, Any]:
    """Make `count` scenes and write them, going on where an earlier, stopped call with the same settings left off.

    Returns:
        The numbers of `limbeck.synthesis.detection.writer.measure`.

    Raises:
        UserError: the folder holds something else, an option is wrong, or there are several ways.
    """
    specs = _one(method)
    way: Any = build_synthesis(specs[0], setting)
    screen.notes(f"{specs[0].name}: {note}" for note in way.notes)
    writer = SceneWriter(folder, setting, str(specs[0]), count=count)
    screen.say(f"{specs[0]}: {count} scenes of {setting.size[0]}x{setting.size[1]} pixels")
    began = time.perf_counter()
    write_batches(way, count, writer.done(), writer.write, "a scene")
    return writer.finish(way.notes, time.perf_counter() - began)


def _one(method: str) -> list[SynthesisSpec]:
    specs = parse_synthesis(method, "detection")
    if len(specs) != 1:
        raise UserError(f"Scenes are made in one way, and {method!r} names {len(specs)}. Make two folders instead.")
    return specs


def picture_size(teacher: Detector) -> Size:
    """The size at which the teacher sees a photograph of 4:3, in multiples of 32 pixels."""
    height, width = teacher.resize.size(480, 640)
    return max(32, round(height / 32) * 32), max(32, round(width / 32) * 32)
