"""Verdicts as columns of numbers: what each judge said, its comparisons and its ratings, slot by slot.

A *slot* is one thing that a judge was asked: a model's answer, beside a baseline's or alone, to one turn of one
question, in one order. Of several verdicts on one slot the last readable one counts, as in the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from judges.clustered import Array, Ints

if TYPE_CHECKING:
    from pandas import DataFrame, Series

ORDERS = ("model_first", "baseline_first")


@dataclass(frozen=True, slots=True)
class Names:
    """What the numbers in columns stand for; a *place* is one number for model, baseline, question and turn."""

    models: Sequence[str]
    questions: Sequence[str]
    turns: int  # the highest turn, counted from 1

    def place(self, model: Ints, baseline: Ints, question: Ints, turn: Ints) -> Ints:
        """Return one number for the four; ``baseline`` is -1 where the answer stood alone."""
        among = model * (len(self.models) + 1) + baseline + 1
        found: Ints = (among * len(self.questions) + question) * (self.turns + 1) + turn
        return found


@dataclass(frozen=True, slots=True)
class Rows:
    """Places, all (n,) and ascending, each with its parts; ``baseline`` is -1 where the answer stood alone."""

    place: Ints
    model: Ints
    baseline: Ints
    question: Ints
    turn: Ints

    def __len__(self) -> int:
        return len(self.place)


@dataclass(frozen=True, slots=True)
class Comparisons(Rows):
    """What a judge said of pairs of answers, all for the model, in [0, 1].

    ``first`` and ``second`` are the preferences where the model's answer and where the baseline's was shown first,
    NaN where there is none. ``preference`` is the mean of what there is. ``verdict`` is 1, 0 or 0.5 for won, lost and
    tied: a winner must win in every order that was asked, as FastChat has it, and a pair of which one of two replies
    holds no verdict has none (NaN).
    """

    first: Array
    second: Array
    preference: Array
    verdict: Array


@dataclass(frozen=True, slots=True)
class Ratings(Rows):
    """What a judge said of answers that stood alone; ``value`` is the rating, NaN where there is none."""

    value: Array


@dataclass(frozen=True, slots=True)
class Slots:
    """Everything that a judge was asked, (n,) each, by place and order; ``order`` is 0, 1, or 2 for neither.

    ``value`` is NaN where no reply held a verdict.
    """

    rows: Rows
    order: Ints
    value: Array

    @property
    def key(self) -> Ints:
        """One number a slot, ascending."""
        return self.rows.place * 3 + self.order


@dataclass(frozen=True, slots=True)
class Table:
    """What was said, by judge (identities)."""

    names: Names
    slots: dict[str, Slots]
    pairs: dict[str, Comparisons]
    ratings: dict[str, Ratings]


def names_of(*frames: DataFrame, questions: Sequence[str]) -> Names:
    """Return the names for tables of these verdicts: their models and, in the order of ``questions``, what they ask."""
    models = {name for frame in frames for column in ("model", "baseline") for name in _factorized(frame[column])[1]}
    asked = {name for frame in frames for name in _factorized(frame["question"])[1]}
    turns = max((int(frame["turn"].max()) for frame in frames if len(frame)), default=0)
    return Names(sorted(models), [q for q in questions if q in asked], turns)


def verdict_table(said: DataFrame, *, names: Names) -> Table:
    """Return the verdicts of ``said`` (VERDICT_COLUMNS of :mod:`evals.benchmark`, the oldest first) as a table.

    What does not count, is a check's, or is about other questions than those of ``names`` is left out.
    """
    said = said[said["counts"].to_numpy(dtype=bool) & (said["judge"] != "check").to_numpy(dtype=bool)]
    model, baseline, question, order = (
        _located(said[column], places)
        for column, places in (
            ("model", names.models), ("baseline", names.models), ("question", names.questions), ("order", ORDERS),
        )
    )  # fmt: skip
    order = np.where(order < 0, np.int64(len(ORDERS)), order)
    turn, value = said["turn"].to_numpy(dtype=np.int64), said["value"].to_numpy(dtype=float)
    judge, judges = _factorized(said["judge"])
    slots = {}
    for number, name in enumerate(judges):
        at = np.flatnonzero((judge == number) & (question >= 0))
        place = names.place(model[at], baseline[at], question[at], turn[at])
        rows = Rows(place, model[at], baseline[at], question[at], turn[at])
        slots[name] = _slots(rows, order[at], value[at])
    slots = {name: found for name, found in sorted(slots.items()) if len(found.value)}
    pairs = {name: comparisons(each) for name, each in slots.items()}
    rated = {name: ratings(each) for name, each in slots.items()}
    return Table(
        names,
        slots,
        {name: found for name, found in pairs.items() if len(found)},
        {name: found for name, found in rated.items() if len(found)},
    )


def comparisons(slots: Slots) -> Comparisons:
    """Return the comparisons among what a judge was asked."""
    chosen = np.flatnonzero(slots.rows.baseline >= 0)
    _, begun, which = np.unique(slots.rows.place[chosen], return_index=True, return_inverse=True)
    values = np.full((3, len(begun)), np.nan)
    asked = np.zeros((3, len(begun)), dtype=bool)
    values[slots.order[chosen], which] = slots.value[chosen]
    asked[slots.order[chosen], which] = True
    readable = np.isfinite(values)
    count = readable.sum(axis=0)
    preference = np.full(len(begun), np.nan)
    np.divide(np.where(readable, values, 0.0).sum(axis=0), count, out=preference, where=count > 0)
    sides = np.where(readable, outcome(values), np.nan)
    least = np.where(readable, sides, np.inf).min(axis=0)
    most = np.where(readable, sides, -np.inf).max(axis=0)
    verdict = np.where((asked & ~readable).any(axis=0), np.nan, np.where(least == most, least, 0.5))
    rows = taken(slots.rows, chosen[begun])
    return Comparisons(
        rows.place, rows.model, rows.baseline, rows.question, rows.turn, values[0], values[1], preference, verdict
    )


def ratings(slots: Slots) -> Ratings:
    """Return the ratings among what a judge was asked."""
    chosen = np.flatnonzero(slots.rows.baseline < 0)
    place, begun = np.unique(slots.rows.place[chosen], return_index=True)
    rows = taken(slots.rows, chosen[begun])
    return Ratings(place, rows.model, rows.baseline, rows.question, rows.turn, slots.value[chosen[begun]])


def outcome(preference: Array) -> Array:
    """Return 1 where the preference is above one half, 0 where it is below, 0.5 where it is one half; NaN stays."""
    found: Array = (np.sign(preference - 0.5) + 1) / 2
    return found


def matched(one: Ints, other: Ints) -> tuple[Ints, Ints]:
    """Return where the numbers that both hold stand in either; each is ascending and without repeats."""
    _, mine, theirs = np.intersect1d(one, other, assume_unique=True, return_indices=True)
    return mine.astype(np.int64), theirs.astype(np.int64)


def _slots(rows: Rows, order: Ints, value: Array) -> Slots:
    """Return verdicts, the oldest first, as slots."""
    key = rows.place * 3 + order
    # Within a slot the readable verdicts come last, and of these the last one is the newest: lexsort keeps the order.
    ranked = np.lexsort((np.isfinite(value), key))
    last = ranked[np.append(np.flatnonzero(np.diff(key[ranked])), len(ranked) - 1)] if len(ranked) else ranked
    return Slots(taken(rows, last), order[last], value[last])


def taken(rows: Rows, at: Ints) -> Rows:
    """Return the rows at these places."""
    return Rows(rows.place[at], rows.model[at], rows.baseline[at], rows.question[at], rows.turn[at])


def _factorized(column: Series) -> tuple[Ints, list[str]]:
    """Return each value's number, -1 where it is missing, and what the numbers stand for."""
    import pandas as pd

    codes, values = pd.factorize(column)
    return codes.astype(np.int64), [str(value) for value in values]


def _located(column: Series, places: Sequence[str]) -> Ints:
    """Return where each value stands among ``places``, -1 where it is missing or not among them."""
    codes, names = _factorized(column)
    known = {name: place for place, name in enumerate(places)}
    found = np.array([*(known.get(name, -1) for name in names), -1], dtype=np.int64)
    located: Ints = found[codes]  # the code of a missing value is -1: the last one
    return located
