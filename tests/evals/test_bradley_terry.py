import math

import numpy as np
import pandas as pd
import pytest

from evals.bradley_terry import bradley_terry, elo, resampled_strengths, strength_intervals, win_probability
from evals.stats import mean_scores


def battles(n, models, *, seed=0):
    """n battles of random models with random outcomes and weights, ties among them."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, models, n)
    second = (first + rng.integers(1, models, n)) % models
    return first, second, rng.choice([0.0, 0.5, 1.0], n, p=[0.3, 0.2, 0.5]), rng.choice([1.0, 3.0], n)


def star(n, models, *, seed=0):
    """n questions, each model beside the baseline (code 0): first, second, outcome, weight, question."""
    rng = np.random.default_rng(seed)
    model, question = np.repeat(np.arange(1, models), n), np.tile(np.arange(n), models - 1)
    outcome = (rng.random(len(model)) < model / models).astype(float)
    return model, np.zeros_like(model), outcome, rng.choice([1.0, 3.0], len(model)), [f"q{i:04}" for i in question]


def logistic_regression(first, second, outcome, weight):
    """The way of the arenas: each battle twice, weighted by what either won, no penalty."""
    from sklearn.linear_model import LogisticRegression

    rows, models = np.arange(len(first)), int(max(first.max(), second.max())) + 1
    x = np.zeros((len(first), models))
    x[rows, first], x[rows, second] = 1, -1
    y = np.repeat([1, 0], len(first))
    loads = np.concatenate([weight * outcome, weight * (1 - outcome)])
    fit = LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-10, max_iter=10_000)
    fit.fit(np.vstack([x, x])[loads > 0], y[loads > 0], sample_weight=loads[loads > 0])
    return fit.coef_[0] - fit.coef_[0].mean()


def test_of_two_models_the_strengths_are_the_log_odds():
    strengths = bradley_terry([0, 0, 1, 0], [1, 1, 0, 1], [1, 1, 1, 1], anchor=1)
    assert strengths == pytest.approx([math.log(3), 0.0])


def test_a_tie_is_half_a_win_for_each():
    assert bradley_terry([0, 0], [1, 1], [0.5, 1], anchor=1)[0] == pytest.approx(math.log(1.5 / 0.5))


def test_a_circle_of_equal_wins_is_level():
    assert bradley_terry([0, 1, 2], [1, 2, 0], [1, 1, 1]) == pytest.approx([0, 0, 0])


def test_around_one_baseline_the_win_probability_is_the_weighted_mean():
    model, base, outcome, weight, _ = star(50, 5)
    strengths = bradley_terry(model, base, outcome, weight, anchor=0)
    means = [np.average(outcome[model == m], weights=weight[model == m]) for m in range(1, 5)]
    assert win_probability(strengths[1:]) == pytest.approx(means, abs=1e-12)


def test_the_strengths_are_those_of_an_unpenalised_logistic_regression():
    data = battles(600, 12)
    assert bradley_terry(*data) == pytest.approx(logistic_regression(*data), abs=1e-4)


def test_expected_wins_equal_those_that_were_had():
    first, second, outcome, weight = battles(300, 8, seed=1)
    strengths = bradley_terry(first, second, outcome, weight)
    left = weight * (outcome - win_probability(strengths[first] - strengths[second]))
    assert np.bincount(first, left) - np.bincount(second, left) == pytest.approx(np.zeros(8), abs=1e-9)


def test_a_battle_reads_the_same_from_both_sides():
    first, second, outcome, weight = battles(200, 6)
    assert bradley_terry(second, first, 1 - outcome, weight) == pytest.approx(
        bradley_terry(first, second, outcome, weight), abs=1e-12
    )


def test_very_uneven_battles_converge():
    strengths = bradley_terry([0, 0, 1, 1], [1, 1, 2, 2], [1, 0, 1, 0], [1e6, 1e-6, 1e6, 1e-6], anchor=2)
    assert strengths == pytest.approx([24 * math.log(10), 12 * math.log(10), 0], rel=1e-9)


@pytest.mark.parametrize(
    ("first", "second", "outcome", "named"),
    [
        ([0, 0], [1, 1], [1, 1], r"\[1\]"),  # only ever wins
        ([0, 1, 2, 3], [1, 0, 3, 2], [1, 1, 1, 1], r"\[2, 3\]"),  # two circles that never met
        ([0, 1, 0], [1, 0, 2], [1, 1, 0], r"\[2\]"),  # never lost
    ],
)
def test_strengths_that_would_be_infinite_are_an_error_that_names_the_models(first, second, outcome, named):
    with pytest.raises(ValueError, match=f"models {named} have no finite strength beside model 0"):
        bradley_terry(first, second, outcome)


def test_a_model_without_a_battle_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"models \[2\] have no finite strength"):
        bradley_terry([0, 1], [1, 0], [1, 1], models=3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([0], [0], [1]), "battle 0 .* with itself"),
        (([0], [1], [2]), "outcome outside 0 to 1"),
        (([0], [1], [1], [-1]), "weight that is negative"),
        (([0], [1], [float("nan")]), "outcome outside 0 to 1"),
        (([], [], []), "a battle at least"),
    ],
)
def test_what_cannot_be_is_an_error_that_names_it(arguments, said):
    with pytest.raises(ValueError, match=said):
        bradley_terry(*arguments)


def test_four_hundred_points_of_elo_are_ten_to_one():
    assert elo(np.array([0.0, math.log(10), -np.inf])).tolist() == [1000.0, 1400.0, -np.inf]
    assert win_probability(np.array([math.log(10), 0.0, -np.inf, np.inf])) == pytest.approx([10 / 11, 0.5, 0, 1])
    assert win_probability(np.array([2.0]), 2.0) == 0.5


def test_resampled_strengths_are_those_of_fits_to_the_resampled_battles():
    from evals.resampling import resample_counts

    first, second, outcome, weight = battles(240, 5)
    question = np.arange(240) // 6
    found = resampled_strengths(first, second, outcome, weight, question=question, anchor=0, rounds=20)
    for row, counts in zip(found, np.concatenate(list(resample_counts(40, rounds=20))), strict=True):
        assert row == pytest.approx(bradley_terry(first, second, outcome, weight * counts[question], anchor=0))


def test_around_one_baseline_the_interval_is_that_of_the_win_rate():
    model, base, outcome, weight, question = star(60, 5)
    found = resampled_strengths(model, base, outcome, weight, question=question, anchor=0, rounds=2000)
    ours = 100 * win_probability(strength_intervals(found)[1:])
    items = pd.DataFrame({"model": model.astype(str), "question": question, "value": 100 * outcome, "weight": weight})
    items = items.assign(judge="j", baseline="0", metric="win_rate")
    theirs = mean_scores(items, benchmark="arena", version="1", rounds=2000)
    assert ours == pytest.approx(np.array([[s.low, s.high] for s in theirs]), abs=0.3)


def test_battles_over_one_question_widen_the_interval_as_one():
    first, second, outcome, weight = battles(200, 4)
    alone = resampled_strengths(first, second, outcome, weight, question=np.arange(200), anchor=0)
    copies = [np.tile(x, 4) for x in (first, second, outcome, weight, np.arange(200))]
    clustered = resampled_strengths(*copies[:4], question=copies[4], anchor=0)
    assert clustered == pytest.approx(alone, abs=1e-9)


def test_a_resample_that_a_model_loses_throughout_has_no_lower_bound():
    first, second, outcome = np.ones(20, dtype=int), np.zeros(20, dtype=int), np.zeros(20)
    outcome[0] = 1
    found = resampled_strengths(first, second, outcome, question=np.arange(20), anchor=0)
    assert np.isneginf(found[:, 1]).mean() == pytest.approx((19 / 20) ** 20, abs=0.05)
    low, high = strength_intervals(found)[1]
    assert low == -np.inf and high < 0


def test_models_that_a_resample_cannot_place_are_unbounded_on_both_sides():
    # Half of the questions hold the only battles of models 2 and 3, which meet each other alone once those are gone.
    found = resampled_strengths(
        [0, 1, 0, 2, 2, 3], [1, 0, 2, 0, 3, 2], [1, 1, 1, 1, 1, 1], question=[0, 0, 1, 1, 2, 2], anchor=0
    )
    assert np.isnan(found[:, 3]).any() and np.isfinite(found[:, 3]).any()
    assert strength_intervals(found)[3].tolist() == [-np.inf, np.inf]
    assert not np.isnan(found[:, 0]).any()
