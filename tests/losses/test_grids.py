import pytest
import torch

from limbeck.errors import UserError
from limbeck.losses.grids import check_grids, common_grid, match_grid, merge, resize, tokens


def test_tokens_are_cells_in_raster_order() -> None:
    feature_map = torch.randn(2, 3, 4, 5)
    assert torch.equal(tokens(feature_map)[1, 2 * 5 + 3], feature_map[1, :, 2, 3])


def test_shrinking_averages_whole_cells() -> None:
    ramp = torch.arange(24.0).reshape(1, 1, 4, 6)
    expected = ramp.reshape(1, 1, 2, 2, 3, 2).mean((3, 5))
    torch.testing.assert_close(resize(ramp, (2, 3)), expected)


def test_resizing_keeps_constants_and_linear_ramps() -> None:
    constant = torch.full((1, 2, 3, 5), 7.0)
    for grid in [(2, 2), (6, 10), (2, 9), (7, 3)]:
        torch.testing.assert_close(resize(constant, grid), torch.full((1, 2, *grid), 7.0))
    # Doubling a ramp halves its slope away from the clamped border.
    ramp = torch.arange(4.0).reshape(1, 1, 1, 4)
    torch.testing.assert_close(resize(ramp, (1, 8))[0, 0, 0, 1:7], torch.arange(6) / 2 + 0.25)


def test_equal_grids_are_left_alone() -> None:
    feature_map = torch.randn(1, 2, 3, 4)
    assert resize(feature_map, (3, 4)) is feature_map
    assert torch.equal(merge(feature_map, (3, 4)), feature_map)


def test_merging_concatenates_neighbours_and_loses_nothing() -> None:
    feature_map = torch.randn(2, 3, 4, 6)
    merged = merge(feature_map, (2, 3))
    assert merged.shape == (2, 12, 2, 3)
    cell = feature_map[1, :, 2:4, 4:6].flatten()
    assert sorted(merged[1, :, 1, 2].tolist()) == sorted(cell.tolist())
    # Channel order is the same in every cell, so dot products of cells are those of the groups.
    first, second = merged[0, :, 0, 0], merged[0, :, 1, 1]
    expected = (feature_map[0, :, 0:2, 0:2] * feature_map[0, :, 2:4, 2:4]).sum()
    torch.testing.assert_close(first @ second, expected)


def test_both_maps_come_to_the_coarser_grid() -> None:
    assert common_grid((4, 8), (6, 2)) == (4, 2)
    assert common_grid((56, 56), (56, 56), 196) == (14, 14)
    assert common_grid((7, 9), (7, 9), 20) == (4, 5)
    own, other = match_grid(torch.randn(1, 2, 4, 8), torch.randn(1, 3, 6, 2), "resize")
    assert (own.shape, other.shape) == ((1, 2, 4, 2), (1, 3, 4, 2))
    own, other = match_grid(torch.randn(1, 2, 4, 8), torch.randn(1, 3, 2, 2), "merge")
    assert (own.shape, other.shape) == ((1, 16, 2, 2), (1, 3, 2, 2))


@pytest.mark.parametrize(("how", "other"), [("error", (4, 5)), ("merge", (3, 4))])
def test_what_matching_refuses_is_refused_before_training_too(how, other) -> None:
    with pytest.raises(UserError) as late:
        match_grid(torch.randn(1, 2, 4, 4), torch.randn(1, 2, *other), how)
    with pytest.raises(UserError) as early:
        check_grids((4, 4), other, how)
    assert str(late.value) == str(early.value)
    check_grids((4, 4), (2, 2), "merge")
    check_grids((4, 4), (4, 4), "error")
