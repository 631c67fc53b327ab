"""Whether answers that must lose do lose: a constant one, and one that was given to another question.

A judge that a constant answer wins over can be won over by anything: Zheng et al. 2024, arXiv:2410.07137.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from judges.clustered import Figure, mean
from judges.verdict_table import Table


def null_control(table: Table, *, controls: Collection[str]) -> Iterator[Figure]:
    """Yield, by judge and control (a model's identity), ``null_control`` and ``null_preference``.

    The first is the share of pairs that the control lost, a tie being none, the second the mean preference for it. Of
    ratings ``null_rating_control`` is the share rated below the mean of what real models' answers to the same turn got
    from the judge, and ``null_rating`` the mean rating.
    """
    questions = len(table.names.questions)
    control = np.array([model in set(controls) for model in table.names.models], dtype=bool)
    for judge, pairs in table.pairs.items():
        for number in np.unique(pairs.model[control[pairs.model]]):
            at = pairs.model == number
            name, question = table.names.models[number], pairs.question[at]
            verdict = pairs.verdict[at]
            lost = np.where(np.isfinite(verdict), (verdict == 0).astype(float), np.nan)
            yield from mean(judge, "null_control", name, question=question, values=lost, questions=questions)
            values = pairs.preference[at]
            yield from mean(judge, "null_preference", name, question=question, values=values, questions=questions)
    for judge, rated in table.ratings.items():
        turn = rated.question * (table.names.turns + 1) + rated.turn
        real = ~control[rated.model] & np.isfinite(rated.value)
        size = int(turn.max()) + 1
        with np.errstate(invalid="ignore"):
            others = np.bincount(turn[real], rated.value[real], minlength=size) / np.bincount(
                turn[real], minlength=size
            )
        for number in np.unique(rated.model[control[rated.model]]):
            at = rated.model == number
            name, question, value, usual = (
                table.names.models[number],
                rated.question[at],
                rated.value[at],
                others[turn[at]],
            )
            below = np.where(np.isfinite(value) & np.isfinite(usual), (value < usual).astype(float), np.nan)
            yield from mean(judge, "null_rating_control", name, question=question, values=below, questions=questions)
            yield from mean(judge, "null_rating", name, question=question, values=value, questions=questions)
