"""How far each model is: what of a benchmark it has answered, and what of that was judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evals.records import PROMPTS

if TYPE_CHECKING:
    from results.store import Ledger


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """What is stored of one model on one benchmark.

    ``answers`` counts the turns answered at least once, ``turns`` those of all questions that the ledger holds of the
    benchmark (a run may want fewer), ``judgments`` the replies of judges about them, ``failures`` the calls that
    brought nothing yet.
    """

    name: str
    benchmark: str
    version: str
    answers: int
    turns: int
    judgments: int
    failures: int


def progress(ledger: Ledger) -> list[ProgressRow]:
    """Return a row for every model and benchmark that it has answered anything of."""
    query = """
        WITH answered AS (
            SELECT model, benchmark, version, count(DISTINCT (question, turn)) AS answers
            FROM answers WHERE benchmark <> $1 GROUP BY ALL
        ), asked AS (
            SELECT benchmark, version, CAST(sum(len(turns)) AS BIGINT) AS turns FROM questions GROUP BY ALL
        ), judged AS (
            SELECT r.model, r.benchmark, r.version, count(DISTINCT r.judgment) AS judgments
            FROM judge_requests r JOIN judgments g ON g.key = r.judgment GROUP BY ALL
        ), failed AS (
            SELECT model, benchmark, count(*) AS failures FROM failures WHERE stage = 'answer' GROUP BY ALL
        )
        SELECT coalesce(m.display, a.model), a.benchmark, a.version, a.answers, coalesce(q.turns, 0),
               coalesce(j.judgments, 0), coalesce(f.failures, 0)
        FROM answered a
        LEFT JOIN asked q ON q.benchmark = a.benchmark AND q.version = a.version
        LEFT JOIN judged j ON j.model = a.model AND j.benchmark = a.benchmark AND j.version = a.version
        LEFT JOIN failed f ON f.model = a.model AND f.benchmark = a.benchmark
        LEFT JOIN model_names m ON m.id = a.model
        WHERE coalesce(m.kind, '') <> 'control'
        ORDER BY a.benchmark, a.version, m.display, a.model
    """
    return [ProgressRow(*row) for row in ledger.sql(query, PROMPTS).fetchall()]
