"""One figure from several scores: a weighted sum of means over questions, with intervals and paired comparisons.

The unit is the question: parts that rest on one benchmark's questions (a win rate and the length of the same answers)
are drawn together, those of different benchmarks apart. Draws, intervals and p-values are those of
:mod:`evals.stats`: the percentile bootstrap, and the swapping of two candidates' labels question by question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evals.resampling import ROUNDS, Values, label_swaps, percentile_intervals, resampled_means

LEVEL = 0.05
TOLERANCE = 1e-9  # of the largest: a tie stays one, whatever rounding did to it


@dataclass(frozen=True, slots=True)
class Part:
    """``weight`` times the mean of a score over a benchmark's questions; what should be small has a weight below 0.

    ``values`` are by candidate and question, None where missing; ``counts`` says of questions that do not count once
    how much they count in the mean.
    """

    benchmark: str
    weight: float
    values: Mapping[str, Mapping[str, float | None]]
    counts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a candidate is worth, with its 95 % interval; None where a part has no value (or no interval).

    ``n`` counts the questions that have a value in every part of their benchmark, ``missing`` those that have not.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    missing: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A candidate minus another over the questions that both have, with its 95 % interval and two-sided p-value."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    missing: int


@dataclass(frozen=True, slots=True)
class Draws:
    """Figures of several candidates at once: ``values`` of shape (K,), ``resampled`` less these, (K, rounds).

    NaN where a candidate has no value. ``n`` and ``missing`` of shape (K,) count questions.
    """

    values: Values
    resampled: Values
    n: Values
    missing: Values


@dataclass(frozen=True, slots=True)
class _Table:
    """One benchmark's questions in all its parts: values and weights of shape (parts, K, questions)."""

    factors: Values  # (parts,)
    values: Values
    weights: Values


def worth(parts: Sequence[Part], candidate: str, *, rounds: int = ROUNDS, seed: int = 0) -> Estimate:
    """Return what one candidate is worth; ValueError for no parts."""
    draws = _drawn(_tables(parts, [candidate]), rounds, seed)
    value, (low, high), n, missing = _figures(draws)
    return Estimate(value, low, high, n, missing)


def gap(parts: Sequence[Part], candidate: str, other: str, *, rounds: int = ROUNDS, seed: int = 0) -> Gap:
    """Return ``candidate`` minus ``other``, paired; ValueError for no parts."""
    tables = _beside(_tables(parts, [candidate, other]), place=1)
    draws = _drawn(tables, rounds, seed)
    value, (low, high), n, missing = _figures(draws)
    p = None if value is None else _swapped(tables, value, rounds, seed)
    return Gap(value, low, high, p, n, missing)


def worths(parts: Sequence[Part], candidates: Sequence[str]) -> Draws:
    """Return what every candidate is worth, without any resample."""
    return _drawn(_tables(parts, candidates), 0, 0)


def gaps(parts: Sequence[Part], candidates: Sequence[str], other: str, *, rounds: int = ROUNDS, seed: int = 0) -> Draws:
    """Return every candidate minus ``other`` (one of them), all in the same resamples."""
    return _drawn(_beside(_tables(parts, candidates), place=list(candidates).index(other)), rounds, seed)


def _drawn(tables: Sequence[_Table], rounds: int, seed: int) -> Draws:
    """Return the candidates' weighted sums of means, and the same of resamples."""
    count = tables[0].values.shape[1]
    values, resampled, n, missing = np.zeros(count), np.zeros((count, rounds)), np.zeros(count), np.zeros(count)
    for number, table in enumerate(tables):
        for factor, part, weights in zip(table.factors, table.values, table.weights, strict=True):
            with np.errstate(invalid="ignore"):  # 0 / 0: no value
                means = (weights * part).sum(axis=1) / weights.sum(axis=1)  # (K,)
            values += factor * means
            if rounds and weights.any():  # benchmarks with equally many questions are not drawn alike
                centred = np.where(weights > 0, part - means[:, None], 0.0)
                resampled += factor * resampled_means(centred, weights, rounds=rounds, seed=seed + number)
        whole = (table.weights > 0).all(axis=0)
        n += whole.sum(axis=1)
        missing += (~whole).sum(axis=1)
    return Draws(values, resampled, n, missing)


def _figures(draws: Draws) -> tuple[float | None, tuple[float | None, float | None], int, int]:
    n, missing = int(draws.n[0]), int(draws.missing[0])
    if np.isnan(draws.values[0]):
        return None, (None, None), n, missing
    value = float(draws.values[0])
    if n < 2:  # of one question nothing is known of how much others would differ
        return value, (None, None), n, missing
    low, high = (float(end) for end in percentile_intervals(draws.resampled)[0])
    return value, (value + low, value + high), n, missing


def _tables(parts: Sequence[Part], candidates: Sequence[str]) -> list[_Table]:
    """Return the parts as arrays, a table a benchmark; its questions are those of any of the candidates."""
    if not parts:
        raise ValueError("nothing is to be weighed: give a part, such as a benchmark's win rate")
    tables = []
    for benchmark in dict.fromkeys(part.benchmark for part in parts):
        own = [part for part in parts if part.benchmark == benchmark]
        questions = sorted({q for part in own for name in candidates for q in part.values.get(name, ())})
        values = np.full((len(own), len(candidates), len(questions)), np.nan)
        for at, part in enumerate(own):
            for row, name in enumerate(candidates):
                found = part.values.get(name, {})
                values[at, row] = [np.nan if (v := found.get(q)) is None else v for q in questions]
        counts = np.array([[part.counts.get(q, 1.0) for q in questions] for part in own])[:, None, :]
        weights = np.where(np.isnan(values), 0.0, counts)
        tables.append(_Table(np.array([part.weight for part in own]), np.nan_to_num(values), weights))
    return tables


def _beside(tables: Sequence[_Table], *, place: int) -> list[_Table]:
    """Return the tables of the candidates less that in ``place``, on the questions that both of each two have."""
    found = []
    for table in tables:
        both = (table.weights > 0) & (table.weights[:, [place]] > 0)
        rows = table.values - table.values[:, [place]]
        found.append(_Table(table.factors, np.where(both, rows, 0.0), np.where(both, table.weights, 0.0)))
    return found


def _swapped(tables: Sequence[_Table], value: float, rounds: int, seed: int) -> float:
    """Return the two-sided p-value of the first row's gap: the share of swaps that make it as large, itself among."""
    sums, largest = np.zeros(rounds), 0.0
    for number, table in enumerate(tables):
        weights = table.weights[:, 0]  # (parts, questions)
        shares = (table.factors[:, None] * weights * table.values[:, 0] / weights.sum(axis=1)[:, None]).sum(axis=0)
        swaps = np.concatenate(list(label_swaps(len(shares), rounds=rounds, seed=seed + number)))
        sums += (1.0 - 2.0 * swaps) @ shares
        largest += float(np.abs(shares).sum())
    reached = np.count_nonzero(np.abs(sums) >= abs(value) - TOLERANCE * largest)
    return (int(reached) + 1) / (rounds + 1)
