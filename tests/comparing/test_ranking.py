import itertools
import math

import numpy as np
import pytest
from scipy import stats

from limbeck.comparing.ranking import predict_ranking, rank_agreement
from limbeck.errors import UserError

DRAWS = 40_000


def close(p):
    """Four standard errors of a share of the draws."""
    return pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / DRAWS) + 1e-3)


def test_over_seeds_the_chance_that_one_leads_is_students_paired_t(make_outcomes):
    a, b = np.array([0.72, 0.70, 0.74]), np.array([0.70, 0.695, 0.71])
    ranking = predict_ranking(make_outcomes({"b": b, "a": a}), draws=DRAWS)
    d = a - b
    expected = stats.t.cdf(d.mean() / (d.std(ddof=1) / math.sqrt(3)), 2)
    assert ranking.order == ["a", "b"] and ranking.covers == "seeds alone"
    assert ranking.right[0] == close(expected)
    assert ranking.best == pytest.approx([ranking.right[0], 1 - ranking.right[0]])


def test_over_images_the_chance_that_one_leads_is_the_normal_one(make_outcomes):
    rng = np.random.default_rng(0)
    a, b = rng.random(400) < 0.75, rng.random(400) < 0.7
    d = a.astype(float) - b
    if d.mean() < 0:
        a, b, d = b, a, -d
    ranking = predict_ranking(make_outcomes({"a": [a], "b": [b]}), draws=DRAWS)
    error = math.sqrt(d.var(ddof=1) / 400 + 1 / 400**2)
    assert ranking.covers == "images alone" and ranking.seeds == 1
    assert ranking.right[0] == close(stats.norm.cdf(d.mean() / error))


def test_equal_methods_are_equally_likely_to_be_best(make_outcomes):
    scores = {name: [0.5, 0.6, 0.7][shift:] + [0.5, 0.6, 0.7][:shift] for shift, name in enumerate("abc")}
    ranking = predict_ranking(make_outcomes(scores), draws=DRAWS)
    assert ranking.best == pytest.approx([1 / 3] * 3, abs=0.02)
    assert ranking.right == pytest.approx([0.5, 0.5], abs=0.02)
    assert ranking.ranks.tolist() == [[1, 3]] * 3


