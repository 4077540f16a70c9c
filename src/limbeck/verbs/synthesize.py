"""`limbeck synthesize`: images for a teacher, without any of its data."""

from pathlib import Path

from limbeck.data.names import SYNTHESIS_FILE
from limbeck.errors import UserError
from limbeck.recipe import SynthesizeRecipe, from_recipe
from limbeck.synthesis.names import check_moments, parse_synthesis
from limbeck.verbs.names import names_of


@from_recipe(SynthesizeRecipe)
def synthesize(recipe: SynthesizeRecipe) -> Path:
    """Make images for a teacher, without any of its data.

    Writes the images in folders of the classes that the teacher gives them (for detectors with annotations in COCO's
    format), the teacher's soft labels, a contact sheet and a data card. `limbeck distill --data FOLDER` reads the result.

    Returns:
        The folder.

    Raises:
        UserError: something given cannot be used; the message says what to do.
        FileNotFoundError: a file or folder does not exist.
    """
    recipe.check()
    check_model, _ = names_of(recipe.task)
    for name in (recipe.teacher, recipe.student, recipe.second):
        if name is not None:
            check_model(name)
    if recipe.method != "auto":
        check_moments(parse_synthesis(recipe.method, recipe.task))
    folder = _folder(recipe)
    if recipe.task == "detection":
        from limbeck.verbs.detection.made_scenes import make_scenes

        return make_scenes(recipe, folder)
    from limbeck.verbs.images_for_classifiers import make_images

    return make_images(recipe, folder)


def _folder(recipe: SynthesizeRecipe) -> Path:
    if recipe.out == "auto":
        from limbeck.models.names import file_stem

        stem = f"{file_stem(recipe.teacher)}-{recipe.method.partition('(')[0]}"
        return next(
            path
            for path in (Path("synthetic") / f"{stem}-{number}" for number in range(1, 100_000))
            if not path.exists()
        )
    folder = Path(recipe.out)
    if folder.is_file():
        raise UserError(f"--out {folder} is a file; name a folder for the images.")
    if (folder / SYNTHESIS_FILE).is_file():
        raise UserError(f"{folder} already holds synthetic images. Choose another --out folder.")
    if folder.is_dir() and any(folder.iterdir()) and not recipe.resume:
        raise UserError(
            f"{folder} is not empty. Add --resume to go on with the images that were begun there, or choose another --out."
        )
    if recipe.resume and not folder.is_dir():
        raise UserError(f"{folder} does not exist, so there is nothing to resume. Leave out --resume to start.")
    return folder
