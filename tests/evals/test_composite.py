"""A weighted sum of scores has a value, an interval and a paired test, with the question as the unit."""

import numpy as np
import pytest

from evals.composite import Part, gap, gaps, worth
from evals.resampling import ROUNDS
from evals.stats import scores_and_differences


def part(values, *, weight=1.0, benchmark="arena", counts=None):
    """Make a part of rows of values by candidate, questions being numbered."""
    rows = {name: {f"q{i}": v for i, v in enumerate(row)} for name, row in values.items()}
    return Part(benchmark, weight, rows, counts or {})


def coins(seed, *, n=60, names=("a", "b"), p=0.5):
    rng = np.random.default_rng(seed)
    return {name: list(100.0 * (rng.random(n) < p)) for name in names}


def test_a_composite_is_the_weighted_sum_of_means():
    wins = part({"a": [100.0, 0.0]}, weight=0.5)
    lengths = part({"a": [10.0, 30.0]}, weight=-0.1)
    task = part({"a": [1.0, 1.0, 0.0]}, weight=2.0, benchmark="task")
    assert worth([wins, lengths, task], "a").value == pytest.approx(0.5 * 50 - 0.1 * 20 + 2 * 2 / 3)
    assert worth([wins, lengths, task], "a").n == 5


def test_one_part_alone_has_the_leaderboard_s_interval_difference_and_p_value():
    import pandas as pd

    values = coins(1)
    table = pd.DataFrame(
        [
            {"model": m, "judge": "j", "baseline": None, "metric": "w", "question": f"q{i}", "value": v, "weight": 1.0}
            for m, row in values.items()
            for i, v in enumerate(row)
        ]
    )
    scores, [difference] = scores_and_differences(table, [("a", "b")], benchmark="x", version="1")
    mine = worth([part(values)], "a")
    assert (mine.value, mine.low, mine.high) == pytest.approx((scores[0].value, scores[0].low, scores[0].high))
    found = gap([part(values)], "a", "b")
    assert (found.value, found.low, found.high) == pytest.approx((difference.value, difference.low, difference.high))
    assert found.p == pytest.approx(difference.p, abs=0.02)


def test_parts_of_one_benchmark_are_drawn_together():
    values = coins(2)
    both = [part(values), part(values, weight=-1.0)]
    found = worth(both, "a")
    assert (found.value, found.low, found.high) == pytest.approx((0.0, 0.0, 0.0))


def test_parts_of_different_benchmarks_are_drawn_apart():
    values = coins(2)
    one, two = worth([part(values)], "a"), worth([part(values), part(values, benchmark="other")], "a")
    assert two.high - two.low == pytest.approx(2**0.5 * (one.high - one.low), rel=0.1)


def test_what_is_missing_is_left_out_of_both():
    values = part({"a": [1.0, None, 1.0, 1.0], "b": [0.0, 0.0, None, 1.0]})
    found = gap([values], "a", "b")
    assert (found.value, found.n, found.missing) == (0.5, 2, 2)


def test_without_a_value_in_some_part_there_is_none():
    found = worth([part({"a": [1.0, 0.0]}), part({"a": [None, None]}, benchmark="task")], "a")
    assert (found.value, found.low, found.n, found.missing) == (None, None, 2, 2)
    beside = gap([part({"a": [1.0, 0.0], "b": []})], "a", "b")
    assert (beside.value, beside.p) == (None, None)


def test_of_one_question_there_is_a_value_and_no_interval():
    found = worth([part({"a": [1.0]})], "a")
    assert (found.value, found.low, found.high) == (1.0, None, None)


def test_a_question_counts_as_much_as_it_says():
    assert worth([part({"a": [1.0, 0.0]}, counts={"q0": 3.0})], "a").value == 0.75


def test_swapping_the_candidates_negates_the_gap():
    values = [part(coins(3)), part(coins(4, n=30), weight=0.3, benchmark="task")]
    there, back = gap(values, "a", "b"), gap(values, "b", "a")
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low), abs=1e-6)
    assert there.p == back.p


def test_a_candidate_beside_itself_has_no_gap():
    found = gap([part(coins(5))], "a", "a")
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_several_gaps_are_those_of_each_pair():
    values = [part(coins(6, names=("a", "b", "c")))]
    several = gaps(values, ["a", "b", "c"], "b")
    assert several.values.tolist() == [gap(values, name, "b").value for name in "abc"]
    assert several.resampled.shape == (3, ROUNDS)


def test_nothing_to_weigh_is_an_error():
    with pytest.raises(ValueError, match="nothing is to be weighed"):
        worth([], "a")
