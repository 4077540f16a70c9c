"""A model with the images it is measured on: those of its own run unless others are named."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from limbeck.data.base import DataSet
from limbeck.data.door import median_size, open_data, open_validation
from limbeck.data.loader import make_val_loader
from limbeck.data.measured_on import are_numbers
from limbeck.data.options import ViewOptions
from limbeck.data.split import spread
from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.models.door import class_names_of, load_model
from limbeck.recipe import NO_DATA
from limbeck.run import Run


@dataclass
class MeasuredData:
    """A loaded model, a data set whose classes are the model's, and batches of its validation images."""

    model: VisionModel
    data: DataSet
    loader: Iterable[dict[str, Tensor]]


def measured_data(
    model_name: str,
    data_name: str | None,
    *,
    view_size: int | Literal["auto"] = "auto",
    eval_crop: float | None = None,
    val_fraction: float | None = None,
    split_seed: int | None = None,
    bad_images: Literal["stop", "skip"] = "stop",
    batch_size: int = 128,
    num_workers: int | Literal["auto"] = "auto",
    most: int | None = None,
    part: Literal["train", "val"] = "val",
) -> MeasuredData:
    """Open both; what is not given is taken from the model's run, where it has one; `most` images, spread evenly.

    Of `part` "train" the training images are shown, as validation images are: without augmentation and in order.

    Raises:
        UserError: no data is named and the model has no run, or the classes differ.
    """
    recipe = run_recipe(model_name)
    apart = recipe.get("val_data") if data_name is None and part == "val" else None
    data_name = data_name or apart or recipe.get("data")
    if data_name is None:
        raise UserError(f"{model_name} is no run's folder, so name the images to use with --data.")
    if data_name == NO_DATA:
        raise UserError(f"{model_name} was distilled without data, so name the images to use with --data.")
    model = load_model(model_name)
    split: dict[str, Any] = {
        "val_fraction": val_fraction if val_fraction is not None else recipe.get("val_fraction", 0.1),
        "seed": split_seed if split_seed is not None else recipe.get("split_seed", 0),
        "bad_images": bad_images,
    }
    if apart is None:
        data = open_data(data_name, **split)
    else:
        found = open_validation(apart, **split)
        native_size = median_size(found.source)
        data = DataSet(apart, found.source, found.source, found.class_names, native_size, found.record, found.notes)
    _require_known_classes(model_name, model, data)
    size = int(recipe.get("view_size", max(model.facts.input_size)) if view_size == "auto" else view_size)
    options = ViewOptions(eval_crop=eval_crop if eval_crop is not None else recipe.get("eval_crop", 0.875))
    if part == "train":
        data.val = data.train
    if most is not None and data.val is not None:
        data.val = spread(data.val, most)
    loader = make_val_loader(data, options, size, batch_size=batch_size, num_workers=num_workers)
    return MeasuredData(model, data, loader)


def run_recipe(model_name: str) -> dict[str, Any]:
    """The recipe of the run whose folder a model name is; empty for other models."""
    return Run(model_name).recipe if Path(model_name).is_dir() else {}


def _require_known_classes(model_name: str, model: VisionModel, data: DataSet) -> None:
    if data.class_names is None:
        return
    known = class_names_of(model_name)
    if len(data.class_names) != model.facts.num_classes:
        raise UserError(
            f"{model_name} answers with {model.facts.num_classes} classes, but {data.name} has {len(data.class_names)}. "
            "Name the data set that the model was trained for."
        )
    if known is None or are_numbers(known) or are_numbers(data.class_names):
        return
    if tuple(known) != tuple(data.class_names):
        ours, theirs = next((a, b) for a, b in zip(data.class_names, known, strict=True) if a != b)
        raise UserError(
            f"{model_name} knows other classes than {data.name}: where the data has {ours!r}, the model has {theirs!r}."
        )
