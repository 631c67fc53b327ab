"""Named SELECTs over an open ledger, as typed rows: what reports and the command line show.

Every name in a row is the one that :func:`display_names` gives, so that rows of two models never share one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from evals.records import LOWER_IS_BETTER, PROMPTS

if TYPE_CHECKING:
    from results.store import Ledger


PUBLISHED = "published"
"""The kind of a model that is known by its published answers, judgments or scores."""


@dataclass(frozen=True, slots=True)
class LeaderboardRow:
    """A score with its 95 % interval; ``judge`` and ``judge_name`` are "check" where no judge was asked.

    ``unflagged`` is the same without the answers that look like attacks on the judge, over ``unflagged_n`` questions;
    None where no answer is flagged.
    """

    model: str
    name: str
    kind: str
    benchmark: str
    version: str
    judge: str
    judge_name: str
    baseline_name: str | None
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    missing: int
    flags: tuple[str, ...]
    unflagged: float | None = None
    unflagged_low: float | None = None
    unflagged_high: float | None = None
    unflagged_n: int | None = None

    @property
    def lower_is_better(self) -> bool:
        """Tell whether less of the metric is better."""
        return LOWER_IS_BETTER in self.flags

    @property
    def rank(self) -> tuple[bool, float]:
        """What rows of one metric are sorted by: the best first, those without a value last."""
        value = self.value or 0.0
        return self.value is None, value if self.lower_is_better else -value


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """``name`` minus ``other_name`` in one metric, over the questions that both have.

    Below 0 is better where ``lower_is_better``.
    """

    name: str
    other_name: str
    benchmark: str
    version: str
    judge_name: str
    baseline_name: str | None
    metric: str
    value: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    missing: int
    p_holm: float | None = None  # p, corrected for all differences computed with it
    detectable: float | None = None  # the smallest true difference found with a power of 80 %
    lower_is_better: bool = False


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """An answer beside what was asked; ``temperature`` is the sampling's, ``seed`` that of this very reply."""

    key: str
    model_name: str
    benchmark: str
    version: str
    question: str
    category: str
    turn: int
    prompt: str
    reference: str | None
    check: str | None
    text: str
    finish_reason: str
    prompt_tokens: int
    output_tokens: int
    seconds: float
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class JudgmentRow:
    """What a judge replied to one request, and the value read from it (None: no verdict)."""

    judge_name: str
    benchmark: str
    version: str
    question: str
    category: str
    turn: int
    model_name: str
    baseline_name: str | None
    order: str
    value: float | None
    reply: str
    top_logprobs: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class CheckRow:
    """What a rule without a judge said of one answer: 1, 0, or None where it could not tell."""

    model_name: str
    benchmark: str
    version: str
    question: str
    turn: int
    value: float | None


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One logged step of the training run that made a model; ``loss`` in nats a token."""

    model_name: str
    step: int
    loss: float
    learning_rate: float
    tokens: int


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run of a command; ``ended`` and ``outcome`` are None while it runs and after it was killed."""

    id: str
    command: str
    experiment: str
    versions: Mapping[str, str]
    started: datetime
    ended: datetime | None
    outcome: str | None


@dataclass(frozen=True, slots=True)
class FailureRow:
    """A call that brought nothing and has not succeeded since; ``key`` is that of the missing answer or judgment."""

    key: str
    stage: str
    model_name: str
    benchmark: str
    question: str
    kind: str
    message: str
    attempts: int


def display_names(ledger: Ledger) -> dict[str, str]:
    """Return, by identity, the name each model is shown under.

    It is the model's own name, or ``sce·8e5e`` (with the first digits of its identity) where models share a name.
    """
    return dict(_rows(ledger, "SELECT id, display FROM model_names ORDER BY display, id"))


def leaderboard(
    ledger: Ledger,
    *,
    benchmark: str | None = None,
    model: str | None = None,
    models: Collection[str] | None = None,
) -> list[LeaderboardRow]:
    """Return every candidate's scores, the best of each metric first; panels, controls and retests are no candidates.

    ``model`` is an identity, a name (of several models, perhaps) or the name one is shown under; ``models`` are the
    identities to keep.
    """
    rows = _rows(
        ledger,
        """
        SELECT model, name, kind, benchmark, version, judge, judge_name, baseline_name, metric,
               value, low, high, n, missing, flags, unflagged, unflagged_low, unflagged_high, unflagged_n
        FROM leaderboard
        WHERE ($1 IS NULL OR $1 IN (benchmark, benchmark || '@' || version))
          AND ($2 IS NULL OR model = $2 OR model IN (SELECT id FROM model_names WHERE $2 IN (name, display)))
          AND ($3::VARCHAR[] IS NULL OR list_contains($3::VARCHAR[], model))
        ORDER BY benchmark, version, judge_name, baseline_name, metric,
                 CASE WHEN list_contains(flags, $4) THEN -value ELSE value END DESC NULLS LAST, name, model
        """,
        benchmark,
        model,
        None if models is None else list(models),
        LOWER_IS_BETTER,
    )
    return [LeaderboardRow(*(*row[:14], tuple(row[14]), *row[15:])) for row in rows]


