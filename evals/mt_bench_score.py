"""From MT-Bench verdicts to its scores, in whole columns; :mod:`evals.mt_bench` says what is asked.

``average``, ``turn_1``, ``turn_2`` and ``category:<name>`` are on the scale 1 to 10. A question weighs as many turns
as have a rating, so that ``average`` is the mean over turns that FastChat's ``show_result.py`` gives, and a question
without any is missing. A turn's rating is the last readable one of the answers that count; ``average:fastchat`` takes
every readable row, repeated ones and those about replaced answers too, as that file does. Of pairwise verdicts
``win_rate`` is its ``win_rate_adjusted``, in per cent: a turn is won or lost where the judge says so in both orders,
left out where one of the two replies holds no verdict, and else a tie, half a win. Where every model met every other,
``elo`` is its Bradley-Terry strength over all these turns, 400 points for odds of ten to one, the base's being 1000.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evals.benchmark import ITEM_COLUMNS, Evidence, Scored, Wanted
from evals.bradley_terry import bradley_terry, elo, resampled_strengths, strength_intervals
from evals.records import Question, Score

if TYPE_CHECKING:
    from pandas import Categorical, DataFrame, Series

Array = npt.NDArray[np.float64]
ORDERS = ("model_first", "baseline_first")


@dataclass(frozen=True, slots=True)
class _Table:
    """What is wanted (G groups of n questions) and the verdicts on it, located by ``group`` and ``place``."""

    wanted: Sequence[Wanted]
    questions: Sequence[Question]
    asked: npt.NDArray[np.bool_]  # (G, n): is this question wanted
    verdicts: DataFrame
    turns: int  # T, of the longest question

    @property
    def shape(self) -> tuple[int, int, int]:
        """(G, n, T)."""
        return len(self.wanted), len(self.questions), self.turns


def score_single(evidence: Evidence) -> Scored:
    """Return the items of ``average``, ``turn_<n>``, ``category:<name>`` and ``average:fastchat``."""
    table = _table(evidence)
    readable = table.verdicts[table.verdicts["value"].notna()]
    by_turn = _last(table.shape, readable[readable["counts"]])
    rated = _over_turns(by_turn)
    metrics = {"average": rated}
    metrics |= {f"turn_{n + 1}": _over_turns(by_turn[:, :, n : n + 1]) for n in range(table.turns)}
    for category in dict.fromkeys(q.category for q in table.questions):
        metrics[f"category:{category}"] = rated
    flags = _flags(table, metrics, np.isfinite(by_turn), what="ratings")
    metrics["average:fastchat"] = _over_rows(table.shape, readable)
    return Scored(_items(table, metrics), flags=flags)


def score_pairs(evidence: Evidence) -> Scored:
    """Return the items of ``win_rate``."""
    table = _table(evidence)
    metrics = {"win_rate": _over_turns(100.0 * _outcomes(table))}
    return Scored(_items(table, metrics), flags=_flags(table, metrics, np.isfinite(_outcomes(table)), what="turns"))


def score_all_pairs(evidence: Evidence) -> Scored:
    """Return the items of ``win_rate`` for every pair, and ``elo``, by judge, where three models or more met."""
    table = _table(evidence)
    outcomes = _outcomes(table)
    judges = dict.fromkeys(w.judge for w in table.wanted)
    elos = [score for judge in judges for score in _elos(table, outcomes, judge)]
    metrics = {"win_rate": _over_turns(100.0 * outcomes)}
    flags = _flags(table, metrics, np.isfinite(outcomes), what="turns")
    return Scored(_items(table, metrics), elos, flags=flags)


def _flags(
    table: _Table, metrics: Mapping[str, object], there: npt.NDArray[np.bool_], *, what: str
) -> dict[tuple[str, str, str | None, str], tuple[str, ...]]:
    """Say of how many turns a score lacks something, where a question has some turns and not others; (G, n, T)."""
    some = table.asked & there.any(axis=2)
    lacking = (~there & some[:, :, None]).sum(axis=2)  # (G, n)
    flags: dict[tuple[str, str, str | None, str], tuple[str, ...]] = {}
    for metric in metrics:
        of = np.array([metric == f"category:{q.category}" for q in table.questions])
        place = of if metric.startswith("category:") else np.ones(len(of), dtype=bool)
        if metric.startswith("turn_"):
            continue  # a question there is one turn
        for group, w in enumerate(table.wanted):
            if count := int(lacking[group, place].sum()):
                every = int(some[group, place].sum()) * table.turns
                flags[w.model, w.judge, w.baseline, metric] = (f"{count} of {every} {what} missing",)
    return flags


def _outcomes(table: _Table) -> Array:
    """Return 1 for a win, 0 for a loss, 0.5 for a tie and NaN for no verdict, (G, n, T)."""
    readable = table.verdicts[table.verdicts["value"].notna() & table.verdicts["counts"]]
    first, second = (_last(table.shape, readable[readable["order"] == order]) for order in ORDERS)
    agreed = np.where(first == second, first, 0.5)
    return np.where(np.isfinite(first) & np.isfinite(second), agreed, np.nan)


def _elos(table: _Table, outcomes: Array, judge: str) -> list[Score]:
    """Return the strengths of all models that met, by one judge; without a value where they have no finite one."""
    groups = [g for g, w in enumerate(table.wanted) if w.judge == judge and w.baseline]
    models = sorted({name for g in groups for name in (table.wanted[g].model, str(table.wanted[g].baseline))})
    if len(models) < 3:  # two have their win rate
        return []
    group, place, turn = np.nonzero(np.isfinite(outcomes[groups]))
    first = np.array([models.index(table.wanted[g].model) for g in groups])[group]
    second = np.array([models.index(str(table.wanted[g].baseline)) for g in groups])[group]
    won = outcomes[groups][group, place, turn]
    # The base comes first, so it is beside others and none is beside it.
    never = set(models) - {table.wanted[g].model for g in groups}
    anchor = models.index(min(never)) if never else 0
    flags: tuple[str, ...] = ()
    try:
        strengths = bradley_terry(first, second, won, models=len(models), anchor=anchor)
    except ValueError:  # some model won or lost everything
        strengths, ends, flags = (
            np.full(len(models), np.nan),
            np.full((len(models), 2), np.nan),
            ("no_finite_strength",),
        )
    else:
        resampled = resampled_strengths(first, second, won, question=place, anchor=anchor, models=len(models))
        ends = elo(strength_intervals(resampled))
    values = [None if math.isnan(value) else float(value) for value in elo(strengths)]
    lows, highs = ([float(end) if math.isfinite(end) else None for end in side] for side in ends.T)
    met = [len(set(place[(first == m) | (second == m)])) for m in range(len(models))]
    questions = table.questions
    return [
        Score(
            model=model,
            benchmark=questions[0].benchmark,
            version=questions[0].version,
            judge=judge,
            baseline=None,
            metric="elo",
            value=values[m],
            low=lows[m],
            high=highs[m],
            n=met[m],
            missing=len(questions) - met[m],
            flags=flags,
        )
        for m, model in enumerate(models)
    ]


def _table(evidence: Evidence) -> _Table:
    import pandas as pd

    wanted = [w for w in evidence.wanted if w.judge != "check"]  # nothing here is checked without a judge
    places = {q.id: place for place, q in enumerate(evidence.questions)}
    asked = np.zeros((len(wanted), len(places)), dtype=bool)
    for group, w in enumerate(wanted):
        asked[group, [places[name] for name in w.questions if name in places]] = True
    turns = max((len(q.turns) for q in evidence.questions), default=0)
    v = evidence.verdicts
    located = pd.DataFrame(
        {
            "group": _groups(wanted, v),
            "place": _located(v["question"], places),
            "turn": v["turn"].to_numpy(),
            "order": v["order"].array,
            "value": v["value"].to_numpy(dtype=float),
            "counts": v["counts"].to_numpy(dtype=bool),
        }
    )
    known = (located["group"] >= 0) & (located["place"] >= 0) & located["turn"].between(1, turns)
    return _Table(wanted, evidence.questions, asked, located[known], turns)


def _groups(wanted: Sequence[Wanted], verdicts: DataFrame) -> npt.NDArray[np.int64]:
    """Return the place in ``wanted`` of every verdict's model, judge and baseline; -1 where it stands not there."""
    if not wanted:
        return np.full(len(verdicts), -1)
    known = [(w.model, w.judge, w.baseline) for w in wanted]
    places = [{name: n for n, name in enumerate(dict.fromkeys(column))} for column in zip(*known, strict=True)]
    found = [_located(verdicts[name], places[n]) for n, name in enumerate(("model", "judge", "baseline"))]
    # One number for the three; the wanted ones are few, and found again by their rank.
    sizes = [len(each) for each in places]
    numbers = np.where(np.min(found, axis=0) < 0, -1, np.ravel_multi_index(np.maximum(found, 0), sizes))
    keys = np.array([np.ravel_multi_index([places[n][part] for n, part in enumerate(key)], sizes) for key in known])
    ranks = np.argsort(keys)
    spots = ranks[np.minimum(np.searchsorted(keys[ranks], numbers), len(keys) - 1)]
    return np.where(keys[spots] == numbers, spots, -1)


