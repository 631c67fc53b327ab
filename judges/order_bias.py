"""Whether a judge prefers the answer that is shown first, and whether it stands by its verdict in the other order.

Position bias and its measurement by swapping: Wang et al. 2023, arXiv:2305.17926; Zheng et al. 2023, arXiv:2306.05685,
section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from judges.clustered import Figure, mean, ratio, summed
from judges.verdict_table import Comparisons, Table, outcome


def order_bias(table: Table) -> Iterator[Figure]:
    """Yield ``order_consistency`` and ``first_preferred`` of every judge, over all models and for each."""
    for judge, pairs in table.pairs.items():
        both = np.isfinite(pairs.first) & np.isfinite(pairs.second)
        consistent = np.where(both, (outcome(pairs.first) == outcome(pairs.second)).astype(float), np.nan)
        questions = len(table.names.questions)
        yield from mean(judge, "order_consistency", "", question=pairs.question, values=consistent, questions=questions)
        yield from _first_preferred(judge, pairs, both=bool(both.any()), questions=questions)
        if both.any():
            first = np.where(both, (outcome(pairs.first) + 1 - outcome(pairs.second)) / 2, np.nan)
            for model in np.unique(pairs.model[both]):
                mine = pairs.model == model
                for measure, values in (("order_consistency", consistent), ("first_preferred", first)):
                    yield from mean(
                        judge,
                        measure,
                        table.names.models[model],
                        question=pairs.question[mine],
                        values=values[mine],
                        questions=questions,
                    )


def _first_preferred(judge: str, pairs: Comparisons, *, both: bool, questions: int) -> Iterator[Figure]:
    """Yield the share of judgments that preferred the first answer.

    Over the pairs that were judged in both orders; where there are none, over all, the two orders weighing equally
    within every model and baseline, so that a strong model that happened to be shown first more often is no bias.
    """
    if both:
        first = (outcome(pairs.first) + 1 - outcome(pairs.second)) / 2  # NaN where one of them is
        yield from mean(judge, "first_preferred", "", question=pairs.question, values=first, questions=questions)
        return
    _, group = np.unique(pairs.model * (pairs.baseline.max() + 2) + pairs.baseline, return_inverse=True)
    shown, weights = [np.isfinite(pairs.first), np.isfinite(pairs.second)], []
    counts = [np.bincount(group[each], minlength=group.max() + 1) for each in shown]
    whole = (counts[0] > 0) & (counts[1] > 0)  # models that were shown first and second
    for each, count in zip(shown, counts, strict=True):
        share = np.where(whole, (counts[0] + counts[1]) / np.maximum(count, 1) / 2, 0.0)
        weights.append(np.where(each, share[group], 0.0))
    weight = weights[0] + weights[1]
    first = np.where(shown[0], outcome(pairs.first), 1 - outcome(pairs.second))
    used = weight > 0
    if used.any():
        sums = summed(pairs.question[used], (weight * first)[used], weight[used], questions=questions)
        yield Figure(judge, "first_preferred", "", int(used.sum()), sums, ratio)
