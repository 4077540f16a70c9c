import torch
import torch.nn.functional as F

from limbeck.synthesis.inversion.augment import Augmentation, Drawn, at_input_size, draw, scaled_roll, show

MEAN = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)
STD = torch.tensor([0.2, 0.3, 0.25]).view(1, 3, 1, 1)


def test_nothing_drawn_shows_the_pictures_themselves() -> None:
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(show(images, Drawn()), images)


def test_roll_comes_before_flip() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    shown = show(images, Drawn(roll=(1, 2), flip=True))
    assert torch.equal(shown, images.roll((1, 2), (2, 3)).flip(3))


def test_color_shift_in_pixel_units_is_the_shift_of_the_pixels() -> None:
    images = torch.rand(2, 3, 4, 4)
    augmentation = Augmentation(color_mean=1, color_scale=1, pixel_units=True)
    torch.manual_seed(0)
    drawn = draw(augmentation, (0, 0), 2, 1.0, MEAN, STD)
    torch.manual_seed(0)
    shift, scale = torch.rand(2, 3, 1, 1) * 2 - 1, (torch.rand(2, 3, 1, 1) * 2 - 1).exp()
    shown = show((images - MEAN) / STD, drawn) * STD + MEAN
    torch.testing.assert_close(shown, (images - shift) / scale)


def test_offset_falls_with_what_is_left() -> None:
    torch.manual_seed(0)
    start = draw(Augmentation(channel_offset=0.5), (0, 0), 100, 1.0, MEAN, STD).offset
    torch.manual_seed(0)
    late = draw(Augmentation(channel_offset=0.5), (0, 0), 100, 0.1, MEAN, STD).offset
    assert start is not None and late is not None
    torch.testing.assert_close(late, 0.1 * start)
    assert 0.4 < start.std() < 0.6


def test_repeats_share_roll_but_not_colours() -> None:
    images = torch.rand(2, 3, 4, 4)
    drawn = draw(Augmentation(color_mean=1, color_scale=1, repeats=3), (1, 1), 2, 1.0, MEAN, STD)
    shown = show(images, drawn)
    assert shown.shape == (6, 3, 4, 4)
    rolled = images.roll(drawn.roll, (2, 3)).repeat(3, 1, 1, 1)
    assert drawn.shift is not None and drawn.scale is not None
    torch.testing.assert_close(shown * drawn.scale + drawn.shift, rolled)
    assert not torch.allclose(shown[:2], shown[2:4])


def test_rolls_stay_in_range_and_axes_may_share_one() -> None:
    drawn = [draw(Augmentation(), (2, 3), 1, 1.0, MEAN, STD).roll for _ in range(200)]
    assert {row for row, _ in drawn} == set(range(-2, 3))
    assert {column for _, column in drawn} == set(range(-3, 4))
    shared = [draw(Augmentation(shared_offset=True), (2, 2), 1, 1.0, MEAN, STD).roll for _ in range(50)]
    assert all(row == column for row, column in shared)
    assert scaled_roll(16, (224, 224)) == (16, 16)
    assert scaled_roll(16, (32, 64)) == (2, 5)


def test_resize_commutes_with_normalisation() -> None:
    images = torch.rand(2, 3, 8, 8) * 0.5 + 0.25
    pixels = F.interpolate(images, (12, 12), mode="bicubic", align_corners=False, antialias=True)
    torch.testing.assert_close(at_input_size((images - MEAN) / STD, (12, 12), "bicubic"), (pixels - MEAN) / STD)