def _located(column: Series, places: Mapping[Any, int]) -> npt.NDArray[np.int64]:
    """Return each value's place, -1 where it has none; a missing value stands for None."""
    import pandas as pd

    codes, values = pd.factorize(column)
    found = np.array([*(places.get(value, -1) for value in values), places.get(None, -1)], dtype=np.int64)
    located: npt.NDArray[np.int64] = found[codes]  # the code of a missing value is -1: the last one
    return located


def _last(shape: tuple[int, int, int], verdicts: DataFrame) -> Array:
    """Return the last value of every turn, (G, n, T); NaN where there is none."""
    values = np.full(shape, np.nan)
    where = tuple(verdicts[name].to_numpy() for name in ("group", "place", "turn"))
    # The verdicts come oldest first, and of a repeated index the last assignment stays.
    values[where[0], where[1], where[2] - 1] = verdicts["value"].to_numpy()
    return values


def _over_turns(by_turn: Array) -> tuple[Array, Array]:
    """Return the mean over the turns that have a value (NaN where none has) and their number, (G, n) each."""
    return _mean(np.nansum(by_turn, axis=2), np.isfinite(by_turn).sum(axis=2))


def _over_rows(shape: tuple[int, int, int], verdicts: DataFrame) -> tuple[Array, Array]:
    """Return the mean over all rows of a question and their number, (G, n) each."""
    groups, questions, _ = shape
    slots = (verdicts["group"] * questions + verdicts["place"]).to_numpy()
    total, count = np.zeros((groups, questions)), np.zeros((groups, questions), dtype=np.int64)
    np.add.at(total.reshape(-1), slots, verdicts["value"].to_numpy())
    np.add.at(count.reshape(-1), slots, 1)
    return _mean(total, count)


