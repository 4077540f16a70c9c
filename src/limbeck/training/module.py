"""One training step, one validation, as a Lightning module around a Distiller."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from limbeck.distiller import Distillation
from limbeck.errors import UserError
from limbeck.gradients import TASK
from limbeck.losses.names import parse_shares
from limbeck.recipe import DistillRecipe, TrainingRecipe
from limbeck.run import Run
from limbeck.tasks.base import Batch, Task
from limbeck.training.balance import Balancer, check_shares
from limbeck.training.evidence import finding_of
from limbeck.training.guards import FiniteGuard
from limbeck.training.memory import peak_memory, reset_peak_memory
from limbeck.training.optimisers import make_optimizer, make_scheduler
from limbeck.training.randomness import seed_everything
from limbeck.training.records import Records
from limbeck.training.timing import StageTimer
from limbeck.training.watcher import Watcher

GRADIENT_IMAGES = 32


class TrainingModule(lightning.LightningModule):
    """Trains a distiller's student.

    Args:
        distiller: student, teacher and losses.
        task: what is learned from a batch, and how answers are measured.
        recipe: fully resolved.
        run: where records and bad batches go.
        updates_per_epoch: optimiser steps in an epoch.
    """

    def __init__(
        self,
        distiller: Distillation[Any],
        task: Task,
        recipe: TrainingRecipe,
        run: Run,
        *,
        updates_per_epoch: int,
    ) -> None:
        super().__init__()
        # Convolutions are up to eight times as fast with the channels last, on CPUs as on GPUs.
        self.distiller = distiller.to(memory_format=torch.channels_last)
        self.task = task
        self.recipe = recipe
        self.updates_per_epoch = updates_per_epoch
        self.ema = (
            AveragedModel(distiller.student, multi_avg_fn=averaging(recipe.ema), use_buffers=True)
            if recipe.ema
            else None
        )
        if self.ema is not None:
            self.ema.requires_grad_(False)
        self.guard = FiniteGuard(run.path)
        self.records: Records | None = None
        self.watcher: Watcher | None = None
        shares = recipe.balance if isinstance(recipe, DistillRecipe) else None
        self.balancer = Balancer(distiller, check_shares(parse_shares(shares), distiller)) if shares else None
        self.seconds = 0.0
        self._peak_memory_before = 0
        self.status: dict[str, float] = {}
        self._timer = StageTimer(torch.device("cpu"))
        self._interval_sums: dict[str, Tensor] = {}
        self._interval_steps = 0
        self._interval_began = self._batch_ended = time.perf_counter()
        self._val_answers: list[tuple[Tensor, list[Any], list[Any] | None]] = []

    @property
    def measured_student(self) -> torch.nn.Module:
        """The network that is measured last and saved: the moving average where there is one."""
        return self.distiller.student if self.ema is None else self.ema.module

    @property
    def peak_memory(self) -> int | None:
        """Bytes, of all the sittings of this run; see `limbeck.training.memory`."""
        peak = peak_memory(self.device)
        return None if peak is None else max(peak, self._peak_memory_before)

    @property
    def findings(self) -> list[dict[str, Any]] | None:
        """What the watcher found, each with its epoch; None where nothing watched."""
        if self.watcher is None or self.records is None:
            return None
        return [{"epoch": row["epoch"], **finding_of(row).record()} for row in self.records.of("finding")]

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser over student and projectors, its schedule stepped per update.

        Raises:
            UserError: there is nothing to train.
        """
        if not any(True for _ in self.distiller.trained_parameters()):
            raise UserError(
                "No parameter of the student requires a gradient, so there is nothing to learn. Load it so that they do."
            )
        optimizer = make_optimizer(self.distiller.trained_parameters(), self.recipe)
        scheduler = make_scheduler(optimizer, self.recipe, self.updates_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Bring the teacher, which is no submodule, to the device."""
        reset_peak_memory(self.device)
        if self.distiller.teacher is not None:
            self.distiller.teacher.to(self.device)

    def on_train_start(self) -> None:
        """Also for a run resumed within an epoch, whose epoch start lies in the past."""
        self.on_train_epoch_start()
        if self.watcher is not None and self.records is not None:
            self.watcher.begin(self.records, self.global_step)

    def on_train_epoch_start(self) -> None:
        """Set the losses' warm-up."""
        self.distiller.set_epoch(self.current_epoch)
        self._timer = StageTimer(self.device)
        self._interval_began = self._batch_ended = time.perf_counter()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make this step's random numbers a function of its place in the run."""
        self._timer.add("data", time.perf_counter() - self._batch_ended)
        seed_everything("step", self.recipe.seed, self.global_rank, self.current_epoch, batch_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One pass of teacher, student and losses over a batch."""
        inputs, target = self.task.learn_from(batch)
        if not self.distiller.supervised:
            target = None
        self._look_at_gradients(inputs, target, batch, batch_idx)
        with self._timer.stage("teacher"):
            teacher_outputs = self.distiller.teacher_step(inputs)
        terms, _ = self.distiller.student_step(inputs, target, teacher_outputs, batch["index"])
        self.guard.watch(self.global_step, terms, partial(self.task.tensors, inputs, target))
        for name, value in terms.items():
            self._interval_sums[name] = self._interval_sums.get(name, 0) + value.detach()
        self._interval_steps += 1
        return terms["total"]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights, then their average."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update_parameters(self.distiller.student)

    def end_batch(self, batch: Batch, batch_idx: int) -> None:
        """Write a line of metrics where one is due.

        Called by the checkpoint callback, which must come after it: Lightning runs callbacks before the module's own hook.
        """
        is_last = batch_idx + 1 == self.trainer.num_training_batches
        self._batch_ended = time.perf_counter()
        if is_last:
            self.guard.check()
        if is_last or (batch_idx + 1) % self.recipe.log_every == 0:
            self._end_interval(len(batch["index"]))

    def end_epoch(self) -> None:
        """Look whether the run works; called by the checkpoint callback, before it saves."""
        if self.watcher is not None and self.records is not None:
            self.watcher.end_epoch(self.records, self.current_epoch, self.global_step, self.distiller.student)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the student's answers."""
        answers = self.task.answers(self.distiller.student, batch)
        averaged = self.task.answers(self.ema.module, batch) if self.ema is not None else None
        self._val_answers.append((batch["index"].cpu(), answers, averaged))

    def on_validation_epoch_end(self) -> None:
        """Measure the answers of all devices together."""
        parts = self._val_answers
        self._val_answers = []
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, parts)
            parts = [part for rank in gathered for part in rank]
        index = torch.cat([part[0] for part in parts])
        # Images in their own order, each once; -1 marks what only filled up a device's share.
        numbers, first = np.unique(index.numpy(), return_index=True)
        order = first[numbers >= 0].tolist()
        own, averaged = ([answer for part in parts for answer in part[place] or ()] for place in (1, 2))
        main = self.task.main_score
        values = self.task.measure([own[place] for place in order])
        if self.ema is not None:
            raw = values[main]
            values = self.task.measure([averaged[place] for place in order]) | {f"raw_{main}": raw}
        self._record("val", values | {"seconds": self.seconds})
        self.status[f"val {main}"] = values[main]
        self._interval_began = self._batch_ended = time.perf_counter()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the metrics need beside the weights."""
        checkpoint["limbeck"] = {
            "seconds": self.seconds,
            "peak_memory": self.peak_memory,
            "interval_sums": {name: value.cpu() for name, value in self._interval_sums.items()},
            "interval_steps": self._interval_steps,
            "task": self.task.state_dict(),
            "balance": self.balancer.state_dict() if self.balancer is not None else {},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        kept = checkpoint["limbeck"]
        self.seconds = kept["seconds"]
        self._peak_memory_before = kept.get("peak_memory") or 0
        self._interval_sums = {name: value.to(self.device) for name, value in kept["interval_sums"].items()}
        self._interval_steps = kept["interval_steps"]
        self.task.load_state_dict(kept.get("task", {}))
        if self.balancer is not None:
            self.balancer.load_state_dict(kept["balance"])

    def _end_interval(self, batch_size: int) -> None:
        now = time.perf_counter()
        steps, self._interval_steps = self._interval_steps, 0
        sums, self._interval_sums = self._interval_sums, {}
        values = {f"loss/{name}": float(value) / steps for name, value in sums.items()}
        elapsed = max(1e-9, now - self._interval_began)
        self.seconds += elapsed
        spent = self._timer.read()
        shares = {name: min(1.0, spent.get(name, 0.0) / elapsed) for name in ("data", "teacher")}
        shares["student"] = max(0.0, 1.0 - sum(shares.values()))
        weights = dict(self.distiller.current_weights)
        if "task" in sums:
            weights["task"] = self.distiller.task_weight
        self.status |= {"loss": values["loss/total"], "img/s": steps * batch_size * self.trainer.world_size / elapsed}
        self.status |= {f"{name} %": 100 * share for name, share in shares.items()}
        self._record(
            "train",
            values
            | {f"weight/{name}": weight for name, weight in weights.items()}
            | {"lr": self.optimizers().param_groups[0]["lr"], "images_per_second": self.status["img/s"]}  # type: ignore[union-attr]
            | {f"time/{name}": share for name, share in shares.items()},
        )
        self._interval_began = now

    def _look_at_gradients(self, inputs: Any, target: Any, batch: Batch, batch_idx: int) -> None:
        """Measure them on a few images, record them once an epoch, and keep the chosen shares of the pull.

        The first process measures. With chosen shares all take part in the exchange that follows.
        """
        balances = self.balancer is not None and self.balancer.is_due(batch_idx)
        if not balances and batch_idx > 0:
            return
        gradients = None
        if self.global_rank == 0:
            few = self.task.few(inputs, target, GRADIENT_IMAGES)
            gradients = self.distiller.measure_gradients(*few, batch["index"][:GRADIENT_IMAGES])
        if self.balancer is not None and balances:
            factors = self.balancer.factors(gradients) if gradients is not None else {}
            self.distiller.set_factors(self.trainer.strategy.broadcast(factors))
        if gradients is not None and batch_idx == 0:
            weights = {TASK: self.distiller.task_weight} | self.distiller.current_weights
            self._record("gradients", gradients.weighted(weights).record())

    def _record(self, kind: str, values: dict[str, float]) -> None:
        if self.records is not None:
            self.records.add(kind, self.current_epoch, self.global_step, values)
        for logger in self.loggers:
            logger.log_metrics({f"{kind}/{name}": value for name, value in values.items()}, step=self.global_step)


def averaging(decay: float) -> Callable[[Any, Any, Any], None]:
    """How tensors of one type are averaged; whole numbers (class slots, window indices, counters) are copied."""
    average = get_ema_multi_avg_fn(decay)

    def update(averaged: Any, own: Any, updates: Any) -> None:
        if averaged[0].is_floating_point():
            average(averaged, own, updates)
        else:
            for place, value in zip(averaged, own, strict=True):
                place.copy_(value)

    return update
