"""Every file in recipes/ is a recipe: its names are options, its values pass, its methods exist with their options."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from limbeck.losses.build import build_losses
from limbeck.losses.names import parse_methods
from limbeck.models import load_model
from limbeck.models.cifar import create
from limbeck.models.names import parse_model_name
from limbeck.recipe import DistillRecipe, TrainRecipe

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
    for name in ("model", "teacher", "student"):
        if hasattr(recipe, name):
            parsed = parse_model_name(getattr(recipe, name))
            if parsed.options:  # they must be options of that network
                load_model(parsed.text, num_classes=2, pretrained=False)
    if isinstance(recipe, DistillRecipe):
        facts = create("resnet8", 10).facts
        losses = build_losses(parse_methods(recipe.method), facts, facts)
        assert losses, "a recipe for distillation distils"


def test_there_are_recipes_for_every_published_cifar_pair_with_a_known_weight() -> None:
    assert sum(file.stem.startswith("cifar100_reviewkd_") for file in FILES) == 9


def test_every_ablation_changes_the_network_and_nothing_else() -> None:
    rows = [yaml.safe_load(file.read_text()) for file in FILES if file.stem.startswith("ablation_ipe_vit_")]
    assert len(rows) == 19
    assert len({row["model"] for row in rows}) == len(rows)
    training = [{key: value for key, value in row.items() if key != "model"} for row in rows]
    assert all(settings == training[0] for settings in training)
