"""Scores with intervals, and differences with p-values: seeded, vectorised, the question as the resampling unit.

Intervals are the percentile bootstrap over questions (Efron 1979, doi:10.1214/aos/1176344552) of a weighted mean.
Differences are paired, as Miller 2024 (arXiv:2411.00640) asks for. Their p-values come from swapping the two models'
labels question by question (Good 2005, *Permutation, Parametric and Bootstrap Tests of Hypotheses*, ch. 3; Dror et al.
2018, ACL P18-1128), count the observed labelling in, so that none is 0 (Phipson & Smyth 2010), and are corrected for
how many there are (Holm 1979, Scand. J. Statist. 6).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from evals.power import detectable_difference
from evals.records import Difference, Score
from evals.resampling import ROUNDS, Values, label_swap_p, percentile_intervals, resampled_means

if TYPE_CHECKING:
    from pandas import DataFrame

EVEN = 50.0  # the win rate, in per cent, of a model against itself
ROWS = 256  # resampled figures held at a time, each ROUNDS numbers of 8 bytes

T = TypeVar("T")

Group = tuple[str, str, str | None, str]  # model, judge, baseline, metric


@dataclass(frozen=True, slots=True)
class _Column:
    """One metric of one model: a value a question, by rising question code, and 0 with weight 0 where missing."""

    questions: NDArray[np.int64]  # (n,)
    values: Values  # (n,)
    weights: Values  # (n,)


@dataclass(frozen=True, slots=True)
class _Pair:
    """What is compared in one metric."""

    record: Difference  # with the figures still to come
    questions: int  # of either model
    mine: _Column
    theirs: _Column


def mean_scores(items: DataFrame, *, benchmark: str, version: str, rounds: int = ROUNDS, seed: int = 0) -> list[Score]:
    """Return one score a (model, judge, baseline, metric), in order of appearance: Σ w·v / Σ w over its questions.

    ``items`` has the columns model, judge, baseline (None or NaN: none), metric, question, value and weight, one row
    a question. A question with value NaN or without weight is missing: it is counted so, and stays in the draw with
    weight 0, so that a resample holds more of them or fewer. A resample without any weight does not count. With all
    missing the score is None. Raises ValueError for a question that stands twice, and for a negative weight.
    """
    columns = _columns(items)
    scores = {group: _score(group, column, benchmark, version) for group, column in columns.items()}
    for batch in _batches([g for g, s in scores.items() if s.n], lambda g: len(columns[g].questions), ROWS):
        means = [scores[g].value or 0.0 for g in batch]
        ends = percentile_intervals(_resampled([columns[g] for g in batch], means, rounds, seed))
        for group, mean, (low, high) in zip(batch, means, ends, strict=True):
            scores[group] = replace(scores[group], low=mean + float(low), high=mean + float(high))
    return list(scores.values())


def differences(
    items: DataFrame,
    pairs: Iterable[tuple[str, str]],
    *,
    benchmark: str,
    version: str,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> list[Difference]:
    """Return ``model`` minus ``other`` of every pair (model, other), in every metric that there is of both.

    ``items`` are as in :func:`mean_scores`. A difference is that of the two weighted means over the questions that both
    have a value for. Two models are only compared under the same judge and against the same baseline; where ``other``
    is that baseline, its own value is :data:`EVEN` on every question, with the model's weight. A resample draws
    questions with both models' values; the two-sided p-value is that of swapping them. ``p_holm`` is corrected for all
    differences of this call together: whatever is published as one table belongs into one call. ``detectable`` is
    None with fewer than two questions, or where the gaps do not vary, so that nothing is known of their spread.
    """
    found = list(_pairs(_columns(items), pairs, benchmark, version))
    records = [pair.record for pair in found]
    countable = [at for at, pair in enumerate(found) if pair.record.n]
    for batch in _batches(countable, lambda at: found[at].questions, ROWS // 2):
        for at, record in zip(batch, _compared([found[at] for at in batch], rounds, seed), strict=True):
            records[at] = record
    corrected = holm([records[at].p or 0.0 for at in countable])
    for at, p in zip(countable, corrected, strict=True):
        records[at] = replace(records[at], p_holm=p)
    return records


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values after Holm 1979: the k-th smallest of m times m - k + 1, never falling, at most 1."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, so_far = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        so_far = max(so_far, min(1.0, (len(order) - rank) * p_values[at]))
        corrected[at] = so_far
    return corrected


def _columns(items: DataFrame) -> dict[Group, _Column]:
    """Return every column of the table, in order of appearance."""
    import pandas as pd

    if items.empty:
        return {}
    by = ["model", "judge", "baseline", "metric"]
    group = items.groupby(by, dropna=False, sort=False).ngroup().to_numpy()  # counted in order of appearance
    question, names = pd.factorize(items["question"], sort=True)
    order = np.lexsort((question, group))
    group, question = group[order], question[order].astype(np.int64)
    values = items["value"].to_numpy(dtype=np.float64, na_value=np.nan)[order]
    weights = items["weight"].to_numpy(dtype=np.float64, na_value=np.nan)[order]
    begin = np.flatnonzero(np.diff(group, prepend=-1))
    rows = items[by].iloc[order[begin]].itertuples(index=False, name=None)
    keys: list[Group] = [(m, j, None if pd.isna(b) else b, k) for m, j, b, k in rows]
    for at in np.flatnonzero((np.diff(group) == 0) & (np.diff(question) == 0))[:1]:
        raise ValueError(f"question {names[question[at]]!r} has two rows of {_named(keys[group[at]])}; give one")
    for numbers, bad, what in (
        (weights, weights < 0, "weight {} at {} is negative; a question that should not count has weight 0"),
        (weights, np.isinf(weights), "weight {} at {} is not finite; give a number"),
        (values, np.isinf(values), "value {} at {} is not finite; give a number, or NaN where there is none"),
    ):
        for at in np.flatnonzero(bad)[:1]:
            place = f"question {names[question[at]]!r} of {_named(keys[group[at]])}"
            raise ValueError(what.format(numbers[at], place))
    present = ~np.isnan(values) & (weights > 0)
    values, weights = np.where(present, values, 0.0), np.where(present, weights, 0.0)
    ends = [*begin[1:], len(group)]
    parts = [slice(b, e) for b, e in zip(begin, ends, strict=True)]
    return {k: _Column(question[s], values[s], weights[s]) for k, s in zip(keys, parts, strict=True)}


def _named(group: Group) -> str:
    model, judge, baseline, metric = group
    return f"metric {metric!r} (model {model!r}, judge {judge!r}, baseline {baseline!r})"


def _score(group: Group, column: _Column, benchmark: str, version: str) -> Score:
    model, judge, baseline, metric = group
    n = int(np.count_nonzero(column.weights))
    return Score(
        model=model,
        benchmark=benchmark,
        version=version,
        judge=judge,
        baseline=baseline,
        metric=metric,
        value=_mean(column) if n else None,
        low=None,
        high=None,
        n=n,
        missing=len(column.questions) - n,
    )


def _mean(column: _Column) -> float:
    # fsum rounds once, so that the order of rows cannot show.
    return math.fsum((column.weights * column.values).tolist()) / math.fsum(column.weights.tolist())


def _batches(things: Iterable[T], size_of: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Yield things that have equally many questions, at most ``most`` together."""
    by_size: dict[int, list[T]] = defaultdict(list)
    for thing in things:
        by_size[size_of(thing)].append(thing)
    for alike in by_size.values():
        for begun in range(0, len(alike), most):
            yield alike[begun : begun + most]


