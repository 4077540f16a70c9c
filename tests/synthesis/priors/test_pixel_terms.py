"""Total variation, the norm of pixels, borders of patches, and the class loss."""

import math

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.outputs import Level, ModelFacts, Outputs
from limbeck.synthesis.priors.base import Needs, Prior, Seen
from limbeck.synthesis.priors.classes import ClassLoss
from limbeck.synthesis.priors.patch_border import PatchBorder, patch_border
from limbeck.synthesis.priors.pixel_norm import PixelNorm, pixel_norm
from limbeck.synthesis.priors.total_variation import (
    AbsoluteVariation,
    TargetVariation,
    TotalVariation,
    absolute_variation,
    total_variation,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(images: Tensor, shown: Tensor | None = None) -> Seen:
    return Seen(images, images if shown is None else shown, Outputs(torch.zeros(len(images), 2)))


def facts(num_classes: int = 3, stride: int = 4) -> ModelFacts:
    return ModelFacts("a", num_classes, (16, 16), (Level("blocks.0", 8, stride, (4, 4), "block"),), 8)


def published_total_variation(images: Tensor) -> float:
    """Norms of a whole batch, value by value."""
    batch, channels, height, width = images.shape
    total = 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        squares = 0.0
        for b in range(batch):
            for c in range(channels):
                for y in range(height - down):
                    for x in range(max(0, -right), width - max(0, right)):
                        squares += float(images[b, c, y + down, x + right] - images[b, c, y, x]) ** 2
        total += math.sqrt(squares)
    return total


def test_total_variation_is_the_published_norm_at_the_references_batch_and_size() -> None:
    # Images that vary alike: flips and negatives of one.
    one = noise(1, 3, 5, 7)
    batch = torch.cat([one, -one, one + 3, 2 - one])
    expected = published_total_variation(batch)
    assert total_variation(batch, (4, 5, 7)).mean().item() == pytest.approx(expected, rel=1e-12)


def test_total_variation_has_the_published_gradient_at_the_reference() -> None:
    one = noise(1, 3, 5, 7)
    ours = torch.cat([one, -one]).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    total_variation(ours, (2, 5, 7)).mean().backward()
    pairs = [(theirs[..., 1:] - theirs[..., :-1]), (theirs[..., 1:, :] - theirs[..., :-1, :])]
    pairs += [theirs[..., 1:, 1:] - theirs[..., :-1, :-1], theirs[..., 1:, :-1] - theirs[..., :-1, 1:]]
    sum(pair.norm() for pair in pairs).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_total_variation_of_a_ramp_has_a_closed_form_at_every_size() -> None:
    # x + 2y: the differences are 1, 2, 3 and 1 everywhere, over 3 channels.
    for height, width in ((8, 8), (17, 31)):
        ramp = torch.arange(width).double() + 2 * torch.arange(height).double().unsqueeze(1)
        images = ramp.expand(2, 3, height, width)
        sides, inner = math.sqrt(2 * 3 * 4 * 3), math.sqrt(2 * 3 * 9)
        expected = 1 * sides + 2 * sides + 0.5 * (3 + 1) * inner
        assert total_variation(images, (2, 4, 4), 0.5).tolist() == pytest.approx([expected] * 2)
        assert absolute_variation(images).item() == pytest.approx(1 + 2 + 3 + 1)


PIXEL_TERMS: list[Prior] = [
    AbsoluteVariation(),
    TotalVariation(),
    TargetVariation(),
    PixelNorm(),
    PatchBorder(facts()),
]


@pytest.mark.parametrize("prior", PIXEL_TERMS, ids=lambda prior: type(prior).__name__)
def test_terms_on_pixels_do_not_depend_on_the_batch_and_have_true_gradients(prior: Prior) -> None:
    assert prior.needs == Needs()
    images = noise(2, 3, 8, 8).requires_grad_()
    value = prior(seen(images))
    torch.testing.assert_close(prior(seen(torch.cat([images] * 3))), value)
    assert torch.autograd.gradcheck(lambda x: prior(seen(x)), (images,))
    (gradient,) = torch.autograd.grad(value, images)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("prior", PIXEL_TERMS, ids=lambda prior: type(prior).__name__)
def test_terms_on_pixels_have_a_finite_gradient_at_a_picture_of_one_colour(prior: Prior) -> None:
    images = torch.zeros(2, 3, 8, 8, requires_grad=True)
    prior(seen(images)).backward()
    assert images.grad.isfinite().all()


@pytest.mark.parametrize("size", [(16, 16), (64, 48)])
def test_noise_costs_the_same_at_every_resolution(size: tuple[int, int]) -> None:
    images = noise(8, 3, *size)
    differences = math.sqrt(2) * (2 * math.sqrt(224 * 223) + 2 * 223) * math.sqrt(32 * 3)
    assert total_variation(images).mean().item() == pytest.approx(differences, rel=0.03)
    assert pixel_norm(images).item() == pytest.approx(math.sqrt(3) * 224, rel=0.03)
    assert patch_border(images, 4).item() == pytest.approx(2 * math.sqrt(2), rel=0.05)


def test_pixel_norm_is_the_published_one_at_its_resolution() -> None:
    images = noise(3, 3, 8, 6)
    assert pixel_norm(images, (8, 6)).item() == pytest.approx(sum(image.norm().item() for image in images) / 3)


def test_terms_read_the_pictures_that_they_are_told_to() -> None:
    plain, rough = torch.zeros(1, 3, 8, 8), noise(1, 3, 8, 8)
    assert TotalVariation(of="images")(seen(plain, rough)) == 0
    assert TotalVariation(of="shown")(seen(plain, rough)) > 0


def test_the_target_is_drawn_when_a_batch_begins_and_reached_by_images_of_that_variation() -> None:
    prior = TargetVariation()
    torch.manual_seed(0)
    prior.advance(0)
    target = prior.target
    prior.advance(0.5)
    assert prior.target == target
    assert 2500 <= target <= 3000
    prior.advance(0)
    assert prior.target != target
    images = noise(2, 3, 16, 16)
    images = images / total_variation(images).view(-1, 1, 1, 1)
    assert prior(seen(images * prior.target)).item() == pytest.approx(0, abs=1e-6)
    assert prior(seen(images * (prior.target + 100))).item() == pytest.approx(100)
    with pytest.raises(UserError, match="0 <= low <= high"):
        TargetVariation(low=3, high=2)


def test_only_jumps_between_patches_count() -> None:
    images = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    images[..., 2] = 5.0  # inside the first patch of 4
    assert patch_border(images, 4) == 0
    images[..., 4:] = 3.0
    assert patch_border(images, 4).item() == pytest.approx(3)
    assert patch_border(images, 8) == 0
    assert PatchBorder(facts(stride=8)).patch == 8
    with pytest.raises(UserError, match="leave the term out"):
        PatchBorder(facts(stride=1))


def test_class_loss_is_cross_entropy_and_nothing_with_one_class() -> None:
    logits = noise(4, 3).requires_grad_()
    asked = torch.tensor([0, 2, 1, 1])
    given = Seen(torch.zeros(1), torch.zeros(1), Outputs(logits), asked)
    expected = -sum(logits.softmax(1)[row, label].log().item() for row, label in enumerate(asked.tolist())) / 4
    prior = ClassLoss(facts())
    assert prior(given).item() == pytest.approx(expected)
    assert not prior.notes
    single = ClassLoss(facts(num_classes=1))
    given = Seen(torch.zeros(1), torch.zeros(1), Outputs(logits[:, :1]), torch.zeros(4, dtype=torch.long))
    assert single(given) == 0
    assert "one class" in single.notes[0]
