"""Whether a judge prefers longer answers, and answers with more Markdown.

Preferring the longer answer is no fault by itself: people do so too, for it is often the better one. The plain share
is therefore shown beside people's, and the *effect* holds each model's strength fixed: in a logistic regression of the
preference with one constant for every model and baseline, it is how probable it is that the judge prefers the answer
that is twice as long (or has twice the marks) of two that it would otherwise hold for equals. Length is in UTF-8 bytes
and marks are headers, list items and bold spans, both as :mod:`evals.style` counts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from evals.style import style_counts
from judges.clustered import Array, Figure, Ints, mean, ratio, summed
from judges.human_agreement import HUMAN
from judges.verdict_table import Comparisons, Names, Ratings, Table

if TYPE_CHECKING:
    from pandas import DataFrame

DOUBLINGS = 3.0  # at most: an answer more than 8 times as long counts as 8 times as long
PENALTY = 1e-4  # λ of λ/2 · |coefficients|²: gives a model that won everything a finite constant
STEPS = 100
Z = 1.959963984540054  # of a two-sided 95 % interval
WORDS = ("longer", "length"), ("markdown", "markdown")  # what the measures of the two features begin with


def style_bias(table: Table, answers: DataFrame) -> Iterator[Figure]:
    """Yield the preferences for length and for Markdown, and their effects, of every judge.

    ``answers`` has the columns model, question, turn and text; pairs whose texts are not both there have no say.
    """
    counts = text_counts(answers, table.names)
    questions = len(table.names.questions)
    for judge, pairs in table.pairs.items():
        ours, theirs = (of_answers(counts, table.names, side, pairs) for side in (pairs.model, pairs.baseline))
        yield from preferences(judge, pairs.question, pairs.verdict, ours - theirs, questions=questions)
        doublings = np.log2(ours) - np.log2(theirs)
        group = pairs.model * (len(table.names.models) + 1) + pairs.baseline
        yield from _effects(judge, pairs.question, pairs.preference, doublings, group=group, questions=questions)
    for judge, rated in table.ratings.items():
        yield from _rating_slope(judge, rated, of_answers(counts, table.names, rated.model, rated), questions)


def people_style_bias(voters: Table, answers: DataFrame) -> Iterator[Figure]:
    """Yield people's preferences for length and for Markdown, with "human" as the judge; each voter is a judge."""
    counts = text_counts(answers, voters.names)
    several = list(voters.pairs.values())
    if several:
        question, verdict = (np.concatenate([getattr(p, name) for p in several]) for name in ("question", "verdict"))
        gaps = np.concatenate([_gaps(counts, voters.names, pairs) for pairs in several])
        yield from preferences(HUMAN, question, verdict, gaps, questions=len(voters.names.questions))


def preferences(judge: str, question: Ints, verdict: Array, gaps: Array, *, questions: int) -> Iterator[Figure]:
    """Yield the shares of verdicts for the longer answer and for that with more marks, a tie counting half.

    ``gaps`` (n, 2) are by how much the model's answer has more of either; equal ones do not count.
    """
    for (word, _), gap in zip(WORDS, gaps.T, strict=True):
        more = np.where(gap > 0, verdict, np.where(gap < 0, 1 - verdict, np.nan))
        yield from mean(judge, f"{word}_preferred", "", question=question, values=more, questions=questions)


def text_counts(answers: DataFrame, names: Names) -> tuple[Ints, Array]:
    """Return, for all answers that the table may ask for, their place (ascending) and length and marks + 1, (n, 2)."""
    models = {name: number for number, name in enumerate(names.models)}
    asked = {name: number for number, name in enumerate(names.questions)}
    rows = {}
    columns = (answers[name].tolist() for name in ("model", "question", "turn", "text"))
    for model, question, turn, text in zip(*columns, strict=True):
        if model in models and question in asked and turn <= names.turns:
            rows[models[model], asked[question], turn] = text
    parts = np.array(list(rows), dtype=np.int64).reshape(-1, 3)
    place = _answer_place(names, parts[:, 0], parts[:, 1], parts[:, 2])
    counts = style_counts(rows.values())
    order = np.argsort(place)
    return place[order], np.column_stack([counts[:, 0], counts[:, 1:].sum(axis=1)])[order] + 1.0


def of_answers(counts: tuple[Ints, Array], names: Names, model: Ints, rows: Comparisons | Ratings) -> Array:
    """Return the counts of ``model``'s answers to what the rows ask, (n, 2); NaN where an answer is not there."""
    places, values = counts
    wanted = _answer_place(names, model, rows.question, rows.turn)
    if not len(places):
        return np.full((len(wanted), 2), np.nan)
    at = np.minimum(np.searchsorted(places, wanted), len(places) - 1)
    found: Array = np.where((places[at] == wanted)[:, None], values[at], np.nan)
    return found


def _gaps(counts: tuple[Ints, Array], names: Names, pairs: Comparisons) -> Array:
    return of_answers(counts, names, pairs.model, pairs) - of_answers(counts, names, pairs.baseline, pairs)


def _answer_place(names: Names, model: Ints, question: Ints, turn: Ints) -> Ints:
    found: Ints = (model * len(names.questions) + question) * (names.turns + 1) + turn
    return found