def _resampled(columns: Sequence[_Column], means: Sequence[float], rounds: int, seed: int) -> Values:
    """Return resampled means less the given ones, shape (columns, rounds)."""
    values = np.stack([c.values for c in columns]) - np.array(means)[:, None]
    return resampled_means(values, np.stack([c.weights for c in columns]), rounds=rounds, seed=seed)


def _pairs(
    columns: dict[Group, _Column], pairs: Iterable[tuple[str, str]], benchmark: str, version: str
) -> Iterator[_Pair]:
    """Yield what can be compared, each with its record."""
    of_model: dict[str, list[Group]] = defaultdict(list)
    for group in columns:
        of_model[group[0]].append(group)
    for model, other in dict.fromkeys(pairs):
        for group in of_model[model] if other != model else ():
            _, judge, baseline, metric = group
            mine, theirs = columns[group], columns.get((other, judge, baseline, metric))
            if other == baseline:
                theirs = _Column(mine.questions, np.full(len(mine.values), EVEN), mine.weights)
            if theirs is None:
                continue
            aligned, _ = _aligned(mine, theirs)
            n, questions = int(np.count_nonzero(aligned.weights)), len(aligned.questions)
            record = Difference(
                model=model,
                other=other,
                benchmark=benchmark,
                version=version,
                judge=judge,
                baseline=baseline,
                metric=metric,
                value=None,
                low=None,
                high=None,
                p=None,
                n=n,
                missing=questions - n,
            )
            yield _Pair(record, questions, mine, theirs)


