"""Intervals, verdicts and delta-m against scipy and against values worked by hand."""

import math

import pytest
from scipy import stats

from polytask.evaluation.delta import Estimate, Verdict, delta_m, estimate, paired_differences, relative_change, verdict


def test_interval_is_students() -> None:
    values = [0.931, 0.927, 0.9335, 0.9291, 0.9302]
    low, high = stats.t.interval(0.95, df=4, loc=sum(values) / 5, scale=stats.sem(values))
    found = estimate(values)
    assert found.low == pytest.approx(low, rel=1e-12)
    assert found.high == pytest.approx(high, rel=1e-12)
    assert found.count == 5


def test_interval_of_two_seeds_by_hand() -> None:
    # mean 2, s = sqrt(2), standard error 1, and the 97.5 % quantile of Student's t with 1 degree is 12.7062.
    found = estimate([1.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(12.7062047, abs=1e-6)


def test_one_value_has_no_interval_and_none_is_undefined() -> None:
    assert estimate([0.5]) == Estimate(0.5, None, 1)
    assert estimate([None, math.nan]) == Estimate(None, None, 0, undefined=2)
    assert estimate([]) == Estimate(None, None, 0)
    assert estimate([None, 0.5, math.inf]) == Estimate(0.5, None, 1, undefined=2)


def test_delta_m_by_hand() -> None:
    # Accuracy rises by 10 % of the baseline's mean in both seeds: (0.55 - 0.5) / 0.5, (0.45 - 0.4) / 0.4 would be
    # 12.5 %, but the scale is the mean 0.45: 0.05 / 0.45 = 11.11 % in both. RMSE, lower is better, goes from 2 to 2.2
    # and from 2 to 2: -10 % and 0. delta-m is (11.11 - 10) / 2 = 0.556 and (11.11 + 0) / 2 = 5.556; the mean is 3.056.
    values = {"a": {0: 0.55, 1: 0.45}, "b": {0: 2.2, 1: 2.0}}
    baseline = {"a": {0: 0.5, 1: 0.4}, "b": {0: 2.0, 1: 2.0}}
    found = delta_m(values, baseline, {"a": True, "b": False})
    assert found.estimate.mean == pytest.approx(100 * (0.05 / 0.45 - 0.05) / 2)
    by_seed = [100 * (0.05 / 0.45 - 0.1) / 2, 100 * (0.05 / 0.45) / 2]
    low, high = stats.t.interval(0.95, df=1, loc=sum(by_seed) / 2, scale=stats.sem(by_seed))
    assert (found.estimate.low, found.estimate.high) == (pytest.approx(low), pytest.approx(high))
    assert (found.tasks, found.left_out, found.seeds) == (("a", "b"), (), (0, 1))


def test_delta_m_of_the_means_is_the_mean_of_delta_m() -> None:
    values = {"a": {0: 0.7, 1: 0.9, 2: 0.8}, "b": {0: -3.0, 1: -1.0, 2: -2.5}}
    baseline = {"a": {0: 0.6, 1: 0.8, 2: 0.85}, "b": {0: -2.0, 1: -2.0, 2: -2.0}}

    def mean(of: dict[int, float]) -> float:
        return sum(of.values()) / len(of)

    expected = 50 * sum((mean(values[t]) - mean(baseline[t])) / abs(mean(baseline[t])) for t in values)
    assert delta_m(values, baseline, {"a": True, "b": True}).estimate.mean == pytest.approx(expected)


def test_delta_m_leaves_out_undefined_tasks_and_says_so() -> None:
    values = {"a": {0: 0.6, 1: 0.6}, "b": {0: None, 1: 0.5}, "zero": {0: 0.1, 1: 0.1}}
    baseline = {"a": {0: 0.5, 1: 0.5}, "b": {0: 0.5, 1: 0.5}, "zero": {0: 0.0, 1: 0.0}}
    found = delta_m(values, baseline, dict.fromkeys(values, True))
    assert found.tasks == ("a",)
    assert found.left_out == ("b", "zero")
    assert found.estimate.mean == pytest.approx(20)


@pytest.mark.parametrize("values", [{"a": {}}, {"a": {5: 0.5}}, {"a": {0: None}}])
def test_delta_m_of_nothing_is_undefined(values: dict[str, dict[int, float | None]]) -> None:
    found = delta_m(values, {"a": {0: 0.5}}, {"a": True})
    assert found.estimate.mean is None
    assert found.left_out == ("a",)


def test_only_shared_seeds_are_paired() -> None:
    assert paired_differences({2: 1.0, 0: 3.0, 7: 9.0}, {0: 1.0, 1: 5.0, 2: None}) == [2.0, None]
    found = delta_m({"a": {0: 0.6, 9: 100.0}}, {"a": {0: 0.5, 3: 70.0}}, {"a": True})
    assert found.seeds == (0,)
    assert found.estimate.mean == pytest.approx(20)


def test_verdict_needs_an_interval_that_excludes_zero() -> None:
    assert verdict(Estimate(0.02, 0.01, 5), higher_is_better=True) is Verdict.BETTER
    assert verdict(Estimate(0.02, 0.01, 5), higher_is_better=False) is Verdict.WORSE
    assert verdict(Estimate(-0.02, 0.01, 5), higher_is_better=False) is Verdict.BETTER
    assert verdict(Estimate(-0.02, 0.02, 5), higher_is_better=True) is Verdict.WITHIN_NOISE
    assert verdict(Estimate(-0.02, None, 1), higher_is_better=True) is Verdict.ONE_SEED
    assert verdict(Estimate(None, None, 0), higher_is_better=True) is Verdict.UNDEFINED


def test_pairing_finds_what_unpaired_intervals_hide() -> None:
    # Seeds differ by far more than the variant gains, which is 0.01 for every seed.
    baseline = {seed: 0.5 + 0.1 * seed for seed in range(5)}
    gains = dict(enumerate([0.010, 0.011, 0.009, 0.010, 0.0105]))
    values = {seed: baseline[seed] + gains[seed] for seed in baseline}
    assert verdict(estimate(paired_differences(values, baseline)), True) is Verdict.BETTER
    test = stats.ttest_rel(list(values.values()), list(baseline.values()))
    interval = test.confidence_interval(0.95)
    found = estimate(paired_differences(values, baseline))
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_relative_change_is_positive_when_better() -> None:
    assert relative_change({0: 1.5, 1: 1.5}, {0: 2.0, 1: 2.0}, higher_is_better=False).mean == pytest.approx(25)
    assert relative_change({0: 0.4}, {}, higher_is_better=True).mean is None
