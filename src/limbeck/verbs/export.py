"""`limbeck export`: an artefact for a device, proven to give the trained model's answers."""

from pathlib import Path
from typing import Literal

from limbeck.data.names import check_data_name
from limbeck.models.names import parse_model_name
from limbeck.verbs import screen


def export(
    model: str,
    to: Literal["onnx"] = "onnx",
    data: str | None = None,
    out: str | None = None,
    max_images: int = 1000,
    batch_size: int = 32,
    tolerance: float | None = None,
) -> Path:
    """Export a model and verify the artefact on real validation images.

    The artefact takes images as float (B, 3, H, W) in [0, 1] at the model's input size, for any B, and returns logits
    (B, K). Beside it stands a JSON file with the largest difference of the logits, the agreement of the first answers and
    the accuracy of both.

    Args:
        model: a run's folder or any other model name.
        to: the format.
        data: real images to verify with; a run's own when left out.
        out: the file; by default export/NAME.onnx in the run's folder, or NAME.onnx here.
        max_images: how many validation images to verify with, at most; spread evenly over all of them.
        batch_size: images at a time.
        tolerance: largest difference of a logit that still passes; by default 1e-3 of the largest logit (at least 1e-3).

    Returns:
        The artefact.

    Raises:
        UserError: the artefact's answers differ from the model's, or the model cannot be exported.
        FileNotFoundError: a file or folder does not exist.
    """
    parse_model_name(model)
    if data is not None:
        check_data_name(data)
    from limbeck.exporting.onnx import export_onnx
    from limbeck.exporting.verify import require, verify_onnx, write_verification
    from limbeck.models.door import class_names_of
    from limbeck.verbs.measured_data import measured_data

    shown = measured_data(model, data, batch_size=batch_size, most=max_images)
    is_run = Path(model).is_dir()
    name = Path(model).resolve().name if is_run else model.replace(":", "_").replace("/", "_").partition("@")[0]
    path = Path(out) if out is not None else (Path(model) / "export" if is_run else Path()) / f"{name}.{to}"
    export_onnx(shown.model, path, class_names=class_names_of(model) or shown.data.class_names)
    verification = verify_onnx(path, shown.model, shown.loader, tolerance=tolerance)
    beside = write_verification(verification, path)
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
    screen.say(f"Verification: {beside}")
    require(verification)
    return path
