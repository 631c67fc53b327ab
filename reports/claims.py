"""What a paired difference allows one to say, and no more."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from evals.power import detectable_difference, questions_needed
from reports.marks import marked_name
from reports.numbers import LOWER, MISSING, interval, number, p_text, points
from results.queries import DifferenceRow

LEVEL = 0.05  # two-sided; the 95 % interval must also leave out zero before anything is claimed


@dataclass(frozen=True, slots=True)
class Statement:
    """A paired difference, the ``verdict`` on it (better, worse, none or missing) and the sentence it allows."""

    difference: DifferenceRow
    verdict: str
    sentence: str


def statement(row: DifferenceRow, *, marked: Collection[str] = ()) -> Statement:
    """Say what one paired difference shows, and no more than that.

    A model beats another only where the interval leaves out zero and p, corrected for the number of comparisons, is
    below 0.05. ``marked`` are the names of the models that bear the mark of an attack.
    """
    name, other = marked_name(row.name, marked), marked_name(row.other_name, marked)
    both = row.baseline_name not in (None, row.name, row.other_name)
    where = f"on {row.benchmark} {row.metric}" + (f" (both against {row.baseline_name})" if both else "")
    where += f" ({LOWER})" if row.lower_is_better else ""
    judged = "" if row.judge_name == "check" else f" as judged by {row.judge_name}"
    counted = f"n = {row.n}" + (f", {row.missing} {MISSING}" if row.missing else "")
    verdict = _verdict(row)
    if verdict == "missing":
        text = f"nothing can be said of {name} and {other} {where}{judged}: no question has both scores"
        return Statement(row, verdict, f"{text} ({counted}).")
    corrected = "" if row.p_holm is None else f", {p_text(row.p_holm)} after Holm's correction"
    tested = f"{p_text(row.p)}{corrected}, {counted}"
    if verdict == "none":
        size = (
            f"{number(row.value, row.metric, sign=True)} {interval(row.low, row.high, row.metric)}{points(row.metric)}"
        )
        text = f"no difference shown between {name} and {other} {where}{judged}: {size}"
        if row.detectable is not None:
            text += f" (one of {number(row.detectable, row.metric)} would be found four times in five{_needed(row)})"
    else:
        verb = "beats" if verdict == "better" else "loses to"
        above = (row.value or 0.0) > 0
        low, high = (row.low, row.high) if above else (_minus(row.high), _minus(row.low))
        size = f"{number(abs(row.value or 0.0), row.metric)} {interval(low, high, row.metric)}{points(row.metric)}"
        text = f"{name} {verb} {other} {where} by {size}{judged}"
    return Statement(row, verdict, f"{text} ({tested}).")


def _needed(row: DifferenceRow) -> str:
    """Say how many questions would find a difference as large as the one that was seen."""
    if not row.detectable or row.value is None or abs(row.value) < 1e-9:  # which rounding makes of no difference
        return ""
    spread = row.detectable / detectable_difference(1.0, row.n)
    return f", one as large as this with {questions_needed(spread, abs(row.value)):,} questions"


def _verdict(row: DifferenceRow) -> str:
    if row.value is None:
        return "missing"
    p = row.p if row.p_holm is None else row.p_holm
    if row.low is None or row.high is None or p is None or p >= LEVEL:
        return "none"
    above, below = ("worse", "better") if row.lower_is_better else ("better", "worse")
    return above if row.low > 0 else below if row.high < 0 else "none"


def _minus(value: float | None) -> float | None:
    return None if value is None else -value
