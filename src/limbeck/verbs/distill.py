"""`limbeck distill`: a small student from a strong teacher."""

from limbeck.losses.names import parse_methods, parse_shares
from limbeck.recipe import NO_DATA, NO_TEACHER, DistillRecipe, from_recipe
from limbeck.run import Run, choose_run
from limbeck.synthesis.names import check_moments, parse_synthesis
from limbeck.verbs.names import (
    check_teacher,
    names_of,
    refuse_methods_of_another_task,
    refuse_methods_that_need_a_teacher,
    refuse_several_without_data,
)


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
    if recipe.method != "auto":
        refuse_methods_of_another_task(parse_methods(recipe.method), recipe.task)
    if recipe.balance is not None:
        parse_shares(recipe.balance)
    check_model, check_data = names_of(recipe.task)
    if recipe.teacher == NO_TEACHER:
        refuse_methods_that_need_a_teacher(parse_methods(recipe.method))
    else:
        check_teacher(recipe.teacher, recipe.task)
    check_model(recipe.student)
    if recipe.data == NO_DATA:
        refuse_several_without_data(recipe.teacher)
        if recipe.synthesis != "auto":
            check_moments(parse_synthesis(recipe.synthesis, recipe.task))
    else:
        check_data(recipe.data)
    if recipe.val_data is not None:
        check_data(recipe.val_data)
    run = choose_run(recipe.out, "distill", recipe.student, recipe.data, resume=recipe.resume)
    if recipe.task == "detection":
        from limbeck.verbs.detection.course import carry_out as carry_out_detection

        return carry_out_detection(recipe, run)
    from limbeck.verbs.course import carry_out

    return carry_out(recipe, run)
