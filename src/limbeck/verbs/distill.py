"""`limbeck distill`: a small student from a strong teacher."""

from limbeck.data.names import check_data_name
from limbeck.losses.names import parse_methods
from limbeck.models.names import parse_model_name
from limbeck.recipe import DistillRecipe, from_recipe
from limbeck.run import Run, choose_run


@from_recipe(DistillRecipe)
def distill(recipe: DistillRecipe) -> Run:
    """Distil a teacher into a student, and report on it.

    Writes the student alone, a model card, metrics and a report into the run's folder.

    Returns:
        The finished run.

    Raises:
        UserError: something given cannot be used; the message says what to do.
        FileNotFoundError: a file or folder does not exist.
    """
    recipe.check()
    parse_methods(recipe.method)
    parse_model_name(recipe.teacher)
    parse_model_name(recipe.student)
    check_data_name(recipe.data)
    run = choose_run(recipe.out, "distill", recipe.student, recipe.data, resume=recipe.resume)
    from limbeck.verbs.course import carry_out

    return carry_out(recipe, run)
