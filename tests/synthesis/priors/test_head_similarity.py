"""MimiQ's similarity of heads, against SSIM written out value by value."""

import itertools

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.models import load_model
from limbeck.models.attention import Attention
from limbeck.outputs import Outputs
from limbeck.synthesis.priors import head_similarity
from limbeck.synthesis.priors.base import Seen
from limbeck.synthesis.priors.head_similarity import HeadSimilarity, head_dissimilarity, structural_similarity


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_ssim(a: list[float], b: list[float]) -> float:
    n = len(a)
    mean_a, mean_b = sum(a) / n, sum(b) / n
    var_a, var_b = sum((x - mean_a) ** 2 for x in a) / n, sum((x - mean_b) ** 2 for x in b) / n
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / n
    c1, c2 = 0.01**2, 0.03**2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return above / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def block(batch: int = 2, heads: int = 3, patches: int = 6, prefix: int = 1, seed: int = 0) -> Attention:
    query, key, value = (noise(batch, heads, prefix + patches, 4, seed=seed + part) for part in range(3))
    return Attention(query, key, value, 0.5, prefix)


def with_attentions(*attentions: Attention) -> Seen:
    return Seen(torch.zeros(1), torch.zeros(1), Outputs(torch.zeros(1)), attentions=list(attentions))


@pytest.fixture(scope="module")
def prior() -> HeadSimilarity:
    return HeadSimilarity(load_model("test_vit", pretrained=False, num_classes=3, input_size=(32, 32)))


def test_structural_similarity_equals_a_slow_one() -> None:
    maps = noise(2, 3, 5).sigmoid()
    found = structural_similarity(maps)
    for image, (i, j) in itertools.product(range(2), itertools.product(range(3), repeat=2)):
        expected = slow_ssim(maps[image, i].tolist(), maps[image, j].tolist())
        assert found[image, i, j].item() == pytest.approx(expected, rel=1e-9)


def test_of_a_map_with_itself_it_is_one() -> None:
    one = noise(1, 1, 9).sigmoid()
    torch.testing.assert_close(structural_similarity(one.expand(1, 4, 9)), torch.ones(1, 4, 4, dtype=torch.float64))


def test_identical_heads_cost_nothing_whatever_their_scale_and_offset() -> None:
    scores = noise(2, 1, 3, 8)
    factors, offsets = torch.tensor([1.0, 3.0, 0.2]).view(1, 3, 1, 1), torch.tensor([0.0, -5.0, 1.0]).view(1, 3, 1, 1)
    assert head_dissimilarity(scores.expand(2, 3, 3, 8)).abs().max() < 1e-12
    assert head_dissimilarity(scores * factors + offsets).abs().max() < 1e-5
    assert head_dissimilarity(noise(2, 3, 3, 8)).min() > 0.1


def test_dissimilarity_equals_a_slow_mean_over_pairs_of_unequal_heads() -> None:
    scores = noise(2, 3, 4, 7)
    found = head_dissimilarity(scores)
    for image, query in itertools.product(range(2), range(4)):
        rows = []
        for head in range(3):
            row = scores[image, head, query].tolist()
            spread = max(row) - min(row) + 1e-4 * sum(map(abs, row)) / 7 + 1e-8
            rows.append([(value - min(row)) / spread for value in row])
        pairs = [1 - slow_ssim(rows[i], rows[j]) ** 2 for i in range(3) for j in range(3) if i != j]
        assert found[image, query].item() == pytest.approx(sum(pairs) / 6, rel=1e-9)


def test_the_term_is_the_mean_over_blocks_whatever_the_groups_of_patches_and_the_batch(
    prior: HeadSimilarity, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, single = block(), block(heads=2, seed=5), block(heads=1)
    value = prior(with_attentions(first, single, second))
    expected = [head_dissimilarity(one.scores()[:, :, 1:, 1:]).mean() for one in (first, second)]
    torch.testing.assert_close(value, (expected[0] + expected[1]) / 2)
    monkeypatch.setattr(head_similarity, "_CHUNK", 2 * 3 * 6 * 4)  # 4 patches at a time
    torch.testing.assert_close(prior(with_attentions(first, second)), value)
    thrice = [
        Attention(*(torch.cat([part] * 3) for part in (one.query, one.key, one.value)), 0.5, 1)
        for one in (first, second)
    ]
    torch.testing.assert_close(prior(with_attentions(*thrice)), value)


def test_its_gradient_is_true_through_the_groups(prior: HeadSimilarity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_similarity, "_CHUNK", 1)
    attention = block(batch=1, patches=4)

    def value(query: Tensor, key: Tensor) -> Tensor:
        return prior(with_attentions(Attention(query, key, attention.value, 0.5, 1)))

    inputs = (attention.query.requires_grad_(), attention.key.requires_grad_())
    # The damping of the spread counts as constant.
    assert torch.autograd.gradcheck(value, inputs, rtol=1e-2, atol=1e-3)
    assert torch.autograd.grad(value(*inputs), inputs[0])[0].abs().max() > 0


def test_rounding_errors_are_no_structure() -> None:
    scores = torch.ones(1, 2, 3, 8, requires_grad=True)
    value = head_dissimilarity(scores + 1e-7 * noise(1, 2, 3, 8).float())
    assert value.abs().max() < 0.05, "heads with flat rows are alike"
    value.sum().backward()
    assert scores.grad.isfinite().all()


def test_networks_without_two_heads_are_refused(prior: HeadSimilarity) -> None:
    with pytest.raises(UserError, match="has one"):
        prior(with_attentions(block(heads=1)))
    with pytest.raises(UserError, match="no attention blocks"):
        HeadSimilarity(load_model("limbeck:resnet8", pretrained=False, num_classes=3))