def differences(
    ledger: Ledger,
    *,
    benchmark: str | None = None,
    model: str | None = None,
    models: Collection[str] | None = None,
) -> list[DifferenceRow]:
    """Return every paired difference between two candidates, by benchmark and metric.

    ``model`` is either of the two, named as in :func:`leaderboard`; of ``models``, both must be among them.
    """
    rows = _rows(
        ledger,
        """
        WITH falling AS (
            SELECT DISTINCT benchmark, version, metric, true AS lower FROM scores WHERE list_contains(flags, $4)
        )
        SELECT coalesce(m.display, d.model) AS model_name, coalesce(o.display, d.other) AS other_name,
               benchmark, version, coalesce(j.display, d.judge) AS judge_name,
               coalesce(b.display, nullif(d.baseline, '')) AS baseline_name, metric, value, low, high, p, n, missing,
               p_holm, detectable, coalesce(lower, false)
        FROM differences d
        LEFT JOIN falling USING (benchmark, version, metric)
        LEFT JOIN model_names m ON m.id = d.model
        LEFT JOIN model_names o ON o.id = d.other
        LEFT JOIN model_names j ON j.id = d.judge
        LEFT JOIN model_names b ON b.id = d.baseline
        WHERE NOT ends_with(metric, ':unflagged')
          AND coalesce(m.kind, '') NOT IN ('panel', 'control', 'retest')
          AND coalesce(o.kind, '') NOT IN ('panel', 'control', 'retest')
          AND ($1 IS NULL OR $1 IN (benchmark, benchmark || '@' || version))
          AND ($2 IS NULL OR $2 IN (d.model, m.name, m.display, d.other, o.name, o.display))
          AND ($3::VARCHAR[] IS NULL OR list_has_all($3::VARCHAR[], [d.model, d.other]))
        ORDER BY benchmark, version, judge_name, baseline_name, metric, other_name,
                 CASE WHEN lower THEN -value ELSE value END DESC NULLS LAST, model_name, d.model, d.other
        """,
        benchmark,
        model,
        None if models is None else list(models),
        LOWER_IS_BETTER,
    )
    return [DifferenceRow(*row) for row in rows]


def answers_wide(ledger: Ledger) -> list[AnswerRow]:
    """Return every answer to a benchmark with its prompt, in the benchmarks' own order of questions."""
    rows = _rows(
        ledger,
        """
        SELECT key, model_name, benchmark, version, question, category, turn, prompt, reference, check_rule, text,
               finish_reason, prompt_tokens, output_tokens, seconds, temperature, seed
        FROM answers_wide
        WHERE benchmark <> $1
        """,
        PROMPTS,
    )
    return [AnswerRow(*row) for row in rows]


def judgments_wide(ledger: Ledger) -> list[JudgmentRow]:
    """Return every judge request that was answered, in the benchmarks' own order of questions."""
    rows = _rows(
        ledger,
        """
        SELECT judge_name, benchmark, version, question, category, turn, model_name, baseline_name, answer_order,
               value, reply, top_logprobs
        FROM judgments_wide
        WHERE benchmark <> $1
        """,
        PROMPTS,
    )
    return [JudgmentRow(*(*row[:-1], tuple((pair["token"], pair["logprob"]) for pair in row[-1]))) for row in rows]


def checks(ledger: Ledger) -> list[CheckRow]:
    """Return what the rules without a judge said, answer by answer."""
    rows = _rows(
        ledger,
        """
        SELECT coalesce(m.display, v.model) AS model_name, v.benchmark, v.version, v.question, v.turn, v.value
        FROM verdicts v
        LEFT JOIN model_names m ON m.id = v.model
        LEFT JOIN questions q ON q.benchmark = v.benchmark AND q.version = v.version AND q.id = v.question
        WHERE v.judge = 'check'
        ORDER BY v.benchmark, v.version, q.position, v.question, v.turn, model_name, v.model, v.request
        """,
    )
    return [CheckRow(*row) for row in rows]


def training(ledger: Ledger) -> list[TrainingRow]:
    """Return the logged steps of every training run, model by model."""
    rows = _rows(
        ledger,
        """
        SELECT coalesce(m.display, t.model) AS model_name, step, loss, learning_rate, tokens
        FROM training t LEFT JOIN model_names m ON m.id = t.model
        ORDER BY model_name, t.model, step
        """,
    )
    return [TrainingRow(*row) for row in rows]


def runs(ledger: Ledger) -> list[RunRow]:
    """Return every run, oldest first; times are in UTC."""
    rows = _rows(
        ledger,
        """
        SELECT id, command, experiment, versions, epoch(started), epoch(ended), outcome FROM runs ORDER BY started, id
        """,
    )
    return [
        RunRow(key, command, experiment, json.loads(versions), _utc(started), ended and _utc(ended), outcome)
        for key, command, experiment, versions, started, ended, outcome in rows
    ]


def failures(ledger: Ledger) -> list[FailureRow]:
    """Return every call that brought nothing and has not succeeded since."""
    rows = _rows(
        ledger,
        """
        SELECT f.key, f.stage, coalesce(m.display, f.model) AS model_name, f.benchmark, f.question, f.kind, f.message,
               f.attempts
        FROM failures f LEFT JOIN model_names m ON m.id = f.model
        ORDER BY f.stage, f.benchmark, model_name, f.question, f.key
        """,
    )
    return [FailureRow(*row) for row in rows]


def _rows(ledger: Ledger, query: str, *params: object) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = ledger.sql(query, *params).fetchall()
    return rows


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
