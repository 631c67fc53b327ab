"""Whether a judge that prefers an answer by 0.8 is right eight times in ten.

Expected calibration error: Guo et al. 2017, arXiv:1706.04599, over five bins of how sure the judge is, from 0.5 to 1;
Brier 1950: the mean of (preference - outcome)². Right is what people voted; where nobody did, what most of the other
judges said, of whom there must be two.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from judges.clustered import Array, Figure, Ints, mean
from judges.human_agreement import HUMAN, Votes, joined, one_order
from judges.verdict_table import Table, outcome

BINS = 5


def calibration(table: Table, votes: Votes | None, *, not_others: Collection[str] = ()) -> Iterator[Figure]:
    """Yield ``calibration_error`` and ``brier`` of every judge that compares; ``other`` is "human", or "" for judges.

    The judge's preference is the mean over the orders. ``not_others`` (panels and repeated judges) have no part in
    what the other judges say.
    """
    for judge, pairs in table.pairs.items():
        against = HUMAN
        if votes is not None and len(votes.pair):
            stated = one_order(table, pairs, pairs.preference)
            mine, vote = joined(stated, votes)
            question, preference, right = votes.question[vote], stated.verdict[mine], votes.verdict[vote]
        else:
            others = [other for other in table.pairs if other not in (judge, *not_others)]
            if len(others) < 2:
                continue
            against, right = "", _majority(table, pairs.place, others)
            question, preference = pairs.question, pairs.preference
        known = np.isfinite(preference) & np.isfinite(right)
        if known.any():
            columns = question[known], preference[known], right[known]
            yield from _figures(judge, against, *columns, questions=len(table.names.questions))


def calibration_error(sums: Array) -> Array:
    """Return Σ |outcomes - preferences| over the bins, per observation: (..., 3 · BINS) to (...,)."""
    stated, right, count = np.split(sums, 3, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = np.abs(right - stated).sum(axis=-1) / count.sum(axis=-1)
    return found


def _figures(
    judge: str, against: str, question: Ints, preference: Array, right: Array, *, questions: int
) -> Iterator[Figure]:
    # For the side that it prefers, so that nothing depends on which side is called the model.
    sure = np.maximum(preference, 1 - preference)
    agreed = np.where(preference > 0.5, right, np.where(preference < 0.5, 1 - right, 0.5))
    place = question * BINS + np.minimum(((sure - 0.5) * 2 * BINS).astype(np.int64), BINS - 1)
    columns = (sure, agreed, np.ones(len(sure)))
    sums = [np.bincount(place, column, minlength=questions * BINS).reshape(questions, BINS) for column in columns]
    yield Figure(judge, "calibration_error", against, len(sure), np.concatenate(sums, axis=1), calibration_error)
    squares = (preference - right) ** 2
    yield from mean(judge, "brier", against, question=question, values=squares, questions=questions)


def _majority(table: Table, place: Ints, others: Collection[str]) -> Array:
    """Return what most of the others said at these places: 1, 0, or 0.5 for a draw; NaN where fewer than two did."""
    sides, count = np.zeros(len(place)), np.zeros(len(place))
    for other in others:
        pairs = table.pairs[other]
        _, mine, theirs = np.intersect1d(place, pairs.place, assume_unique=True, return_indices=True)
        there = np.isfinite(pairs.verdict[theirs])
        sides[mine[there]] += pairs.verdict[theirs[there]] - 0.5
        count[mine[there]] += 1
    found: Array = np.where(count > 1, outcome(0.5 + sides), np.nan)
    return found
