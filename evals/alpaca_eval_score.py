"""The metrics of AlpacaEval, in per cent; a question's verdict is the preference for the model, in [0, 1].

Follows alpaca_eval 0.6.6 ``metrics/``. As means over questions, with one item each:

- ``win_rate``: the preference. ``discrete_win_rate``: 100 above one half, 50 at it, 0 below.
- ``lc_win_rate``: the preference at equal lengths (``evals/length_control.py``), predicted of every wanted question,
  those without a verdict too, as long as there is any; only against the baseline that the model of lengths is about.
  An item is what its question contributes to that mean, so that intervals and differences hold the fit's own
  uncertainty. ``lc_win_rate:introsort``: the same with the folds of older versions, only where the two figures differ
  by more than 1e-9.

And about them, ``standard_error`` and ``lc_standard_error``: standard deviation / √n of the preferences and of the
predictions, as published; the latter leaves the fit's uncertainty out. Flags:

- "subset": not all questions of the benchmark were wanted.
- "lc_not_comparable": the length-controlled win rate rests on fewer verdicts than the benchmark has questions.
- "lc_far_from_win_rate": more than 10 points lie between the two win rates; the model of lengths may have failed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.benchmark import ITEM_COLUMNS, Evidence, Scored, Wanted
from evals.length_control import RULES, Compared, Floats, Folds, Gamed, Predicted, predict_all
from evals.records import Score

if TYPE_CHECKING:
    from pandas import DataFrame

SAME = 1e-9  # per cent
FAR = 10.0  # points; alpaca_eval's get_is_extreme_changes


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is known of one model: (n,) arrays over its wanted questions, in the benchmark's order."""

    wanted: Wanted
    benchmark: tuple[str, str]  # name, version
    ids: tuple[str, ...]
    preference: Floats
    delta: Floats  # characters that the baseline's answer is longer
    questions: int  # of the whole benchmark
    is_baseline: bool  # the baseline itself, or what says the same throughout

    def compared(self) -> Compared:
        """Return the rows with the questions' own numbers."""
        return Compared(np.array(self.ids, dtype=np.intp), self.preference, self.delta)

    def score(self, metric: str, value: float, flags: Sequence[str] = ()) -> Score:
        """Return a score of these rows without an interval; n are the rows with a preference."""
        n = int((~np.isnan(self.preference)).sum())
        return Score(
            model=self.wanted.model,
            benchmark=self.benchmark[0],
            version=self.benchmark[1],
            judge=self.wanted.judge,
            baseline=self.wanted.baseline,
            metric=metric,
            value=None if np.isnan(value) else float(value),
            low=None,
            high=None,
            n=n,
            missing=len(self.ids) - n,
            flags=tuple(flags),
        )


def score(evidence: Evidence, *, gamed: Callable[[], Gamed], baseline: str) -> Scored:
    """Return all metrics of the models wanted.

    ``gamed`` is called where there are any against ``baseline``, the identity of the one that it is about.
    """
    import pandas as pd

    rows = _rows(evidence)
    if not rows:
        return Scored(pd.DataFrame(columns=list(ITEM_COLUMNS)))
    controlled = {number: each for number, each in enumerate(rows) if each.wanted.baseline == baseline}
    predicted = dict(zip(controlled, _predictions([*controlled.values()], gamed), strict=True)) if controlled else {}
    tables, scores, flags = [], [], {}
    for number, each in enumerate(rows):
        shown = 1 + each.preference  # as alpaca_eval holds it, where 1.5 is a draw
        discrete = np.where(np.isnan(shown), np.nan, np.where(shown == 1.5, 50.0, 100.0 * (shown > 1.5)))
        metrics = {"win_rate": 100 * each.preference, "discrete_win_rate": discrete}
        own: tuple[str, ...] = ("subset",) if len(each.ids) < each.questions else ()
        lc_flags = own
        scores.append(each.score("standard_error", _standard_error(metrics["win_rate"]), own))
        if number in predicted:
            stable, introsort = predicted[number]
            lc_flags += _lc_flags(each, stable)
            metrics["lc_win_rate"] = 100 * stable.parts
            if abs(100 * (stable.preference.mean() - introsort.preference.mean())) > SAME:
                metrics["lc_win_rate:introsort"] = 100 * introsort.parts
            error = _standard_error(100 * stable.preference)
            scores.append(each.score("lc_standard_error", error, lc_flags))
        tables += [_items(each, metric, values) for metric, values in metrics.items()]
        w = each.wanted
        for metric in metrics:
            flags[w.model, w.judge, w.baseline, metric] = lc_flags if metric.startswith("lc") else own
    return Scored(pd.concat(tables, ignore_index=True), tuple(scores), flags=flags)


