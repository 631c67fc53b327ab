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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from evals.item_columns import Column, Group, columns_of
from evals.power import detectable_difference
from evals.records import Difference, Score
from evals.resampling import ROUNDS, Values, label_swap_p, percentile_intervals, resampled_means

if TYPE_CHECKING:
    from pandas import DataFrame

DIGITS = 10  # of an interval's ends: what is drawn about a mean does not come back to 0 or 100 to the last bit
EVEN = 50.0  # the win rate, in per cent, of a model against itself
ROWS = 256  # resampled figures held at a time, each ROUNDS numbers of 8 bytes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Pair:
    """What is compared in one metric."""

    record: Difference  # with the figures still to come
    questions: int  # of either model
    group: Group  # of the model
    mine: Column
    theirs: Column | None  # None: the other is the baseline, which is EVEN wherever the model has a value


def mean_scores(items: DataFrame, *, benchmark: str, version: str, rounds: int = ROUNDS, seed: int = 0) -> list[Score]:
    """Return one score a (model, judge, baseline, metric), in order of appearance: Σ w·v / Σ w over its questions.

    ``items`` has the columns model, judge, baseline (None or NaN: none), metric, question, value and weight, one row
    a question. A question with value NaN or without weight is missing: it is counted so, and stays in the draw with
    weight 0, so that a resample holds more of them or fewer. A resample without any weight does not count. With all
    missing the score is None. Raises ValueError for a question that stands twice, and for a negative weight.
    """
    scores, _ = scores_and_differences(items, (), benchmark=benchmark, version=version, rounds=rounds, seed=seed)
    return scores


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
    return scores_and_differences(items, pairs, benchmark=benchmark, version=version, rounds=rounds, seed=seed)[1]