def _aligned(mine: _Column, theirs: _Column) -> tuple[_Column, _Column]:
    """Return both on the questions of either, with weight 0 for both where one of them is missing."""
    questions = np.union1d(mine.questions, theirs.questions)
    values, weights = np.zeros((2, len(questions))), np.zeros((2, len(questions)))
    for row, column in enumerate((mine, theirs)):
        at = np.searchsorted(questions, column.questions)
        values[row, at], weights[row, at] = column.values, column.weights
    both = (weights > 0).all(axis=0)
    values, weights = np.where(both, values, 0.0), np.where(both, weights, 0.0)
    return _Column(questions, values[0], weights[0]), _Column(questions, values[1], weights[1])


def _compared(pairs: Sequence[_Pair], rounds: int, seed: int) -> Iterator[Difference]:
    """Yield the records of pairs that have equally many questions, with their figures."""
    distinct: dict[tuple[bytes, bytes], int] = {}  # many pairs share a model: each column is resampled once
    columns: list[_Column] = []
    which: list[int] = []
    aligned = [_aligned(pair.mine, pair.theirs) for pair in pairs]
    for column in (c for both in aligned for c in both):
        key = column.values.tobytes(), column.weights.tobytes()
        if key not in distinct:
            distinct[key] = len(columns)
            columns.append(column)
        which.append(distinct[key])
    means = [_mean(c) for c in columns]
    resampled = _resampled(columns, means, rounds, seed)
    mine, theirs = which[::2], which[1::2]
    ends = percentile_intervals(resampled[mine] - resampled[theirs])
    values = np.array([[c.values for c in both] for both in aligned])  # (pairs, 2, n)
    weights = np.array([[c.weights for c in both] for both in aligned])
    p_values = label_swap_p(values, weights, rounds=rounds, seed=seed)
    for pair, both, a, b, (low, high), p in zip(pairs, aligned, mine, theirs, ends, p_values, strict=True):
        value = means[a] - means[b]
        error = _standard_error(both[0], both[1], means[a], means[b])
        yield replace(
            pair.record,
            value=value,
            low=value + float(low),
            high=value + float(high),
            p=p,
            detectable=detectable_difference(error, 1) if error else None,
        )


def _standard_error(mine: _Column, theirs: _Column, mean: float, other: float) -> float | None:
    """Return the standard error of the difference from its questions' shares in it; None where it is not known."""
    n = int(np.count_nonzero(mine.weights))
    if n < 2:
        return None
    shares = mine.weights * (mine.values - mean) / mine.weights.sum()
    shares = shares - theirs.weights * (theirs.values - other) / theirs.weights.sum()  # (n,), they sum to 0
    error = math.sqrt(math.fsum((shares * shares).tolist()) * n / (n - 1))
    scale = max(float(np.abs(mine.values).max()), float(np.abs(theirs.values).max()))
    return error if error > 1e-12 * scale else None  # smaller is the rounding of gaps that are all the same