def positional(evidence: Evidence, *, gamed: Callable[[], Gamed], baseline: str) -> list[Score]:
    """Return ``lc_win_rate:positional`` of the models where it differs from ``lc_win_rate``.

    The published way takes the position of a row among those that are there for its question, and a question whose
    answer is missing has no row.
    """
    gaps = [
        (each, there)
        for each in _rows(evidence)
        if not each.is_baseline
        and each.wanted.baseline == baseline
        and (there := ~np.isnan(each.delta)).any()
        and not np.array_equal(np.array(each.ids, dtype=np.intp), np.arange(there.sum()))
    ]
    if not gaps:
        return []
    jobs: list[tuple[Compared, Folds]] = [(each.compared(), "stable") for each, _ in gaps]
    jobs += [
        (Compared(np.arange(there.sum()), each.preference[there], each.delta[there]), "stable") for each, there in gaps
    ]
    means = [100 * float(found.preference.mean()) for found in predict_all(jobs, gamed=gamed())]
    return [
        each.score("lc_win_rate:positional", by_position)
        for (each, _), by_id, by_position in zip(gaps, means[: len(gaps)], means[len(gaps) :], strict=True)
        if abs(by_position - by_id) > SAME
    ]


def _rows(evidence: Evidence) -> list[_Rows]:
    if not evidence.questions:
        return []
    said = evidence.verdicts[evidence.verdicts["counts"].astype(bool) & evidence.verdicts["value"].notna()]
    values: dict[tuple[object, ...], dict[str, float]] = defaultdict(dict)
    for *who, question, value in _tuples(said, ["model", "judge", "baseline", "question", "value"]):
        values[tuple(who)][question] = value  # the last readable one that counts
    texts: dict[str | None, dict[str, str]] = defaultdict(dict)
    for model, question, text in _tuples(evidence.answers, ["model", "question", "text"]):
        texts[model][question] = text
    benchmark = (evidence.questions[0].benchmark, evidence.questions[0].version)
    found = []
    for wanted in evidence.wanted:
        ids = tuple(question.id for question in evidence.questions if question.id in wanted.questions)
        if not ids:
            continue
        mine, theirs = ([texts[who].get(name) for name in ids] for who in (wanted.model, wanted.baseline))
        same = np.array([a is not None and a == b for a, b in zip(mine, theirs, strict=True)], dtype=bool)
        delta = [np.nan if a is None or b is None else len(b) - len(a) for a, b in zip(mine, theirs, strict=True)]
        value = values[wanted.model, wanted.judge, wanted.baseline]
        preference = np.array([value.get(name, np.nan) for name in ids], dtype=float)
        preference[same] = 0.5
        is_baseline = wanted.model == wanted.baseline or bool(same.all())
        whole = len(evidence.questions)
        found.append(_Rows(wanted, benchmark, ids, preference, np.array(delta, dtype=float), whole, is_baseline))
    return found


def _tuples(table: DataFrame, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[column].to_numpy(dtype=object) for column in columns), strict=True)


def _predictions(rows: Sequence[_Rows], gamed: Callable[[], Gamed]) -> list[tuple[Predicted, Predicted]]:
    """Return the predictions of each model under both rules; of the baseline itself, one half."""
    fitted = [number for number, each in enumerate(rows) if not each.is_baseline]
    jobs: list[tuple[Compared, Folds]] = [(rows[number].compared(), folds) for number in fitted for folds in RULES]
    predicted = iter(predict_all(jobs, gamed=gamed()))
    found = []
    for each in rows:
        half = Predicted(*np.full((2, len(each.ids)), 0.5))
        found.append((half, half) if each.is_baseline else (next(predicted), next(predicted)))
    return found


def _lc_flags(rows: _Rows, predicted: Predicted) -> tuple[str, ...]:
    percent = 100 * rows.preference[~np.isnan(rows.preference)]
    flags: tuple[str, ...] = ("lc_not_comparable",) if len(percent) < rows.questions else ()
    if len(percent) and abs(100 * predicted.preference.mean() - percent.mean()) > FAR:
        flags += ("lc_far_from_win_rate",)
    return flags


def _items(rows: _Rows, metric: str, values: Floats) -> DataFrame:
    import pandas as pd

    wanted = rows.wanted
    fixed = {"model": wanted.model, "judge": wanted.judge, "baseline": wanted.baseline, "metric": metric}
    return pd.DataFrame(
        fixed | {"question": list(rows.ids), "value": values, "weight": 1.0}, columns=list(ITEM_COLUMNS)
    )


def _standard_error(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else float("nan")
