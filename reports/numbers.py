"""Values, intervals and p-values as people read them."""

from __future__ import annotations

import re

MISSING = "missing"
LOWER = "lower is better"


# Metrics by what they are counted in; what an objective is, only its study knows. Any other is of a task of lm-eval,
# and is written as lm-eval writes it.
_PER_CENT = re.compile(r"accuracy|.*win_rate|bradley_terry$")
_RATING = re.compile(r"average|rating|turn_\d|category:|elo$|(lc_)?standard_error$|objective$")


def points(metric: str) -> str:
    """Return what a difference in ``metric`` is counted in, with a space before it; nothing on a scale from 0 to 1."""
    return " points" if _PER_CENT.match(metric) or _RATING.match(metric) else ""


def number(value: float | None, metric: str, *, sign: bool = False) -> str:
    """Write a value of ``metric`` for people: per cents to one place, ratings to two, lm-eval's metrics to four.

    No value is written as ``missing``.
    """
    if value is None:
        return MISSING
    places = 1 if _PER_CENT.match(metric) else 2 if _RATING.match(metric) else 4
    text = f"{value:{'+' if sign else ''}.{places}f}"
    return (text[1:] if float(text) == 0 and text[0] in "+-" else text).replace("-", "−")


def interval(low: float | None, high: float | None, metric: str) -> str:
    """Write a 95 % interval as ``[low, high]``, or ``[missing]`` where there is none."""
    if low is None or high is None:
        return f"[{MISSING}]"
    return f"[{number(low, metric)}, {number(high, metric)}]"


def p_text(p: float | None) -> str:
    """Write a p-value as people cite it."""
    if p is None:
        return f"p {MISSING}"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
