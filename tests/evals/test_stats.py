from itertools import product

import numpy as np
import pandas as pd
import pytest

from evals.benchmark import ITEM_COLUMNS
from evals.power import detectable_difference
from evals.stats import EVEN, differences, holm, mean_scores, scores_and_differences


def column(model, values, *, weights=None, metric="accuracy", judge="check", baseline=None, questions=None):
    names = questions or [f"q{i}" for i in range(len(values))]
    loads = weights if weights is not None else [1.0] * len(names)
    return [(model, judge, baseline, metric, q, v, w) for q, v, w in zip(names, map(float, values), loads, strict=True)]


def items(*columns):
    return pd.DataFrame([row for c in columns for row in c], columns=list(ITEM_COLUMNS))


def scores(*columns, **options):
    return mean_scores(items(*columns), benchmark="starter", version="1", **options)


def compared(*columns, pairs=(("a", "b"),), **options):
    return differences(items(*columns), pairs, benchmark="starter", version="1", **options)


def figures(records):
    return {(r.model, r.judge, r.baseline, r.metric): (r.value, r.low, r.high, r.n, r.missing) for r in records}


def draws(*shape, seed=1):
    return np.random.default_rng(seed).normal(50, 20, shape)


NAN = float("nan")


# Scores


def test_a_score_is_the_mean_over_its_questions_and_counts_what_is_missing():
    [score] = scores(column("m", [100, 0, NAN]))
    assert (score.value, score.n, score.missing) == (50.0, 2, 1)
    assert (score.benchmark, score.version, score.baseline) == ("starter", "1", None)


def test_a_question_counts_by_its_weight_and_without_any_it_is_missing():
    [score] = scores(column("m", [100, 0, 70], weights=[3, 1, 0]))
    assert (score.value, score.n, score.missing) == (75.0, 2, 1)


@pytest.mark.parametrize("none", [None, NAN])
def test_no_baseline_is_none_however_the_table_writes_it(none):
    [score] = scores(column("m", [1, 2], baseline=none))
    assert score.baseline is None


def test_a_score_with_nothing_behind_it_has_no_value():
    [score] = scores(column("m", [NAN]))
    assert (score.value, score.low, score.high, score.n, score.missing) == (None, None, None, 0, 1)
    assert scores() == []


def test_one_question_has_no_interval_and_that_of_equal_ones_no_width():
    one, same = scores(column("m", [7]), column("n", [0.1] * 20))
    assert (one.low, one.value, one.high) == (None, 7, None)
    assert (same.low, same.high) == pytest.approx((0.1, 0.1), abs=1e-15)


def test_the_interval_agrees_with_scipy_for_a_weighted_mean():
    from scipy import stats

    rng = np.random.default_rng(5)
    values, weights = rng.exponential(size=60), rng.choice([1.0, 3.0], 60)

    def ratio(v, w, axis):
        return (v * w).sum(axis=axis) / w.sum(axis=axis)

    theirs = stats.bootstrap((values, weights), ratio, paired=True, method="percentile", n_resamples=4000, rng=1)
    [ours] = scores(column("m", values, weights=weights))
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.03)


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    values, weights = rng.exponential(10, (1000, 100)), rng.choice([1.0, 3.0], (1000, 100))
    found = scores(
        *(column(f"m{i}", v, weights=w) for i, (v, w) in enumerate(zip(values, weights, strict=True))), rounds=1000
    )
    assert np.mean([s.low <= 10 <= s.high for s in found]) == pytest.approx(0.94, abs=0.02)


def test_a_score_is_the_same_to_the_last_bit_alone_or_among_sixty():
    values, weights = draws(60, 101), np.random.default_rng(2).random((60, 101))
    values[5, :7] = NAN
    every = [column(f"m{i}", v, weights=w) for i, (v, w) in enumerate(zip(values, weights, strict=True))]
    together = figures(scores(*every))
    for alone in (every[0], every[5], every[59]):
        [(group, figure)] = figures(scores(alone)).items()
        assert figure == together[group]


def test_rows_may_come_in_any_order():
    table = items(column("a", draws(90)), column("b", draws(90, seed=2), weights=abs(draws(90, seed=3))))
    mixed = table.sample(frac=1, random_state=1)
    one, two = (mean_scores(t, benchmark="x", version="1") for t in (table, mixed))
    assert figures(one) == figures(two)
    one, two = (differences(t, [("a", "b")], benchmark="x", version="1") for t in (table, mixed))
    assert one == two


