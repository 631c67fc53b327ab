"""Measures of how far a judge can be trusted, in plain words: a sentence for each, and when it is a warning.

The measures are those of ``judges.trust``; one that has no words here is shown by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from results.audit_queries import AuditRow

HUMAN = "human"  # stands for people in the place of a judge's identity
BY_RATINGS = "_by_ratings"  # ends what a judge's ratings say of pairs


@dataclass(frozen=True, slots=True)
class Words:
    """How a measure is said: ``text`` holds {value} (with its interval), and may hold {other}.

    ``form`` is share (of 1, shown in per cent), points (of 1, shown as points of 100 with a sign), change (a number
    with a sign) or number. ``alarm`` tells from value, low and high whether to warn.
    """

    heading: str
    text: str
    form: str = "share"
    alarm: Callable[[float, float, float], bool] = lambda *_: False


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence about a judge under its ``heading``; ``rests_on`` says on how much, ``alarm`` whether to warn."""

    heading: str
    text: str
    rests_on: str
    alarm: bool


def _off_half(by: float) -> Callable[[float, float, float], bool]:
    """Warn of a value this far from a half whose interval leaves the half out."""
    return lambda value, low, high: abs(value - 0.5) >= by and not low <= 0.5 <= high


_EQUAL = "of two answers that it would hold for equals, prefers {what} in {{value}} (50\u00a0% would be fair)"
WORDS: Mapping[str, Words] = {
    "order_consistency": Words(
        "Order",
        "keeps its preference in {value} of the pairs when the answers change places",
        alarm=lambda value, *_: value < 0.7,
    ),
    "first_preferred": Words(
        "Order",
        "prefers the answer shown first in {value} of its judgments (50\u00a0% would be fair)",
        alarm=_off_half(0.1),
    ),
    "longer_preferred": Words("Length", "prefers the longer answer in {value} of the pairs"),
    "length_effect": Words("Length", _EQUAL.format(what="the one that is twice as long"), alarm=_off_half(0.1)),
    "length_slope": Words(
        "Length", "twice the length changes a rating by {value} points, model and question being the same", "change"
    ),
    "markdown_preferred": Words("Markdown", "prefers the answer with more Markdown in {value} of the pairs"),
    "markdown_effect": Words("Markdown", _EQUAL.format(what="the one with twice the Markdown"), alarm=_off_half(0.1)),
    "self_preference": Words(
        "Own family",
        "compared with judges of other families, moves its own family's answers by {value} points",
        "points",
        alarm=lambda _, low, __: low > 0,
    ),
    "rating_self_preference": Words(
        "Own family",
        "compared with judges of other families, moves its own family's ratings by {value} points",
        "change",
        alarm=lambda _, low, __: low > 0,
    ),
    "retest_agreement": Words(
        "Asked again", "says the same in {value} of the cases", alarm=lambda value, *_: value < 0.7
    ),
    "retest_mean_change": Words(
        "Asked again", "its preferences move by {value} points, ups and downs evened out", "points"
    ),
    "retest_gap": Words("Asked again", "its preferences move by {value} points up or down", "distance"),
    "retest_rating_mean_change": Words(
        "Asked again", "its ratings move by {value}, ups and downs evened out", "change"
    ),
    "retest_rating_gap": Words("Asked again", "its ratings move by {value} up or down", "number"),
    "human_agreement": Words("People", "agrees with {value} of people's votes, ties counted"),
    "human_agreement_decided": Words("People", "agrees with {value} of the votes where neither said that it is a tie"),
    "human_kappa": Words("People", "has a κ of {value} with people (0: as by chance, 1: always)", "number"),
    "judge_agreement": Words("Other judges", "agrees with {other} on {value} of the pairs"),
    "cohen_kappa": Words("Other judges", "has a κ of {value} with {other}", "number"),
    "model_spearman": Words(
        "Other judges", "puts models in an order that correlates by {value} with {other}'s", "number"
    ),
    "rating_agreement": Words("Other judges", "gives the same rating as {other} in {value} of the cases"),
    "weighted_kappa": Words("Other judges", "has a weighted κ of {value} with {other}", "number"),
    "rating_spearman": Words(
        "Other judges", "puts models in an order that correlates by {value} with {other}'s", "number"
    ),
    "krippendorff_alpha": Words(
        "All judges",
        "Krippendorff's α over all judges' verdicts is {value} (0: as by chance, 1: full agreement)",
        "number",
    ),
    "rating_alpha": Words(
        "All judges",
        "Krippendorff's α over all judges' ratings is {value} (0: as by chance, 1: full agreement)",
        "number",
    ),
    "calibration_error": Words(
        "Sureness",
        "how sure it says it is lies {value} points from how often {other} agree",
        "distance",
        alarm=lambda value, *_: value >= 0.2,
    ),
    "brier": Words(
        "Sureness", "Brier score against {other}: {value} (0: always right; 0.25: always undecided)", "number"
    ),
    "null_control": Words(
        "Null answers", "the control {other} loses in {value} of the pairs", alarm=lambda value, *_: value < 0.9
    ),
    "null_preference": Words("Null answers", "mean preference for the control {other}: {value}"),
    "null_rating_control": Words(
        "Null answers",
        "rates the control {other} below real answers in {value} of the cases",
        alarm=lambda value, *_: value < 0.9,
    ),
    "null_rating": Words("Null answers", "rates the control {other} {value} on average", "number"),
    "unreadable": Words(
        "No verdict", "left {value} of the requests without a verdict", alarm=lambda value, *_: value > 0.05
    ),
    "score_spread": Words(
        "Spread", "sees models {value} points apart (standard deviation of mean preferences)", "distance"
    ),
    "rating_spread": Words("Spread", "sees models {value} apart (standard deviation of mean ratings)", "number"),
}


def line(row: AuditRow) -> Line:
    """Say one measure in a sentence; one without a value is said to be missing."""
    name, by_ratings = row.measure.removesuffix(BY_RATINGS), row.measure.endswith(BY_RATINGS)
    words = WORDS.get(name)
    if words is None:
        against = f" against {row.other_name}" if row.other else ""
        return Line(row.measure.replace("_", " "), f"{figure(row)}{against}", f"n = {row.n:,}", False)
    others = {HUMAN: "people", "": "the other judges"}
    text = words.text.format(value=figure(row), other=others.get(row.other, row.other_name))
    value, low, high = row.value, row.low, row.high
    alarm = value is not None and words.alarm(value, value if low is None else low, value if high is None else high)
    text = f"{text[:1].upper()}{text[1:]}{' (by its ratings)' if by_ratings else ''}."
    return Line(words.heading, text, f"n = {row.n:,}", alarm)


def figure(row: AuditRow) -> str:
    """Write a measure's value with its 95 % interval as people read it: ``56 % [52, 60]``."""
    words = WORDS.get(row.measure.removesuffix(BY_RATINGS))
    form = words.form if words else "number"
    if row.value is None:
        return "missing"
    unit = "\u00a0%" if form == "share" else ""
    text = _number(row.value, form) + unit
    if row.low is None or row.high is None:
        return text
    return f"{text} [{_number(row.low, form)},\u00a0{_number(row.high, form)}]"


def _number(value: float, form: str) -> str:
    if form in ("share", "distance", "points"):
        near = 0 < value < 0.01 or 0.99 < value < 1
        places = 1 if near or form != "share" else 0
        text = f"{100 * value:{'+' if form == 'points' else ''}.{places}f}"
    else:
        text = f"{value:{'+' if form == 'change' else ''}.2f}"
    return (text.lstrip("+-") if float(text) == 0 else text).replace("-", "−")
