"""Sizes that a detector is shown, and pictures padded to one rectangle."""

import pytest
import torch

from limbeck.detection import Resize, pad


def test_a_side_that_is_not_given_keeps_its_proportion() -> None:
    own = Resize(800, 1333)
    assert own.with_sides(None, None) == own
    assert own.with_sides(400, None) == Resize(400, 666)
    assert own.with_sides(None, 666) == Resize(400, 666)
    assert own.with_sides(256, 384) == Resize(256, 384)
    square = Resize(640, 640, stretch=True)
    assert square.with_sides(320, None) == Resize(320, 320, stretch=True)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(480, 640, (800, 1066)), (640, 480, (1066, 800)), (100, 1000, (133, 1333)), (800, 800, (800, 800))],
)
def test_the_shorter_side_is_met_unless_the_longer_would_be_too_long(
    height: int, width: int, expected: tuple[int, int]
) -> None:
    assert Resize(800, 1333).size(height, width) == expected


def test_padding_keeps_each_image_in_its_corner() -> None:
    images = [torch.rand(3, 40, 70), torch.rand(3, 64, 33)]
    pictures = pad(images)
    assert pictures.size == (64, 96) and pictures.sizes == ((40, 70), (64, 33))
    inside = pictures.inside()
    for whole, own, image in zip(pictures.images, inside, images, strict=True):
        height, width = image.shape[-2:]
        assert torch.equal(whole[:, :height, :width], image)
        assert own.sum() == height * width and own[:height, :width].all()
        assert not whole[:, ~own].any()
