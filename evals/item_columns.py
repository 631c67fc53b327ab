"""A table of item scores as arrays: one column a model and metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evals.resampling import Values

if TYPE_CHECKING:
    from pandas import DataFrame

Group = tuple[str, str, str | None, str]  # model, judge, baseline, metric


@dataclass(frozen=True, slots=True)
class Column:
    """One metric of one model: a value a question, by rising question code, and 0 with weight 0 where missing."""

    questions: NDArray[np.int64]  # (n,)
    values: Values  # (n,)
    weights: Values  # (n,)


def columns_of(items: DataFrame) -> dict[Group, Column]:
    """Return every metric of every model of the table, in order of appearance; ``items`` as in :mod:`evals.stats`.

    Raises ValueError for a question that stands twice, and for a negative or infinite number.
    """
    import pandas as pd

    if items.empty:
        return {}
    by = ["model", "judge", "baseline", "metric"]
    group = np.zeros(len(items), dtype=np.int64)
    for name in by:
        code, distinct = pd.factorize(items[name])  # -1: missing
        group, _ = pd.factorize(group * (len(distinct) + 1) + code + 1)  # counted in order of appearance
    asked, found = pd.factorize(items["question"])
    names, rank = np.unique(np.array(found, dtype=object), return_inverse=True)
    question = rank[asked].astype(np.int64)
    order = np.lexsort((question, group))
    group, question = group[order], question[order]
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
    return {k: Column(question[s], values[s], weights[s]) for k, s in zip(keys, parts, strict=True)}


def _named(group: Group) -> str:
    model, judge, baseline, metric = group
    return f"metric {metric!r} (model {model!r}, judge {judge!r}, baseline {baseline!r})"
