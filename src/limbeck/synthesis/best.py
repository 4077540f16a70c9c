"""Which iterate is kept: copies of it, since the optimiser goes on writing into the tensor that it was given.

A reference instead of a copy silently becomes the last iterate; several published programs do that.
"""

import torch
from torch import Tensor


class Best:
    """The pictures with the lowest loss so far, of the batch as a whole or each for itself."""

    def __init__(self) -> None:
        self.images: Tensor | None = None
        self._loss: Tensor | None = None

    def offer(self, images: Tensor, loss: Tensor) -> None:
        """Keep copies of those that are better than what was kept.

        Args:
            images: (B, 3, H, W); not kept itself.
            loss: a scalar for the batch, or (B,) for each picture; of the same kind and on the same terms each time.
                One that is not a number is never better.
        """
        images, loss = images.detach(), loss.detach()
        if self.images is None or self._loss is None or self.images.shape != images.shape:
            self.images, self._loss = images.clone(), torch.nan_to_num(loss, nan=torch.inf).clone()
            return
        better = loss < self._loss
        self.images = torch.where(better.view(-1, 1, 1, 1), images, self.images)
        self._loss = torch.where(better, loss, self._loss)
