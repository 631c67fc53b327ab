"""Values, intervals and p-values as people read them."""

from __future__ import annotations

MISSING = "missing"


def number(value: float | None, metric: str, *, sign: bool = False) -> str:
    """Write a value of ``metric`` for people: per cents to one place, ratings to two, nothing as ``missing``."""
    if value is None:
        return MISSING
    places = 1 if metric.startswith("accuracy") or "win_rate" in metric or metric == "bradley_terry" else 2
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
