"""Views through which gradients flow: against the library's crops, and against a loop over pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import resized_crop

from limbeck.synthesis.generators.crops import random_resized_crops, random_shifts, resample, sampling_weights


def pictures(height: int = 12, width: int = 8, count: int = 4) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def weights(first: float, length: float, size: int) -> Tensor:
    return sampling_weights(torch.tensor([first]), torch.tensor([length]), size)


def test_a_resized_crop_is_the_librarys() -> None:
    image = pictures(count=1)
    ours = resample(image, weights(2, 7, 12), weights(1, 5, 8))
    theirs = resized_crop(image, 2, 1, 7, 5, [12, 8], antialias=False)
    torch.testing.assert_close(ours, theirs)


def test_a_shift_is_padding_with_black_and_cropping() -> None:
    image = pictures(count=1)
    ours = resample(image, weights(-3, 12, 12), weights(2, 8, 8))
    torch.testing.assert_close(ours, F.pad(image, (0, 2, 3, 0))[..., :12, 2:10])


def test_the_whole_picture_is_itself() -> None:
    torch.testing.assert_close(resample(pictures(1 + 11), weights(0, 12, 12), weights(0, 8, 8)), pictures())


def test_every_shift_is_one_of_the_possible_ones() -> None:
    images = pictures(8, 8, 64)
    torch.manual_seed(1)
    views = random_shifts(images)
    kinds = set()
    for image, view in zip(images, views, strict=True):
        padded = F.pad(image, (1, 1, 1, 1))
        found = {
            (top, left, flipped)
            for top in range(3)
            for left in range(3)
            for flipped in (False, True)
            if torch.allclose(view.flip(-1) if flipped else view, padded[:, top : top + 8, left : left + 8])
        }
        assert len(found) == 1
        kinds |= found
    # An eighth of 8 pixels is one: 3 x 3 places, mirrored or not.
    assert len(kinds) > 12


def test_resized_crops_stay_within_the_pictures_range_and_differ() -> None:
    images = pictures(16, 16, 1).expand(8, -1, -1, -1)
    torch.manual_seed(1)
    views = random_resized_crops(images)
    assert views.amin() >= images.amin() and views.amax() <= images.amax()
    assert len({view.sum().item() for view in views}) == 8


def test_gradients_flow_back_to_what_is_shown_only() -> None:
    image = pictures(count=1).requires_grad_()
    resample(image, weights(2, 4, 12), weights(1, 3, 8)).sum().backward()
    assert image.grad is not None
    inside = torch.zeros_like(image)
    inside[..., 2:6, 1:4] = 1
    torch.testing.assert_close(image.grad.ne(0).float(), inside)
    # Every pixel of the result is a mean with weights that sum to one.
    torch.testing.assert_close(image.grad.sum(), torch.tensor(3 * 12 * 8.0))
