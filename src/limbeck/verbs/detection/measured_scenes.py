"""A detector with the scenes it is measured on: those of its own run unless others are named."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from limbeck.data.detection.base import Scenes, SceneSubset
from limbeck.data.detection.door import open_pseudo_labels, open_scenes
from limbeck.data.detection.pseudo_labels import FILE_NAME
from limbeck.data.split import evenly
from limbeck.errors import UserError
from limbeck.models.detection.base import Detector
from limbeck.models.detection.door import load_detector
from limbeck.recipe import NO_DATA
from limbeck.tasks.base import Batch
from limbeck.verbs.detection.preparation import scene_batches
from limbeck.verbs.measured_data import run_recipe


@dataclass
class MeasuredScenes:
    """A loaded detector, scenes, and batches of their validation images at the size the detector is shown."""

    model: Detector
    scenes: Scenes
    batches: Iterable[Batch]


def measured_scenes(
    model_name: str,
    data_name: str | None,
    *,
    val_fraction: float | None = None,
    split_seed: int | None = None,
    bad_images: Literal["stop", "skip"] = "stop",
    batch_size: int = 8,
    num_workers: int | Literal["auto"] = "auto",
    most: int | None = None,
) -> MeasuredScenes:
    """Open both; what is not given is taken from the detector's run, where it has one; `most` images, spread evenly.

    Raises:
        UserError: no data is named and the model has no run, or no annotated data.
    """
    recipe = run_recipe(model_name)
    data_name = data_name or recipe.get("val_data") or recipe.get("data")
    if data_name is None:
        raise UserError(f"{model_name} is no run's folder, so name the scenes to use with --data.")
    if data_name == NO_DATA:
        raise UserError(f"{model_name} was distilled without data, so name the scenes to use with --data.")
    model = load_detector(model_name)
    share = val_fraction if val_fraction is not None else recipe.get("val_fraction", 0.1)
    seed = split_seed if split_seed is not None else recipe.get("split_seed", 0)
    labels = Path(model_name) / FILE_NAME
    if data_name == recipe.get("data") and labels.is_file():  # the run's own teacher labelled them
        scenes = open_pseudo_labels(labels, Path(data_name).expanduser(), val_fraction=share, split_seed=seed)
    else:
        scenes = open_scenes(data_name, val_fraction=share, split_seed=seed, bad_images=bad_images)
    if most is not None:
        scenes.val = SceneSubset(scenes.val, evenly(len(scenes.val), most))
    batches = scene_batches(scenes.val, model.resize, batch_size, num_workers)
    return MeasuredScenes(model, scenes, batches)
