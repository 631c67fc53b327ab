"""Draws for intervals and tests: which questions a resample holds, whose label is swapped, and sums without rounding.

A draw depends on the seed and on the number of questions alone, and every sum is exact (:func:`on_grid`): equal
values give equal figures to the last bit, whatever else is scored with them, in whatever order, on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

ROUNDS = 10_000
CHUNK = 2_000_000  # resampled questions held at a time, in numbers of 8 bytes


def resample_counts(questions: int, *, rounds: int = ROUNDS, seed: int = 0) -> Iterator[Values]:
    """Yield how often each question is in each of ``rounds`` resamples, in parts of shape (some rounds, questions).

    Each resample draws as many questions as there are, with replacement (Efron 1979, doi:10.1214/aos/1176344552).
    """
    counts = _drawn(questions, rounds, seed)
    begun = 0
    for size in _parts(questions, rounds):
        yield counts[begun : begun + size].astype(np.float64)
        begun += size


@lru_cache(maxsize=4)  # one table of scores asks for the same draw again and again; a byte or two a number
def _drawn(questions: int, rounds: int, seed: int) -> NDArray[np.uint16]:
    rng = np.random.default_rng((seed, questions, 0))
    found = []
    for size in _parts(questions, rounds):
        drawn = rng.integers(0, questions, size=(size, questions))
        drawn += np.arange(size)[:, None] * questions
        counts = np.bincount(drawn.ravel(), minlength=size * questions)
        found.append(counts.reshape(size, questions).astype(np.uint16))
    return np.concatenate(found)


def label_swaps(questions: int, *, rounds: int = ROUNDS, seed: int = 0) -> Iterator[Values]:
    """Yield 1 where two models' labels are swapped, else 0, in parts of shape (some rounds, questions)."""
    rng = np.random.default_rng((seed, questions, 1))
    for size in _parts(questions, rounds):
        drawn = rng.integers(0, 2**64, size=(size, -(-questions // 64)), dtype=np.uint64)  # 64 coins each
        yield np.unpackbits(drawn.astype("<u8").view(np.uint8), axis=1, count=questions).astype(np.float64)


def _parts(questions: int, rounds: int) -> Iterator[int]:
    step = max(1, CHUNK // questions)
    for begun in range(0, rounds, step):
        yield min(step, rounds - begun)


def on_grid(rows: Values) -> Values:
    """Return ``rows`` of shape (rows, n), each rounded to a binary grid so fine that its sums lose nothing.

    A sum of n of a row's values, drawn with replacement, is then a whole number of grid steps below 2**53, so that a
    matrix product gives the same sum in any order and company. A value moves by less than n · 2**-52 of the row's
    largest: 2e-13 of it for 805 questions. (In float32 it would be 1e-4, which an interval shows.)
    """
    largest = np.abs(rows).max(axis=1, keepdims=True)  # (rows, 1)
    _, exponent = np.frexp(largest * rows.shape[1])
    grid: Values = np.ldexp(1.0, exponent - 52)
    rounded: Values = np.rint(rows / grid) * grid
    return rounded


def resampled_means(values: Values, weights: Values, *, rounds: int = ROUNDS, seed: int = 0) -> Values:
    """Return the weighted means of the resamples, Σ w·v / Σ w over the questions drawn: (rows, n) to (rows, rounds).

    A missing question has weight 0 and any finite value. NaN stands where a resample holds no weight at all.
    """
    sums = on_grid(weights * values)
    distinct, which = np.unique(on_grid(weights), axis=0, return_inverse=True)
    means = np.empty((len(values), rounds))
    begun = 0
    for counts in resample_counts(values.shape[1], rounds=rounds, seed=seed):
        part = means[:, begun : begun + len(counts)]
        np.matmul(sums, counts.T, out=part)
        with np.errstate(invalid="ignore"):  # 0 / 0: no weight in this resample
            part /= (distinct @ counts.T)[which.ravel()]
        begun += len(counts)
    return means


def percentile_intervals(resampled: Values, *, level: float = 0.95) -> Values:
    """Return the percentile intervals of resampled figures: (rows, rounds) to (rows, 2). NaN rounds do not count."""
    tail = (1 - level) / 2 * 100
    ends: Values = np.percentile(resampled, [tail, 100 - tail], axis=1).T  # (rows, 2)
    for row in np.flatnonzero(np.isnan(ends).any(axis=1)):
        found = resampled[row][~np.isnan(resampled[row])]
        ends[row] = np.percentile(found, [tail, 100 - tail]) if len(found) else np.nan
    return ends


def label_swap_p(values: Values, weights: Values, *, rounds: int = ROUNDS, seed: int = 0) -> list[float]:
    """Return two-sided p-values of pairs of models that are no different: (pairs, 2, n), twice, to one a pair.

    The statistic is the gap between the two weighted means. A round swaps (value, weight) of the two models, question
    by question, at random; p = (rounds that reach the observed gap + 1) / (rounds + 1). A missing question has
    weight 0 for both.
    """
    loads = _exact(weights)
    centre = _exact(weights * values).sum(axis=(1, 2)) / loads.sum(axis=(1, 2))
    values = np.where(weights > 0, values - centre[:, None, None], 0.0)
    sums = _exact(weights * values)
    # A sum after the swaps is the sum before and the gaps of the questions that were swapped; both sums make the total.
    sum_gaps, load_gaps = sums[:, 1] - sums[:, 0], loads[:, 1] - loads[:, 0]  # (pairs, n)
    mine, theirs = sums.sum(axis=2).T[..., None]  # (pairs, 1) each
    load, load_other = loads.sum(axis=2).T[..., None]
    uneven = bool(load_gaps.any())
    tolerance = 1e-9 * np.abs(values).max(axis=(1, 2))[:, None]  # a tie stays one, whatever rounding did to it
    least = np.abs(mine / load - theirs / load_other) - tolerance
    reached = np.zeros(len(values), dtype=np.int64)
    for swaps in label_swaps(values.shape[2], rounds=rounds, seed=seed):
        moved = sum_gaps @ swaps.T  # (pairs, some rounds)
        shifted = load_gaps @ swaps.T if uneven else 0.0
        gaps = (mine + moved) / (load + shifted) - (theirs - moved) / (load_other - shifted)
        reached += np.count_nonzero(np.abs(gaps) >= least, axis=1)
    return [(int(r) + 1) / (rounds + 1) for r in reached]


def _exact(both: Values) -> Values:
    """Return numbers of both models, (pairs, 2, n), on a grid on which their sums are exact."""
    return on_grid(both.reshape(len(both), -1)).reshape(both.shape)
