"""Which number is a response's reward: a model's, a judge's, a sum of several, or whether it is correct.

"Correctness first, then reward", as FuseChat-3.0 (arXiv:2503.04222) has it for maths and code, needs no number of its
own: the pair builder takes the best reward of the correct responses and the worst of the incorrect ones. So
correctness stays beside the reward, and becomes one only where there is nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

from fusion.errors import RecipeError, did_you_mean, listed

Key = TypeVar("Key", bound=Hashable)

LOWEST, HIGHEST = 1, 10
"""The ratings that a judge gives."""


def of_rating(rating: float | None) -> float | None:
    """Return a judge's rating from 1 to 10 as a reward from 0 to 1; None stays None."""
    if rating is None:
        return None
    if isinstance(rating, bool) or not LOWEST <= rating <= HIGHEST:
        raise RecipeError(f"a judge's rating is {rating!r}; it must be from {LOWEST} to {HIGHEST}")
    return (rating - LOWEST) / (HIGHEST - LOWEST)


def of_correctness(correct: bool | None) -> float | None:
    """Return 1 for a correct response and 0 for an incorrect one; None where it is not known."""
    return None if correct is None else float(correct)


def combined(
    rewards: Mapping[str, Mapping[Key, float | None]], weights: Mapping[str, float]
) -> dict[Key, float | None]:
    """Return the weighted sum of several rewards: Σ wₙ · rₙ over their names n, for every key that any of them has.

    Where one of the rewards is missing or None, so is the sum. The rewards are taken as they are: models differ in
    scale, so the weights must make up for that. RecipeError where names of weights and rewards differ, or a number is
    not finite.
    """
    for name in sorted(rewards.keys() ^ weights.keys()):
        what, others = ("weight", weights) if name in rewards else ("reward", rewards)
        raise RecipeError(
            f"there is no {what} called {name!r}; there are {listed(others) or 'none'}.{did_you_mean(name, others)}"
        )
    for name, weight in weights.items():
        if not _is_number(weight):
            raise RecipeError(f"the weight of reward {name!r} is {weight!r}; it must be a finite number")
    found: dict[Key, float | None] = {}
    for key in dict.fromkeys(key for of in rewards.values() for key in of):
        values = {name: of.get(key) for name, of in rewards.items()}
        for name, value in values.items():
            if value is not None and not _is_number(value):
                raise RecipeError(f"reward {name!r} of {key!r} is {value!r}; it must be a finite number, or None")
        parts = [weights[name] * value for name, value in values.items() if value is not None]
        found[key] = math.fsum(parts) if len(parts) == len(values) else None
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