def test_methods_far_apart_are_ranked_with_certainty(make_outcomes):
    rng = np.random.default_rng(0)
    scores = {f"m{k}": 0.9 - 0.1 * k + 1e-4 * rng.standard_normal(3) for k in range(5)}
    ranking = predict_ranking(make_outcomes({**scores, "none": [0.1, 0.1001, 0.0999]}))
    assert ranking.order == ["m0", "m1", "m2", "m3", "m4", "none"]
    assert (ranking.right > 0.99).all() and ranking.ranks[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert ranking.promising == ["m0"]


def test_shared_luck_of_a_seed_does_not_blur_the_order(make_outcomes):
    luck = np.array([0.1, -0.1, 0.05])
    small = np.array([1e-3, -1e-3, 5e-4])
    shared = predict_ranking(make_outcomes({"a": 0.72 + luck + small, "b": 0.7 + luck}))
    own = predict_ranking(make_outcomes({"a": 0.72 + luck, "b": 0.7 - luck}))
    assert shared.right[0] > 0.99 > 0.7 > own.right[0]


def test_the_chances_hold_what_they_promise(make_outcomes):
    """Over many comparisons, pairs said to be right with chance p are right in about a share p of the cases."""
    rng = np.random.default_rng(0)
    said, true = [], []
    for _ in range(150):
        levels = 0.7 + 0.01 * rng.standard_normal(4)
        scores = {str(k): level + 0.008 * rng.standard_normal(3) for k, level in enumerate(levels)}
        ranking = predict_ranking(make_outcomes(scores), draws=400)
        for (a, b), p in zip(itertools.pairwise(ranking.order), ranking.right, strict=True):
            said.append(p)
            true.append(levels[int(a)] > levels[int(b)])
    said, true = np.array(said), np.array(true)
    for low, high in ((0.5, 0.65), (0.65, 0.8), (0.8, 0.95)):
        here = (said >= low) & (said < high)
        # With so few seeds the chances are cautious: neighbours are right a little more often than said, not less.
        assert true[here].mean() >= said[here].mean() - 3 * math.sqrt(0.25 / here.sum())
    assert abs(true.mean() - said.mean()) < 0.1


def test_what_was_not_measured_is_said(make_outcomes):
    one = predict_ranking(make_outcomes({"none": [0.5], "kd": [0.6]}))
    assert one.covers == "nothing" and one.promising == ["kd"]
    assert "cannot be told" in " ".join(one.sentences)
    outcomes = make_outcomes({"none": [0.5, 0.6], "kd": [0.6, 0.7], "x": [0.1]})
    outcomes[-1].__dict__["score"] = None
    ranking = predict_ranking(outcomes)
    assert ranking.without_score == ("x",) and "not ranked: x" in " ".join(ranking.sentences)
    with pytest.raises(UserError, match="no cell has finished"):
        predict_ranking(outcomes[-1:])


def test_rank_agreement_equals_scipys(make_outcomes):
    rng = np.random.default_rng(0)
    small, full = rng.random(6), rng.random(6)
    first, second = (make_outcomes({f"m{k}": [v] for k, v in enumerate(values)}) for values in (small, full))
    found = rank_agreement(first, second)
    theirs = stats.kendalltau(small, full, alternative="greater", method="exact")
    assert (found.tau, found.tau_p) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert found.spearman == pytest.approx(stats.spearmanr(small, full).statistic)
    exact = [stats.spearmanr(order, full).statistic >= found.spearman - 1e-9 for order in itertools.permutations(small)]
    assert found.spearman_p == pytest.approx(np.mean(exact))
    assert found.regret == pytest.approx(full.max() - full[small.argmax()])


def test_the_same_order_agrees_and_the_reverse_does_not(make_outcomes):
    up = make_outcomes({f"m{k}": [0.1 * k] for k in range(6)})
    down = make_outcomes({f"m{k}": [1 - 0.1 * k] for k in range(6)})
    same, reverse = rank_agreement(up, up), rank_agreement(down, up)
    assert (same.tau, same.spearman, same.tau_p, same.regret) == pytest.approx((1, 1, 1 / math.factorial(6), 0))
    assert (reverse.tau, reverse.tau_p) == pytest.approx((-1, 1))
    assert "full run's best" in same.sentence and "50.0 points below" in reverse.sentence


def test_of_many_methods_random_orders_give_nearly_the_exact_p_value(make_outcomes):
    rng = np.random.default_rng(3)
    full = rng.random(10)
    small = full + 0.4 * rng.random(10)
    first, second = (make_outcomes({f"m{k}": [v] for k, v in enumerate(values)}) for values in (small, full))
    theirs = stats.kendalltau(small, full, alternative="greater", method="exact")
    assert rank_agreement(first, second).tau_p == pytest.approx(theirs.pvalue, abs=0.005)


def test_two_common_methods_are_no_ranking(make_outcomes):
    with pytest.raises(UserError, match="three common methods"):
        rank_agreement(make_outcomes({"a": [1], "b": [2], "c": [3]}), make_outcomes({"a": [1], "b": [2]}))


@pytest.mark.filterwarnings("error")
def test_where_all_scores_are_equal_there_is_no_order_to_agree_with(make_outcomes):
    level, up = (make_outcomes({f"m{k}": [0.1 * k * rise] for k in range(4)}) for rise in (0, 1))
    for found, words in ((rank_agreement(level, up), "The short runs"), (rank_agreement(up, level), "The whole runs")):
        assert found.tau is None and found.spearman is None
        assert found.sentence.startswith(f"{words} told no methods apart: all 4") and "nan" not in found.sentence
