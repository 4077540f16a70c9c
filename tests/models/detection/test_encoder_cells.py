import pytest
import torch

pytest.importorskip("transformers", reason="the extra hf is not installed")

from limbeck.detection import Tokens
from limbeck.models.detection.transformers.encoder_cells import Cells


def test_every_cell_finds_itself_again() -> None:
    cells = Cells.of([(8, 12), (4, 6), (2, 3), (1, 2)], (8, 16, 32))
    assert cells.strides == (8, 16, 32, 64)
    places = torch.arange(96 + 24 + 6 + 2)[None]
    tokens = cells.tokens(places)
    assert torch.equal(cells.places(tokens), places)
    assert tokens.strides[0, [0, 95, 96, 119, 120, 126]].tolist() == [8, 8, 16, 16, 32, 64]
    assert (tokens.rows[0, 96 + 7], tokens.columns[0, 96 + 7]) == (1, 1)


def test_a_stride_that_is_missing_becomes_the_nearest_at_the_same_place() -> None:
    cells = Cells.of([(8, 8), (4, 4)], (8, 16))
    asked = Tokens(torch.tensor([[4, 32, 32]]), torch.tensor([[6, 1, 5]]), torch.tensor([[15, 0, 0]]))
    # Stride 4, row 6, column 15 is at pixels (26, 62): row 3, column 7 of stride 8. Stride 32 spans two cells of
    # stride 16, whose common corner is its centre; beyond the map the last row answers.
    expected = [3 * 8 + 7, 64 + 3 * 4 + 1, 64 + 3 * 4 + 1]
    assert cells.places(asked).tolist() == [expected]
