"""Views are pure functions of image and seed, with the geometry that their options promise."""

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.options import ViewOptions, resolve_options
from limbeck.data.views import eval_view, train_view
from limbeck.errors import UserError

RNG = np.random.default_rng(0)
IMAGE = Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8))
PIXELS = torch.from_numpy(np.array(IMAGE)).permute(2, 0, 1) / 255
EVERYTHING = ViewOptions(rand_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, random_erasing=1.0)
STILL = ViewOptions(crop="none", flip=0.0)


@pytest.mark.parametrize("options", [ViewOptions(), ViewOptions(crop="resized"), EVERYTHING])
def test_a_view_depends_on_the_seed_alone_and_leaves_the_global_random_states(options: ViewOptions) -> None:
    view = train_view(options, 32, (32, 32), "cats")
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = [view(IMAGE, seed) for seed in range(20)]
    drawn = random.random(), np.random.rand(), torch.rand(())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert (random.random(), np.random.rand(), torch.rand(())) == drawn
    copy = pickle.loads(pickle.dumps(view))
    for seed in reversed(range(20)):
        assert torch.equal(copy(IMAGE, seed), first[seed])
    assert len({image.numpy().tobytes() for image in first}) > 10
    for image in first:
        assert image.dtype == torch.float32
        assert image.shape == (3, 32, 32)
        assert 0 <= image.min() <= image.max() <= 1


def test_no_augmentation_gives_the_very_pixels() -> None:
    assert torch.equal(train_view(STILL, 32, (32, 32), "cats")(IMAGE, 5), PIXELS)
    assert torch.equal(eval_view(ViewOptions(), 32, (32, 32))(IMAGE, 5), PIXELS)


def test_flip_mirrors_in_its_share_of_seeds() -> None:
    view = train_view(ViewOptions(crop="none", flip=0.25), 32, (32, 32), "cats")
    mirrored = [torch.equal(view(IMAGE, seed), PIXELS.flip(2)) for seed in range(400)]
    whole = [torch.equal(view(IMAGE, seed), PIXELS) for seed in range(400)]
    assert all(a != b for a, b in zip(mirrored, whole, strict=True))
    assert 70 < sum(mirrored) < 130  # 100 expected, standard deviation 8.7


def test_pad_crop_shifts_by_at_most_the_padding() -> None:
    view = train_view(ViewOptions(crop="pad", pad=2, flip=0.0), 32, (32, 32), "cats")
    padded = torch.nn.functional.pad(PIXELS, (2, 2, 2, 2))
    windows = {padded[:, y : y + 32, x : x + 32].numpy().tobytes() for y in range(5) for x in range(5)}
    assert {view(IMAGE, seed).numpy().tobytes() for seed in range(300)} == windows


@pytest.mark.parametrize(
    ("size", "native", "name", "crop", "flip"),
    [
        (32, (32, 32), "cifar100.npz", "pad", 0.5),
        ((64, 48), (64, 48), "birds", "pad", 0.5),
        (64, (32, 32), "birds", "pad", 0.5),
        (224, (32, 32), "birds", "resized", 0.5),
        (224, (224, 224), "birds", "resized", 0.5),
        (8, (8, 8), "digits", "pad", 0.0),
        (28, (28, 28), "data/MNIST.npz", "pad", 0.0),
        (32, (32, 32), "hf:owner/svhn", "pad", 0.0),
        (32, (32, 32), "mnist/birds", "pad", 0.5),
    ],
)
def test_auto(size: int | tuple[int, int], native: tuple[int, int], name: str, crop: str, flip: float) -> None:
    resolved = resolve_options(ViewOptions(), size, native, name)
    assert (resolved.crop, resolved.flip) == (crop, flip)
    given = resolve_options(ViewOptions(crop="none", flip=0.3), size, native, name)
    assert (given.crop, given.flip) == ("none", 0.3)


def test_eval_crop_is_the_centre_of_the_resized_image() -> None:
    # A ramp from left to right, 0 to 255, twice as wide as high: the middle eval_crop / 2 of it remains.
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 512, dtype=np.uint8), (256, 1))).convert("RGB")
    row = eval_view(ViewOptions(eval_crop=0.5), 64, (256, 512))(ramp, 0)[0, 32]
    expected = 0.5 + (np.arange(64) + 0.5 - 32) / 256
    np.testing.assert_allclose(row.numpy(), expected, atol=0.01)


def test_views_cover_any_shape() -> None:
    for width, height in ((1, 1), (3, 500), (500, 3), (33, 32)):
        image = Image.new("RGB", (width, height), (255, 0, 51))
        for crop in ("resized", "pad", "none"):
            view = train_view(ViewOptions(crop=crop, pad=0, flip=0.0), (16, 24), (32, 32), "cats")  # type: ignore[arg-type]
            assert view(image, 0)[:, 8, 12].tolist() == pytest.approx([1, 0, 0.2])
        assert eval_view(ViewOptions(), (16, 24), (32, 32))(image, 0)[:, 8, 12].tolist() == pytest.approx([1, 0, 0.2])


def test_erasing_replaces_one_rectangle_by_noise() -> None:
    view = train_view(ViewOptions(crop="none", flip=0.0, random_erasing=1.0), 32, (32, 32), "cats")
    white = Image.new("RGB", (32, 32), "white")
    for seed in range(20):
        image = view(white, seed)
        erased = (image != 1).any(0)
        rows, columns = erased.any(1).nonzero(), erased.any(0).nonzero()
        box = image[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert 0.01 < box[0].numel() / 1024 < 0.4
        assert erased.sum() > 0.9 * box[0].numel()
        if box.numel() > 300:
            assert abs(box.mean() - 0.5) < 0.06
    still = train_view(ViewOptions(crop="none", flip=0.0, random_erasing=0.5), 32, (32, 32), "cats")
    untouched = sum(torch.equal(still(IMAGE, seed), PIXELS) for seed in range(200))
    assert 70 < untouched < 130


def test_rand_augment_survives_its_strongest_posterisation() -> None:
    view = train_view(ViewOptions(crop="none", flip=0.0, rand_augment="rand-m10-inc1-p1.0"), 32, (32, 32), "cats")
    for seed in range(60):
        view(IMAGE, seed)
    assert any(not torch.equal(view(IMAGE, seed), PIXELS) for seed in range(3))


@pytest.mark.parametrize("policy", ["m9", "rand-z3", "rand-mX", "augmix-m3", "rand-m9-tnone"])
def test_unreadable_policies_are_refused(policy: str) -> None:
    with pytest.raises(UserError, match=f"'{policy}'.*rand-m9-mstd0.5-inc1"):
        train_view(ViewOptions(rand_augment=policy), 32, (32, 32), "cats")


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": "tight"},
        {"crop_scale": (0.5, 0.1)},
        {"pad": -1},
        {"flip": 2.0},
        {"eval_crop": 0.0},
        {"random_erasing": 1.5},
    ],
)
def test_impossible_options_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))} is .* must be"):
        ViewOptions(**wrong)  # type: ignore[arg-type]
