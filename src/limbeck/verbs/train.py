"""`limbeck train`: the same training without a teacher, for instance of the model that will teach."""

from limbeck.errors import UserError
from limbeck.recipe import NO_DATA, TrainRecipe, from_recipe
from limbeck.run import Run, choose_run
from limbeck.verbs.names import names_of


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
    recipe = recipe.settled()
    check_model, check_data = names_of(recipe.task)
    check_model(recipe.model)
    if recipe.data == NO_DATA:
        raise UserError(
            "Training without a teacher needs labelled images; without any, distil: limbeck distill --data none."
        )
    check_data(recipe.data)
    if recipe.val_data is not None:
        check_data(recipe.val_data)
    run = choose_run(recipe.out, "train", recipe.model, recipe.data, resume=recipe.resume)
    if recipe.task == "detection":
        from limbeck.verbs.detection.course import carry_out as carry_out_detection

        return carry_out_detection(recipe, run)
    from limbeck.verbs.course import carry_out

    return carry_out(recipe, run)
