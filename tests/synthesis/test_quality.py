"""The numbers about made pictures have their closed forms, whichever way they are computed."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from limbeck.data.npz import ArraySource
from limbeck.models.base import VisionModel
from limbeck.outputs import ModelFacts, Outputs, Request
from limbeck.synthesis import quality
from limbeck.synthesis.quality import (
    MEANINGS,
    Quality,
    class_balance,
    mean_confidence,
    mean_similarity,
    measure,
    near_duplicates,
    read_as_asked,
    roughness,
    similarity_within,
)


class Colours(VisionModel):
    """Sees the mean colour: logits are 10 times the mean red, green and blue, or those of the negative."""

    def __init__(self, sign: int = 1) -> None:
        super().__init__((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.facts = ModelFacts("colours", 3, (8, 8), (), 3)
        self.sign = sign

    def read(self, inputs: torch.Tensor, request: Request) -> Outputs:
        pooled = inputs.mean((2, 3))
        return Outputs(self.sign * 10 * pooled, pooled)


def random_pictures(count: int, side: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def measured(images: np.ndarray, asked: list[int] | None = None, **options: object) -> Quality:
    teacher = Colours()
    with torch.no_grad():
        logits = teacher(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).logits.numpy()
    wanted = np.full(len(images), -1) if asked is None else np.array(asked)
    source = ArraySource(images, logits.argmax(1), "made")
    return measure(source, logits, wanted, teacher, batch_size=7, **options)


def test_every_number_has_its_meaning_and_the_other_way_round() -> None:
    assert {*MEANINGS, "sampled"} == {field.name for field in dataclasses.fields(Quality)}


def test_balance_is_one_when_classes_are_equal_and_zero_when_there_is_one() -> None:
    assert class_balance(torch.tensor([5, 5, 5, 5])) == pytest.approx(1)
    assert class_balance(torch.tensor([0, 9, 0])) == 0
    assert class_balance(torch.tensor([1, 1, 0, 0])) == pytest.approx(0.5)
    assert class_balance(torch.tensor([7])) == 1
    assert class_balance(torch.tensor([0, 0])) == 0


def test_confidence_and_the_share_read_as_asked() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], np.float32))
    assert mean_confidence(logits) == pytest.approx(0.65)
    assert mean_confidence(np.zeros((2, 1), np.float32)) == 1
    assert read_as_asked(logits, np.array([0, 2])) == 0.5
    assert read_as_asked(logits, np.array([-1, 1])) == 1
    assert read_as_asked(logits, np.array([-1, -1])) is None


def test_similarity_equals_the_mean_over_all_pairs() -> None:
    vectors = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 2, 2, 2, 2, 5, 7])
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=2)
    pairs = ~torch.eye(9, dtype=torch.bool)
    within = pairs & (labels[:, None] == labels[None])
    assert mean_similarity(vectors) == pytest.approx(float(cosines[pairs].mean()), abs=1e-6)
    assert similarity_within(vectors, labels) == pytest.approx(float(cosines[within].mean()), abs=1e-6)
    assert mean_similarity(vectors * 3) == pytest.approx(mean_similarity(vectors))
    assert mean_similarity(torch.eye(4)) == pytest.approx(0)
    assert mean_similarity(vectors[:1]) is None
    assert similarity_within(vectors, torch.arange(9)) is None
    assert mean_similarity(torch.zeros(3, 4)) == 0


def test_identical_pictures_are_one_another() -> None:
    numbers = measured(np.repeat(random_pictures(1), 12, 0))
    assert numbers.similarity == pytest.approx(1, abs=1e-6)
    assert numbers.similarity_within_class == pytest.approx(1, abs=1e-6)
    assert numbers.near_duplicates == 1
    assert (numbers.class_balance, numbers.empty_classes) == (0, 2)


def test_near_duplicates_are_copies_with_small_changes_and_nothing_else() -> None:
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert near_duplicates(images) == 0
    brighter = (0.9 * images[:1] + 0.05).clamp(0, 1)
    assert near_duplicates(torch.cat([images, brighter])) == pytest.approx(2 / 7)
    assert near_duplicates(torch.cat([images, 1 - images])) == 0
    flat = torch.tensor([0.2, 0.8]).view(2, 1, 1, 1).expand(2, 3, 16, 16)
    assert near_duplicates(flat) == 1  # nothing is in either of them
    assert near_duplicates(torch.cat([images, flat])) == pytest.approx(2 / 8)
    assert near_duplicates(images[:1]) == 0


def test_roughness_of_a_flat_a_striped_and_a_chequered_picture() -> None:
    flat = torch.full((1, 3, 8, 8), 0.3)
    stripes = (torch.arange(8) % 2).float().expand(1, 3, 8, 8)
    chequers = ((torch.arange(8)[:, None] + torch.arange(8)) % 2).float().expand(1, 3, 8, 8)
    assert roughness(torch.cat([flat, stripes, chequers])).tolist() == pytest.approx([0, 0.5, 1])
    assert roughness(torch.rand(2, 3, 1, 1)).tolist() == [0, 0]


def test_pixel_numbers_are_those_of_the_arrays() -> None:
    images = random_pictures(20)
    numbers = measured(images)
    pixels = images / 255
    assert numbers.brightness == pytest.approx(pixels.mean(), abs=1e-6)
    assert numbers.contrast == pytest.approx(pixels.reshape(20, -1).std(1).mean(), abs=1e-6)
    assert (numbers.pictures, numbers.sampled, numbers.second_agreement) == (20, 20, None)


def test_a_second_network_agrees_with_itself_and_never_with_its_opposite() -> None:
    images = random_pictures(15)
    assert measured(images, second=Colours()).second_agreement == 1
    assert measured(images, second=Colours(-1)).second_agreement == 0


def test_large_sets_are_measured_on_a_sample_that_the_seed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_pictures(60)
    whole = measured(images)
    monkeypatch.setattr(quality, "MOST_PICTURES", 20)
    first, again, other = (measured(images, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert (first.pictures, first.sampled) == (60, 20)
    assert (first.confidence, first.class_balance) == (whole.confidence, whole.class_balance)
    assert math.isclose(first.brightness, whole.brightness, abs_tol=0.03)