def _effects(
    judge: str, question: Ints, preference: Array, doublings: Array, *, group: Ints, questions: int
) -> Iterator[Figure]:
    """Yield ``length_effect`` and ``markdown_effect``, each with the other held fixed."""
    used = np.isfinite(preference) & np.isfinite(doublings).all(axis=1)
    x = np.clip(doublings[used], -DOUBLINGS, DOUBLINGS)
    varies = np.array([len(np.unique(column)) > 1 for column in x.T], dtype=bool)
    if not varies.any() or len(np.unique(question[used])) < 2:
        return
    _, which = np.unique(group[used], return_inverse=True)
    slope, error = _logistic(
        x[:, varies], preference[used], which.astype(np.int64), question[used], questions=questions
    )
    of = dict(zip(np.flatnonzero(varies).tolist(), zip(slope, error, strict=True), strict=True))
    for feature, (b, spread) in of.items():
        low, value, high = (float(_sigmoid(np.asarray(b + reach * spread))) for reach in (-Z, 0.0, Z))
        sums = np.bincount(question[used], minlength=questions)[:, None].astype(np.float64)
        measure = f"{WORDS[feature][1]}_effect"
        yield Figure(judge, measure, "", int(used.sum()), sums, ratio, known=value, interval=(low, high))


def _logistic(x: Array, share: Array, group: Ints, question: Ints, *, questions: int) -> tuple[Array, Array]:
    """Return the slopes (k,) of a logistic regression with a constant for each group, and their standard errors.

    Newton's method; cluster-robust errors, questions being the clusters (Liang & Zeger 1986,
    doi:10.1093/biomet/73.1.13). The constants are eliminated, for there may be many.
    """
    groups = int(group.max()) + 1
    constant, slope = np.zeros(groups), np.zeros(x.shape[1])
    loss = _loss(x, share, group, constant, slope)
    for _ in range(STEPS):
        p = _sigmoid(constant[group] + x @ slope)
        short, weight = share - p, p * (1 - p)
        own = np.bincount(group, weight, minlength=groups) + PENALTY  # (G,)
        mixed = np.stack([np.bincount(group, weight * column, minlength=groups) for column in x.T], axis=1)  # (G, k)
        inner = x.T @ (weight[:, None] * x) + PENALTY * np.eye(x.shape[1]) - mixed.T @ (mixed / own[:, None])
        up = np.bincount(group, short, minlength=groups) - PENALTY * constant
        step = np.linalg.solve(inner, x.T @ short - PENALTY * slope - mixed.T @ (up / own))
        shift = (up - mixed @ step) / own
        size = 1.0
        while (tried := _loss(x, share, group, constant + size * shift, slope + size * step)) > loss * (1 + 1e-12):
            size /= 2
            if size < 1e-9:
                break
        constant, slope, loss = constant + size * shift, slope + size * step, tried
        if max(np.abs(step).max(), np.abs(shift).max()) < 1e-8:
            break
    # What each row pulls at the slopes, once the constants have followed.
    pull = short[:, None] * (x - (mixed / own[:, None])[group])  # (n, k)
    by_question = summed(question, *pull.T, questions=questions)
    clusters = np.count_nonzero(np.bincount(question, minlength=questions))
    half = np.linalg.solve(inner, by_question.T)
    error: Array = np.sqrt((half * half).sum(axis=1) * clusters / (clusters - 1))
    return slope, error


def _loss(x: Array, share: Array, group: Ints, constant: Array, slope: Array) -> float:
    odds = constant[group] + x @ slope
    fit = (np.logaddexp(0.0, odds) - share * odds).sum()
    return float(fit + PENALTY / 2 * (constant @ constant + slope @ slope))


def _sigmoid(odds: Array) -> Array:
    p: Array = 0.5 * (1.0 + np.tanh(odds / 2.0))
    return p


def _rating_slope(judge: str, rated: Ratings, counts: Array, questions: int) -> Iterator[Figure]:
    """Yield ``length_slope``: how many points more an answer twice as long gets, model and question held fixed.

    Ratings and doublings are taken less the mean of their model and of their question and turn (least squares with
    both as fixed effects); the slope is Σxy / Σx².
    """
    used = np.isfinite(rated.value) & np.isfinite(counts[:, 0])
    if not used.any() or len(np.unique(rated.model[used])) < 2:
        return
    question = rated.question[used]
    turn = question * (int(rated.turn.max()) + 1) + rated.turn[used]
    x, y = (_within(column, rated.model[used], turn) for column in (np.log2(counts[used, 0]), rated.value[used]))
    if float(x @ x) > 1e-9:
        sums = summed(question, x * y, x * x, questions=questions)
        yield Figure(judge, "length_slope", "", len(x), sums, ratio)


def _within(column: Array, model: Ints, turn: Ints, rounds: int = 100) -> Array:
    """Return the column less the means of its models and of its turns, by turns until nothing moves."""
    for _ in range(rounds):
        before = column
        for group in (model, turn):
            count = np.maximum(np.bincount(group), 1)
            column = column - (np.bincount(group, column) / count)[group]
        if np.abs(column - before).max() < 1e-10:
            break
    return column
