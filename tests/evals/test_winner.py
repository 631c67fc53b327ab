"""A winner's gain is claimed on questions that the search did not see, or not at all."""

import numpy as np
import pytest

from evals.composite import Gap, Part
from evals.winner import broken, gain, verdict


def part(values, first=0, benchmark="arena"):
    return Part(benchmark, 1.0, {name: {f"q{first + i}": v for i, v in enumerate(row)} for name, row in values.items()})


def coins(rng, truths, n):
    return {name: list(100.0 * (rng.random(n) < p)) for name, p in truths.items()}


def searched(seed, truths, *, n=100):
    """Choose the best of the candidates on ``n`` questions, and compare it with the base on as many others."""
    rng = np.random.default_rng(seed)
    seen, unseen = coins(rng, truths, n), coins(rng, truths, n)
    winner = max((name for name in truths if name != "base"), key=lambda name: sum(seen[name]))
    return gain([part(seen)], [part(unseen, first=n)], winner, "base", rounds=1000)


def test_the_winner_of_pure_noise_shows_no_gain():
    truths = {"base": 0.5, **{f"c{i}": 0.5 for i in range(12)}}
    found = [searched(seed, truths) for seed in range(100)]
    assert sum(each.verdict == "gain" for each in found) <= 10
    assert sum(verdict(each.seen) == "gain" for each in found) > 10  # what the search's own questions would claim
    assert np.mean([each.luck for each in found]) > 5  # points, of which none are true


def test_a_true_gain_is_found():
    truths = {"base": 0.3, "c0": 0.6, "c1": 0.35}
    found = [searched(seed, truths).verdict for seed in range(20)]
    assert found.count("gain") >= 19


def test_a_true_loss_is_said_to_be_one():
    assert searched(1, {"base": 0.8, "c0": 0.3}).verdict == "loss"


def test_questions_that_the_search_saw_do_not_count_as_unseen():
    with pytest.raises(ValueError, match="question 'q1' of arena is among those that the search saw"):
        gain([part({"a": [1.0, 0.0]})], [part({"a": [1.0]}, first=1)], "a", "base")


def test_without_unseen_questions_nothing_is_claimed():
    found = gain([part({"a": [1.0], "base": [0.0]})], [part({"a": [], "base": []})], "a", "base")
    assert (found.verdict, found.luck) == ("missing", None)


@pytest.mark.parametrize(
    ("found", "by"),
    [
        (Gap(-5.0, -8.0, -2.0, 0.01, 50, 0), 2.0),  # worse beyond the interval
        (Gap(-5.0, -11.0, 1.0, 0.2, 50, 0), 0.0),
        (Gap(None, None, None, None, 0, 50), 0.0),
    ],
)
def test_a_constraint_is_broken_only_beyond_the_interval(found, by):
    assert broken(found) == by
