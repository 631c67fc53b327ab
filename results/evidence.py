"""What scores rest on: the answers that count, the judgments still to be read, and the verdicts, as data frames."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from evals.records import JudgeRequest, Judgment, Sampling

if TYPE_CHECKING:
    from pandas import DataFrame

    from results.store import Ledger

_BATCH = 50_000  # judgments read at a time

# Of a model that a run has selected answers for, those count and no others; of any other the last whole conversation,
# all of whose turns were drawn alike.
_CURRENT = """
WITH asked AS (
    SELECT id, len(turns) AS turns FROM questions WHERE benchmark = $1 AND version = $2
), selected AS (
    SELECT model, unnest(answers) AS key FROM selections WHERE benchmark = $1 AND version = $2
), drawn AS (
    SELECT a.key, a.model, a.question, a.turn, asked.turns, CAST(a.sampling AS VARCHAR) AS sampling,
        coalesce(a.position, epoch_ns(a.recorded_at)) AS age
    FROM answers a
    JOIN asked ON asked.id = a.question
    WHERE a.benchmark = $1 AND a.version = $2 AND (
        a.model NOT IN (SELECT model FROM selections WHERE benchmark = $1 AND version = $2)
        OR a.key IN (SELECT key FROM selected)
    )
), latest AS (
    SELECT * FROM drawn
    QUALIFY row_number() OVER (PARTITION BY model, question, sampling, turn ORDER BY age DESC, key DESC) = 1
), whole AS (
    SELECT model, question, sampling, max(age) AS touched
    FROM latest
    GROUP BY model, question, sampling, turns
    HAVING count(*) = turns AND max(turn) = turns
), best AS (
    SELECT model, question, arg_max(sampling, touched) AS sampling FROM whole GROUP BY model, question
), current_answers AS (
    SELECT l.key, l.model, l.question, l.turn FROM latest l JOIN best USING (model, question, sampling)
)
"""


def current_answers(ledger: Ledger, *, benchmark: str, version: str) -> DataFrame:
    """Return the answers that count: key, model, question, turn, text; ordered by model, question and turn."""
    found: DataFrame = ledger.sql(
        f"{_CURRENT} SELECT c.key, c.model, c.question, c.turn, a.text "
        "FROM current_answers c JOIN answers a USING (key) ORDER BY c.model, c.question, c.turn",
        benchmark,
        version,
    ).df()
    return found


def current_keys(ledger: Ledger, *, benchmark: str, version: str) -> list[str]:
    """Return the keys of the answers that count."""
    query = f"{_CURRENT} SELECT key FROM current_answers ORDER BY model, question, turn"
    return [key for (key,) in ledger.sql(query, benchmark, version).fetchall()]


def judged(ledger: Ledger, *, benchmark: str, version: str, beside_too: bool) -> DataFrame:
    """Return what judges said, the oldest first: model, judge, baseline, question, turn, order, value, counts.

    ``value`` is NaN where the reply held no verdict; ``counts`` tells whether the model's answer that was shown, and
    with ``beside_too`` the baseline's, is current.
    """
    import numpy as np
    import pandas as pd

    texts = ["model", "judge", "baseline", "question", "answer_order"]
    said = "FROM verdicts WHERE benchmark = $1 AND version = $2 AND judge <> 'check'"
    known = (
        f"SELECT {', '.join(f'list_sort(list(DISTINCT {text}) FILTER ({text} IS NOT NULL))' for text in texts)} {said}"
    )
    [values] = ledger.sql(known, benchmark, version).fetchall()
    kinds = {
        text: f"ENUM({', '.join(_quoted(value) for value in found)})" if found else "VARCHAR"
        for text, found in zip(texts, values, strict=True)
    }
    replaced = _replaced(ledger, benchmark=benchmark, version=version, beside_too=beside_too)
    columns = ", ".join(f"CAST({text} AS {kind}) AS {text}" for text, kind in kinds.items())
    found: DataFrame = ledger.sql(
        f"""SELECT {columns}, turn, value, request NOT IN (SELECT unnest($3::VARCHAR[])) AS counts
        {said} ORDER BY position NULLS FIRST, recorded_at, request""",
        benchmark,
        version,
        replaced,
    ).df()
    # DuckDB hands the texts over as categories: a million strings would take longer to make than all else takes.
    for text in texts:
        if found[text].dtype == "category":
            names = np.array([*found[text].cat.categories, None], dtype=object)
            found[text] = pd.Series(names[found[text].cat.codes], index=found.index, dtype=object)
    return found.rename(columns={"answer_order": "order"})


def _quoted(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"


def _replaced(ledger: Ledger, *, benchmark: str, version: str, beside_too: bool) -> list[str]:
    """Return the keys of the judge requests about answers that newer ones have replaced."""
    old = ledger.sql(
        f"""{_CURRENT} SELECT key FROM answers
        WHERE benchmark = $1 AND version = $2 AND key NOT IN (SELECT key FROM current_answers)""",
        benchmark,
        version,
    ).fetchall()
    if not old:
        return []
    shown = "r.answers" if beside_too else "r.answers[1:1]"
    rows = ledger.sql(
        f"""WITH old AS (SELECT unnest($3::VARCHAR[]) AS key)
        SELECT DISTINCT r.key FROM judge_requests r, unnest({shown}) AS shown(answer)
        WHERE r.benchmark = $1 AND r.version = $2 AND shown.answer IN (SELECT key FROM old)""",
        benchmark,
        version,
        [key for (key,) in old],
    ).fetchall()
    return [key for (key,) in rows]


def unread(
    ledger: Ledger, *, benchmark: str, version: str, reader: int
) -> Iterator[list[tuple[JudgeRequest, Judgment]]]:
    """Yield, in batches, the judgments that these readers have not read, each with its request (without messages)."""
    query = """
        SELECT r.key, r.judgment, r.judge, r.question, r.turn, r.model, r.baseline, r.answer_order, r.answers, r.reply
        FROM judge_requests r
        JOIN judgments g ON g.key = r.judgment
        LEFT JOIN verdicts v ON v.request = r.key AND v.judge = r.judge
        WHERE r.benchmark = ? AND r.version = ? AND v.reader IS DISTINCT FROM ?
        ORDER BY coalesce(g.position, epoch_ns(g.recorded_at)), r.key
    """
    rows = ledger.sql(query, benchmark, version, reader).fetchall()
    for begun in range(0, len(rows), _BATCH):
        requests = [
            JudgeRequest(
                key=key, judgment=judgment, judge=judge, benchmark=benchmark, version=version, question=question,
                turn=turn, model=model, baseline=baseline, order=order, answers=tuple(answers), messages=(),
                sampling=Sampling(), reply=reply,
            )
            for key, judgment, judge, question, turn, model, baseline, order, answers, reply
            in rows[begun : begun + _BATCH]
        ]  # fmt: skip
        judgments = {g.key: g for g in ledger.judgments(keys={r.judgment for r in requests})}
        yield [(request, judgments[request.judgment]) for request in requests]


def samplings(ledger: Ledger, *, benchmark: str, version: str) -> list[dict[str, object]]:
    """Return the distinct samplings of a benchmark's answers."""
    query = "SELECT DISTINCT CAST(sampling AS VARCHAR) AS s FROM answers WHERE benchmark = ? AND version = ? ORDER BY s"
    return [json.loads(text) for (text,) in ledger.sql(query, benchmark, version).fetchall()]


def digests(ledger: Ledger, *, benchmark: str, version: str) -> dict[str, str]:
    """Return digests of a benchmark's judgments and verdicts: equal where, and only where, the same were there."""
    [(judgments, verdicts)] = ledger.sql(
        """SELECT
            (SELECT bit_xor(md5_number(judgment)) FROM (
                SELECT DISTINCT r.judgment FROM judge_requests r JOIN judgments g ON g.key = r.judgment
                WHERE r.benchmark = $1 AND r.version = $2)),
            (SELECT bit_xor(md5_number(concat_ws(' ', request, judge, coalesce(CAST(value AS VARCHAR), 'none'))))
                FROM verdicts WHERE benchmark = $1 AND version = $2)""",
        benchmark,
        version,
    ).fetchall()
    return {"judgments": f"{judgments or 0:032x}", "verdicts": f"{verdicts or 0:032x}"}


def answering_models(ledger: Ledger, *, benchmark: str, version: str) -> list[str]:
    """Return the identities of the models that have answers to a benchmark's questions."""
    query = "SELECT DISTINCT model FROM answers WHERE benchmark = ? AND version = ? ORDER BY model"
    return [model for (model,) in ledger.sql(query, benchmark, version).fetchall()]
