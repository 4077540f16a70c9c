"""`limbeck distill`: a small student from a strong teacher."""

from limbeck.losses.names import parse_methods, parse_shares
from limbeck.recipe import DistillRecipe, from_recipe
from limbeck.run import Run, choose_run
from limbeck.verbs.names import check_names


@from_recipe(DistillRecipe)
def distill(recipe: DistillRecipe) -> Run:
    """Distil a teacher into a student, or a student into itself, and report on it.

    Writes the student alone, a model card, metrics and a report into the run's folder.

    Returns:
        The finished run.

    Raises:
        UserError: something given cannot be used; the message says what to do.
        FileNotFoundError: a file or folder does not exist.
    """
    recipe.check()
    recipe = recipe.settled()
    check_names(recipe, parse_methods(recipe.method) if recipe.method != "auto" else [])
    if recipe.balance is not None:
        parse_shares(recipe.balance)
    run = choose_run(recipe.out, "distill", recipe.student, recipe.data, resume=recipe.resume)
    if recipe.task == "detection":
        from limbeck.verbs.detection.course import carry_out as carry_out_detection

        return carry_out_detection(recipe, run)
    from limbeck.verbs.course import carry_out

    return carry_out(recipe, run)
