"""Named SELECTs about judges and money, as typed rows: what was paid, who served, how far judges can be trusted.

As in :mod:`results.queries`, every name in a row is the one that a model is shown under.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from results.store import Ledger


@dataclass(frozen=True, slots=True)
class CostRow:
    """What was asked of one model (``asked``), in one stage of a benchmark, for one evaluated model.

    ``requests`` counts the answers or judgments that came, ``failures`` the calls that brought nothing, ``replies``
    what it took. ``dollars`` sums up what has a known price (None: nothing has), ``unpriced`` counts what has none.
    A judgment that several requests share counts once.
    """

    asked: str
    asked_name: str
    asked_kind: str
    stage: str  # "answer" or "judge"
    benchmark: str
    model: str
    model_name: str
    requests: int
    failures: int
    replies: int
    prompt_tokens: int
    output_tokens: int
    thinking_tokens: int  # of output_tokens
    dollars: float | None
    unpriced: int


@dataclass(frozen=True, slots=True)
class ServedRow:
    """What an endpoint said that it was while it judged in one run; times are in UTC.

    ``changed`` tells that this judge was served by several models or systems within that run.
    """

    judge: str
    judge_name: str
    judge_kind: str
    served_model: str
    fingerprint: str
    run: str | None
    first: datetime
    last: datetime
    judgments: int
    changed: bool


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One measure of how far a judge can be trusted; names are '' where the record's identity is."""

    judge: str
    judge_name: str
    judge_kind: str
    benchmark: str
    version: str
    measure: str
    other: str
    other_name: str
    other_kind: str
    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class FlagRow:
    """An answer that looks like an attack on its judge; ``detail`` and ``text`` are hostile text.

    ``turn`` and ``text`` are None where the answer is not in the ledger.
    """

    answer: str
    detector: str
    model: str
    model_name: str
    kind: str
    benchmark: str
    version: str
    question: str
    turn: int | None
    detail: str
    text: str | None


@dataclass(frozen=True, slots=True)
class JudgeOrderRow:
    """How much the order of the answers moved a judge, over the pairs it judged in both orders.

    A pair is one turn of one question by one model against one baseline. ``first_preferred`` is the share of
    judgments that preferred the answer shown first, a tie counting half: 0.5 for a judge without position bias.
    ``consistent`` is the share of pairs where both orders agree on the winner (or on a tie).
    """

    judge_name: str
    benchmark: str
    version: str
    pairs: int
    first_preferred: float
    consistent: float


def costs(ledger: Ledger) -> list[CostRow]:
    """Return what was asked and paid, by benchmark, stage, who was asked, and evaluated model."""
    query = """
        SELECT asked, asked_name, asked_kind, stage, benchmark, model, model_name, requests, failures, replies,
               prompt_tokens, output_tokens, thinking_tokens, dollars, unpriced
        FROM costs
    """
    return [CostRow(*row) for row in _rows(ledger, query)]


def served_models(ledger: Ledger) -> list[ServedRow]:
    """Return, judge by judge and run by run, the served models and fingerprints that were told; the earliest first."""
    query = """
        SELECT judge, judge_name, judge_kind, served_model, fingerprint, run, epoch(first), epoch(last), judgments,
               changed
        FROM served_models
    """
    return [
        ServedRow(*(*row[:6], *(datetime.fromtimestamp(seconds, UTC) for seconds in row[6:8]), *row[8:]))
        for row in _rows(ledger, query)
    ]


def audits(ledger: Ledger) -> list[AuditRow]:
    """Return every measure of how far judges can be trusted, by benchmark and judge."""
    query = """
        SELECT judge, judge_name, judge_kind, benchmark, version, measure, other, other_name, other_kind, value, low,
               high, n
        FROM audits_wide
    """
    return [AuditRow(*row) for row in _rows(ledger, query)]


def answer_flags(ledger: Ledger, *, longest: int = 4_000) -> list[FlagRow]:
    """Return the answers that look like attacks, by benchmark, model and detector.

    Details and texts are cut at ``longest`` characters.
    """
    query = """
        SELECT answer, detector, model, model_name, kind, benchmark, version, question, turn, left(detail, $1),
               left(text, $1)
        FROM answer_flags_wide
    """
    return [FlagRow(*row) for row in _rows(ledger, query, longest)]


def judge_order(ledger: Ledger) -> list[JudgeOrderRow]:
    """Return, judge by judge and benchmark by benchmark, how much the order of the answers mattered.

    Controls, and judges asked again, do not count.
    """
    rows = _rows(
        ledger,
        """
        WITH pairs AS (
            SELECT judge, benchmark, version,
                   avg(value) FILTER (answer_order = 'model_first') AS model_first,
                   avg(value) FILTER (answer_order = 'baseline_first') AS baseline_first
            FROM verdicts
            WHERE answer_order IN ('model_first', 'baseline_first') AND value IS NOT NULL
              AND model NOT IN (SELECT id FROM models WHERE kind = 'control')
              AND judge NOT IN (SELECT id FROM models WHERE kind = 'retest')
            GROUP BY judge, benchmark, version, question, turn, model, baseline
            HAVING model_first IS NOT NULL AND baseline_first IS NOT NULL
        )
        SELECT coalesce(j.display, p.judge) AS judge_name, benchmark, version, count(*) AS pairs,
               avg((sign(model_first - 0.5) - sign(baseline_first - 0.5)) / 4 + 0.5) AS first_preferred,
               avg((sign(model_first - 0.5) = sign(baseline_first - 0.5))::INTEGER) AS consistent
        FROM pairs p LEFT JOIN model_names j ON j.id = p.judge
        GROUP BY p.judge, j.display, benchmark, version
        ORDER BY benchmark, version, judge_name, p.judge
        """,
    )
    return [JudgeOrderRow(*row) for row in rows]


def _rows(ledger: Ledger, query: str, *params: object) -> Iterable[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = ledger.sql(query, *params).fetchall()
    return rows
