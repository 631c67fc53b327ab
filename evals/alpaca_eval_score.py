"""The metrics of AlpacaEval, in per cent; a question's verdict is the preference for the model, in [0, 1].

Follows alpaca_eval 0.6.6 ``metrics/``. As means over questions, with one item each:

- ``win_rate``: the preference. ``discrete_win_rate``: 100 above one half, 50 at it, 0 below.
- ``lc_win_rate``: the preference at equal lengths (``evals/length_control.py``), which is predicted of every wanted
  question, those without a verdict too, as long as there is any. ``lc_win_rate:introsort``: the same with the folds of
  older versions, only where the two figures differ by more than 1e-9.

And about them, ``standard_error`` and ``lc_standard_error``: standard deviation / √n of the preferences and of the
predictions, as published. They carry the number of questions with a verdict and the flags of the metric they are of:

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
from evals.length_control import Compared, Floats, Folds, Gamed, predict_all
from evals.records import Score

if TYPE_CHECKING:
    from pandas import DataFrame

RULES: tuple[Folds, ...] = ("stable", "introsort")
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


def score(evidence: Evidence, *, gamed: Callable[[], Gamed]) -> Scored:
    """Return all metrics of the models wanted; ``gamed`` is called where there are any."""
    import pandas as pd

    rows = _rows(evidence)
    if not rows:
        return Scored(pd.DataFrame(columns=list(ITEM_COLUMNS)))
    steady = gamed()
    tables, scores = [], []
    for each, (stable, introsort) in zip(rows, _predictions(rows, steady), strict=True):
        shown = 1 + each.preference  # as alpaca_eval holds it, where 1.5 is a draw
        discrete = np.where(np.isnan(shown), np.nan, np.where(shown == 1.5, 50.0, 100.0 * (shown > 1.5)))
        metrics = {
            "win_rate": 100 * each.preference,
            "discrete_win_rate": discrete,
            "lc_win_rate": 100 * stable,
            "lc_win_rate:introsort": 100 * introsort,
        }
        if not abs(100 * (stable.mean() - introsort.mean())) > SAME:
            del metrics["lc_win_rate:introsort"]
        tables += [_items(each, metric, values) for metric, values in metrics.items()]
        scores += _errors(each, 100 * stable, questions=len(steady.by_question))
    return Scored(pd.concat(tables, ignore_index=True), tuple(scores))


def positional(evidence: Evidence, *, gamed: Callable[[], Gamed]) -> list[Score]:
    """Return ``lc_win_rate:positional`` of the models where it differs from ``lc_win_rate``.

    The published way takes the position of a row among those that are there for its question, and a question whose
    answer is missing has no row.
    """
    gaps = [
        (each, there)
        for each in _rows(evidence)
        if not each.is_baseline
        and (there := ~np.isnan(each.delta)).any()
        and not np.array_equal(np.array(each.ids, dtype=np.intp), np.arange(there.sum()))
    ]
    if not gaps:
        return []
    jobs: list[tuple[Compared, Folds]] = [(each.compared(), "stable") for each, _ in gaps]
    jobs += [
        (Compared(np.arange(there.sum()), each.preference[there], each.delta[there]), "stable") for each, there in gaps
    ]
    means = [100 * float(found.mean()) for found in predict_all(jobs, gamed=gamed())]
    return [
        each.score("lc_win_rate:positional", by_position)
        for (each, _), by_id, by_position in zip(gaps, means[: len(gaps)], means[len(gaps) :], strict=True)
        if abs(by_position - by_id) > SAME
    ]


def _rows(evidence: Evidence) -> list[_Rows]:
    if not evidence.questions:
        return []
    said = evidence.verdicts[evidence.verdicts["counts"].astype(bool)]
    values: dict[tuple[object, ...], dict[str, float]] = defaultdict(dict)
    for *who, question, value in _tuples(said, ["model", "judge", "baseline", "question", "value"]):
        values[tuple(who)][question] = value  # the last that counts
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
        found.append(_Rows(wanted, benchmark, ids, preference, np.array(delta, dtype=float), is_baseline))
    return found


def _tuples(table: DataFrame, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[column].to_numpy(dtype=object) for column in columns), strict=True)


def _predictions(rows: Sequence[_Rows], gamed: Gamed) -> list[tuple[Floats, Floats]]:
    """Return the predictions of each model under both rules; of the baseline itself, one half."""
    fitted = [number for number, each in enumerate(rows) if not each.is_baseline]
    jobs = [(rows[number].compared(), folds) for number in fitted for folds in RULES]
    predicted = iter(predict_all(jobs, gamed=gamed))
    found = []
    for each in rows:
        half = np.full(len(each.ids), 0.5)
        found.append((half, half) if each.is_baseline else (next(predicted), next(predicted)))
    return found


def _items(rows: _Rows, metric: str, values: Floats) -> DataFrame:
    import pandas as pd

    wanted = rows.wanted
    fixed = {"model": wanted.model, "judge": wanted.judge, "baseline": wanted.baseline, "metric": metric}
    return pd.DataFrame(
        fixed | {"question": list(rows.ids), "value": values, "weight": 1.0}, columns=list(ITEM_COLUMNS)
    )


def _errors(rows: _Rows, predicted: Floats, *, questions: int) -> list[Score]:
    percent = 100 * rows.preference[~np.isnan(rows.preference)]
    flags = ["subset"] if len(rows.ids) < questions else []
    lc_flags = [*flags, "lc_not_comparable"] if len(percent) < questions else [*flags]
    if len(percent) and abs(predicted.mean() - percent.mean()) > FAR:
        lc_flags.append("lc_far_from_win_rate")
    return [
        rows.score("standard_error", _standard_error(percent), flags),
        rows.score("lc_standard_error", _standard_error(predicted), lc_flags),
    ]


def _standard_error(values: Floats) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
