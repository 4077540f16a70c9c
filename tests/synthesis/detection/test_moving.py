"""What is drawn in a picture is where the moved box says."""

import pytest
import torch

from limbeck.detection import Target
from limbeck.synthesis.detection.moving import inside_boxes, larger_part, mirror, roll

HEIGHT, WIDTH = 12, 20


def drawn(x1: int, y1: int, x2: int, y2: int) -> tuple[torch.Tensor, Target]:
    """A white rectangle on black, with its box and mask."""
    picture = torch.zeros(1, 3, HEIGHT, WIDTH)
    picture[..., y1:y2, x1:x2] = 1
    box = torch.tensor([[x1, y1, x2, y2]], dtype=torch.float32)
    return picture, Target(box, torch.tensor([1]), picture[:, 0] > 0, torch.tensor([0.5]))


def white(picture: torch.Tensor) -> torch.Tensor:
    return picture[0, 0] > 0


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, -2), (-2, 5), (12, 20), (-12, -40)])
def test_an_object_that_stays_in_the_picture_is_where_its_box_and_mask_are(down: int, right: int) -> None:
    picture, target = drawn(4, 3, 10, 8)
    moved, (found,) = roll(picture, [target], down, right)
    assert torch.equal(inside_boxes(found.boxes, (HEIGHT, WIDTH))[0], white(moved))
    assert found.masks is not None
    assert torch.equal(found.masks[0], white(moved))
    assert found.scores is not None
    assert (found.labels.tolist(), found.scores.tolist()) == ([1], [0.5])


def test_rolls_add_up_and_undo_each_other() -> None:
    picture, target = drawn(4, 3, 10, 8)
    there, targets = roll(picture, [target], 2, 3)
    back, (found,) = roll(there, targets, -2, -3)
    assert torch.equal(back, picture)
    assert torch.equal(found.boxes, target.boxes)


@pytest.mark.parametrize(
    ("down", "right", "expected"),
    [
        (0, 12, [16, 3, 20, 8]),  # 4 of 6 columns are left
        (0, 14, [0, 3, 4, 8]),  # 4 of 6 columns have come in on the left
        (0, -8, [16, 3, 20, 8]),
        (7, 0, [4, 0, 10, 3]),  # of 5 rows 2 and 3
        (7, 14, [0, 0, 4, 3]),
        (0, 13, [17, 3, 20, 8]),  # of equal halves the one that has not left
    ],
)
def test_of_a_box_that_is_cut_the_larger_part_stays(down: int, right: int, expected: list[int]) -> None:
    picture, target = drawn(4, 3, 10, 8)
    moved, (found,) = roll(picture, [target], down, right)
    assert found.boxes.tolist() == [expected]
    x1, y1, x2, y2 = expected
    assert white(moved)[y1:y2, x1:x2].all()
    assert found.masks is not None
    assert torch.equal(found.masks[0], white(moved) & inside_boxes(found.boxes, (HEIGHT, WIDTH))[0])


def test_a_box_never_vanishes_and_keeps_half_of_each_side() -> None:
    start = torch.arange(-40, 60, 0.5)
    for length in (0.5, 7.0, 19.5, 20.0):
        low, high = larger_part(start, start + length, WIDTH)
        assert (high - low >= length / 2).all()
        assert (low >= 0).all() and (high <= WIDTH).all()


def test_an_object_without_a_pixel_in_that_part_is_left_out() -> None:
    picture, target = drawn(4, 3, 10, 8)
    assert target.masks is not None
    target.masks[0, :, 5:] = False
    _, (found,) = roll(picture, [target], 0, 14)  # columns 18 to 23: the mask's only one is 18, the larger part 0 to 4
    assert len(found) == 0
    assert found.masks is not None and found.scores is not None
    assert (len(found.masks), len(found.scores), len(found.labels)) == (0, 0, 0)


def test_a_mirrored_object_is_where_its_box_and_mask_are() -> None:
    picture, target = drawn(4, 3, 10, 8)
    mirrored, (found,) = mirror(picture, [target])
    assert torch.equal(inside_boxes(found.boxes, (HEIGHT, WIDTH))[0], white(mirrored))
    assert found.masks is not None
    assert torch.equal(found.masks[0], white(mirrored))
    again, (same,) = mirror(mirrored, [found])
    assert torch.equal(again, picture)
    assert torch.equal(same.boxes, target.boxes)


def test_gradients_come_back_to_the_pixels_that_were_moved() -> None:
    picture, target = drawn(4, 3, 10, 8)
    picture.requires_grad_()
    moved, targets = roll(picture, [target], 2, 13)
    moved, _ = mirror(moved, targets)
    (gradient,) = torch.autograd.grad((moved**2).sum(), picture)
    assert torch.equal(gradient, 2 * picture)


def test_pixels_that_a_box_touches() -> None:
    touched = inside_boxes(torch.tensor([[1.5, 2.0, 3.5, 3.0]]), (4, 6))[0]
    assert touched.nonzero().tolist() == [[2, 1], [2, 2], [2, 3]]
