"""A race asks few questions of what cannot win, and ends with the winner that asking everything would have."""

import numpy as np
import pytest

from evals.composite import Part
from evals.racing import LEAST, race, rungs


def part(values):
    return Part("arena", 1.0, {name: {f"q{i}": v for i, v in enumerate(row)} for name, row in values.items()})


def answered(seed, truths, n):
    """Judge each candidate over ``n`` questions in both orders; some questions are hard for everybody (Rasch 1960)."""
    rng = np.random.default_rng(seed)
    ability = np.log(truths / (1 - truths)) * 1.33  # so that the mean over questions is the truth
    chance = 1 / (1 + np.exp(rng.normal(0, 1.5, n) - ability[:, None]))
    return 100 * (rng.random((2, *chance.shape)) < chance).mean(axis=0), 100 * chance.mean(axis=1)


def test_rungs_grow_by_the_factor_up_to_all_questions():
    assert rungs(20, 200) == [20, 40, 80, 160, 200]
    assert rungs(20, 90) == [20, 40, 90]  # ten questions more would bring nothing
    assert rungs(10, 100, factor=3) == [10, 30, 100]
    assert rungs(50, 30) == [30]


@pytest.mark.parametrize(("start", "total", "factor"), [(0, 10, 2.0), (5, 10, 1.0)])
def test_impossible_rungs_are_refused(start, total, factor):
    with pytest.raises(ValueError, match="give"):
        rungs(start, total, factor=factor)


def test_a_hopeless_candidate_is_dropped_and_an_equal_one_is_not():
    scores, _ = answered(2, np.array([0.6, 0.6, 0.1]), 40)
    standings = {each.candidate: each for each in race([part(dict(zip("abc", scores.tolist(), strict=True)))], "abc")}
    assert [name for name, each in standings.items() if each.dropped] == ["c"]
    assert standings["c"].high < 0


def test_the_leader_stands_first_and_is_never_dropped():
    scores, _ = answered(2, np.linspace(0.2, 0.7, 6), 40)
    first, *others = race([part({str(i): row for i, row in enumerate(scores.tolist())})], [str(i) for i in range(6)])
    assert (first.gap, first.dropped) == (0.0, False)
    assert [each.gap for each in others] == sorted((each.gap for each in others), reverse=True)


def test_it_does_not_matter_in_which_place_the_leader_is():
    values = part({"a": [0.0] * 20, "b": [100.0, 50.0] * 10})
    there, back = race([values], ["a", "b"]), race([values], ["b", "a"])
    assert there == back
    assert [each.candidate for each in there] == ["b", "a"]


def test_before_enough_questions_nothing_is_dropped():
    few = race([part({"a": [100.0] * (LEAST - 1), "b": [0.0] * (LEAST - 1)})], ["a", "b"])
    enough = race([part({"a": [100.0] * LEAST, "b": [0.0] * LEAST})], ["a", "b"])
    assert (few[1].dropped, enough[1].dropped) == (False, True)


def test_what_was_asked_less_is_estimated_on_all_that_the_leader_was_asked():
    leader = [90.0] * 10 + [10.0] * 10  # the first ten questions are easy
    standings = race([part({"a": leader, "b": [80.0] * 10})], ["a", "b"])
    assert (standings[1].gap, standings[1].estimate, standings[1].n) == (-10.0, 40.0, 10)


def test_a_candidate_without_a_score_is_neither_leader_nor_dropped():
    standings = race([part({"a": [50.0] * 20, "b": [None] * 20})], ["a", "b"])
    assert [(each.candidate, each.dropped) for each in standings] == [("a", False), ("b", False)]
    assert standings[1].estimate is None
    assert all(each.estimate is None for each in race([part({"a": [], "b": []})], ["a", "b"]))


def test_the_last_questions_leave_less_to_hope_for():
    scores, _ = answered(3, np.array([0.6, 0.5]), 80)
    values = [part(dict(zip("ab", scores.tolist(), strict=True)))]
    _, of_many = race(values, "ab")
    _, nearly_all = race(values, "ab", total=100)
    assert nearly_all.high - nearly_all.gap == pytest.approx((of_many.high - of_many.gap) * (1 - 0.8) ** 0.5)


def test_more_candidates_and_more_rungs_make_a_race_more_careful():
    scores, _ = answered(4, np.full(20, 0.5), 40)
    values = [part({str(i): row for i, row in enumerate(scores.tolist())})]

    def width(count, looks):
        names = [str(i) for i in range(count)]
        last = max(race(values, names, leader="0", looks=looks), key=lambda each: each.candidate == "1")
        return last.high - last.gap

    assert width(2, 1) < width(20, 1) < width(20, 5)


def test_a_race_among_equals_seldom_drops_whom_everything_asked_would_choose():
    kept = 0
    for seed in range(40):
        scores, _ = answered(100 + seed, np.full(8, 0.5), 100)
        seen = {str(i): row[:40] for i, row in enumerate(scores.tolist())}
        standings = race([part(seen)], list(seen), looks=1, total=100, rounds=1000)
        winner = str(scores.mean(axis=1).argmax())
        kept += not next(each.dropped for each in standings if each.candidate == winner)
    assert kept >= 36  # 95 % promised


@pytest.mark.parametrize(("level", "looks"), [(0.0, 1), (1.0, 1), (0.05, 0)])
def test_an_impossible_race_is_refused(level, looks):
    with pytest.raises(ValueError, match="decides nothing"):
        race([part({"a": [1.0]})], ["a"], level=level, looks=looks)
