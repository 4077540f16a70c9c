"""`limbeck statistics`: a few kilobytes about a model's data, with which images can be made for it later."""

from pathlib import Path
from typing import Literal

from limbeck.errors import UserError
from limbeck.verbs import screen


def statistics(
    model: str,
    data: str | None = None,
    out: str = "auto",
    batch_size: int = 128,
    max_images: int | None = None,
    view_size: int | Literal["auto"] = "auto",
    bad_images: Literal["stop", "skip"] = "stop",
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto",
    num_workers: int | Literal["auto"] = "auto",
) -> Path:
    """Save mean and variance of what a classifier computes on its training images, channel by channel, at every level.

    They are for a network without BatchNorm what the running statistics are for one with it: `limbeck synthesize` and
    `limbeck distill --data none` make images towards them. No image can be read from them.

    Args:
        model: a run's folder or any other model name.
        data: the data set; a run's own when left out.
        out: the file to write; auto is statistics.safetensors in the model's run folder, where it is found later.
        batch_size: images at a time.
        max_images: only so many training images, spread evenly.
        view_size: side in pixels of the picture shown to the model; auto is the run's, or the model's input side.
        bad_images: what to do about files that cannot be decoded.
        accelerator: where to run.
        num_workers: processes that load images.

    Returns:
        The file.

    Raises:
        UserError: the model has no run's folder and no file is named, or data is missing.
        FileNotFoundError: a file or folder does not exist.
    """
    from limbeck.data.names import check_data_name
    from limbeck.models.names import parse_model_name

    parsed = parse_model_name(model)
    if data is not None:
        check_data_name(data)
    if out == "auto" and parsed.kind != "run":
        raise UserError(f"{model} is no run's folder, so name the file to write with --out.")
    if max_images is not None and max_images < 1:
        raise UserError(f"--max_images is {max_images}; it must be at least 1.")
    from limbeck.synthesis.build import STATISTICS_FILE
    from limbeck.synthesis.moments import collect, save
    from limbeck.training.fit import choose_accelerator, main_device
    from limbeck.verbs.measured_data import measured_data

    device = main_device(choose_accelerator(accelerator))
    shown = measured_data(
        model,
        data,
        view_size=view_size,
        bad_images=bad_images,
        batch_size=batch_size,
        num_workers=num_workers,
        most=max_images,
        part="train",
    )
    moments = collect(shown.model.to(device).eval(), shown.loader, device)
    file = Path(model) / STATISTICS_FILE if out == "auto" else Path(out)
    save(file, moments)
    screen.notes(shown.data.notes)
    screen.say(
        f"Mean and variance of {len(moments.levels)} levels over {moments.images} images, "
        f"{file.stat().st_size / 1024:.0f} KiB: {file}"
    )
    return file
