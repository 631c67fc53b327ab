"""What scores rest on: the answers that count, the judgments still to be read, and the verdicts, as data frames."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from evals.records import JudgeRequest, Judgment, Sampling
from results.interchange.export import NOT_THERE

if TYPE_CHECKING:
    from pandas import DataFrame

    from results.store import Ledger

ENOUGH = 20  # stored replies whose mean length is worth saying
_BATCH = 50_000  # judgments read at a time

# Of the questions that the last run wanted of a model, the answers that it selected count and no others; of all other
# questions and models the last whole conversation, all of whose turns were drawn alike.
_CURRENT = """
WITH asked AS (
    SELECT id, len(turns) AS turns FROM questions WHERE benchmark = $1 AND version = $2
), wanted AS (
    SELECT model, unnest(questions) AS question FROM selections WHERE benchmark = $1 AND version = $2
), selected AS (
    SELECT unnest(answers) AS key FROM selections WHERE benchmark = $1 AND version = $2
), drawn AS (
    SELECT a.key, a.model, a.question, a.turn, asked.turns, CAST(a.sampling AS VARCHAR) AS sampling,
        coalesce(a.position, epoch_ns(a.recorded_at)) AS age
    FROM answers a
    JOIN asked ON asked.id = a.question
    LEFT JOIN wanted ON wanted.model = a.model AND wanted.question = a.question
    WHERE a.benchmark = $1 AND a.version = $2 AND a.turn BETWEEN 1 AND asked.turns
        AND (wanted.model IS NULL OR a.key IN (SELECT key FROM selected))
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
    import pandas as pd

    found = ledger.sql(
        f"{_CURRENT} SELECT c.key, c.model, c.question, c.turn, a.text "
        "FROM current_answers c JOIN answers a USING (key) ORDER BY c.model, c.question, c.turn",
        benchmark,
        version,
    ).fetchnumpy()
    # Texts stay Python's: pandas would copy them into its own kind, only for them to be taken out again.
    return pd.DataFrame({name: pd.Series(column, dtype=column.dtype) for name, column in found.items()})


def current_keys(ledger: Ledger, *, benchmark: str, version: str, models: Collection[str] | None = None) -> list[str]:
    """Return the keys of the answers that count, of all models or of these."""
    which, whose = ("", []) if models is None else ("WHERE model IN (SELECT unnest($3::VARCHAR[]))", [list(models)])
    query = f"{_CURRENT} SELECT key FROM current_answers {which} ORDER BY model, question, turn"
    return [key for (key,) in ledger.sql(query, benchmark, version, *whose).fetchall()]


def mean_characters(ledger: Ledger, *, benchmark: str, version: str) -> dict[str, float]:
    """Return, by model, the mean length in characters of its answers that count, a turn an answer."""
    query = f"""{_CURRENT} SELECT c.model, avg(length(a.text)) FROM current_answers c JOIN answers a USING (key)
        WHERE NOT starts_with(a.text, '{NOT_THERE}') GROUP BY c.model"""
    return dict(ledger.sql(query, benchmark, version).fetchall())


def measured(ledger: Ledger, *, benchmark: str, version: str) -> DataFrame:
    """Return what tasks' own metrics found of the answers that count: model, question, metric, value, weight."""
    found: DataFrame = ledger.sql(
        f"{_CURRENT} SELECT m.model, m.question, m.metric, m.value, m.weight FROM measures m "
        "JOIN current_answers c ON c.key = m.answer ORDER BY m.model, m.metric, m.question",
        benchmark,
        version,
    ).df()
    return found


def answered(ledger: Ledger, *, benchmark: str, version: str) -> tuple[dict[str, int], str]:
    """Return how many of each model's answers count, and a digest of which these are."""
    query = "SELECT model, count(*), bit_xor(md5_number(key)) FROM current_answers GROUP BY model ORDER BY model"
    rows = ledger.sql(f"{_CURRENT} {query}", benchmark, version).fetchall()
    return {model: count for model, count, _ in rows}, hashlib.sha256(repr(rows).encode()).hexdigest()[:32]


def judged(ledger: Ledger, *, benchmark: str, version: str, beside_too: bool) -> DataFrame:
    """Return what judges said, the oldest first: model, judge, baseline, question, turn, order, value, counts.

    The texts are categories: a million strings would take longer to make than all else takes. ``baseline`` is missing
    where the answer stood alone, ``value`` NaN where the reply held no verdict; ``counts`` tells whether the model's
    answer that was shown, and with ``beside_too`` the baseline's, is current.
    """
    texts = ["model", "judge", "baseline", "question", "answer_order"]
    said = "FROM verdicts WHERE benchmark = $1 AND version = $2 AND judge <> 'check'"
    known = ", ".join(f"list_sort(list(DISTINCT {text}) FILTER ({text} IS NOT NULL))" for text in texts)
    [(*values, placed)] = ledger.sql(
        f"SELECT {known}, count(*) = count(position) {said}", benchmark, version
    ).fetchall()
    kinds = {
        text: f"ENUM({', '.join(_quoted(value) for value in found)})" if found else "VARCHAR"
        for text, found in zip(texts, values, strict=True)
    }
    replaced = _replaced(ledger, benchmark=benchmark, version=version, beside_too=beside_too)
    columns = ", ".join(f"CAST({text} AS {kind}) AS {text}" for text, kind in kinds.items())
    found: DataFrame = ledger.sql(
        f"""SELECT {columns}, turn, value, request NOT IN (SELECT unnest($3::VARCHAR[])) AS counts
        {said} ORDER BY position NULLS FIRST{"" if placed else ", recorded_at, request"}""",
        benchmark,
        version,
        replaced,
    ).df()
    return found.rename(columns={"answer_order": "order"})


def _quoted(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"


def _replaced(ledger: Ledger, *, benchmark: str, version: str, beside_too: bool) -> list[str]:
    """Return the keys of the judge requests about answers that newer ones have replaced.

    Of a model that was run, those about answers that do not count; of any other (imported) one, those about another
    answer than the one that the same judge judged last, for two judges may have seen it at different times.
    """
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
        f"""WITH old AS (SELECT unnest($3::VARCHAR[]) AS key), ran AS (
            SELECT model FROM selections WHERE benchmark = $1 AND version = $2 AND len(judges) > 0
        ), about AS (
            SELECT r.key, r.model, r.judge, coalesce(r.baseline, '') AS baseline, r.question, r.turn, r.answers,
                coalesce(g.position, epoch_ns(g.recorded_at)) AS age
            FROM judge_requests r
            JOIN judgments g ON g.key = r.judgment
            WHERE r.benchmark = $1 AND r.version = $2
        ), latest AS (
            SELECT model, judge, baseline, question, turn, arg_max(answers[1], age) AS answer
            FROM about
            WHERE model NOT IN (SELECT model FROM ran)
            GROUP BY ALL
        )
        SELECT a.key FROM about a JOIN latest USING (model, judge, baseline, question, turn)
        WHERE a.answers[1] <> latest.answer
        UNION
        SELECT r.key FROM about r, unnest({shown}) AS shown(answer)
        WHERE r.model IN (SELECT model FROM ran) AND shown.answer IN (SELECT key FROM old)""",
        benchmark,
        version,
        [key for (key,) in old],
    ).fetchall()
    return [key for (key,) in rows]


def unread(
    ledger: Ledger, *, benchmark: str, version: str, reader: int
) -> Iterator[list[tuple[JudgeRequest, Judgment]]]:
    """Yield, in batches, the judgments that these readers have not read, each with its request (without messages)."""
    requests, verdicts = (
        ledger.sql(f"SELECT count(*), bit_xor(hash({key}, judge)) FROM {rows}", benchmark, version, *readers).fetchall()
        for key, rows, readers in (
            ("key", "judge_requests WHERE benchmark = ? AND version = ?", ()),
            ("request", "verdicts WHERE benchmark = ? AND version = ? AND judge <> 'check' AND reader = ?", (reader,)),
        )
    )
    if requests == verdicts:  # every request has its verdict: known at once, where the join below takes its time
        return
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
    """Return digests of a benchmark's judgments and verdicts: equal where, and only where, the same were there.

    Judgments are told apart by the requests that they answer. All of them have been read, so that verdicts say which.
    """
    alike = ledger.sql(
        """SELECT judge, value, bit_xor(md5_number(request)) FROM verdicts
        WHERE benchmark = ? AND version = ? GROUP BY ALL ORDER BY ALL""",
        benchmark,
        version,
    ).fetchall()
    judged = functools.reduce(operator.xor, (requests for judge, _, requests in alike if judge != "check"), 0)
    return {"judgments": f"{judged:032x}", "verdicts": hashlib.sha256(repr(alike).encode()).hexdigest()[:32]}


def answering_models(ledger: Ledger, *, benchmark: str, version: str) -> list[str]:
    """Return the identities of the models that have answers to a benchmark's questions."""
    query = "SELECT DISTINCT model FROM answers WHERE benchmark = ? AND version = ? ORDER BY model"
    return [model for (model,) in ledger.sql(query, benchmark, version).fetchall()]


def audited(ledger: Ledger, *, benchmark: str, version: str) -> tuple[str | None, str | None]:
    """Return on what the stored audit rests, and on which votes, as scores' provenance says it; None: on nothing."""
    query = """
        SELECT max(provenance ->> 'audited'), max(provenance ->> 'people') FROM scores
        WHERE benchmark = ? AND version = ?
    """
    [(basis, votes)] = ledger.sql(query, benchmark, version).fetchall()
    return basis, votes


def usual_judgment(ledger: Ledger, *, judge: str, benchmark: str) -> tuple[int, float, float] | None:
    """Return how a judge's replies about a benchmark were: how many, their mean output tokens and seconds.

    None where there are fewer than ENOUGH.
    """
    query = """
        SELECT count(*), avg(output_tokens), avg(nullif(seconds, 0)) FROM judgments
        WHERE key IN (SELECT judgment FROM judge_requests WHERE judge = ? AND benchmark = ?)
    """
    return _usual(ledger, query, judge, benchmark)


def usual_answer(ledger: Ledger, *, model: str, benchmark: str) -> tuple[int, float, float] | None:
    """Return how a model's answers to a benchmark were, as :func:`usual_judgment` does."""
    query = (
        "SELECT count(*), avg(output_tokens), avg(nullif(seconds, 0)) FROM answers WHERE model = ? AND benchmark = ?"
    )
    return _usual(ledger, query, model, benchmark)


def _usual(ledger: Ledger, query: str, *params: str) -> tuple[int, float, float] | None:
    [(count, tokens, seconds)] = ledger.sql(query, *params).fetchall()
    return (count, tokens, seconds or 0.0) if count >= ENOUGH else None  # of a batch no seconds are known


def spent(ledger: Ledger) -> float:
    """Return the US dollars that everything in the ledger cost, as far as prices were known."""
    query = """
        SELECT coalesce(fsum(cost), 0) FROM (
            SELECT cost FROM answers UNION ALL SELECT cost FROM judgments UNION ALL SELECT cost FROM failures
        )
    """
    [(dollars,)] = ledger.sql(query).fetchall()
    return float(dollars)


def unreadable(ledger: Ledger, *, benchmark: str, version: str, judge: str, asked_below: int) -> list[str]:
    """Return the keys of a judge's judgments that hold no verdict and took fewer than so many replies."""
    query = """
        SELECT DISTINCT g.key FROM judgments g
        JOIN judge_requests r ON r.judgment = g.key
        JOIN verdicts v ON v.request = r.key AND v.judge = r.judge
        WHERE r.benchmark = ? AND r.version = ? AND r.judge = ? AND v.value IS NULL AND coalesce(g.asked, 1) < ?
    """
    return [key for (key,) in ledger.sql(query, benchmark, version, judge, asked_below).fetchall()]