def test_scores_come_in_order_of_appearance():
    found = scores(column("b", [1], metric="turn_1"), column("b", [1], metric="average"), column("a", [1]))
    assert [(s.model, s.metric) for s in found] == [("b", "turn_1"), ("b", "average"), ("a", "accuracy")]


def test_another_seed_draws_other_resamples():
    one, other = scores(column("m", draws(30))), scores(column("m", draws(30)), seed=1)
    assert one[0].value == other[0].value and one[0].low != other[0].low


def test_a_question_that_stands_twice_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"question 'q1' has two rows of metric 'accuracy' \(model 'm'"):
        scores(column("m", [1, 2, 3], questions=["q0", "q1", "q1"]))


def test_a_negative_weight_is_an_error_that_names_its_question():
    with pytest.raises(ValueError, match=r"weight -1\.0 at question 'q1'"):
        scores(column("m", [1, 2], weights=[1, -1]))


def test_an_infinite_value_is_an_error_that_names_its_question():
    with pytest.raises(ValueError, match="value inf at question 'q1' of metric 'accuracy'"):
        scores(column("m", [1, float("inf")]))


# Differences


def test_swapping_the_models_negates_the_difference():
    one, two = compared(column("a", draws(30)), column("b", draws(30, seed=2)), pairs=[("a", "b"), ("b", "a")])
    assert (one.value, one.p, one.detectable) == (-two.value, two.p, two.detectable)
    assert (one.low, one.high) == pytest.approx((-two.high, -two.low))


def test_a_difference_rests_only_on_questions_that_both_models_have():
    [found] = compared(column("a", [100, 0]), column("b", [0, NAN, 0]))
    assert (found.value, found.n, found.missing) == (100.0, 1, 2)
    assert (found.p, found.p_holm, found.detectable) == (1.0, 1.0, None)


def test_questions_that_both_lack_are_told_and_give_no_figure():
    [found] = compared(column("a", [NAN, 1]), column("b", [1, NAN]))
    assert (found.value, found.low, found.p, found.p_holm, found.detectable) == (None,) * 5
    assert (found.n, found.missing) == (0, 2)


def test_a_difference_of_weighted_means_takes_each_models_own_weights():
    [found] = compared(column("a", [100, 0], weights=[3, 1]), column("b", [100, 0], weights=[1, 1]))
    assert found.value == 25.0


def test_a_win_rate_is_compared_with_even_where_the_other_is_its_baseline():
    a = column("a", [80] * 3, metric="win_rate", judge="j", baseline="b", weights=[1, 3, 1])
    [found] = compared(a, pairs=[("a", "b"), ("a", "c")])
    assert (found.value, found.n, found.other) == (30.0, 3, "b")


def test_win_rates_against_different_baselines_are_never_subtracted():
    a = column("a", [80] * 3, metric="win_rate", judge="j", baseline="b")
    b = column("b", [20] * 3, metric="win_rate", judge="j", baseline="a")
    [found] = compared(a, b)
    assert (found.value, found.baseline) == (30.0, "b")


def test_nothing_is_compared_that_is_not_there_of_both_or_with_itself():
    assert compared(column("a", [1, 2]), column("b", [1, 2], judge="j"), pairs=[("a", "b"), ("a", "a")]) == []


@pytest.mark.parametrize("weights", [(np.ones(7), np.ones(7)), (np.arange(1, 8), np.array([3, 1, 1, 2, 1, 3, 1]))])
def test_the_p_value_is_the_share_of_all_label_swaps_that_reach_the_difference(weights):
    a, b = np.array([9.0, 7, 6.5, 9, 5.5, 8, 7]), np.array([8.0, 5, 7, 6, 5, 7, 7.5])
    wa, wb = weights

    def gap(swapped):
        va, vb = np.where(swapped, b, a), np.where(swapped, a, b)
        ua, ub = np.where(swapped, wb, wa), np.where(swapped, wa, wb)
        return (ua * va).sum() / ua.sum() - (ub * vb).sum() / ub.sum()

    every = np.array([gap(np.array(s, dtype=bool)) for s in product([0, 1], repeat=7)])
    exact = (np.abs(every) >= abs(every[0]) - 1e-9).mean()
    [found] = compared(column("a", a, weights=wa), column("b", b, weights=wb))
    assert found.value == pytest.approx(every[0])
    assert found.p == pytest.approx(exact, abs=0.015)


