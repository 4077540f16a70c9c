"""A recipe is the single definition behind the Python call, the command line and the YAML file."""

import inspect
import subprocess
import sys

import pytest

from limbeck.errors import UserError
from limbeck.recipe import DistillRecipe, TrainRecipe, differences, from_recipe, resolve_training


def test_a_verb_of_a_recipe_takes_the_recipes_fields() -> None:
    @from_recipe(TrainRecipe)
    def verb(recipe: TrainRecipe) -> tuple[str, int]:
        """Do it."""
        return recipe.model, recipe.epochs

    assert verb(model="m", data="d", epochs=3) == ("m", 3)
    assert list(inspect.signature(verb).parameters) == list(inspect.signature(TrainRecipe).parameters)
    with pytest.raises(TypeError, match="epoch_count"):
        verb(model="m", data="d", epoch_count=3)  # type: ignore[call-arg]


def test_every_field_is_documented() -> None:
    for recipe in (TrainRecipe, DistillRecipe):
        documentation = "".join(inspect.getdoc(parent) or "" for parent in recipe.__mro__[:-1])
        for name in inspect.signature(recipe).parameters:
            assert f"\n    {name}: " in documentation, name


@pytest.mark.parametrize(
    ("optimizer", "images", "expected"),
    [("adamw", 512, 1e-3), ("adamw", 128, 5e-4), ("sgd", 256, 0.1), ("sgd", 128, 0.05), ("lamb", 2048, 5e-3)],
)
def test_auto_learning_rate(optimizer: str, images: int, expected: float) -> None:
    recipe = TrainRecipe(model="m", data="d", optimizer=optimizer)  # type: ignore[arg-type]
    assert resolve_training(recipe, images)["lr"] == pytest.approx(expected)


def test_given_values_are_not_resolved() -> None:
    recipe = TrainRecipe(model="m", data="d", lr=0.3, decay_norms=True, warmup_epochs=2)
    assert not {"lr", "decay_norms", "warmup_epochs"} & resolve_training(recipe, 128).keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "--epochs is 0"),
        ({"mix_prob": 1.5}, "--mix_prob is 1.5"),
        ({"lr": -1.0}, "--lr is -1.0"),
        ({"resume": True}, "--out"),
        ({"teacher_accuracy": 72.0}, "--teacher_accuracy is 72.0"),
        ({"crop_scale": (0.5, 0.1)}, "--crop_scale"),
    ],
)
def test_impossible_values_are_refused_by_name(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        DistillRecipe(teacher="t", student="s", data="d", **options).check()  # type: ignore[arg-type]


def test_differences_name_the_field_and_both_values() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3}) == ["b: 2 -> 3"]


def test_recipes_and_names_import_nothing_heavy() -> None:
    code = (
        "import sys, limbeck.cli, limbeck.verbs.distill, limbeck.verbs.train, limbeck.verbs.evaluate, limbeck.verbs.predict, "
        "limbeck.verbs.export, limbeck.verbs.report, limbeck.verbs.methods\n"
        "print([name for name in ('torch', 'timm', 'lightning', 'sklearn', 'transformers', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
