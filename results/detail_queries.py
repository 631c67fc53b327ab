"""Named SELECTs of what scores rest on, as typed rows: question by question, and how everything was asked.

As in :mod:`results.queries`, names are those shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from results.store import Ledger


@dataclass(frozen=True, slots=True)
class ItemRow:
    """What one question adds to a model's score in ``metric``; None: missing."""

    model_name: str
    benchmark: str
    version: str
    judge_name: str
    baseline_name: str | None
    metric: str
    question: str
    value: float | None


@dataclass(frozen=True, slots=True)
class ProvenanceRow:
    """What all scores of a benchmark rest on: JSON as it was stored, and when they were computed last."""

    benchmark: str
    version: str
    provenance: Mapping[str, Any]
    scored_at: datetime


@dataclass(frozen=True, slots=True)
class RequestRow:
    """One request as it was sent to a judge: the first of its kind on a benchmark. Its messages are hostile text."""

    judge_name: str
    benchmark: str
    version: str
    order: str
    question: str
    reply: str  # the reader's name
    messages: tuple[tuple[str, str], ...]  # (role, content)
    sampling: Mapping[str, Any]


# A metric of all questions and nothing taken away: what a question itself was given.
_PLAIN = """NOT contains(metric, ':') AND NOT starts_with(metric, 'turn_') AND NOT starts_with(metric, 'lc_')
    AND NOT starts_with(metric, 'discrete_')"""


def plain_items(ledger: Ledger) -> list[ItemRow]:
    """Return what every question was given in the plain metrics: ratings, preferences in per cent, checks.

    Parts of benchmarks, single turns and corrected scores are left out, and so are panels' and controls' own.
    """
    query = f"""
        SELECT coalesce(m.display, i.model) AS model_name, i.benchmark, i.version, coalesce(j.display, i.judge),
               coalesce(b.display, i.baseline), i.metric, i.question, i.value
        FROM item_scores i
        LEFT JOIN model_names m ON m.id = i.model
        LEFT JOIN model_names j ON j.id = i.judge
        LEFT JOIN model_names b ON b.id = i.baseline
        LEFT JOIN questions q ON q.benchmark = i.benchmark AND q.version = i.version AND q.id = i.question
        WHERE {_PLAIN} AND coalesce(m.kind, '') NOT IN ('panel', 'control', 'retest')
        ORDER BY ALL
    """
    return [ItemRow(*row) for row in ledger.sql(query).fetchall()]


def provenances(ledger: Ledger) -> list[ProvenanceRow]:
    """Return what each benchmark's scores rest on."""
    query = """
        SELECT benchmark, version, any_value(provenance), epoch(max(scored_at)) FROM scores
        GROUP BY benchmark, version ORDER BY benchmark, version
    """
    rows = ledger.sql(query).fetchall()
    return [ProvenanceRow(b, v, json.loads(said), datetime.fromtimestamp(at, UTC)) for b, v, said, at in rows]


def first_requests(ledger: Ledger) -> list[RequestRow]:
    """Return the first request of every judge on every benchmark in every order and form of reply."""
    query = """
        SELECT coalesce(j.display, r.judge) AS judge_name, r.benchmark, r.version, r.answer_order, r.question, r.reply,
               r.messages, r.sampling
        FROM judge_requests r
        LEFT JOIN model_names j ON j.id = r.judge
        LEFT JOIN questions q ON q.benchmark = r.benchmark AND q.version = r.version AND q.id = r.question
        WHERE json_array_length(r.messages) > 0 AND coalesce(j.kind, '') <> 'retest'
        QUALIFY row_number() OVER (
            PARTITION BY r.judge, r.benchmark, r.version, r.answer_order, r.reply, r.turn > 1
            ORDER BY q.position, r.question, r.turn, r.key
        ) = 1
        ORDER BY r.benchmark, r.version, judge_name, r.answer_order, r.question, r.key
    """
    found = []
    for judge, benchmark, version, order, question, reply, messages, sampling in ledger.sql(query).fetchall():
        said = tuple((each["role"], each["content"]) for each in json.loads(messages))
        found.append(RequestRow(judge, benchmark, version, order, question, reply, said, json.loads(sampling)))
    return found
