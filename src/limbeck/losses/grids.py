"""Feature maps of different grids brought to a common one, and maps read as tokens.

Every loss that compares positions goes through here, so that a mismatch is resolved in one tested place.
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import UserError

GridRule = Literal["resize", "merge", "error"]
Grid = tuple[int, int]


def tokens(feature_map: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N C"]:
    """A map as its cells in raster order, N = H·W."""
    return feature_map.flatten(2).transpose(1, 2)


def grid_of(feature_map: Float[Tensor, "B C H W"]) -> Grid:
    """(height, width) of a map."""
    return feature_map.shape[-2], feature_map.shape[-1]


def common_grid(student: Grid, teacher: Grid, max_cells: int | None = None) -> Grid:
    """The grid on which two maps are compared: the coarser of both in each direction.

    Nothing is invented that way: detail is only ever averaged or merged away.

    Args:
        student: (height, width) of the student's map.
        teacher: (height, width) of the teacher's map.
        max_cells: divide both sides by the smallest whole number that leaves at most so many cells.
    """
    height, width = min(student[0], teacher[0]), min(student[1], teacher[1])
    if max_cells is None:
        return height, width
    factor = 1
    while -(-height // factor) * -(-width // factor) > max_cells:
        factor += 1
    return -(-height // factor), -(-width // factor)


def resize(feature_map: Float[Tensor, "B C H W"], grid: Grid) -> Float[Tensor, "B C h w"]:
    """A map on another grid: averaged over cells where the grid shrinks, bilinear where it grows.

    Args:
        feature_map: (B, C, H, W).
        grid: (h, w) wanted.

    Returns:
        (B, C, h, w); the very same tensor when the grid is the same already.
    """
    height, width = grid_of(feature_map)
    shrunk = (min(height, grid[0]), min(width, grid[1]))
    if shrunk != (height, width):
        feature_map = F.adaptive_avg_pool2d(feature_map, shrunk)
    if shrunk != grid:
        feature_map = F.interpolate(feature_map, grid, mode="bilinear", align_corners=False)
    return feature_map


def merge(feature_map: Float[Tensor, "B C H W"], grid: Grid) -> Float[Tensor, "B D h w"]:
    """A map on a coarser grid with nothing lost: neighbouring cells are concatenated along the channels.

    Args:
        feature_map: (B, C, H, W).
        grid: (h, w), divisors of (H, W).

    Returns:
        (B, C·(H/h)·(W/w), h, w).

    Raises:
        UserError: the grid does not divide the map.
    """
    batch, channels, height, width = feature_map.shape
    if height % grid[0] or width % grid[1]:
        raise UserError(not_mergeable((height, width), grid))
    rows, columns = height // grid[0], width // grid[1]
    cells = feature_map.reshape(batch, channels, grid[0], rows, grid[1], columns)
    return cells.permute(0, 1, 3, 5, 2, 4).reshape(batch, channels * rows * columns, grid[0], grid[1])


def match_grid(
    student: Float[Tensor, "B Cs Hs Ws"],
    teacher: Float[Tensor, "B Ct Ht Wt"],
    how: GridRule = "resize",
    max_cells: int | None = None,
) -> tuple[Float[Tensor, "B Ds h w"], Float[Tensor, "B Dt h w"]]:
    """Two maps on their common grid (`common_grid`).

    Args:
        student: the student's map.
        teacher: the teacher's map.
        how: `resize` averages, `merge` concatenates neighbours, `error` refuses maps of different grids.
        max_cells: see `common_grid`; under `error`, equal maps that are too large are averaged.

    Returns:
        Student's and teacher's map, (B, ·, h, w) each.

    Raises:
        UserError: the maps differ and `how` is `error`, or they cannot be merged.
    """
    if how == "error" and grid_of(student) != grid_of(teacher):
        raise UserError(mismatch(grid_of(student), grid_of(teacher)))
    grid = common_grid(grid_of(student), grid_of(teacher), max_cells)
    if how == "merge":
        return merge(student, grid), merge(teacher, grid)
    return resize(student, grid), resize(teacher, grid)


def check_grids(student: Grid, teacher: Grid, how: GridRule, max_cells: int | None = None) -> None:
    """Refuse two grids that `match_grid` would refuse, before any image is seen.

    Raises:
        UserError: as `match_grid`.
    """
    if how == "error" and student != teacher:
        raise UserError(mismatch(student, teacher))
    grid = common_grid(student, teacher, max_cells)
    for own in (student, teacher):
        if how == "merge" and (own[0] % grid[0] or own[1] % grid[1]):
            raise UserError(not_mergeable(own, grid))


def mismatch(student: Grid, teacher: Grid) -> str:
    """The message for two grids that must be equal and are not."""
    return (
        f"The student's map has {student[0]}x{student[1]} cells and the teacher's {teacher[0]}x{teacher[1]}, and "
        "on_grid_mismatch is 'error'. Give both models the input sizes that make the grids equal, choose other "
        "pairs, or allow 'resize' or 'merge'."
    )


def not_mergeable(own: Grid, grid: Grid) -> str:
    """The message for a grid that is no whole multiple of the one wanted."""
    return (
        f"A map of {own[0]}x{own[1]} cells cannot be merged into {grid[0]}x{grid[1]}: merging concatenates whole "
        "groups of neighbours. Use 'resize', or choose input sizes whose grids divide each other."
    )
