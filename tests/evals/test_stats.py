import numpy as np
import pytest

from evals.records import ItemScore
from evals.stats import bootstrap_means, interval, mean_scores, paired_difference, sign_flip_p


def item(model, question, value, *, metric="accuracy", judge="check", baseline=None):
    return ItemScore(model, "starter", "1", judge, baseline, metric, question, value)


def test_a_score_is_the_mean_over_its_questions_and_counts_what_is_missing():
    [score] = mean_scores([item("m", "a", 100.0), item("m", "b", 0.0), item("m", "c", None)])
    assert (score.value, score.n, score.missing) == (50.0, 2, 1)


def test_a_score_with_nothing_behind_it_has_no_value():
    [score] = mean_scores([item("m", "a", None)])
    assert (score.value, score.low, score.high, score.n, score.missing) == (None, None, None, 0, 1)


def test_the_interval_of_equal_values_is_that_value():
    assert interval(np.full(20, 7.0)) == (7.0, 7.0)


def test_the_interval_agrees_with_the_normal_approximation_on_many_questions():
    values = np.random.default_rng(3).normal(10, 2, size=2000)
    low, high = interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


def test_the_interval_agrees_with_scipy():
    from scipy import stats

    values = np.random.default_rng(5).exponential(size=60)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=1).confidence_interval
    assert interval(values) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_equal_values_give_equal_figures():
    values = np.arange(50.0)
    whole = bootstrap_means(values, rounds=1000)
    assert (bootstrap_means(values, rounds=1000) == whole).all()
    assert whole.shape == (1000,)


def test_the_sign_flip_test_agrees_with_counting_all_flips():
    gaps = np.array([1.0, 2.0, -0.5, 3.0, 0.5])
    flips = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T  # (32, 5)
    exact = (np.abs((flips * gaps).mean(axis=1)) >= abs(gaps.mean()) - 1e-12).mean()
    assert sign_flip_p(gaps) == pytest.approx(exact, abs=0.02)


def test_no_difference_at_all_is_never_significant():
    assert sign_flip_p(np.zeros(10)) == 1.0


def test_swapping_the_models_negates_the_difference():
    items = [item("a", str(i), float(i % 3)) for i in range(30)] + [item("b", str(i), float(i % 2)) for i in range(30)]
    one = paired_difference(items, model="a", other="b", metric="accuracy", judge="check", baseline=None)
    two = paired_difference(items, model="b", other="a", metric="accuracy", judge="check", baseline=None)
    assert one.value == pytest.approx(-two.value)
    assert one.p == pytest.approx(two.p)
    assert one.low == pytest.approx(-two.high, abs=0.05)


def test_a_difference_rests_only_on_questions_that_both_models_have():
    items = [item("a", "1", 100.0), item("a", "2", 0.0), item("b", "1", 0.0), item("b", "2", None), item("b", "3", 0.0)]
    found = paired_difference(items, model="a", other="b", metric="accuracy", judge="check", baseline=None)
    assert (found.value, found.n, found.missing) == (100.0, 1, 2)


def test_a_win_rate_is_compared_with_even_where_the_other_is_its_baseline():
    items = [item("a", q, 80.0, metric="win_rate", judge="j", baseline="b") for q in "xyz"]
    found = paired_difference(items, model="a", other="b", metric="win_rate", judge="j", baseline="b")
    assert (found.value, found.n) == (30.0, 3)
    assert paired_difference(items, model="a", other="c", metric="win_rate", judge="j", baseline="b") is None


def test_win_rates_against_different_baselines_are_never_subtracted():
    items = [item("a", q, 80.0, metric="win_rate", judge="j", baseline="b") for q in "xyz"]
    items += [item("b", q, 20.0, metric="win_rate", judge="j", baseline="a") for q in "xyz"]
    found = paired_difference(items, model="a", other="b", metric="win_rate", judge="j", baseline="b")
    assert (found.value, found.baseline) == (30.0, "b")
    assert paired_difference(items, model="a", other="c", metric="win_rate", judge="j", baseline="a") is None
