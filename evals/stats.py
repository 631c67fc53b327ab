"""Intervals and paired differences: seeded, vectorised, with the question as the resampling unit.

The percentile bootstrap is Efron 1979 (doi:10.1214/aos/1176344552); the paired test flips signs at random, as in
Good 2005, *Permutation, Parametric and Bootstrap Tests of Hypotheses*, ch. 3. Both draw from a generator of their
own, so that equal values give equal figures on every machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals.records import Difference, ItemScore, Score

ROUNDS = 10_000
CHUNK = 4_000_000  # resampled values held at a time

EVEN = 50.0  # the win rate, in per cent, of a model against itself

Values = NDArray[np.float64]


def bootstrap_means(values: Values, *, rounds: int = ROUNDS, seed: int = 0) -> Values:
    """Return ``rounds`` means of resamples of ``values`` (one value a question), shape (rounds,)."""
    rng = np.random.default_rng(seed)
    n = len(values)
    step = max(1, CHUNK // n)
    parts = [
        values[rng.integers(0, n, size=(min(step, rounds - begun), n))].mean(axis=1)  # (step, n) -> (step,)
        for begun in range(0, rounds, step)
    ]
    return np.concatenate(parts)


def interval(values: Values, *, rounds: int = ROUNDS, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of ``values``, one value a question."""
    tail = (1 - level) / 2 * 100
    low, high = np.percentile(bootstrap_means(values, rounds=rounds, seed=seed), [tail, 100 - tail])
    return float(low), float(high)


def sign_flip_p(differences: Values, *, rounds: int = ROUNDS, seed: int = 0) -> float:
    """Return the two-sided p-value of mean zero, from random sign flips; the smallest possible is 1 / (rounds + 1)."""
    rng = np.random.default_rng(seed)
    n = len(differences)
    observed = abs(differences.mean())
    reached, step = 0, max(1, CHUNK // n)
    for begun in range(0, rounds, step):
        signs = rng.integers(0, 2, size=(min(step, rounds - begun), n)) * 2 - 1  # (step, n)
        # The tolerance counts ties as reached, whatever the order of summation did to the last bit.
        reached += int(np.count_nonzero(np.abs((signs * differences).mean(axis=1)) >= observed - 1e-12))
    return (reached + 1) / (rounds + 1)


def mean_scores(items: Iterable[ItemScore]) -> list[Score]:
    """Return one score a (model, judge, baseline, metric): the mean over its questions.

    Questions whose value is None are counted as missing; with no value at all the score itself is None.
    """
    groups: dict[tuple[Any, ...], list[float | None]] = defaultdict(list)
    for i in items:
        groups[i.model, i.benchmark, i.version, i.judge, i.baseline, i.metric].append(i.value)
    return [_mean_score(group, values) for group, values in groups.items()]


def _mean_score(group: tuple[Any, ...], values: Sequence[float | None]) -> Score:
    model, benchmark, version, judge, baseline, metric = group
    present = np.array([v for v in values if v is not None], dtype=np.float64)
    mean, low, high = None, None, None
    if len(present):
        mean = float(present.mean())
        low, high = interval(present)
    return Score(
        model=model,
        benchmark=benchmark,
        version=version,
        judge=judge,
        baseline=baseline,
        metric=metric,
        value=mean,
        low=low,
        high=high,
        n=len(present),
        missing=len(values) - len(present),
    )


def paired_difference(
    items: Sequence[ItemScore], *, model: str, other: str, metric: str, judge: str, baseline: str | None
) -> Difference | None:
    """Return ``model`` minus ``other`` in ``metric`` over the questions where both have a value.

    Where the metric compares with a baseline, both are taken against the same one; against itself the baseline's
    value is :data:`EVEN`. None when ``items`` say nothing of this metric for both.
    """
    of = [i for i in items if (i.metric, i.judge, i.baseline) == (metric, judge, baseline)]
    mine = {i.question: i for i in of if i.model == model}
    theirs = {i.question: i.value for i in of if i.model == other}
    if other == baseline:
        theirs = dict.fromkeys(mine, EVEN)
    if not mine or not theirs:
        return None
    pairs = [(mine[q].value, theirs[q]) for q in sorted(mine.keys() & theirs.keys())]
    gaps = np.array([a - b for a, b in pairs if a is not None and b is not None], dtype=np.float64)
    value, low, high, p = None, None, None, None
    if len(gaps):
        value, p = float(gaps.mean()), sign_flip_p(gaps)
        low, high = interval(gaps)
    some = next(iter(mine.values()))
    return Difference(
        model=model,
        other=other,
        benchmark=some.benchmark,
        version=some.version,
        judge=judge,
        baseline=baseline,
        metric=metric,
        value=value,
        low=low,
        high=high,
        p=p,
        n=len(gaps),
        missing=len(mine.keys() | theirs.keys()) - len(gaps),
    )
