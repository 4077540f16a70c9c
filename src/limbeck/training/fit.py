"""A whole training: distiller, data and recipe in; a trained student and its records out."""

import logging
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import Logger

from limbeck.data.loader import ResumableLoader
from limbeck.distiller import Distillation
from limbeck.recipe import TrainingRecipe
from limbeck.run import Run, process_rank
from limbeck.tasks.base import Batch, Task
from limbeck.training.checkpoints import Checkpoints
from limbeck.training.module import TrainingModule
from limbeck.training.progress import Progress
from limbeck.training.records import Records
from limbeck.training.watcher import Watcher

PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def choose_accelerator(asked: str) -> str:
    """cpu, gpu or mps; "auto" is the fastest there is."""
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "gpu"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_precision(asked: str, accelerator: str) -> str:
    """32, bf16 or 16; "auto" is bf16 where the GPU computes in it."""
    if asked != "auto":
        return asked
    return "bf16" if accelerator == "gpu" and torch.cuda.is_bf16_supported() else "32"


def main_device(accelerator: str) -> torch.device:
    """The first device of a kind of accelerator."""
    return torch.device({"gpu": "cuda", "mps": "mps", "cpu": "cpu"}[accelerator])


def fit(
    distiller: Distillation[Any],
    task: Task,
    recipe: TrainingRecipe,
    run: Run,
    train_loader: ResumableLoader,
    val_loader: Iterable[Batch] | None,
    watcher: Watcher | None = None,
) -> TrainingModule:
    """Train the distiller's student.

    Args:
        distiller: built for this data.
        task: what is learned from a batch, and how answers are measured.
        recipe: fully resolved.
        run: an existing folder; with `recipe.resume` it holds the checkpoint to start from.
        train_loader: images to learn from, resumable within an epoch.
        val_loader: images to measure on after every `eval_every` epochs; None for unlabelled data without any.
        watcher: looks whether the run works; None leaves that out.

    Returns:
        The trained module; its `measured_student` is the network to keep.

    Raises:
        UserError: the loss is not a number, the disk is full, or the user stopped the run.
    """
    updates = -(-len(train_loader) // recipe.accumulate)
    module = TrainingModule(distiller, task, recipe, run, updates_per_epoch=updates)
    if recipe.compile:
        distiller.compile()
    resume_from = run.last_checkpoint if recipe.resume else None
    step = _take_up(train_loader, resume_from, recipe.epochs) if resume_from else -1
    if process_rank() == 0:
        os.environ["LIMBECK_RUN_FOLDER"] = str(run.path.resolve())
        module.records = Records(run.metrics_file, upto_step=step)
        module.watcher = watcher
    callbacks: list[lightning.Callback] = [Checkpoints(run, recipe.checkpoint_steps, recipe.accumulate)]
    if recipe.progress:
        callbacks.append(Progress(refresh_rate=1))
    _quieten_lightning()
    try:
        trainer = lightning.Trainer(
            accelerator=recipe.accelerator,
            devices=recipe.devices,
            num_nodes=recipe.nodes,
            strategy=_strategy(recipe, distiller),
            precision=PRECISIONS[recipe.precision],
            max_epochs=recipe.epochs,
            accumulate_grad_batches=recipe.accumulate,
            gradient_clip_val=recipe.clip_grad,
            check_val_every_n_epoch=recipe.eval_every,
            num_sanity_val_steps=0,
            logger=_make_loggers(recipe, run),
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=recipe.progress,
            use_distributed_sampler=False,
            default_root_dir=run.path,
            log_every_n_steps=recipe.log_every,
        )
        trainer.fit(module, train_loader, val_loader, ckpt_path=resume_from, weights_only=True)
    finally:
        os.environ.pop("LIMBECK_RUN_FOLDER", None)
    return module


def _take_up(loader: ResumableLoader, checkpoint: Path, epochs: int) -> int:
    """Set the loader to where the checkpoint's training stood; the updates made by then.

    Lightning does so only where a run stopped within an epoch, and otherwise would begin with the first epoch's batches.
    """
    kept = torch.load(checkpoint, map_location="cpu", weights_only=True)
    (state,) = kept["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    if state["epoch"] < epochs:
        loader.load_state_dict(state)
    return int(kept["global_step"])


def _strategy(recipe: TrainingRecipe, distiller: Distillation[Any]) -> str:
    if recipe.devices * recipe.nodes == 1:
        return "auto"
    # Without labels, losses on features leave the student's classifier without a gradient, for which others would wait.
    return "ddp" if distiller.supervised else "ddp_find_unused_parameters_true"


def _make_loggers(recipe: TrainingRecipe, run: Run) -> list[Logger]:
    loggers: list[Logger] = []
    for name in recipe.loggers:
        match name:
            case "tensorboard":
                from lightning.pytorch.loggers import TensorBoardLogger

                loggers.append(TensorBoardLogger(run.path, name="tensorboard", version=""))
            case "wandb":
                from lightning.pytorch.loggers import WandbLogger

                loggers.append(WandbLogger(save_dir=run.path, name=run.path.name))
            case "mlflow":
                from lightning.pytorch.loggers import MLFlowLogger

                loggers.append(MLFlowLogger(experiment_name="limbeck", run_name=run.path.name))
    return loggers


def _quieten_lightning() -> None:
    """Keep the terminal for what the user asked about: hardware announcements and advertisements go."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*log_every_n_steps.*",
        ".*LeafSpec.*",
        ".*lr_scheduler.step.*",
        ".*no `val_dataloader`.*",
    ):
        warnings.filterwarnings("ignore", message=message)
