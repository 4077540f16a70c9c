"""GradViT's patch prior: no jumps where a transformer's patches meet.

Hatamizadeh et al., "GradViT: Gradient Inversion of Vision Transformers", CVPR 2022, arXiv:2203.11894. A network that
embeds each patch for itself does not mind an edge at its border, so images made for it have one there. Inferred: the
exact form (published is a sum of norms of the jumps; here their root mean square, which depends on no size) and the weight.
"""

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.outputs import ModelFacts
from limbeck.synthesis.priors.base import Needs, Prior, Seen
from limbeck.synthesis.priors.pictures import Which, pictures


def patch_border(images: Tensor, patch: int) -> Tensor:
    """Mean over images of the root mean square jump across horizontal borders, plus that across vertical ones.

    A jump is x[.., k·P, ..] - x[.., k·P - 1, ..] for k = 1, 2, ...

    Args:
        images: (B, C, H, W).
        patch: P in pixels.

    Returns:
        A scalar; zero where images have one patch only.
    """
    down = images[:, :, patch::patch] - images[:, :, patch - 1 : -1 : patch]
    right = images[..., patch::patch] - images[..., patch - 1 : -1 : patch]
    total = images.new_zeros(())
    for jumps in (down, right):
        if jumps.numel():
            norms = torch.linalg.vector_norm(jumps.flatten(1), dim=1)
            total = total + norms.mean() / jumps[0].numel() ** 0.5
    return total


class PatchBorder(Prior):
    """`patch_border` of what the teacher was shown, since its patches lie there.

    Args:
        facts: of the teacher.
        patch: side of a patch in pixels; "auto" is the stride of its first level.
        of: the pictures as they are made, or as they were shown.

    Raises:
        UserError: the patch has no border.
    """

    needs = Needs()

    def __init__(self, facts: ModelFacts, *, patch: int | str = "auto", of: Which = "shown") -> None:
        size = facts.levels[0].stride if patch == "auto" else patch
        if isinstance(size, str) or size < 2:
            raise UserError(
                f"The patches of {facts.name} are {size} pixels wide. Give patch=N with N of at least 2, or leave the term out."
            )
        self.patch = size
        self.of: Which = of

    def __call__(self, seen: Seen) -> Tensor:
        """See `patch_border`."""
        return patch_border(pictures(seen, self.of), self.patch)
