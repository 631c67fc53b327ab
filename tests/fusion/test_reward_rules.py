"""Rewards out of ratings, correctness and other rewards."""

from __future__ import annotations

import math

import pytest

from fusion.errors import RecipeError
from fusion.reward_rules import combined, of_correctness, of_rating


@pytest.mark.parametrize(("rating", "reward"), [(1, 0.0), (10, 1.0), (5.5, 0.5), (4, 1 / 3), (None, None)])
def test_ratings_from_one_to_ten_become_rewards_from_zero_to_one(rating, reward):
    assert of_rating(rating) == reward


@pytest.mark.parametrize("rating", [0, 11, -1, math.nan, math.inf, True])
def test_a_rating_beyond_the_scale_is_an_error(rating):
    with pytest.raises(RecipeError, match="must be from 1 to 10"):
        of_rating(rating)


def test_correctness_is_one_or_zero_and_unknown_stays_unknown():
    assert [of_correctness(correct) for correct in (True, False, None)] == [1.0, 0.0, None]


def test_a_sum_weighs_each_reward():
    rewards = {"armorm": {"a": 0.5, "b": 0.25}, "judge": {"a": 1.0, "b": 0.0}}
    assert combined(rewards, {"armorm": 2.0, "judge": 0.5}) == {"a": 1.5, "b": 0.5}
    assert combined({"armorm": rewards["armorm"]}, {"armorm": 1.0}) == rewards["armorm"]


def test_a_missing_reward_makes_the_sum_missing_not_smaller():
    rewards = {"armorm": {"a": 0.5, "b": None}, "judge": {"b": 1.0, "c": 1.0}}
    assert combined(rewards, {"armorm": 1.0, "judge": 1.0}) == {"a": None, "b": None, "c": None}


def test_names_of_weights_and_rewards_must_agree():
    with pytest.raises(RecipeError, match=r"no reward called 'juge'; there are judge\. Did you mean 'judge'"):
        combined({"judge": {}}, {"judge": 1.0, "juge": 1.0})
    with pytest.raises(RecipeError, match="no weight called 'judge'; there are none"):
        combined({"judge": {}}, {})


@pytest.mark.parametrize("bad", [math.nan, math.inf, "1", True])
def test_numbers_must_be_finite(bad):
    with pytest.raises(RecipeError, match="weight of reward 'judge'"):
        combined({"judge": {"a": 1.0}}, {"judge": bad})
    with pytest.raises(RecipeError, match="reward 'judge' of 'a'"):
        combined({"judge": {"a": bad}}, {"judge": 1.0})