def scores_and_differences(
    items: DataFrame,
    pairs: Iterable[tuple[str, str]],
    *,
    benchmark: str,
    version: str,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> tuple[list[Score], list[Difference]]:
    """Return what :func:`mean_scores` and :func:`differences` do, with what they share computed once."""
    columns = columns_of(items)
    ends = _ends(columns, rounds, seed)
    scores = [_score(group, column, ends.get(group), benchmark, version) for group, column in columns.items()]
    return scores, _differences(list(_pairs(columns, pairs, benchmark, version)), ends, rounds, seed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values after Holm 1979: the k-th smallest of m times m - k + 1, never falling, at most 1."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, so_far = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        so_far = max(so_far, min(1.0, (len(order) - rank) * p_values[at]))
        corrected[at] = so_far
    return corrected


def _ends(columns: Mapping[Group, Column], rounds: int, seed: int) -> dict[Group, tuple[float, float]]:
    """Return how far the ends of the intervals lie from the means; nothing of a group without any value."""
    found = {}
    present = [group for group, column in columns.items() if column.weights.any()]
    for batch in _batches(present, lambda group: len(columns[group].questions), ROWS):
        several = [columns[group] for group in batch]
        resampled = _resampled(several, [_mean(column) for column in several], rounds, seed)
        for group, (low, high) in zip(batch, percentile_intervals(resampled), strict=True):
            found[group] = float(low), float(high)
    return found


def _score(group: Group, column: Column, ends: tuple[float, float] | None, benchmark: str, version: str) -> Score:
    model, judge, baseline, metric = group
    n = int(np.count_nonzero(column.weights))
    mean = _mean(column) if n else None
    # Of one question nothing is known of how much others would differ.
    low, high = (round(mean + end, DIGITS) for end in ends) if ends and mean is not None and n > 1 else (None, None)
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
        n=n,
        missing=len(column.questions) - n,
    )


def _mean(column: Column) -> float:
    # fsum rounds once, so that the order of rows cannot show.
    return math.fsum((column.weights * column.values).tolist()) / math.fsum(column.weights.tolist())


def _batches(things: Iterable[T], size_of: Callable[[T], object], most: int) -> Iterator[list[T]]:
    """Yield things that have equally many questions, at most ``most`` together."""
    by_size: dict[object, list[T]] = defaultdict(list)
    for thing in things:
        by_size[size_of(thing)].append(thing)
    for alike in by_size.values():
        for begun in range(0, len(alike), most):
            yield alike[begun : begun + most]


def _resampled(columns: Sequence[Column], means: Sequence[float], rounds: int, seed: int) -> Values:
    """Return resampled means less the given ones, shape (columns, rounds)."""
    values = np.stack([c.values for c in columns]) - np.array(means)[:, None]
    return resampled_means(values, np.stack([c.weights for c in columns]), rounds=rounds, seed=seed)


def _pairs(
    columns: dict[Group, Column], pairs: Iterable[tuple[str, str]], benchmark: str, version: str
) -> Iterator[_Pair]:
    """Yield what can be compared, each with its record."""
    of_model: dict[str, list[Group]] = defaultdict(list)
    for group in columns:
        of_model[group[0]].append(group)
    for model, other in dict.fromkeys(pairs):
        for group in of_model[model] if other != model else ():
            _, judge, baseline, metric = group
            mine, theirs = columns[group], columns.get((other, judge, baseline, metric))
            both = mine
            if other == baseline:
                theirs = None
            elif theirs is None:
                continue
            else:
                both, _ = _aligned(mine, theirs)
            n, questions = int(np.count_nonzero(both.weights)), len(both.questions)
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
            yield _Pair(record, questions, group, mine, theirs)


def _aligned(mine: Column, theirs: Column) -> tuple[Column, Column]:
    """Return both on the questions of either, with weight 0 for both where one of them is missing."""
    questions = np.union1d(mine.questions, theirs.questions)
    values, weights = np.zeros((2, len(questions))), np.zeros((2, len(questions)))
    for row, column in enumerate((mine, theirs)):
        at = np.searchsorted(questions, column.questions)
        values[row, at], weights[row, at] = column.values, column.weights
    both = (weights > 0).all(axis=0)
    values, weights = np.where(both, values, 0.0), np.where(both, weights, 0.0)
    return Column(questions, values[0], weights[0]), Column(questions, values[1], weights[1])


def _differences(
    found: Sequence[_Pair], ends: Mapping[Group, tuple[float, float]], rounds: int, seed: int
) -> list[Difference]:
    """Return the pairs' records with their figures; ``ends`` are those of the models compared with their baseline."""
    records = [pair.record for pair in found]
    countable = [at for at, pair in enumerate(found) if pair.record.n]
    for batch in _batches(countable, lambda at: (found[at].questions, found[at].theirs is None), ROWS // 2):
        pairs = [found[at] for at in batch]
        alone = pairs[0].theirs is None
        figures = _beside_even(pairs, ends, rounds, seed) if alone else _beside_another(pairs, rounds, seed)
        for at, record in zip(batch, figures, strict=True):
            records[at] = record
    corrected = holm([records[at].p or 0.0 for at in countable])
    for at, p in zip(countable, corrected, strict=True):
        records[at] = replace(records[at], p_holm=p)
    return records


def _beside_even(
    pairs: Sequence[_Pair], ends: Mapping[Group, tuple[float, float]], rounds: int, seed: int
) -> Iterator[Difference]:
    """Yield the records of models beside their baseline; its mean is EVEN in every resample too."""
    both = [(p.mine, replace(p.mine, values=np.where(p.mine.weights > 0, EVEN, 0.0))) for p in pairs]
    for pair, columns, p in zip(pairs, both, _swapped(both, rounds, seed), strict=True):
        yield _figures(pair.record, columns, (_mean(pair.mine), EVEN), ends[pair.group], p)


def _beside_another(pairs: Sequence[_Pair], rounds: int, seed: int) -> Iterator[Difference]:
    """Yield the records of pairs that have equally many questions, with their figures."""
    distinct: dict[tuple[bytes, bytes], int] = {}  # many pairs share a model: each column is resampled once
    columns: list[Column] = []
    which: list[int] = []
    aligned = [_aligned(pair.mine, pair.theirs) for pair in pairs if pair.theirs]
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
    p_values = _swapped(aligned, rounds, seed)
    for pair, both, a, b, (low, high), p in zip(pairs, aligned, mine, theirs, ends, p_values, strict=True):
        yield _figures(pair.record, both, (means[a], means[b]), (float(low), float(high)), p)


def _swapped(both: Sequence[tuple[Column, Column]], rounds: int, seed: int) -> list[float]:
    values = np.array([[c.values for c in columns] for columns in both])  # (pairs, 2, n)
    weights = np.array([[c.weights for c in columns] for columns in both])
    return label_swap_p(values, weights, rounds=rounds, seed=seed)


def _figures(
    record: Difference,
    both: tuple[Column, Column],
    means: tuple[float, float],
    ends: tuple[float, float],
    p: float,
) -> Difference:
    value, error = means[0] - means[1], _standard_error(*both, *means)
    detectable = detectable_difference(error, 1) if error else None
    low, high = (round(value + end, DIGITS) for end in ends) if record.n > 1 else (None, None)
    return replace(record, value=value, low=low, high=high, p=p, detectable=detectable)


def _standard_error(mine: Column, theirs: Column, mean: float, other: float) -> float | None:
    """Return the standard error of the difference from its questions' shares in it; None where it is not known."""
    n = int(np.count_nonzero(mine.weights))
    if n < 2:
        return None
    shares = mine.weights * (mine.values - mean) / mine.weights.sum()
    shares = shares - theirs.weights * (theirs.values - other) / theirs.weights.sum()  # (n,), they sum to 0
    error = math.sqrt(math.fsum((shares * shares).tolist()) * n / (n - 1))
    scale = max(float(np.abs(mine.values).max()), float(np.abs(theirs.values).max()))
    return error if error > 1e-12 * scale else None  # smaller is the rounding of gaps that are all the same
