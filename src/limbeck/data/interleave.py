"""An order of images from several groups in which every batch holds each group's share.

A batch's share of a group, q = B n_g / N, is rarely a whole number. Each batch gets its whole part and, of what is left
over, one more image of some groups: those whose stretch on a circle, as long as their remainders, is hit by one of the
batch's evenly spaced points (systematic sampling). A batch thus holds floor(q) or ceil(q) images of a group and exactly B
in all. The points of all batches together are evenly spaced as well, so that the batches use up each group in step.
"""

import torch
from torch import Tensor


def interleave(order: Tensor, groups: Tensor, batch_size: int, world_size: int, generator: torch.Generator) -> Tensor:
    """Reorder images so that every rank's every whole batch holds each group's share, rounded down or up.

    Ranks take every `world_size`-th image. What is left after the whole batches is shared out among them likewise, as
    evenly as it can be.

    Args:
        order: (N,) int64, the images in a random order, which is kept within a group.
        groups: (N,) int64, the group of image 0, of image 1, and so on; any numbers.
        batch_size: images per batch and rank.
        world_size: ranks.
        generator: of the choices between rounding down and up, and of the places in a batch.

    Returns:
        (N,) the same images.
    """
    group_of = torch.unique(groups, return_inverse=True)[1][order]
    sizes = torch.bincount(group_of)
    rounds = len(order) // (batch_size * world_size)
    counts = batch_counts(sizes, batch_size, rounds * world_size, generator)
    # The batch of each image; its group's images are used up in their order, and the last ones belong to no whole batch.
    batch_of = torch.full_like(order, rounds * world_size)
    for group, per_batch in enumerate(counts.T):
        members = (group_of == group).nonzero().flatten()
        batch_of[members[: per_batch.sum()]] = torch.arange(len(per_batch)).repeat_interleave(per_batch)
    left = (batch_of == rounds * world_size).nonzero().flatten()
    # Dealt out group after group, so that no rank gets more than one image of a group beyond the others.
    left = left[group_of[left].argsort(stable=True)]
    batch_of[left] += torch.arange(len(left)) % world_size
    # By batch, and within a batch at random: what is mixed with what depends on places.
    places = torch.randperm(len(order), generator=generator)
    by_batch = order[places[batch_of[places].argsort(stable=True)]]
    whole = rounds * world_size * batch_size
    columns = by_batch[:whole].view(rounds, world_size, batch_size).transpose(1, 2).reshape(-1)
    targets = (torch.arange(len(left)) % world_size).argsort(stable=True)
    rest = torch.empty_like(left)
    rest[targets] = by_batch[whole:]
    return torch.cat([columns, rest])


def batch_counts(sizes: Tensor, batch_size: int, batches: int, generator: torch.Generator) -> Tensor:
    """How many images of each group each batch holds.

    Args:
        sizes: (G,) int64, images of each group, N in all.
        batch_size: B.
        batches: at most N / B.
        generator: of what is random.

    Returns:
        (batches, G) int64: floor or ceil of B sizes / N; rows sum to B, columns to floor or ceil of batches B sizes / N.
    """
    total = int(sizes.sum())
    if batches == 0:
        return torch.zeros(0, len(sizes), dtype=torch.int64)
    whole, remainder = sizes * batch_size // total, sizes * batch_size % total
    # In units of 1 / (N batches), so that all numbers are whole: a batch's points lie one circle's length apart.
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), remainder.cumsum(0)]) * batches
    length = total * batches
    shift = torch.randint(total, (), generator=generator)
    points = torch.randperm(batches, generator=generator) * total + shift
    hits = (ends[None, :] - 1 - points[:, None]).div(length, rounding_mode="floor")
    return whole + hits.diff(dim=1)
