"""`limbeck predict`: a model's answers to images, as text, JSON lines and a contact sheet."""

from pathlib import Path
from typing import Any, Literal

from limbeck.errors import UserError
from limbeck.verbs import screen
from limbeck.verbs.names import names_of, task_of


def predict(
    model: str,
    images: str,
    top: int | None = None,
    out: str | None = None,
    max_sheet: int = 60,
    bad_images: Literal["stop", "skip"] = "stop",
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto",
    batch_size: int | Literal["auto"] = "auto",
    task: Literal["auto", "classification", "detection"] = "auto",
    min_score: float | None = None,
) -> list[dict[str, Any]]:
    """Classify images, or find objects in them.

    Args:
        model: a run's folder or any other model name.
        images: an image file or a folder of images (searched in depth).
        top: [classification] answers per image; 5 when left out.
        out: folder for predictions.jsonl (of a detector detections.jsonl and drawn/) and contact_sheet.png; by default
            predictions/ in the run's folder, or here.
        max_sheet: most images on the contact sheet.
        bad_images: what to do about files that cannot be decoded.
        accelerator: where to run.
        batch_size: images at a time; auto is 32, for detectors 8.
        task: what the model does; auto is what its run says, and classification for models without one.
        min_score: [detection] detections with at least this score are listed and drawn; 0.3 when left out.

    Returns:
        One dict per image: file, and answers as (class, probability) pairs; of a detector file, size and objects (see
        `limbeck.verbs.detection.predict`).

    Raises:
        UserError: an image cannot be decoded, or the folder holds none.
        FileNotFoundError: a file or folder does not exist.
    """
    task = task_of(task, model, None)
    names_of(task)[0](model)
    place = Path(images)
    if not place.exists():
        raise FileNotFoundError(f"There is no image or folder {images}. Check the path.")
    if task == "detection" and top is not None:
        raise UserError("--top is for classifiers; a detector lists all it finds with at least --min_score.")
    if task == "classification" and min_score is not None:
        raise UserError("--min_score is for detectors; a classifier lists its --top answers.")
    top = 5 if top is None else top
    min_score = 0.3 if min_score is None else min_score
    if top < 1:
        raise UserError(f"--top is {top}; it must be at least 1.")
    if not 0 <= min_score <= 1:
        raise UserError(f"--min_score is {min_score}; it must be between 0 and 1.")
    if batch_size == "auto":
        batch_size = 8 if task == "detection" else 32
    import json

    import torch

    from limbeck.contact_sheet import SheetItem, contact_sheet
    from limbeck.data.decode import BadImageError, read_image
    from limbeck.data.folder import list_images
    from limbeck.data.options import ViewOptions
    from limbeck.data.views import eval_view
    from limbeck.files import atomic_write
    from limbeck.models.door import class_names_of, load_model
    from limbeck.training.fit import choose_accelerator, main_device
    from limbeck.verbs.measured_data import run_recipe

    files = [place] if place.is_file() else list_images(place)
    if not files:
        raise UserError(f"{images} holds no images. Name a folder with JPEG, PNG, WebP, BMP, GIF or TIFF files.")
    folder = Path(out) if out is not None else (Path(model) if Path(model).is_dir() else Path()) / "predictions"
    if task == "detection":
        from limbeck.verbs.detection.predict import predict as predict_objects

        return predict_objects(
            model,
            files,
            min_score=min_score,
            folder=folder,
            max_sheet=max_sheet,
            bad_images=bad_images,
            accelerator=accelerator,
            batch_size=batch_size,
        )
    device = main_device(choose_accelerator(accelerator))
    network = load_model(model).to(device).eval()
    recipe = run_recipe(model)
    names = class_names_of(model) or tuple(str(number) for number in range(network.facts.num_classes))
    size = int(recipe.get("view_size", max(network.facts.input_size)))
    options = ViewOptions(eval_crop=recipe.get("eval_crop", 0.875))
    answers: list[dict[str, Any]] = []
    sheet: list[SheetItem] = []
    skipped: list[str] = []
    for start in range(0, len(files), batch_size):
        pictures = []
        for file in files[start : start + batch_size]:
            try:
                pictures.append((file, read_image(file)))
            except BadImageError as error:
                if bad_images == "stop":
                    raise
                skipped.append(str(error))
        if not pictures:
            continue
        views = torch.stack(
            [eval_view(options, size, (picture.height, picture.width))(picture, 0) for _, picture in pictures]
        )
        with torch.no_grad():
            probabilities = network(views.to(device)).logits.softmax(1).cpu()
        for (file, picture), row in zip(pictures, probabilities, strict=True):
            best = row.topk(min(top, len(row)))
            found = [(names[i], float(p)) for p, i in zip(best.values, best.indices.tolist(), strict=True)]
            answers.append({"file": str(file), "answers": found})
            if len(sheet) < max_sheet:
                lines = [f"{100 * p:.0f} % {name}" for name, p in found[:3]]
                sheet.append(SheetItem(image=picture, title=file.name, lines=lines))
    with atomic_write(folder / "predictions.jsonl") as stream:
        stream.write("".join(json.dumps(answer) + "\n" for answer in answers).encode())
    columns = ("file", *(f"answer {n + 1}" for n in range(min(top, 3))))
    rows = [(a["file"], *(f"{name} {100 * p:.1f} %" for name, p in a["answers"][:3])) for a in answers[:20]]
    screen.table(f"{network.facts.name} on {len(answers)} images", columns, rows)
    if len(answers) > len(rows):
        screen.say(f"({len(answers) - len(rows)} more in {folder / 'predictions.jsonl'})")
    if skipped:
        screen.notes([f"{len(skipped)} images could not be decoded and were skipped:", *skipped])
    if sheet:
        with atomic_write(folder / "contact_sheet.png") as stream:
            contact_sheet(sheet).save(stream, format="PNG")
        screen.say(f"Contact sheet: {folder / 'contact_sheet.png'}")
    return answers
