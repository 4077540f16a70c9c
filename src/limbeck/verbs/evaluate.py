"""`limbeck evaluate`: a number for a model on labelled images."""

from typing import Any, Literal

from limbeck.errors import UserError
from limbeck.verbs import screen
from limbeck.verbs.names import names_of, task_of


def evaluate(
    model: str,
    data: str | None = None,
    batch_size: int | Literal["auto"] = "auto",
    view_size: int | Literal["auto"] = "auto",
    eval_crop: float | None = None,
    val_fraction: float | None = None,
    split_seed: int | None = None,
    bad_images: Literal["stop", "skip"] = "stop",
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto",
    num_workers: int | Literal["auto"] = "auto",
    task: Literal["auto", "classification", "detection"] = "auto",
) -> dict[str, Any]:
    """Measure a model on the validation images of a data set.

    Args:
        model: a run's folder or any other model name.
        data: the data set; a run's own when left out.
        batch_size: images at a time; auto is 128, for detectors 8.
        view_size: [classification] side in pixels of the picture shown to the model; auto is the run's, or the model's
            input side.
        eval_crop: [classification] share of the shorter side that the centre crop keeps; the run's, or 0.875.
        val_fraction: share held out where the data gives no split; the run's, or 0.1.
        split_seed: of that split; the run's, or 0.
        bad_images: what to do about files that cannot be decoded.
        accelerator: where to run.
        num_workers: processes that load images.
        task: what the model does; auto is what its run says, else what the data is for.

    Returns:
        Of a classifier accuracy, top5, nll, calibration_error (shares and nats), images, images_per_second; of a detector
        the scores of boxes and masks (see `limbeck.verbs.detection.evaluate`).

    Raises:
        UserError: the data has other classes than the model, or no labels.
        FileNotFoundError: a file or folder does not exist.
    """
    task = task_of(task, model, data)
    check_model, check_data = names_of(task)
    check_model(model)
    if data is not None:
        check_data(data)
    if task == "detection":
        if view_size != "auto" or eval_crop is not None:
            raise UserError(
                "--view_size and --eval_crop are for classifiers; a detector is shown whole images at its own size."
            )
        from limbeck.verbs.detection.evaluate import evaluate as evaluate_detector

        return evaluate_detector(
            model,
            data,
            batch_size=8 if batch_size == "auto" else batch_size,
            val_fraction=val_fraction,
            split_seed=split_seed,
            bad_images=bad_images,
            accelerator=accelerator,
            num_workers=num_workers,
        )
    import dataclasses
    import time

    from limbeck.tasks.classification import measure, predict_logits
    from limbeck.training.fit import choose_accelerator, main_device
    from limbeck.verbs.measured_data import measured_data

    device = main_device(choose_accelerator(accelerator))
    shown = measured_data(
        model,
        data,
        view_size=view_size,
        eval_crop=eval_crop,
        val_fraction=val_fraction,
        split_seed=split_seed,
        bad_images=bad_images,
        batch_size=128 if batch_size == "auto" else batch_size,
        num_workers=num_workers,
    )
    began = time.perf_counter()
    logits, labels = predict_logits(shown.model.to(device), shown.loader, device)
    rate = len(labels) / (time.perf_counter() - began)
    measured = measure(logits, labels)
    screen.notes(shown.data.notes)
    screen.table(
        f"{shown.model.facts.name} on {shown.data.name}, {measured.images} validation images",
        ("accuracy", "top 5", "log-likelihood", "calibration error", "images/s"),
        [
            (
                screen.per_cent(measured.accuracy),
                screen.per_cent(measured.top5),
                f"{-measured.nll:.4f}",
                f"{measured.calibration_error:.4f}",
                f"{rate:.0f}",
            )
        ],
    )
    return {**dataclasses.asdict(measured), "images_per_second": rate}
