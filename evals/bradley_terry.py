"""Bradley-Terry: the strengths of models from who beat whom, on the natural log scale, with clustered intervals.

    P(i beats j) = 1 / (1 + exp(θⱼ - θᵢ))

Bradley & Terry 1952 (doi:10.2307/2334029). A tie is half a win for each, as Chatbot Arena does (Chiang et al. 2024,
arXiv:2403.04132). The likelihood is concave and is maximised by Newton's method to the last digits. Finite strengths
exist exactly where a chain of wins or ties leads from every model to every other (Ford 1957; Hunter 2004,
doi:10.1214/aos/1079120141): where none does, the fit says so and gives no number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evals.resampling import Values, resample_counts

ROUNDS = 1_000
STEPS = 100
CHUNK = 1_000_000  # numbers of 8 bytes in the matrices of the resamples that are fitted at a time

Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Battles:
    """Who met whom, and what each battle gave: ``ahead`` to the lower code of its pair, ``behind`` to the other."""

    models: int
    low: Codes  # (pairs,)
    high: Codes  # (pairs,)
    pair: Codes  # (battles,), into the pairs
    ahead: Values  # (battles,)
    behind: Values  # (battles,)


def bradley_terry(
    first: ArrayLike,
    second: ArrayLike,
    outcome: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    models: int | None = None,
    anchor: int | None = None,
) -> Values:
    """Return the maximum-likelihood strengths θ, shape (models,), on the natural log scale.

    ``first`` and ``second`` are model codes from 0, shape (battles,); ``outcome`` is 1 where the first wins, 0 where
    the second does, 0.5 for a tie; ``weight`` is how often a battle counts (1). ``models`` is one more than the highest
    code if not given. The mean strength is 0, or that of the model ``anchor``. Raises ValueError where no finite
    strengths exist (a model that wins or loses everything, or meets nobody), naming the models.
    """
    battles = _battles(first, second, outcome, weight, models)
    _check_anchor(anchor, battles.models)
    ahead, behind = _points(battles)
    reach = _reach(battles, ahead, behind)[0]
    apart = np.flatnonzero(~(reach[anchor or 0] & reach[:, anchor or 0]))
    if len(apart):
        raise ValueError(
            f"models {apart.tolist()} have no finite strength beside model {anchor or 0}: no chain of wins or ties "
            "leads both ways between them; leave them out of the fit, or have more of their answers judged"
        )
    [strengths] = _fit(battles, ahead, behind, reach[None], np.zeros((1, battles.models)))
    found: Values = strengths - (strengths.mean() if anchor is None else strengths[anchor])
    return found


def resampled_strengths(
    first: ArrayLike,
    second: ArrayLike,
    outcome: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    question: Sequence[str] | NDArray[np.generic],
    anchor: int,
    models: int | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Values:
    """Return the strengths in resamples of questions, each with all its battles: shape (rounds, models).

    ``question`` says of each battle what it was about; the draw is that of :func:`evals.stats.mean_scores` for as many
    questions. Strengths are relative to the model ``anchor``. In a resample where a model has no point against the
    anchor, directly or through others, its strength is -inf; where the anchor has none against it, inf; NaN where
    neither can be placed beside the other.
    """
    battles = _battles(first, second, outcome, weight, models)
    _check_anchor(anchor, battles.models)
    names, about = np.unique(np.asarray(question), return_inverse=True)
    if len(about) != len(battles.pair):
        raise ValueError(f"{len(about)} questions for {len(battles.pair)} battles; give one a battle")
    pairs = len(battles.low)
    cells = about.ravel() * pairs + battles.pair
    ahead, behind = (
        np.bincount(cells, points, minlength=len(names) * pairs).reshape(len(names), pairs)
        for points in (battles.ahead, battles.behind)
    )
    parts = [
        _placed(battles, counts @ ahead, counts @ behind, anchor)
        for drawn in resample_counts(len(names), rounds=rounds, seed=seed)
        for counts in _chunks(drawn, battles.models)
    ]
    return np.concatenate(parts)


def strength_intervals(resampled: Values, *, level: float = 0.95) -> Values:
    """Return each model's percentile interval from :func:`resampled_strengths`: (rounds, models) to (models, 2).

    An end is -inf or inf where so many resamples have no finite strength: then the battles give no bound on that side.
    A resample that cannot place a model (NaN) counts at both ends, so that not knowing widens the interval.
    """
    ends = [
        np.quantile(np.where(np.isnan(resampled), unknown, resampled), q, axis=0, method="inverted_cdf")
        for q, unknown in (((1 - level) / 2, -np.inf), ((1 + level) / 2, np.inf))
    ]
    return np.stack(ends, axis=1)


def elo(strengths: Values, *, anchor: float = 1000.0) -> Values:
    """Return strengths on the Elo scale, 400 / ln 10 a unit, where strength 0 is ``anchor``."""
    return strengths * (400.0 / math.log(10.0)) + anchor


def win_probability(strengths: Values, other: float = 0.0) -> Values:
    """Return the probability of beating a model of strength ``other`` (a tie being half a win); 0 at -inf."""
    gap = np.asarray(strengths, dtype=np.float64) - other
    probability: Values = np.exp(-np.logaddexp(0.0, -gap))  # no overflow, and exact digits of the smallest
    return probability


def _battles(
    first: ArrayLike, second: ArrayLike, outcome: ArrayLike, weight: ArrayLike | None, models: int | None
) -> _Battles:
    one, two = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    won = np.asarray(outcome, dtype=np.float64)
    load = np.ones(len(won)) if weight is None else np.asarray(weight, dtype=np.float64)
    if not len(one) == len(two) == len(won) == len(load) > 0:
        raise ValueError(f"{len(one)} first, {len(two)} second models, {len(won)} outcomes and {len(load)} weights; "
                         "give one of each a battle, and a battle at least")  # fmt: skip
    count = 1 + int(max(one.max(), two.max())) if models is None else models
    for bad, what in (
        (one == two, "is of a model with itself; leave it out"),
        ((np.minimum(one, two) < 0) | (np.maximum(one, two) >= count), f"has a code outside 0 to {count - 1}"),
        (~((won >= 0) & (won <= 1)), "has an outcome outside 0 to 1; 1 is won by the first, 0.5 a tie"),
        (~((load >= 0) & np.isfinite(load)), "has a weight that is negative or not finite; 0 leaves it out"),
    ):
        for at in np.flatnonzero(bad)[:1]:
            raise ValueError(f"battle {at} ({one[at]} - {two[at]}, outcome {won[at]}, weight {load[at]}) {what}")
    pairs, pair = np.unique(np.minimum(one, two) * count + np.maximum(one, two), return_inverse=True)
    ahead = load * np.where(one < two, won, 1 - won)
    return _Battles(count, pairs // count, pairs % count, pair.ravel(), ahead, load - ahead)


def _check_anchor(anchor: int | None, models: int) -> None:
    if anchor is not None and not 0 <= anchor < models:
        raise ValueError(f"anchor {anchor} is no model; codes are 0 to {models - 1}")


def _points(battles: _Battles) -> tuple[Values, Values]:
    """Return the points of all battles, a row of one fit: (1, pairs) for the lower code and for the higher."""
    ahead, behind = np.zeros((2, 1, len(battles.low)))
    np.add.at(ahead[0], battles.pair, battles.ahead)
    np.add.at(behind[0], battles.pair, battles.behind)
    return ahead, behind


def _chunks(rows: Values, models: int) -> Iterator[Values]:
    step = max(1, CHUNK // models**2)
    for begun in range(0, len(rows), step):
        yield rows[begun : begun + step]


def _placed(battles: _Battles, ahead: Values, behind: Values, anchor: int) -> Values:
    """Return strengths relative to the anchor, infinite or NaN where that is what the points say: (fits, models)."""
    reach = _reach(battles, ahead, behind)
    strengths = _fit(battles, ahead, behind, reach & reach.transpose(0, 2, 1), np.zeros((len(ahead), battles.models)))
    strengths -= strengths[:, anchor, None]
    above, below = reach[:, :, anchor], reach[:, anchor, :]  # (fits, models): has points on the anchor; gives it some
    strengths[above & ~below] = np.inf
    strengths[~above & below] = -np.inf
    strengths[~above & ~below] = np.nan
    return strengths


def _reach(battles: _Battles, ahead: Values, behind: Values) -> NDArray[np.bool_]:
    """Return whether a chain of points leads from one model to another: (fits, models, models)."""
    patterns, which = np.unique(np.packbits(np.hstack([ahead > 0, behind > 0]), axis=1), axis=0, return_inverse=True)
    _, some = np.unique(which.ravel(), return_index=True)
    reach = np.zeros((len(patterns), battles.models, battles.models), dtype=np.float32)
    reach[:, battles.low, battles.high] = ahead[some] > 0
    reach[:, battles.high, battles.low] = behind[some] > 0
    reach[:, range(battles.models), range(battles.models)] = 1
    for _ in range(math.ceil(math.log2(battles.models))):  # each squaring doubles the length of the chains
        reach = np.minimum(reach @ reach, 1)
    found: NDArray[np.bool_] = (reach > 0)[which.ravel()]
    return found


def _fit(battles: _Battles, ahead: Values, behind: Values, together: NDArray[np.bool_], start: Values) -> Values:
    """Return the strengths of several fits at once, (fits, models), by Newton's method.

    ``together`` says which models have finite strengths relative to each other, (fits, models, models). Battles
    between others do not bear on those, and are left out; each such set of models has mean strength 0.
    """
    low, high = battles.low, battles.high
    inside = together[:, low, high]
    ahead, behind = ahead * inside, behind * inside
    strengths, moving = start.copy(), np.arange(len(start))
    for _ in range(STEPS):
        at = strengths[moving]
        step = _newton_step(battles, ahead[moving], behind[moving], together[moving], at)
        size = _step_size(battles, ahead[moving], behind[moving], at, step)
        strengths[moving] = at + size[:, None] * step
        moving = moving[np.abs(step).max(axis=1) > 1e-10]
        if not len(moving):
            return strengths
    raise ArithmeticError(f"Bradley-Terry did not converge in {STEPS} Newton steps; are the weights of similar size?")


def _newton_step(
    battles: _Battles, ahead: Values, behind: Values, together: NDArray[np.bool_], strengths: Values
) -> Values:
    low, high, every = battles.low, battles.high, np.arange(battles.models)
    sign = np.zeros((len(low), battles.models))  # (pairs, models): 1 for the lower code, -1 for the higher
    sign[np.arange(len(low)), low], sign[np.arange(len(low)), high] = 1, -1
    gap = strengths[:, low] - strengths[:, high]  # (fits, pairs)
    wins, losses = win_probability(gap), win_probability(-gap)
    slope = (ahead * losses - behind * wins) @ sign  # (fits, models)
    bend = (ahead + behind) * wins * losses  # (fits, pairs)
    diagonal = bend @ np.abs(sign)
    # The Hessian cannot see a common shift of models that are fitted together; ones among them pin their mean.
    scale = diagonal.mean(axis=1)
    hessian = together * np.where(scale > 0, scale, 1.0)[:, None, None]
    hessian[:, low, high] -= bend
    hessian[:, high, low] -= bend
    hessian[:, every, every] += diagonal
    step: Values = np.linalg.solve(hessian, slope[..., None])[..., 0]
    return step


def _step_size(battles: _Battles, ahead: Values, behind: Values, strengths: Values, step: Values) -> Values:
    """Return 1, halved until the likelihood does not fall: (fits,)."""

    def likelihood(at: Values) -> Values:
        gap = at[:, battles.low] - at[:, battles.high]
        total: Values = -(ahead * np.logaddexp(0, -gap) + behind * np.logaddexp(0, gap)).sum(axis=1)
        return total

    size, before = np.ones(len(step)), likelihood(strengths)
    for _ in range(50):
        worse = likelihood(strengths + size[:, None] * step) < before - 1e-12 * np.abs(before)
        if not worse.any():
            break
        size[worse] /= 2
    return size
