"""Racing on questions: every candidate is asked a few, and only those that may still be the best are asked more.

Maron & Moore 1994 (NeurIPS, Hoeffding races) with the intervals of multiple comparisons with the best (Hsu 1984,
Ann. Statist. 12): a candidate is dropped where the interval of its paired gap to the leader, the question being the
unit, is wholly below 0. The intervals of one rung hold for all its candidates at once (the largest studentised gap of
the same resamples, as in Dunnett's test) and share the level with the other rungs, so that a race drops the truly
best with a probability of at most ``level``, however many candidates and rungs it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from evals.composite import Draws, Part, gaps, worths
from evals.resampling import ROUNDS, Values

LEVEL = 0.05
LEAST = 10  # questions before anything is dropped: the spread over fewer says next to nothing


@dataclass(frozen=True, slots=True)
class Standing:
    """How a candidate stands beside the leader.

    ``gap`` is the candidate minus the leader over the questions that both have, and ``low`` and ``high`` its interval,
    which holds for all candidates at once (None where nothing can be said); ``estimate`` is the leader's value plus
    the gap: what the candidate would be worth on all questions that the leader was asked. None: no value.
    """

    candidate: str
    estimate: float | None
    gap: float | None
    low: float | None
    high: float | None
    n: int
    dropped: bool


def rungs(start: int, total: int, *, factor: float = 2.0) -> list[int]:
    """Return how many questions a candidate was asked after each rung: ``start``, ``factor`` times that, … ``total``.

    Raises ValueError where these make no race.
    """
    if start < 1 or total < 1:
        raise ValueError(f"a race from {start} to {total} questions asks nothing; give at least 1")
    if factor <= 1:
        raise ValueError(f"a factor of {factor:g} never reaches {total} questions; give one above 1, such as 2")
    found = [min(start, total)]
    while found[-1] < total:
        more = max(found[-1] + 1, round(found[-1] * factor))
        # A last rung of a few questions would cost a decision and bring nothing.
        found.append(total if more * 1.25 > total else more)
    return found


def race(
    parts: Sequence[Part],
    candidates: Sequence[str],
    *,
    leader: str | None = None,
    total: int | None = None,
    looks: int = 1,
    level: float = LEVEL,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> list[Standing]:
    """Return how the candidates stand after a rung, the leader first, then by their gaps to it.

    ``parts`` hold what each candidate has scored so far. ``leader`` None is the candidate with the best value of those
    with the most questions. ``looks`` is how many rungs the whole race has, and ``total`` how many questions; None is
    any number, of which those asked are a sample. Raises ValueError for impossible arguments.
    """
    if not 0 < level < 1 or looks < 1:
        raise ValueError(f"level {level} over {looks} rungs decides nothing; give a level in (0, 1) and a rung or more")
    values = worths(parts, candidates)
    at = _leader(values) if leader is None else list(candidates).index(leader)
    if at is None or np.isnan(values.values[at]):
        return [
            Standing(name, None, None, None, None, int(n), False) for name, n in zip(candidates, values.n, strict=True)
        ]
    draws = gaps(parts, candidates, candidates[at], rounds=rounds, seed=seed)
    margins = _margins(draws, at, level / looks, total)
    best = float(values.values[at])
    found = [_standing(name, best, draws, margins, row) for row, name in enumerate(candidates)]
    if total is not None:  # who was asked everything is not dropped from anything
        found = [replace(each, dropped=each.dropped and each.n < total) for each in found]
    return sorted(found, key=lambda each: (each.candidate != candidates[at], each.gap is None, -(each.gap or 0.0)))


def _leader(values: Draws) -> int | None:
    """Return who has the best value of those with the most questions; None where nobody has one."""
    valued = [int(at) for at in np.flatnonzero(~np.isnan(values.values))]
    most = max((values.n[at] for at in valued), default=0)
    return max((at for at in valued if values.n[at] == most), key=lambda at: float(values.values[at]), default=None)


def _standing(name: str, best: float, draws: Draws, margins: Values, at: int) -> Standing:
    gap, margin, n = float(draws.values[at]), float(margins[at]), int(draws.n[at])
    if np.isnan(gap):
        return Standing(name, None, None, None, None, n, False)
    if n < 2:
        return Standing(name, best + gap, gap, None, None, n, False)
    return Standing(name, best + gap, gap, gap - margin, gap + margin, n, n >= LEAST and gap + margin < 0)


def _margins(draws: Draws, leader: int, level: float, total: int | None) -> Values:
    """Return half the width of each candidate's interval, one-sided, all of them right at once with 1 - ``level``."""
    from scipy.special import stdtrit

    resampled = np.nan_to_num(draws.resampled)  # NaN: a resample without any value
    spread: Values = resampled.std(axis=1)  # (K,)
    others = [k for k in np.flatnonzero(spread > 0) if k != leader]
    if not others:
        return np.zeros(len(spread))
    largest = (resampled[others] / spread[others, None]).max(axis=0)  # (rounds,)
    critical = max(float(np.quantile(largest, 1 - level)), NormalDist().inv_cdf(1 - level))
    n = np.maximum(draws.n, 2.0)
    left = 1.0 if total is None else np.maximum(0.0, 1 - n / total)
    # Few questions know their spread badly: the same probability on Student's scale.
    scale: Values = stdtrit(n - 1, NormalDist().cdf(critical)) * np.sqrt(n / (n - 1) * left)
    margins: Values = scale * spread
    return margins
