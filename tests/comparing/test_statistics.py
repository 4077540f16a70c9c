"""Intervals cover what they claim to, verdicts are wrong no more often than they claim, and formulas equal others' code."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from limbeck.comparing.classes import class_gains
from limbeck.comparing.cost import mean_curve, reach, seconds_to
from limbeck.comparing.intervals import holm, over_images, over_seeds
from limbeck.comparing.outcomes import read_outcomes
from limbeck.comparing.spread import difference_over_seeds, pool_spread
from limbeck.comparing.statistics import compare_outcomes
from limbeck.errors import UserError


def test_the_interval_over_seeds_is_the_paired_t_test():
    a, b = np.array([0.71, 0.72, 0.74, 0.70]), np.array([0.70, 0.69, 0.72, 0.71])
    found = over_seeds(a - b)
    theirs = stats.ttest_rel(a, b)
    low, high = theirs.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, theirs.pvalue))
    # By hand, from a table of Student's t with three degrees of freedom.
    d = a - b
    assert found.half_width == pytest.approx(3.182 * d.std(ddof=1) / 2, rel=1e-3)


def test_one_seed_or_no_spread_gives_no_interval_over_seeds():
    assert over_seeds([0.1]) is None
    assert over_seeds([0.1, 0.1]) is None


def test_seeds_that_agree_to_the_image_claim_no_certainty():
    found = over_seeds([0.01, 0.01], grain=0.01)
    # The rounding of two scores to steps of g has the variance 2 g^2 / 12.
    assert found.error == pytest.approx(math.sqrt(2 / 12) * 0.01 / math.sqrt(2))
    assert not found.excludes_zero


def test_the_interval_over_images_is_agresti_and_mins():
    both, only_a, only_b, neither = 60, 25, 10, 5
    d = np.repeat([0, 1, -1, 0], [both, only_a, only_b, neither])
    found = over_images(d)
    n, b, c = 102, 25.5, 10.5
    error = math.sqrt((b + c) - (b - c) ** 2 / n) / n
    centre = (b - c) / n
    assert found.mean == pytest.approx(0.15)
    assert (found.low, found.high) == pytest.approx((centre - 1.959964 * error, centre + 1.959964 * error))
    # Two networks with the same answers are not certain to agree on others.
    assert over_images(np.zeros(100)).half_width > 0


def test_holm_by_hand_and_never_below_the_plain_values():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_nineteen_of_twenty_intervals_over_seeds_cover_the_truth(seeds):
    rng = np.random.default_rng(0)
    found = [over_seeds(0.02 + 0.004 * rng.standard_normal(seeds)) for _ in range(4000)]
    covered = np.mean([f.low <= 0.02 <= f.high for f in found])
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.05 * 0.95 / 4000))


@pytest.mark.parametrize(("images", "gain", "loss"), [(100, 0.02, 0.01), (100, 0.2, 0.1), (1000, 0.05, 0.05)])
def test_nineteen_of_twenty_intervals_over_images_cover_the_truth(images, gain, loss):
    rng = np.random.default_rng(0)
    draws = rng.random((3000, images))
    differences = (draws < gain).astype(float) - (draws > 1 - loss)
    found = [over_images(row) for row in differences]
    covered = np.mean([f.low <= gain - loss <= f.high for f in found])
    # Rare disagreements make it a little too wide, never too narrow.
    assert 0.94 <= covered <= 0.99


def table(scores):
    return {f"m{m}": dict(enumerate(row)) for m, row in enumerate(np.asarray(scores))}


def test_the_pooled_spread_is_that_of_a_randomised_block_design():
    scores = np.random.default_rng(0).normal(size=(5, 4))
    pool = pool_spread(table(scores))
    left = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
    assert pool.degrees == 4 * 3
    assert pool.std == pytest.approx(math.sqrt((left**2).sum() / 12))
    # Of two methods it is the paired t test's: half the variance of their differences.
    pair = scores[:2]
    left = pair - pair.mean(0) - pair.mean(1, keepdims=True) + pair.mean()
    assert 2 * (left**2).sum() / 3 == pytest.approx((pair[0] - pair[1]).var(ddof=1))
    assert pool_spread(table(pair)) is None


def test_with_missing_cells_the_pooled_spread_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    whole = table(rng.normal(size=(5, 4)))
    # A method that has one more seed than the others takes the general way; that cell fits without a residual.
    general = pool_spread({**whole, "m0": {**whole["m0"], 99: 7.0}})
    assert (general.std, general.degrees) == (pytest.approx(pool_spread(whole).std), 12)
    # One missing value is filled so that it leaves no residual: iterating the closed form reaches the same fit.
    scores = np.array([list(row.values()) for row in whole.values()])
    for _ in range(500):
        left = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
        scores[2, 1] -= left[2, 1]
    lacking = pool_spread({**whole, "m2": {s: v for s, v in whole["m2"].items() if s != 1}})
    assert lacking.degrees == 11 and lacking.std == pytest.approx(math.sqrt((left**2).sum() / 11))


def test_a_method_that_scatters_more_than_the_others_is_left_out_of_the_pool():
    rng = np.random.default_rng(0)
    scores = 0.7 + 0.003 * rng.standard_normal((8, 3))
    scores[4] = 0.6 + np.array([0.1, -0.3, 0.2])
    pool = pool_spread(table(scores))
    assert pool.methods == {f"m{m}" for m in range(8) if m != 4}
    assert pool.std < 0.006
    wild = scores[4] - scores[0]
    assert difference_over_seeds(wild, ("m4", "m0"), pool) == over_seeds(wild)


def test_no_comparison_takes_less_than_its_own_spread():
    rng = np.random.default_rng(1)
    for _ in range(50):
        scores = rng.normal(size=(6, 3))
        pool = pool_spread(table(scores))
        d = scores[1] - scores[0]
        found = difference_over_seeds(d, ("m1", "m0"), pool)
        assert found.error >= over_seeds(d).error - 1e-12


def test_equal_differences_are_judged_by_the_spread_of_the_others(make_outcomes):
    comparison = compare_outcomes(
        make_outcomes({"none": [0.5, 0.6, 0.7], "x": [0.6, 0.7, 0.8], "y": [0.52, 0.61, 0.69]})
    )
    found = comparison.of("x").against_control
    assert found.own is None and found.verdict == "helps"
    assert found.over_seeds.error == pytest.approx(comparison.pool.std * math.sqrt(2 / 3))


@pytest.mark.parametrize(("methods", "seeds"), [(2, 3), (4, 3), (10, 3)])
def test_where_nothing_differs_something_is_claimed_in_one_comparison_of_twenty_at_most(make_outcomes, methods, seeds):
    rng = np.random.default_rng(0)
    trials, wrong = 200, 0
    for _ in range(trials):
        # Seeds shift all methods alike; what is left is chance.
        scores = 0.7 + 0.01 * rng.standard_normal(seeds) + 0.003 * rng.standard_normal((methods, seeds))
        names = ["none", *(f"m{m}" for m in range(1, methods))]
        comparison = compare_outcomes(make_outcomes(dict(zip(names, scores, strict=True))))
        verdicts = {r.against_control.verdict for r in comparison.methods if r.against_control}
        wrong += verdicts != {"no difference shown"}
    assert wrong / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_planted_effects_are_found(make_outcomes):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(100):
        gains = np.array([0, 0.02, -0.02, 0, 0])[:, None]
        scores = 0.7 + gains + 0.01 * rng.standard_normal(3) + 0.003 * rng.standard_normal((5, 3))
        comparison = compare_outcomes(make_outcomes(dict(zip(["none", "kd", "bad", "x", "y"], scores, strict=True))))
        found.append([comparison.of(m).against_control.verdict for m in ("kd", "bad")])
    found = np.array(found)
    assert (found[:, 0] == "helps").mean() > 0.9 and (found[:, 1] == "hurts").mean() > 0.9
    assert not (found[:, 0] == "hurts").any() and not (found[:, 1] == "helps").any()


def test_pairing_takes_out_what_seeds_do_to_all_methods(make_outcomes):
    shared = np.array([0.0, 0.1, -0.1])
    comparison = compare_outcomes(
        make_outcomes({"none": 0.6 + shared, "kd": 0.62 + shared + np.array([1e-3, -1e-3, 0])})
    )
    kd = comparison.of("kd")
    assert kd.against_control.verdict == "helps" and kd.std > 0.09
    assert kd.against_control.values == pytest.approx((0.021, 0.019, 0.02))


def test_means_differences_and_costs_come_from_the_cells(make_comparison):
    planted = {"none": 0.0, "kd": {"gain": 0.03, "time": 1.5, "memory": 2.0}, "vitkd+nkd": {"gain": 0.06, "time": 2.0}}
    outcomes = read_outcomes(make_comparison(planted))
    comparison = compare_outcomes(outcomes)
    scores = {m: [o.score for o in outcomes if o.method == m] for m in planted}
    both = comparison.of("vitkd+nkd")
    assert both.mean == pytest.approx(np.mean(scores["vitkd+nkd"]))
    assert both.std == pytest.approx(np.std(scores["vitkd+nkd"], ddof=1))
    assert both.against_plain.values == pytest.approx(np.subtract(scores["vitkd+nkd"], scores["kd"]))
    assert both.against_control.own == over_seeds(np.subtract(scores["vitkd+nkd"], scores["none"]), grain=1e-3)
    assert comparison.of("kd").against_plain is None and comparison.of("none").against_control is None
    assert [comparison.of(m).cost.time_ratio for m in planted] == pytest.approx([1, 1.5, 2])
    assert comparison.of("kd").cost.memory_ratio == pytest.approx(2)
    assert (comparison.images, comparison.epochs, comparison.seeds) == (1000, 8, (0, 1, 2))
    assert comparison.teacher_score == pytest.approx(0.85)
    # The mean of the images' differences is the mean of the seeds'.
    assert both.against_control.over_images.mean == pytest.approx(both.against_control.mean)


def test_only_common_seeds_are_paired(make_outcomes):
    outcomes = make_outcomes({"none": [0.6, 0.7, 0.8], "kd": [0.61, 0.72, 0.99]})
    outcomes[-1] = replace(outcomes[-1], state="failed", score=None, message="it broke")
    comparison = compare_outcomes(outcomes)
    kd = comparison.of("kd")
    assert kd.against_control.seeds == (0, 1) and kd.against_control.mean == pytest.approx(0.015)
    assert [o.seed for o in kd.failed] == [2]
    assert any("kd lacks seed 2" in warning for warning in comparison.warnings)


def test_plain_kd_with_options_stands_for_kd_where_it_is_the_only_one(make_outcomes):
    assert compare_outcomes(make_outcomes({"none": [0.5], "kd(temperature=2)": [0.6], "nkd+kd": [0.6]})).plain == (
        "kd(temperature=2)"
    )
    two = {"none": [0.5], "kd(temperature=2)": [0.6], "kd(temperature=4)": [0.6]}
    assert compare_outcomes(make_outcomes(two)).plain is None
    assert compare_outcomes(make_outcomes(two | {"kd": [0.6]})).plain == "kd"


def test_one_seed_has_an_interval_over_images_and_no_verdict(make_comparison):
    comparison = compare_outcomes(read_outcomes(make_comparison({"none": 0.0, "kd": 0.2}, seeds=1)))
    found = comparison.of("kd").against_control
    assert found.over_seeds is None and found.over_images.excludes_zero
    assert found.verdict == "too few seeds"


def test_cells_measured_on_other_images_are_left_out(make_comparison):
    cells = make_comparison({"none": 0.0, "kd": 0.02})
    outcomes = read_outcomes(cells)
    other = read_outcomes(make_comparison({"kd": 0.02}, images=500, where="other"))[0]
    comparison = compare_outcomes([*outcomes[:3], replace(other, seed=0), *outcomes[4:]])
    assert comparison.images == 1000 and len(comparison.of("kd").finished) == 2
    assert "other validation images" in comparison.of("kd").failed[0].message
    assert any("left out" in warning for warning in comparison.warnings)


def test_unequal_epochs_and_copies_of_one_run_are_pointed_out(make_outcomes):
    outcomes = make_outcomes({"none": [0.5, 0.6], "kd": [0.7, 0.7]}, epochs=5)
    outcomes[0] = replace(outcomes[0], epochs=3)
    warnings = " ".join(compare_outcomes(outcomes).warnings)
    assert "different numbers of epochs: 3, 5" in warnings
    assert "All seeds of kd gave exactly the same result" in warnings


def test_nothing_to_compare_and_cells_given_twice_are_refused(make_outcomes):
    with pytest.raises(UserError, match="no cell"):
        compare_outcomes([])
    with pytest.raises(UserError, match="twice"):
        compare_outcomes(make_outcomes({"none": [0.5]}) * 2)


def test_unfinished_comparisons_are_compared_as_far_as_they_are(make_outcomes):
    outcomes = [replace(o, state="waiting", score=None) for o in make_outcomes({"none": [0.5], "kd": [0.6]})]
    comparison = compare_outcomes(outcomes)
    assert all(r.mean is None and r.against_control is None for r in comparison.methods)


def test_class_gains_have_the_right_error_rate_and_find_a_planted_class(make_outcomes):
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 20
    claimed, planted = [], []
    for trial in range(100):
        p = rng.beta(4, 2, 2000)
        gain = np.where((labels == 3) & (trial % 2 == 1), 0.25, 0.0)
        answers = {
            "none": rng.random((3, 2000)) < p,
            "kd": rng.random((3, 2000)) < np.clip(p + gain, 0, 1),
        }
        outcomes = []
        for o in make_outcomes(answers):
            scores = {f"c{k}": float(o.right[labels == k].mean()) for k in range(20)}
            outcomes.append(replace(o, labels=labels, class_scores=scores))
        found = class_gains(outcomes[3:], outcomes[:3])
        assert found.covers == "seeds and images" and found.images.tolist() == [100] * 20
        (planted if trial % 2 else claimed).append(found.stand_out)
    assert np.any(claimed, axis=1).mean() <= 0.1
    assert np.array(planted)[:, 3].mean() > 0.8
    assert np.delete(np.array(planted), 3, axis=1).mean() < 0.01


def test_class_gains_of_one_seed_and_of_detectors_say_what_they_cover(make_comparison):
    one = compare_outcomes(read_outcomes(make_comparison({"none": 0.0, "kd": 0.05}, seeds=1)))
    assert one.of("kd").gains.covers == "images alone"
    assert one.of("kd").gains.gains.mean() == pytest.approx(one.of("kd").against_control.mean)
    seeds = {3: "seeds alone", 1: "nothing"}
    for n, covers in seeds.items():
        cells = make_comparison({"none": 0.0, "kd": 0.05}, seeds=n, task="detection", classes=5, where=f"d{n}")
        gains = compare_outcomes(read_outcomes(cells)).of("kd").gains
        assert gains.covers == covers and gains.images is None
        assert np.isfinite(gains.errors).all() == (n > 1)


def test_time_to_a_score_is_that_of_the_first_measurement_that_has_it(make_comparison):
    curve = np.array([[10, 0.5], [20, 0.7], [30, 0.6], [40, 0.8]])
    assert [seconds_to(curve, s) for s in (0.4, 0.6, 0.75, 0.9)] == [10, 20, 40, None]
    outcomes = read_outcomes(make_comparison({"none": 0.0, "kd": 0.1}, noise=0.0))
    none, kd = ([o for o in outcomes if o.method == m] for m in ("none", "kd"))
    own, other = reach(none, none), reach(kd, none)
    assert (own.share, own.reached, own.of) == (1.0, 3, 3)
    assert other.share < 1 and other.seconds in kd[0].curve[:, 0]
    assert reach(none, kd).seconds is None and reach(none, kd).reached == 0
    assert mean_curve(none)[-1, 0] == pytest.approx(83)
