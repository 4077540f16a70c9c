"""Terms that compare teacher and student, against closed forms and slow loops."""

import math

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.kd import kd_loss
from limbeck.models import load_model
from limbeck.models.attention import Attention
from limbeck.outputs import Outputs
from limbeck.synthesis.priors.attention_disagreement import (
    AttentionDisagreement,
    class_scores,
    masked_difference,
    top_patches,
)
from limbeck.synthesis.priors.base import Prior, Seen
from limbeck.synthesis.priors.disagreement import (
    Disagreement,
    KLDisagreement,
    agreement,
    jensen_shannon,
    kullback_leibler,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def answers(teacher: Tensor, student: Tensor) -> Seen:
    return Seen(torch.zeros(1), torch.zeros(1), Outputs(teacher), student_logits=student)


def test_jensen_shannon_equals_a_slow_one_with_its_clamps() -> None:
    teacher, student, temperature = 6 * noise(3, 5), 6 * noise(3, 5, seed=1), 2.0

    def clamped(value: float) -> float:
        return min(max(value, 0.01), 0.99)

    expected = []
    for t, s in zip(teacher.tolist(), student.tolist(), strict=True):
        p = [math.exp(x / temperature) for x in t]
        q = [math.exp(x / temperature) for x in s]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        total = 0.0
        for a, b in zip(p, q, strict=True):
            m = clamped((a + b) / 2)
            total += 0.5 * (clamped(a) * math.log(clamped(a) / m) + clamped(b) * math.log(clamped(b) / m))
        expected.append(total)
    assert jensen_shannon(teacher, student, temperature).tolist() == pytest.approx(expected, rel=1e-12)


def test_jensen_shannon_is_symmetric_zero_where_equal_and_at_most_log_two() -> None:
    teacher, student = noise(4, 3), noise(4, 3, seed=1)
    torch.testing.assert_close(jensen_shannon(teacher, student), jensen_shannon(student, teacher))
    assert jensen_shannon(teacher, teacher).abs().max() < 1e-15
    sure = torch.tensor([[900.0, 0.0]])
    # Both clamped: 0.99 against 0.01, in the middle 0.5.
    assert jensen_shannon(sure, -sure).item() == pytest.approx(0.99 * math.log(1.98) + 0.01 * math.log(0.02), rel=1e-5)


def test_kullback_leibler_is_the_one_of_distillation() -> None:
    teacher, student = noise(4, 3), noise(4, 3, seed=1)
    torch.testing.assert_close(kullback_leibler(teacher, student, 3.0).mean(), kd_loss(student, teacher, 3.0))


def test_agreement_marks_images_of_one_class() -> None:
    assert agreement(torch.eye(3), torch.tensor([[2.0, 1, 1], [3, 1, 1], [0, 0, 1]])).tolist() == [1, 0, 1]


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("kind", [Disagreement, KLDisagreement])
def test_terms_fall_with_disagreement_whatever_the_batch(kind: type[Prior], mask: bool) -> None:
    prior = kind(agreement_mask=mask)
    assert prior.needs.student
    teacher, student = noise(8, 3).requires_grad_(), noise(8, 3, seed=1).requires_grad_()
    value = prior(answers(teacher, student))
    torch.testing.assert_close(prior(answers(torch.cat([teacher] * 3), torch.cat([student] * 3))), value)
    assert prior(answers(teacher, teacher)) > value
    assert torch.autograd.gradcheck(lambda t, s: prior(answers(t, s)), (teacher, student))
    for gradient in torch.autograd.grad(value, (teacher, student)):
        assert gradient.abs().max() > 0
    apart = agreement(teacher, student) == 0
    assert apart.any()
    (gradient,) = torch.autograd.grad(prior(answers(teacher, student)), student)
    assert bool((gradient[apart] == 0).all()) is mask


def test_only_agreeing_images_count_in_the_mean_over_all() -> None:
    teacher, student = noise(8, 3), noise(8, 3, seed=1)
    per_image = kullback_leibler(teacher, student) * agreement(teacher, student)
    assert KLDisagreement()(answers(teacher, student)).item() == pytest.approx(-per_image.sum().item() / 8)
    full = jensen_shannon(teacher, student).mean().item()
    assert Disagreement()(answers(teacher, student)).item() == pytest.approx(1 - full)
    with pytest.raises(UserError, match="temperature"):
        Disagreement(temperature=0.0)


def block(heads: int = 2, grid: tuple[int, int] = (2, 3), seed: int = 0, prefix: int = 1) -> Attention:
    query, key, value = (noise(2, heads, prefix + math.prod(grid), 4, seed=seed + part) for part in range(3))
    return Attention(query, key, value, 0.5, prefix, grid)


def both(teacher: list[Attention], student: list[Attention]) -> Seen:
    return Seen(torch.zeros(1), torch.zeros(1), Outputs(torch.zeros(1)), attentions=teacher, student_attentions=student)


@pytest.fixture
def prior() -> AttentionDisagreement:
    return AttentionDisagreement(load_model("test_vit", pretrained=False, num_classes=3, input_size=(32, 32)))


def test_class_scores_are_a_row_of_the_blocks_own_or_the_mean_of_the_patches() -> None:
    first, second = block(), block(prefix=0)
    torch.testing.assert_close(class_scores(first), first.scores().mean(1)[:, 0, 1:])
    torch.testing.assert_close(class_scores(second), second.scores().mean((1, 2)))


def test_the_mask_holds_the_largest_scores_and_drops_the_same_ranks_everywhere() -> None:
    scores = torch.tensor([[5.0, 1, 4, 2, 3, 0], [0, 1, 2, 3, 4, 5]])
    assert top_patches(scores, 0.5).tolist() == [[1, 0, 1, 0, 1, 0], [0, 0, 0, 1, 1, 1]]
    assert top_patches(scores, 0.0).tolist() == [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
    dropped = top_patches(scores, 0.5, 0.3)
    assert dropped.sum(1).tolist() == [2, 2]
    ranks = [sorted(scores[row][dropped[row] > 0].tolist()) for row in range(2)]
    assert ranks[0] == ranks[1]


def test_masked_difference_equals_a_slow_one() -> None:
    teacher, student = noise(2, 3, 4), noise(2, 3, 4, seed=1)
    mask = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]])
    expected = 0.0
    for layer in range(2):
        picked = [abs(teacher[layer, b, n] - student[layer, b, n]).item() for b, n in mask.nonzero().tolist()]
        expected += sum(picked) / len(picked) / 2
    assert masked_difference(teacher, student, mask).item() == pytest.approx(expected, rel=1e-12)