def _mean(total: Array, count: npt.NDArray[np.signedinteger]) -> tuple[Array, Array]:
    mean = np.full(total.shape, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean, count.astype(np.float64)


def _items(table: _Table, metrics: Mapping[str, tuple[Array, Array]]) -> DataFrame:
    """Return one row for every metric and wanted question (of its category); the value is NaN where it is missing."""
    import pandas as pd

    categories = np.array([f"category:{q.category}" for q in table.questions])
    rows = []
    for n, (metric, (values, weights)) in enumerate(metrics.items()):
        among = table.asked & (categories == metric) if metric.startswith("category:") else table.asked
        group, place = np.nonzero(among)
        rows.append((np.full(len(group), n), group, place, values[among], weights[among]))
    metric_of, group, place, value, weight = (np.concatenate(column) for column in zip(*rows, strict=True))
    columns = {
        "model": _texts([w.model for w in table.wanted], group),
        "judge": _texts([w.judge for w in table.wanted], group),
        "baseline": np.array([w.baseline for w in table.wanted], dtype=object)[group],
        "metric": _texts(list(metrics), metric_of),
        "question": _texts([q.id for q in table.questions], place),
        "value": value,
        "weight": weight,
    }
    return pd.DataFrame(columns, columns=list(ITEM_COLUMNS), copy=False)


def _texts(values: Sequence[str], places: npt.NDArray[np.int64]) -> Categorical:
    """Return ``values[places]``: as categories, since so many strings would take longer to make than all figures."""
    import pandas as pd

    codes, names = pd.factorize(np.array(values, dtype=object))
    return pd.Categorical.from_codes(codes[places], names)
