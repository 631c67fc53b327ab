"""What the winner of a search gained, without the search's luck: on questions that the search did not see.

The best of many noisy figures is too good (the winner's curse): its value on the questions that it was chosen by is
shown, and claims nothing. A gain is claimed only where the paired interval on unseen questions leaves out zero and
the label-swap p-value is below 0.05, which happens to equal models once in forty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evals.composite import LEVEL, Gap, Part, gap
from evals.resampling import ROUNDS


@dataclass(frozen=True, slots=True)
class Gain:
    """The winner minus the base: on the search's own questions, and on those that it did not see.

    ``verdict`` is gain, loss, none (no gain shown) or missing, by ``unseen`` alone. ``luck`` is how much of the gain on
    the search's questions is not found on the others; None where either has no value.
    """

    seen: Gap
    unseen: Gap
    verdict: str
    luck: float | None


def gain(
    seen: Sequence[Part], unseen: Sequence[Part], winner: str, base: str, *, rounds: int = ROUNDS, seed: int = 0
) -> Gain:
    """Return what ``winner`` gained over ``base``; ``seen`` and ``unseen`` hold no question in common.

    Raises ValueError where they do.
    """
    for one in seen:
        for other in unseen:
            if one.benchmark == other.benchmark and (both := _questions(one) & _questions(other)):
                raise ValueError(
                    f"question {min(both)!r} of {one.benchmark} is among those that the search saw and those that it "
                    "did not; hold others out"
                )
    searched = gap(seen, winner, base, rounds=rounds, seed=seed)
    found = gap(unseen, winner, base, rounds=rounds, seed=seed)
    luck = None if searched.value is None or found.value is None else searched.value - found.value
    return Gain(searched, found, verdict(found), luck)


def verdict(found: Gap, *, level: float = LEVEL) -> str:
    """Return what a paired difference shows: gain, loss, none, or missing where there is no value."""
    if found.value is None:
        return "missing"
    if found.low is None or found.high is None or found.p is None or found.p >= level:
        return "none"
    return "gain" if found.low > 0 else "loss" if found.high < 0 else "none"


def broken(found: Gap) -> float:
    """Return by how much "no worse than the other" is broken beyond the interval: above 0 where it is.

    Where there is no value, or no interval, nothing shows that it is.
    """
    return 0.0 if found.high is None else max(0.0, -found.high)


def _questions(part: Part) -> set[str]:
    return {question for values in part.values.values() for question in values}
