"""Every file in recipes/ is a recipe: its names are options, its values pass, its methods exist with their options."""

import dataclasses
from pathlib import Path

import pytest
import torchvision
import yaml

from limbeck.call_checks import checked_options
from limbeck.detection import DetectorFacts
from limbeck.losses.build import build_losses
from limbeck.losses.names import parse_methods
from limbeck.models import load_model
from limbeck.models.cifar import create
from limbeck.models.detection.names import DetectorName, parse_detector_name
from limbeck.models.detection.torchvision.options import read_options
from limbeck.models.names import parse_model_name
from limbeck.outputs import Level
from limbeck.recipe import NO_DATA, DistillRecipe, TrainRecipe
from limbeck.synthesis.build import import_synthesis
from limbeck.synthesis.names import parse_synthesis
from limbeck.verbs.names import refuse_methods_of_another_task

FILES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recipe(file: Path) -> None:
    values = yaml.safe_load(file.read_text())
    recipe_class = TrainRecipe if "method" not in values else DistillRecipe
    required = {
        f.name: "limbeck:resnet8"
        for f in dataclasses.fields(recipe_class)
        if f.default is f.default_factory is dataclasses.MISSING
    }
    recipe = recipe_class(**{**required, **values})
    recipe.check()
    if recipe.task == "detection":
        for name in (recipe.teacher, recipe.student):
            read_detector_options(parse_detector_name(name))
        specs = parse_methods(recipe.method)
        refuse_methods_of_another_task(specs, "detection")
        assert specs and build_losses(specs, *facts_for(recipe.student)), "a recipe for distillation distils"
        return
    for name in ("model", "teacher", "student"):
        if hasattr(recipe, name):
            parsed = parse_model_name(getattr(recipe, name))
            if parsed.options:  # they must be options of that network
                load_model(parsed.text, num_classes=2, pretrained=False)
    if isinstance(recipe, DistillRecipe):
        if recipe.data == NO_DATA:
            for spec in parse_synthesis(recipe.synthesis):
                wanted = import_synthesis(spec)
                checked_options(spec.name, wanted, spec.options, skip=1, reserved=(), kind="way")
        transformer = "vit" in recipe.student
        facts = (
            load_model(recipe.student, num_classes=2, pretrained=False, input_size=(32, 32)).facts
            if transformer
            else create("resnet8", 10).facts
        )
        losses = build_losses(parse_methods(recipe.method), facts, facts)
        assert losses, "a recipe for distillation distils"


def read_detector_options(name: DetectorName) -> None:
    """A torchvision detector's options are its own, and its backbone exists."""
    if name.kind == "torchvision":
        backbone = read_options(name.name, name.options, name.text).get("backbone")
        assert backbone is None or backbone in torchvision.models.list_models()


def facts_for(student: str) -> tuple[DetectorFacts, DetectorFacts]:
    """Facts of two like detectors of the student's kind, with everything a loss may ask for."""
    families = {"mask2former": "mask_queries", "hf:": "queries", "mask_rcnn": "two_stage", "faster_rcnn": "two_stage"}
    levels = tuple(Level(f"fpn.{i}", 8, 8 << i, (32 >> i, 32 >> i), kind="encoder") for i in range(4))
    facts = DetectorFacts(
        name=student,
        num_classes=2,
        input_size=(256, 256),
        levels=levels,
        pooled_channels=0,
        class_names=("cat", "dog"),
        family=next((family for word, family in families.items() if word in student), "dense"),  # type: ignore[arg-type]
        scores="softmax",
        has_masks="mask" in student,
        corner_bins=33,
        corner_scale=(0.5, 4.0),
        reads_queries=True,
    )
    return facts, facts


def test_there_are_recipes_for_every_published_weight_of_a_detector() -> None:
    rows = {file.stem: yaml.safe_load(file.read_text())["method"] for file in FILES if file.stem.startswith("coco_")}
    weights = sorted(float(method[16:-1]) for name, method in rows.items() if "reviewkd" in name)
    assert weights == [0.8, 1.0, 1.0, 1.0, 1.2, 1.5, 2.0]
    for method, count in {
        "fgd": 4,
        "mgd": 2,
        "pkd": 2,
        "cwd": 1,
        "query_kd": 1,
        "shared_queries": 1,
        "corner_kd": 1,
        "ld": 1,
    }.items():
        assert sum(name.startswith(f"coco_{method}_") for name in rows) == count


def test_there_are_recipes_for_every_published_cifar_pair_with_a_known_weight() -> None:
    assert sum(file.stem.startswith("cifar100_reviewkd_") for file in FILES) == 9


def test_every_ablation_changes_the_network_and_nothing_else() -> None:
    rows = [yaml.safe_load(file.read_text()) for file in FILES if file.stem.startswith("ablation_ipe_vit_")]
    assert len(rows) == 19
    assert len({row["model"] for row in rows}) == len(rows)
    training = [{key: value for key, value in row.items() if key != "model"} for row in rows]
    assert all(settings == training[0] for settings in training)