def test_attention_that_agrees_costs_nothing_and_other_has_a_gradient(prior: AttentionDisagreement) -> None:
    teacher, student = [block(), block(seed=3)], [block(seed=6), block(seed=9)]
    assert prior(both(teacher, teacher)) == 0
    query = teacher[0].query.requires_grad_()
    value = prior(both(teacher, student))
    assert value > 0
    assert torch.autograd.grad(value, query)[0].abs().max() > 0


def test_the_mask_shrinks_in_the_course_of_a_batch(prior: AttentionDisagreement) -> None:
    assert prior.ratio == 0.5
    prior.advance(0.5)
    assert prior.ratio == pytest.approx(0.3)
    prior.advance(1.0)
    assert prior.ratio == pytest.approx(0.1)


def test_a_student_of_other_depth_heads_and_grid_is_compared_at_the_same_relative_depth(
    prior: AttentionDisagreement,
) -> None:
    prior.drop = 0.0
    teacher = [block(seed=seed) for seed in (0, 3, 6, 9)]
    shallow = [teacher[1], teacher[3]]
    assert prior(both(teacher, shallow)) == 0
    assert prior(both(shallow, teacher)) == 0
    assert prior(both(teacher, [block(heads=5, grid=(4, 6), seed=1)])) > 0
    with pytest.raises(UserError, match="one grid"):
        prior(both(teacher, [Attention(noise(8, 2, 6, 4), noise(8, 2, 6, 4), noise(8, 2, 6, 4), 0.5, 0, (2, 3))]))
    with pytest.raises(UserError, match="of the student"):
        prior(both(teacher, []))


def test_impossible_shares_are_refused() -> None:
    model = load_model("test_vit", pretrained=False, num_classes=3, input_size=(32, 32))
    with pytest.raises(UserError, match="drop is 2"):
        AttentionDisagreement(model, drop=2)
