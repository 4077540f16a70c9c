"""Stochastic depth: how often each residual block of our own networks is dropped in training (Huang et al., arXiv:1603.09382)."""

from limbeck.errors import UserError


def drop_path_rates(drop_path: float, blocks: int) -> list[float]:
    """The rate of each residual block, rising linearly from 0 to `drop_path`.

    Raises:
        UserError: the rate is outside [0, 1).
    """
    if not 0 <= drop_path < 1:
        raise UserError(
            f"drop_path is {drop_path}; it is the share of residual branches dropped and must be in [0, 1)."
        )
    return [drop_path * index / max(blocks - 1, 1) for index in range(blocks)]
