"""Whether a judge says the same of the same when it is asked again, and how often it says nothing at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from judges.clustered import Array, Figure, Ints, mean
from judges.verdict_table import Comparisons, Ratings, Table, matched, outcome


def retest(table: Table, *, retests: Mapping[str, str]) -> Iterator[Figure]:
    """Yield how much the second asking (an identity of its own, ``retests[judge]``) differs from the first.

    ``retest_agreement`` is the share of slots (the same answers in the same order) with the same winner or the same
    rating, ``retest_mean_change`` the mean of second less first, ``retest_gap`` the mean of what they differ by.
    """
    for judge, again in retests.items():
        if judge in table.slots and again in table.slots:
            first, second = table.slots[judge], table.slots[again]
            mine, theirs = matched(first.key, second.key)
            one, two = first.value[mine], second.value[theirs]
            question, alone = first.rows.question[mine], first.rows.baseline[mine] < 0
            same = np.where(alone, one == two, outcome(one) == outcome(two)).astype(float)
            same = np.where(np.isfinite(one) & np.isfinite(two), same, np.nan)
            questions = len(table.names.questions)
            yield from mean(judge, "retest_agreement", again, question=question, values=same, questions=questions)
            for kind, chosen in (("retest", ~alone), ("retest_rating", alone)):
                for measure, values in (("mean_change", two - one), ("gap", np.abs(two - one))):
                    yield from mean(
                        judge,
                        f"{kind}_{measure}",
                        again,
                        question=question[chosen],
                        values=values[chosen],
                        questions=questions,
                    )


def readability(table: Table) -> Iterator[Figure]:
    """Yield ``unreadable``, the share of slots without a verdict, of every judge, over all models and for each.

    A model by itself is only told of where some of its slots have none.
    """
    questions = len(table.names.questions)
    for judge, slots in table.slots.items():
        missing = np.isnan(slots.value).astype(float)
        yield from mean(judge, "unreadable", "", question=slots.rows.question, values=missing, questions=questions)
        for model in np.unique(slots.rows.model[missing > 0]):
            mine = slots.rows.model == model
            yield from mean(
                judge,
                "unreadable",
                table.names.models[model],
                question=slots.rows.question[mine],
                values=missing[mine],
                questions=questions,
            )


def spread(table: Table) -> Iterator[Figure]:
    """Yield how far apart a judge sees the models: the standard deviation of their mean preferences, or ratings.

    ``score_spread`` is over pairs of model and baseline, ``rating_spread`` over models; two are the least.
    """
    kinds: tuple[tuple[str, Mapping[str, Comparisons | Ratings]], ...] = (
        ("score", table.pairs),
        ("rating", table.ratings),
    )
    for kind, judged in kinds:
        for judge, rows in judged.items():
            values = rows.preference if isinstance(rows, Comparisons) else rows.value
            group = rows.model * (len(table.names.models) + 1) + rows.baseline
            if (found := _means(rows.question, group, values, len(table.names.questions))) is not None:
                yield Figure(judge, f"{kind}_spread", "", found.shape[1] // 2, found, _deviation)


def _means(question: Ints, group: Ints, values: Array, questions: int) -> Array | None:
    """Return sums of values and of ones of every group, (Q, 2G); None with fewer than two groups."""
    known = np.isfinite(values)
    names, which = np.unique(group[known], return_inverse=True)
    if len(names) < 2:
        return None
    place = question[known] * len(names) + which
    size = questions * len(names)
    return np.concatenate(
        [
            np.bincount(place, column, minlength=size).reshape(questions, -1)
            for column in (values[known], np.ones(len(which)))
        ],
        axis=1,
    )


def _deviation(sums: Array) -> Array:
    half = sums.shape[-1] // 2
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums[..., :half] / sums[..., half:]  # NaN of a model that a resample lacks
    found: Array = np.std(means, axis=-1, ddof=1)
    return found