def test_p_values_are_uniform_where_there_is_no_difference():
    values, pairs = draws(800, 40, seed=4), [(f"m{i}", f"m{i + 400}") for i in range(400)]
    found = compared(*(column(f"m{i}", v) for i, v in enumerate(values)), pairs=pairs, rounds=1000)
    p = np.array([d.p for d in found])
    assert np.quantile(p, [0.05, 0.25, 0.5, 0.75, 0.95]) == pytest.approx([0.05, 0.25, 0.5, 0.75, 0.95], abs=0.06)
    assert np.mean([d.low <= 0 <= d.high for d in found]) == pytest.approx(0.94, abs=0.03)
    assert np.mean([d.p_holm <= 0.05 for d in found]) <= 0.01


def test_no_difference_at_all_is_never_significant_and_tells_nothing_of_what_could_be_found():
    [found] = compared(column("a", [0.1, 0.7, 0.2]), column("b", [0.1, 0.7, 0.2]))
    assert (found.value, found.low, found.high, found.p, found.p_holm) == (0, 0, 0, 1, 1)
    assert found.detectable is None


def test_no_p_value_is_zero():
    [found] = compared(column("a", [90] * 40), column("b", [10] * 40), rounds=999)
    assert found.p == 0.001


def test_a_difference_is_the_same_whatever_else_is_compared():
    values = draws(9, 50)
    every = [column(f"m{i}", v) for i, v in enumerate(values)] + [
        column("x", draws(50), weights=abs(draws(50, seed=9)))
    ]
    pairs = [("m1", "m2"), ("x", "m3"), *((f"m{i}", "m0") for i in range(1, 9))]
    alone = [d for pair in pairs[:2] for d in compared(*every, pairs=[pair])]
    together = compared(*every, pairs=pairs)[:2]
    for one, other in zip(alone, together, strict=True):
        assert (one.value, one.low, one.high, one.p) == (other.value, other.low, other.high, other.p)


def test_p_values_are_corrected_over_all_that_is_returned():
    found = compared(
        column("a", [90] * 8), column("b", [10] * 8), column("c", [9, 2, 5, 7, 3, 8, 1, 4]), column("d", [NAN] * 8),
        pairs=[("a", "b"), ("c", "b"), ("b", "d"), ("a", "c")],
    )  # fmt: skip
    countable = [d for d in found if d.p is not None]
    assert [d.p_holm for d in countable] == holm([d.p for d in countable])
    assert [d.p_holm for d in found if d.p is None] == [None]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_is_detectable_is_so_from_the_spread_of_the_paired_gaps():
    a, b = draws(100), draws(100, seed=2)
    [plain] = compared(column("a", a), column("b", b))
    assert plain.detectable == pytest.approx(detectable_difference((a - b).std(ddof=1), 100))
    doubled = np.full(100, 2.0)
    [same] = compared(column("a", a, weights=doubled), column("b", b, weights=doubled))
    assert same.detectable == pytest.approx(plain.detectable)


def test_scores_and_differences_together_are_those_of_each_alone():
    one, two, three = draws(3, 40)
    table = items(
        column("a", one, weights=[3.0, 1.0] * 20, baseline="c"),
        column("b", np.where(two > 80, NAN, two), baseline="c"),
        column("a", three, metric="other"),
        column("c", two, metric="other"),
    )
    pairs, place = [("a", "b"), ("a", "c"), ("b", "c")], {"benchmark": "starter", "version": "1"}
    together = scores_and_differences(table, pairs, **place, rounds=500)
    alone = mean_scores(table, **place, rounds=500), differences(table, pairs, **place, rounds=500)
    assert together == alone
    assert len(together[1]) == 4


def test_beside_its_baseline_a_models_interval_is_its_scores_shifted_by_even():
    table = column("a", draws(30), weights=[3.0, 1.0, 0.0] * 10, baseline="b")
    [score], [difference] = scores(table), compared(table)
    assert difference.value == score.value - EVEN
    assert (difference.low, difference.high) == pytest.approx((score.low - EVEN, score.high - EVEN), abs=1e-12)


def test_categories_give_the_figures_of_the_texts_they_stand_for():
    table = items(column("b", draws(12), baseline="c"), column("a", draws(12, seed=2), baseline=None))
    table = table.sample(frac=1.0, random_state=0)
    texts = ["model", "judge", "baseline", "metric", "question"]
    place = {"benchmark": "starter", "version": "1"}
    coded = table.astype(dict.fromkeys(texts, "category"))
    coded["question"] = coded["question"].cat.reorder_categories(sorted(coded["question"].cat.categories)[::-1])
    assert mean_scores(coded, **place) == mean_scores(table, **place)
