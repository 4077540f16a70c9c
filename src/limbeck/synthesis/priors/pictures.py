"""Which pictures a term on pixels reads: those that are being made, or what the teacher was shown of them."""

from typing import Literal

from torch import Tensor

from limbeck.synthesis.priors.base import Seen
from limbeck.synthesis.priors.precision import full

Which = Literal["images", "shown"]


def pictures(seen: Seen, which: Which) -> Tensor:
    """(B, 3, H, W), normalised, in at least float32: before (`images`) or after (`shown`) augmentation."""
    return full(seen.images if which == "images" else seen.shown)
