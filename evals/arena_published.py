"""Arena-Hard's published intervals: resamples of single games, drawn as the references draw them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals.arena_scores import ORDERS, Placed, Rules, place_games, score_of
from evals.benchmark import Evidence, Wanted
from evals.records import Score

Array = NDArray[np.float64]

ROUNDS, SEED = 100, 42


def like_published(evidence: Evidence, *, rules: Rules) -> tuple[Score, ...]:
    """Return the published figures with the published intervals, which take games for independent.

    v0.1, ``bradley_terry:published``: 100 resamples of the battles of all models together, percentiles 2.5 and 97.5 of
    the ratings, win rates rounded to two decimals. The battles lie as in the reference's table (model by model in the
    order of their first verdicts; a question's first game, then its second; a decisive one three times) and are drawn
    as pandas' ``DataFrame.sample`` does after ``numpy.random.seed(42)``. So the same battles give the same interval as
    there, and other models, or another order of files, another one. The closed form stands for its fit.

    v2.0, ``win_rate:published``: 100 resamples of each model's battles, percentiles 5 and 95.
    """
    battles = _battles(place_games(evidence, rules))
    pools: dict[tuple[Any, ...], list[_Battles]] = {}
    for of_model in battles:
        want = of_model.want
        pool = (want.judge, want.baseline) if rules.version == "v0.1" else (want.judge, want.baseline, want.model)
        pools.setdefault(pool, []).append(of_model)
    return tuple(score for pool in pools.values() for score in _published(pool, rules))


def _published(pool: Sequence[_Battles], rules: Rules) -> Iterator[Score]:
    ratings = rules.version == "v0.1"  # which publishes ratings, rounded
    drawn = resampled_rates([battles.halves for battles in pool], rounds=ROUNDS, seed=SEED)  # (rounds, models)
    for battles, rates in zip(pool, drawn.T, strict=True):
        low, high = _percentiles(rates, (2.5, 97.5) if ratings else (5, 95), ratings=ratings)
        figures = np.array([battles.halves.mean() / 2, low, high]) * 100
        yield score_of(
            battles.want,
            "bradley_terry:published" if ratings else "win_rate:published",
            np.round(figures, 2) if ratings else figures,
            rules=rules,
            n=battles.questions,
            missing=battles.missing,
            flags=(f"{ROUNDS} resamples of games, seed {SEED}",),
        )


@dataclass(frozen=True, slots=True)
class _Battles:
    """A group's battles in the order of the reference's table: twice what the model won of each, 0, 1 or 2."""

    want: Wanted
    halves: NDArray[np.int64]
    questions: int  # that they are of
    missing: int  # questions without any


def _battles(placed: Placed) -> list[_Battles]:
    """Return the battles of each group that has some, in the order of the groups' first verdicts."""
    weight = placed.games["weight"].to_numpy(dtype=int)
    halves = (2 * placed.games["outcome"].to_numpy(dtype=float)).astype(np.int64)
    cell = placed.group * len(placed.questions) + placed.question
    _, cell_first, of_cell = np.unique(cell, return_index=True, return_inverse=True)
    _, group_first, of_group = np.unique(placed.group, return_index=True, return_inverse=True)
    second = (placed.games["order"] == ORDERS[1]).to_numpy(dtype=bool)
    order = np.lexsort((second, cell_first[of_cell], group_first[of_group]))
    order = order[weight[order] > 0]
    owner = placed.group[order]
    begin = np.flatnonzero(np.diff(owner, prepend=-1))
    found = []
    for part in np.split(order, begin[1:]) if len(order) else []:
        row = int(placed.group[part[0]])
        questions = len(np.unique(placed.question[part]))
        missing = int(placed.asked[row].sum()) - questions
        found.append(_Battles(placed.wanted[row], np.repeat(halves[part], weight[part]), questions, missing))
    return found


def resampled_rates(halves: Sequence[NDArray[np.int64]], *, rounds: int, seed: int) -> Array:
    """Return the win rates of M models in ``rounds`` resamples of all their battles together, shape (rounds, M).

    ``halves`` holds, model after model, twice what it won of each battle: 0, 1 or 2. NaN where a resample holds no
    battle of a model.
    """
    models = len(halves)
    code = np.concatenate(halves) + 3 * np.repeat(np.arange(models), [len(h) for h in halves])  # (battles,)
    drawn = np.random.RandomState(seed)  # the legacy generator, as the references have it
    rates = np.empty((rounds, models))
    for place in range(rounds):
        picked = code[drawn.choice(len(code), size=len(code), replace=True)]
        lost, tied, won = np.bincount(picked, minlength=3 * models).reshape(models, 3).T
        with np.errstate(invalid="ignore"):
            rates[place] = (won + tied / 2) / (lost + tied + won)
    return rates


def _percentiles(rates: Array, tails: tuple[float, float], *, ratings: bool) -> tuple[float, float]:
    """Return percentiles of the resampled rates, interpolated between ratings (log-odds) where those are published."""
    rates = rates[~np.isnan(rates)]
    if not ratings or rates.min() <= 0 or rates.max() >= 1:
        low, high = np.percentile(rates, tails)
    else:
        low, high = 1 / (1 + np.exp(-np.percentile(np.log(rates / (1 - rates)), tails)))
    return float(low), float(high)
