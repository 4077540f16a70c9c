"""PSAQ-ViT's entropy of cosines and MaskAQ's closed form, against slow ones, and where they have gradients."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models import load_model
from limbeck.models.attention import Attention
from limbeck.outputs import Outputs
from limbeck.synthesis.priors.attention_rows import among_patches, patch_scores
from limbeck.synthesis.priors.base import Seen
from limbeck.synthesis.priors.patch_similarity import (
    GaussianDiversity,
    PatchSimilarity,
    kernel_density,
    patch_entropy,
    spread_of_cosines,
    why_no_diversity,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block(batch: int = 2, heads: int = 3, patches: int = 6, prefix: int = 1, seed: int = 0) -> Attention:
    query, key, value = (noise(batch, heads, prefix + patches, 4, seed=seed + part) for part in range(3))
    return Attention(query, key, value, 0.5, prefix)


def with_attentions(*attentions: Attention) -> Seen:
    return Seen(torch.zeros(1), torch.zeros(1), Outputs(torch.zeros(1)), attentions=list(attentions))


def repeated(attention: Attention, times: int) -> Attention:
    return Attention(
        *(torch.cat([part] * times) for part in (attention.query, attention.key, attention.value)),
        0.5,
        attention.prefix,
    )


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def transformer() -> nn.Module:
    return load_model("test_vit", pretrained=False, num_classes=3, input_size=(32, 32))


def test_scores_of_patches_are_a_part_of_the_blocks_own() -> None:
    attention = block()
    attention.bias = None
    queries = torch.tensor([4, 0])
    torch.testing.assert_close(patch_scores(attention), attention.scores()[:, :, 1:, 1:])
    torch.testing.assert_close(patch_scores(attention, queries), attention.scores()[:, :, [5, 1], 1:])


def test_blocks_without_two_patches_that_attend_to_each_other_are_left_out() -> None:
    only_class = Attention(noise(2, 3, 1, 4), noise(2, 3, 7, 4), noise(2, 3, 7, 4), 0.5, 1)
    whole = block()
    assert among_patches([only_class, whole, block(patches=1)]) == [whole]


def test_kernel_density_of_one_sample_is_a_gaussian() -> None:
    density = kernel_density(torch.tensor([[0.3]]).double(), torch.tensor([0.3, 0.5]).double(), 0.2)
    peak = 1 / (0.2 * math.sqrt(2 * math.pi))
    assert density[0].tolist() == pytest.approx([peak, peak * math.exp(-0.5)])


@pytest.mark.parametrize("bandwidth", [0.01, 0.3, "auto"])
def test_patch_entropy_equals_a_slow_one(bandwidth: float) -> None:
    vectors = noise(2, 4, 5)
    cosines = [[cosine(a, b) for a in image for b in image] for image in vectors.tolist()]
    low, high = min(map(min, cosines)), max(map(max, cosines))
    spacing = (high - low) / 9
    width = spacing / 2 if bandwidth == "auto" else bandwidth
    for image, found in zip(cosines, patch_entropy(vectors, bandwidth).tolist(), strict=True):
        terms = []
        for step in range(10):
            point = low + step * spacing
            f = sum(math.exp(-((point - s) ** 2) / (2 * width**2)) for s in image)
            f = f / (len(image) * width * math.sqrt(2 * math.pi)) + 1e-4
            terms.append(-f * math.log(f))
        expected = sum((a + b) / 2 * spacing for a, b in pairwise(terms))
        assert found == pytest.approx(expected, rel=1e-9)


def test_a_wide_bandwidth_gives_every_pair_a_gradient_and_the_published_one_few() -> None:
    unit = torch.nn.functional.normalize(noise(1, 8, 16), dim=-1)
    cosines = (unit @ unit.transpose(1, 2)).flatten(1)
    points = torch.linspace(float(cosines.min()), float(cosines.max()), 10, dtype=torch.float64)
    idle = {}
    for bandwidth in (0.01, float(points[1] - points[0]) / 2):
        samples = cosines.clone().requires_grad_()
        kernel_density(samples, points, bandwidth).square().sum().backward()
        idle[bandwidth] = (samples.grad.abs() < 1e-3 * samples.grad.abs().max()).double().mean().item()
    narrow, wide = idle.values()
    assert narrow > 0.4
    assert wide < 0.25  # those exactly between, and the diagonal at the edge


@pytest.mark.parametrize("bandwidth", [0.05, "auto"])
def test_patch_similarity_sums_blocks_whatever_the_batch_and_has_a_gradient(bandwidth: float) -> None:
    prior = PatchSimilarity(transformer(), bandwidth=bandwidth)
    first, second = block(), block(seed=5)
    value = prior(with_attentions(first, second))
    entropies = [patch_entropy(one.mixed().mean(1)[:, 1:], bandwidth).mean() for one in (first, second)]
    torch.testing.assert_close(value, -(entropies[0] + entropies[1]))
    torch.testing.assert_close(prior(with_attentions(repeated(first, 3), repeated(second, 3))), value)

    def of_queries(query: Tensor) -> Tensor:
        return prior(with_attentions(Attention(query, first.key, first.value, 0.5, 1)))

    (gradient,) = torch.autograd.grad(of_queries(first.query.requires_grad_()), first.query)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_the_entropys_gradient_is_that_of_fixed_points() -> None:
    # Finite differences would move the points as well, except where the least and largest cosine stay.
    vectors = noise(1, 6, 2)
    vectors[0, 0], vectors[0, 1] = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])

    def entropy(inner: Tensor) -> Tensor:
        return patch_entropy(torch.cat([vectors[:, :2], inner], 1), 0.2)

    assert torch.autograd.gradcheck(entropy, (vectors[:, 2:].clone().requires_grad_(),))


def test_spread_equals_a_slow_one() -> None:
    rows = noise(2, 5, 7)
    for image, found in zip(rows.tolist(), spread_of_cosines(rows).tolist(), strict=True):
        cosines = [cosine(a, b) for a in image for b in image]
        mean = sum(cosines) / len(cosines)
        variance = sum((c - mean) ** 2 for c in cosines) / len(cosines)
        assert found == pytest.approx(0.5 * math.log(2 * math.pi * math.e * (variance + 1e-8)), abs=1e-4)


def test_spread_does_not_depend_on_the_rows_scale_and_has_a_true_gradient() -> None:
    rows = noise(2, 5, 7).requires_grad_()
    torch.testing.assert_close(spread_of_cosines(100 * rows), spread_of_cosines(rows))
    assert torch.autograd.gradcheck(lambda x: spread_of_cosines(x) + 0 * x.sum(), (rows,), rtol=1e-3, atol=1e-4)


def test_without_noise_equal_rows_have_no_gradient_and_with_it_they_are_pushed_apart() -> None:
    rows = noise(1, 1, 7).expand(2, 6, 7).clone().float().requires_grad_()
    (still,) = torch.autograd.grad(spread_of_cosines(rows).sum(), rows)
    assert still.abs().max() < 1e-2
    before = spread_of_cosines(rows)
    (push,) = torch.autograd.grad(spread_of_cosines(rows, 0.01 * noise(6, 7).float()).sum(), rows)
    assert push.isfinite().all()
    assert push.abs().max() > 1
    after = spread_of_cosines(rows + 0.1 * push / push.abs().max())
    assert (after > before + 1).all()


def test_rows_of_zeros_have_finite_gradients() -> None:
    rows = noise(2, 5, 7).float()
    rows[:, 0] = 0
    rows[1] = 0
    rows.requires_grad_()
    spread_of_cosines(rows, 0.01 * noise(5, 7).float()).sum().backward()
    assert rows.grad.isfinite().all()


def test_diversity_of_attention_is_the_closed_form_of_its_rows() -> None:
    prior = GaussianDiversity(transformer())
    assert prior.needs.attention
    assert not prior.notes
    first, second = block(), block(seed=5)
    torch.manual_seed(0)
    value = prior(with_attentions(first, second))
    expected = [spread_of_cosines(patch_scores(one).mean(1)).mean() for one in (first, second)]
    assert value.item() == pytest.approx(-(expected[0] + expected[1]).item() / 2, abs=0.05)
    torch.manual_seed(0)
    torch.testing.assert_close(prior(with_attentions(repeated(first, 3), repeated(second, 3))), value)


def test_diversity_takes_so_many_rows_and_others_each_time() -> None:
    prior = GaussianDiversity(transformer(), rows=4)
    attention = block(patches=30)
    assert prior._attention_rows(attention).shape == (2, 4, 30)
    assert len({round(prior(with_attentions(attention)).item(), 6) for _ in range(5)}) == 5


@pytest.mark.parametrize("name", ["limbeck:resnet8", "convnext_atto"])
def test_diversity_of_maps_where_there_is_no_attention(name: str) -> None:
    torch.manual_seed(0)
    model = load_model(name, pretrained=False, num_classes=3, input_size=(32, 32)).eval()
    prior = GaussianDiversity(model)
    assert "feature maps" in prior.notes[0]
    assert not GaussianDiversity(model, source="maps").notes
    assert not prior.needs.attention
    images = (0.1 * noise(2, 3, 32, 32)).float().requires_grad_()
    value = prior(Seen(images, images, model.read(images, prior.needs.request)))
    (gradient,) = torch.autograd.grad(value, images)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    with pytest.raises(UserError, match="no attention blocks"):
        GaussianDiversity(model, source="attention")
    with pytest.raises(UserError, match="no attention blocks"):
        PatchSimilarity(model)


def test_without_attention_or_maps_there_is_no_diversity() -> None:
    model = load_model("limbeck:resnet8", num_classes=3, input_size=(32, 32))
    assert why_no_diversity(model) is None and why_no_diversity(transformer()) is None
    flat = tuple(dataclasses.replace(level, grid=(1, 1)) for level in model.facts.levels)
    for levels in ((), flat):
        model.facts = dataclasses.replace(model.facts, levels=levels)
        reason = why_no_diversity(model)
        assert reason is not None and "neither attention" in reason
        with pytest.raises(UserError, match=r"more than one position.*diversity=0"):
            GaussianDiversity(model)


def test_impossible_options_are_refused() -> None:
    model = transformer()
    with pytest.raises(UserError, match="source"):
        GaussianDiversity(model, source="maps2")
    with pytest.raises(UserError, match="at least 2"):
        GaussianDiversity(model, rows=1)
    for bandwidth in (0.0, "wide"):
        with pytest.raises(UserError, match="bandwidth"):
            PatchSimilarity(model, bandwidth=bandwidth)
