"""`limbeck export`: an artefact for a device, proven to give the trained model's answers."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from limbeck.errors import UserError
from limbeck.models.names import file_stem
from limbeck.verbs import screen
from limbeck.verbs.names import names_of, task_of

if TYPE_CHECKING:
    from limbeck.verbs.measured_data import MeasuredData


def export(
    model: str,
    to: Literal["onnx"] = "onnx",
    data: str | None = None,
    out: str | None = None,
    max_images: int | Literal["auto"] = "auto",
    batch_size: int | Literal["auto"] = "auto",
    tolerance: float | None = None,
    dynamic_size: bool = False,
    quantize: Literal["int8"] | None = None,
    calibration_images: int = 128,
    max_drop: float | None = None,
    task: Literal["auto", "classification", "detection"] = "auto",
) -> Path:
    """Export a model and verify the artefact on real validation images.

    The artefact takes images as float (B, 3, H, W) in [0, 1] at the model's input size, for any B, and returns logits
    (B, K). Beside it stands a JSON file with the largest difference of the logits, the agreement of the first answers and
    the accuracy of both. An int8 artefact stands beside the float one, as NAME.int8.onnx, with a JSON file of its own.

    A detector's artefact takes one picture, (1, 3, H, W), of the detector's size and returns finished detections: `boxes`,
    `scores`, `labels` and perhaps `masks` (see `limbeck.exporting.detection`). Beside it stand the largest differences of
    matched detections and the average precision of both. Detectors have neither int8 nor a dynamic size yet.

    Args:
        model: a run's folder or any other model name.
        to: the format.
        data: real images to verify with; a run's own when left out.
        out: the file; by default export/NAME.onnx in the run's folder, or NAME.onnx here.
        max_images: how many validation images to verify with, at most; spread evenly over all of them. Auto is 1000, for
            detectors 200.
        batch_size: images at a time; auto is 32, for detectors 8.
        tolerance: largest difference of a logit that still passes; by default 1e-3 of the largest logit (at least 1e-3).
            For detectors the pixels that a sure detection's box may differ by; by default 1e-3 of the picture's longer
            side.
        dynamic_size: [classification] let height and width of the images vary too, and verify at several sizes; for
            networks that are not made for one size.
        quantize: [classification] also write the artefact with int8 weights and 8-bit activations, and measure what that
            costs.
        calibration_images: [classification] how many training images the ranges of those activations are found on, at most;
            spread evenly.
        max_drop: [classification] accuracy in points that int8 may lose on the validation images; any when left out.
        task: what the model does; auto is what its run says, else what the data is for.

    Returns:
        The artefact; with quantize, the int8 one.

    Raises:
        UserError: the artefact's answers differ from the model's, the model cannot be exported, or int8 loses more than
            max_drop, or a detector is asked for with int8 or a dynamic size.
        FileNotFoundError: a file or folder does not exist.
    """
    task = task_of(task, model, data)
    check_model, check_data = names_of(task)
    check_model(model)
    if data is not None:
        check_data(data)
    if max_images != "auto" and max_images < 1:
        raise UserError(f"max_images is {max_images}; at least 1 image is needed to verify with.")
    if max_drop is not None and quantize is None:
        raise UserError(
            f"max_drop is {max_drop}, but nothing is quantised. Add --quantize int8, or leave max_drop out."
        )
    if calibration_images < 1:
        raise UserError(f"calibration_images is {calibration_images}; at least 1 is needed.")
    if task == "detection":
        if dynamic_size or quantize is not None:
            asked = "dynamic_size" if dynamic_size else "--quantize int8"
            raise UserError(
                f"{asked} is not for detectors yet: their files have one size and float weights. Leave it out; the size is "
                "chosen with --short_side and --long_side when a detector is trained or distilled."
            )
        from limbeck.verbs.detection.export import export as export_detector

        return export_detector(
            model,
            data,
            out=out,
            max_images=200 if max_images == "auto" else max_images,
            batch_size=8 if batch_size == "auto" else batch_size,
            tolerance=tolerance,
        )
    batch_size = 32 if batch_size == "auto" else batch_size
    from limbeck.exporting.onnx import export_onnx
    from limbeck.exporting.verify import require, verify_onnx, write_verification
    from limbeck.models.door import class_names_of
    from limbeck.verbs.measured_data import measured_data

    shown = measured_data(model, data, batch_size=batch_size, most=1000 if max_images == "auto" else max_images)
    is_run = os.path.isdir(model)
    name = Path(model).resolve().name if is_run else file_stem(model)
    path = Path(out) if out is not None else (Path(model) / "export" if is_run else Path()) / f"{name}.{to}"
    export_onnx(
        shown.model, path, class_names=class_names_of(model) or shown.data.class_names, dynamic_size=dynamic_size
    )
    verification = verify_onnx(path, shown.model, shown.loader, tolerance=tolerance)
    beside = write_verification(verification, path)
    height, width = shown.model.facts.input_size
    screen.table(
        f"{path}, verified on {verification.images} images",
        ("largest difference", "tolerance", "same first answer", "accuracy torch", "accuracy onnxruntime", "MB"),
        [
            (
                f"{verification.max_abs_difference:.2e}",
                f"{verification.tolerance:.2e}",
                screen.per_cent(verification.top1_agreement),
                screen.per_cent(verification.accuracy_torch),
                screen.per_cent(verification.accuracy_onnx),
                f"{verification.file_bytes / 1e6:.2f}",
            )
        ],
    )
    if verification.other_sizes:
        screen.table(
            f"At other sizes than {height}x{width}",
            ("size", "images", "largest difference", "tolerance", "same first answer"),
            [
                (
                    f"{size.height}x{size.width}",
                    size.images,
                    f"{size.max_abs_difference:.2e}",
                    f"{size.tolerance:.2e}",
                    screen.per_cent(size.top1_agreement),
                )
                for size in verification.other_sizes
            ],
        )
    screen.say(f"Verification: {beside}")
    require(verification)
    return path if quantize is None else _int8(model, path, shown, batch_size, calibration_images, max_drop)


def _int8(
    model: str, path: Path, shown: "MeasuredData", batch_size: int, calibration_images: int, max_drop: float | None
) -> Path:
    """Quantise a verified float file and measure the result."""
    import dataclasses

    from limbeck.data.loader import make_val_loader
    from limbeck.data.options import ViewOptions
    from limbeck.data.split import spread
    from limbeck.exporting.int8_report import measure_quantization, require_drop, write_quantization
    from limbeck.exporting.quantize import quantize_int8
    from limbeck.verbs.measured_data import run_recipe

    # Training images in the view of the validation: what the model will be shown, and nothing it is measured on.
    recipe = run_recipe(model)
    options = ViewOptions(eval_crop=recipe.get("eval_crop", 0.875))
    side = int(recipe.get("view_size", max(shown.model.facts.input_size)))
    seen = dataclasses.replace(shown.data, val=spread(shown.data.train, calibration_images))
    calibration = make_val_loader(seen, options, side, batch_size=batch_size)
    int8 = quantize_int8(path, _at_input_size(calibration, shown), max_images=calibration_images)
    measured = measure_quantization(path, int8, _at_input_size(shown.loader, shown))
    beside = write_quantization(measured, int8)
    drop = None if measured.drop is None else f"{measured.drop:+.2f} points"
    screen.table(
        f"{int8.name} on {measured.images} images",
        ("", "accuracy", "MB", "ms, one thread"),
        [
            (
                "float",
                screen.per_cent(measured.accuracy_float),
                f"{measured.float_bytes / 1e6:.2f}",
                f"{measured.float_ms:.2f}",
            ),
            (
                "int8",
                screen.per_cent(measured.accuracy_int8),
                f"{measured.int8_bytes / 1e6:.2f}",
                f"{measured.int8_ms:.2f}",
            ),
        ],
    )
    lost = "Accuracy lost: unknown, the images have no labels" if drop is None else f"Accuracy lost: {drop}"
    screen.say(
        f"{lost}. Same first answer: {screen.per_cent(measured.agreement)}. "
        f"Size x {measured.int8_bytes / measured.float_bytes:.2f}, time x {measured.latency_ratio:.2f}."
    )
    screen.say(f"Calibrated on {measured.calibration_images} training images. Measurement: {beside}")
    if max_drop is not None:
        require_drop(measured, max_drop)
    return int8


def _at_input_size(loader: Any, shown: "MeasuredData") -> Iterator[dict[str, Any]]:
    """The loader's batches as the file takes them."""
    from limbeck.exporting.sizes import resized

    for batch in loader:
        yield {**batch, "image": resized(batch["image"], shown.model.facts.input_size, shown.model)}
