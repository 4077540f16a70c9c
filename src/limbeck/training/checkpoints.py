"""When a run is saved, and how it stops cleanly when asked to."""

import shlex
import signal
import threading
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from limbeck.errors import UserError
from limbeck.files import whole_or_nothing
from limbeck.run import Run
from limbeck.training.module import TrainingModule


class StoppedByUserError(UserError):
    """The user asked the run to stop; a checkpoint was written."""


class Checkpoints(Callback):
    """Writes last.ckpt after every epoch (and every so many steps), best.ckpt at the best validation score.

    A checkpoint appears only when it is complete. Ctrl-C (or SIGTERM) lets the current step end, writes last.ckpt and
    stops; a second Ctrl-C stops at once, and the previous checkpoint stands.

    Args:
        run: the run's folder.
        every_steps: also save every so many batches within an epoch.
        accumulate: batches per update; within an update nothing is saved.
    """

    def __init__(self, run: Run, every_steps: int | None = None, accumulate: int = 1) -> None:
        self.run = run
        self.every_steps = every_steps
        self.accumulate = accumulate
        self.asked_to_stop = False
        self._previous_handlers: dict[int, Any] = {}

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Listen for Ctrl-C, from the main thread only, as Python wants it."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[number] = signal.signal(number, self._on_signal)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Give the signals back."""
        while self._previous_handlers:
            signal.signal(*self._previous_handlers.popitem())

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Close the step's bookkeeping; save within an epoch where that is due."""
        assert isinstance(pl_module, TrainingModule)
        pl_module.end_batch(batch, batch_idx)
        loader: Any = trainer.train_dataloader
        loader.batches_done = batch_idx + 1
        is_last = batch_idx + 1 == trainer.num_training_batches
        between_updates = (batch_idx + 1) % self.accumulate == 0
        if is_last or not between_updates:
            return
        if self.asked_to_stop:
            self._save(trainer)
            self._stop()
        if self.every_steps and (batch_idx + 1) % self.every_steps == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save after the epoch and its validation."""
        assert isinstance(pl_module, TrainingModule)
        pl_module.end_epoch()
        records = pl_module.records
        is_best = False
        if records is not None:
            measured = records.of("val")
            is_best = bool(measured) and measured[-1]["epoch"] == trainer.current_epoch
            main = pl_module.task.main_score
            is_best = is_best and measured[-1][main] > max((row[main] for row in measured[:-1]), default=-1.0)
            records.write_csv()
        is_best = trainer.strategy.broadcast(is_best)
        self._save(trainer)
        if is_best:
            self._save(trainer, best=True)
        if self.asked_to_stop and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            self._stop()

    def _save(self, trainer: lightning.Trainer, *, best: bool = False) -> None:
        target = self.run.best_checkpoint if best else self.run.last_checkpoint
        if trainer.is_global_zero:
            with whole_or_nothing(target) as partial:
                trainer.save_checkpoint(partial)
        else:
            trainer.save_checkpoint(target)  # takes part in the collective call; only the first process writes

    def _stop(self) -> None:
        raise StoppedByUserError(
            f"Stopped on request; {self.run.last_checkpoint} holds everything. Start the same command with "
            f"--out {shlex.quote(str(self.run.path))} --resume to go on."
        )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked_to_stop:
            raise KeyboardInterrupt
        self.asked_to_stop = True
        print("\nStopping after this step, with a checkpoint. Press Ctrl-C again to stop at once.", flush=True)
