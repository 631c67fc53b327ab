"""Figures about judges with their intervals: sums a question, a function of the sums, and resampled questions.

A judge's errors on one question hang together, whichever models and orders it was shown: the question is drawn, with
all that was said on it (:mod:`evals.resampling`). Whatever is a function of sums over questions, a share or a κ, is
put down as a :class:`Figure`; :func:`measured` draws once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evals.records import Audit
from evals.resampling import on_grid, percentile_intervals, resample_counts

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

COLUMNS = 256  # resampled sums held at a time, each as many numbers of 8 bytes as there are rounds
DIGITS = 10


@dataclass(frozen=True, slots=True)
class Figure:
    """One measure of one judge that still wants its interval.

    ``sums`` (Q, k) are what each of Q questions adds, and ``of`` makes the figure of such sums, (..., k) to (...,);
    NaN where they allow none. ``n`` is how many observations (pairs, votes, models) it rests on. ``known`` is the
    figure itself where a library gave it. ``interval`` is its interval where that was not had by resampling.
    """

    judge: str
    measure: str
    other: str
    n: int
    sums: Array
    of: Callable[[Array], Array]
    known: float | None = None
    interval: tuple[float, float] | None = None


def summed(question: Ints, *columns: Array, questions: int) -> Array:
    """Return what each question adds to each column: k columns of (rows,) to (questions, k)."""
    return np.stack([np.bincount(question, column, minlength=questions) for column in columns], axis=1)


def ratio(sums: Array) -> Array:
    """Return the first of two sums as a share of the second, (..., 2) to (...,); NaN where that is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)
    return found


def mean(judge: str, measure: str, other: str, *, question: Ints, values: Array, questions: int) -> Iterator[Figure]:
    """Yield the mean of ``values`` (rows,), each about ``question``; nothing where there is no row. NaN does not count.

    All that ``judge``, ``measure`` and ``other`` name as in :class:`evals.records.Audit`.
    """
    known = np.isfinite(values)
    if known.any():
        question, values = question[known], values[known]
        sums = summed(question, values, np.ones(len(values)), questions=questions)
        yield Figure(judge, measure, other, len(values), sums, ratio)


def measured(figures: Sequence[Figure], *, benchmark: str, version: str, rounds: int, seed: int) -> list[Audit]:
    """Return the figures with their 95 % intervals, in their order.

    There is no interval where fewer than two questions have a part in the figure. Sums are exact: a figure does not
    depend on what else is measured with it.
    """
    found: list[Audit] = []
    batch: list[Figure] = []
    for figure in figures:
        if batch and sum(f.sums.shape[1] for f in batch) + figure.sums.shape[1] > COLUMNS:
            found += _resampled(batch, benchmark, version, rounds, seed)
            batch = []
        batch.append(figure)
    return found + _resampled(batch, benchmark, version, rounds, seed)


def _resampled(figures: Sequence[Figure], benchmark: str, version: str, rounds: int, seed: int) -> list[Audit]:
    if not figures:
        return []
    sums = on_grid(np.concatenate([f.sums for f in figures], axis=1).T)  # (columns, Q)
    totals = sums.sum(axis=1)
    drawn = np.concatenate(
        [counts @ sums.T for counts in resample_counts(sums.shape[1], rounds=rounds, seed=seed)]
    )  # (rounds, columns)
    audits, begun = [], 0
    for figure in figures:
        place = slice(begun, begun := begun + figure.sums.shape[1])
        value = float(figure.of(totals[place])) if figure.known is None else figure.known
        ends = figure.interval
        if ends is None and np.isfinite(value) and np.count_nonzero(figure.sums.any(axis=1)) > 1:
            low, high = percentile_intervals(figure.of(drawn[:, place])[None])[0]
            ends = float(low), float(high)
        low, high = (round(end, DIGITS) for end in ends) if ends and np.isfinite(ends).all() else (None, None)
        told = round(value, DIGITS) if np.isfinite(value) else None
        audits.append(Audit(figure.judge, benchmark, version, figure.measure, figure.other, told, low, high, figure.n))
    return audits
