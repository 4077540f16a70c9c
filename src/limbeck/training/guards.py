"""Stops a run whose loss is no longer a number, while there is still something to look at."""

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from limbeck.errors import UserError
from limbeck.files import atomic_write


class NotFiniteError(UserError):
    """A loss term was NaN or infinite."""


@dataclass
class _Pending:
    step: int
    values: Tensor
    names: list[str]
    batch: Callable[[], dict[str, Tensor]]
    ready: torch.cuda.Event | None


class FiniteGuard:
    """Looks at every step's loss terms without making the device wait.

    On the CPU a bad step is stopped before its backward pass. On a GPU the values travel to the host in the
    background, and a bad step is found at most two steps later; its batch has been kept until then.

    Args:
        folder: where the offending batch is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pending: deque[_Pending] = deque()

    def watch(self, step: int, terms: dict[str, Tensor], batch: Callable[[], dict[str, Tensor]]) -> None:
        """Take note of a step's terms (scalars by name).

        Args:
            step: its number.
            terms: scalars.
            batch: gives the batch as tensors, its pictures as `images`; called only where it is to be written.

        Raises:
            NotFiniteError: a term of this step, or on a GPU of one of the two before, is not finite.
        """
        values = torch.stack([value.detach().float() for value in terms.values()])
        ready = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self.pending.append(_Pending(step, values, list(terms), batch, ready))
        self.check(keep=2 if ready is not None else 0)

    def check(self, keep: int = 0) -> None:
        """Judge all noted steps but the last `keep`."""
        while len(self.pending) > keep:
            noted = self.pending.popleft()
            if noted.ready is not None:
                noted.ready.synchronize()
            if not torch.isfinite(noted.values).all():
                self._stop(noted)

    def _stop(self, noted: _Pending) -> None:
        values = {name: float(value) for name, value in zip(noted.names, noted.values, strict=True)}
        bad = [name for name, value in values.items() if value != value or abs(value) == float("inf")]
        culprit = next((name for name in bad if name != "total"), "total")
        batch = self.folder / f"bad_batch_step{noted.step}.safetensors"
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in noted.batch().items()}
        with atomic_write(batch) as file:
            file.write(save(tensors, metadata={"step": str(noted.step), "terms": json.dumps(values)}))
        input_is_bad = not bool(torch.isfinite(tensors["images"]).all())
        cause = (
            "The images themselves hold values that are not finite."
            if input_is_bad
            else f"Common causes: a learning rate or the weight of {culprit!r} too high, or half precision (try --precision 32, "
            "--clip_grad 1, a longer --warmup_epochs)."
        )
        raise NotFiniteError(
            f"The loss term {culprit!r} is {values[culprit]} at step {noted.step} (all terms: "
            f"{', '.join(f'{name} {value:.4g}' for name, value in values.items())}), so training stopped. {cause} The batch is "
            f"in {batch}; the checkpoints of earlier epochs are untouched."
        )
