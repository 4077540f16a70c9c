"""`limbeck train`: the same training without a teacher, for instance of the model that will teach."""

from limbeck.data.names import check_data_name
from limbeck.models.names import parse_model_name
from limbeck.recipe import TrainRecipe, from_recipe
from limbeck.run import Run, choose_run


@from_recipe(TrainRecipe)
def train(recipe: TrainRecipe) -> Run:
    """Train or fine-tune a model on labelled images.

    The run's folder is then a model name everywhere, for instance a teacher's.

    Returns:
        The finished run.

    Raises:
        UserError: something given cannot be used; the message says what to do.
        FileNotFoundError: a file or folder does not exist.
    """
    recipe.check()
    parse_model_name(recipe.model)
    check_data_name(recipe.data)
    run = choose_run(recipe.out, "train", recipe.model, recipe.data, resume=recipe.resume)
    from limbeck.verbs.course import carry_out

    return carry_out(recipe, run)
