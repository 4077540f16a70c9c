"""The progress bar: loss, accuracy, images per second, and the share of time in data, teacher and student."""

from typing import Any

import lightning
from lightning.pytorch.callbacks import RichProgressBar

from limbeck.training.module import TrainingModule


class Progress(RichProgressBar):
    """Lightning's rich bar with this project's numbers, which the module keeps in `status`."""

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        """Numbers to the right of the bar."""
        assert isinstance(pl_module, TrainingModule)
        return {name: _short(value) for name, value in pl_module.status.items()}


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 20 else f"{value:.3g}"
