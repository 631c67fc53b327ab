"""A ledger of a million stored judgments, scored again: seconds as Markdown.

.venv/bin/python benchmarks/rescoring.py [--models 100] [--judges 10] [--repeat 3] [--data FOLDER]

The ledger holds Arena-Hard v0.1's shape: 500 questions, two games each, by every judge about every model, with answers
and replies of a real one's length. Scoring reads it, scores every metric with its interval and stores all that again;
"reading" is what an import or a run does once: what each judgment says.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb

sys.path.insert(0, str(Path(__file__).parents[1]))

from evals.benchmark import published_model
from evals.records import Question
from fuseval.scoring import read_judgments, score
from results.store import Ledger

PLACE = {"benchmark": "arena_hard", "version": "v0.1"}
QUESTIONS = 500
FILL = f"""
CREATE TEMP TABLE who AS SELECT i, md5('model' || i) AS model FROM range($models) t(i);
CREATE TEMP TABLE asked AS SELECT q, 'q' || q AS question FROM range({QUESTIONS}) t(q);
CREATE TEMP TABLE games AS
    SELECT md5('judge' || j) AS judge, model, question, answer_order, i, q,
        md5(concat_ws(' ', 'game', j, i, q, answer_order)) AS judgment
    FROM range($judges) t(j), who, asked, (VALUES ('baseline_first'), ('model_first')) o(answer_order);
INSERT INTO models BY NAME SELECT model AS id, 'model-' || i AS name, 'published' AS kind, '' AS source, '' AS recipe
    FROM who;
INSERT INTO answers BY NAME
    SELECT md5(concat_ws(' ', model, question)) AS key, model, 'arena_hard' AS benchmark, 'v0.1' AS version, question,
        1 AS turn, repeat('Some **words** of an answer. ', 20 + CAST(hash(model, question) % 80 AS INTEGER)) AS text,
        'stop' AS finish_reason, 0 AS prompt_tokens, 0 AS output_tokens, 0 AS seconds, 0 AS seed,
        CAST('{{}}' AS JSON) AS sampling, row_number() OVER () AS position
    FROM (FROM who UNION ALL SELECT -1, '$baseline'), asked;
INSERT INTO judge_requests BY NAME
    SELECT md5('request' || judgment) AS key, judgment, judge, 'arena_hard' AS benchmark, 'v0.1' AS version, question,
        1 AS turn, model, '$baseline' AS baseline, answer_order,
        [md5(concat_ws(' ', model, question)), md5(concat_ws(' ', '$baseline', question))] AS answers,
        CAST('[]' AS JSON) AS messages, CAST('{{}}' AS JSON) AS sampling, 'five_verdicts' AS reply
    FROM games;
INSERT INTO judgments BY NAME
    SELECT judgment AS key, judge, repeat('Assistant A says one thing and assistant B another. ', 20) ||
        ['[[A>>B]]', '[[A>B]]', '[[A=B]]', '[[B>A]]', '[[B>>A]]'][1 + CAST(hash(judgment) % 5 AS INTEGER)] AS text,
        'stop' AS finish_reason, [] AS top_logprobs, 0 AS prompt_tokens, 0 AS output_tokens, 0 AS seconds,
        '' AS served_model, row_number() OVER () AS position
    FROM games;
"""


def main() -> None:
    """Build the ledger, read it once, score it several times, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--judges", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--data", type=Path, help="where the ledger (about a gigabyte) is made; default: a new folder")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.data) as folder:
        path = Path(folder) / "ledger.duckdb"
        build(path, models=chosen.models, judges=chosen.judges)
        with Ledger.open(path) as ledger:
            print("\n".join(table(ledger, repeat=chosen.repeat)))


def build(path: Path, *, models: int, judges: int) -> None:
    """Make the ledger."""
    with Ledger.open(path) as ledger:
        ledger.add(
            *(Question("arena_hard", "v0.1", f"q{n}", "arena-hard-v0.1", (f"Question {n}?",)) for n in range(500))
        )
        ledger.add(published_model("gpt-4-0314"))
    filled = FILL.replace("$models", str(models)).replace("$judges", str(judges))
    with duckdb.connect(str(path)) as plain:
        plain.execute(filled.replace("$baseline", published_model("gpt-4-0314").id))


def table(ledger: Ledger, *, repeat: int) -> Iterator[str]:
    """Yield the Markdown lines."""

    def read() -> None:
        read_judgments(ledger, **PLACE)

    [(judgments,)] = ledger.sql("SELECT count(*) FROM judgments").fetchall()
    yield f"{judgments:,} judgments\n\n| what | wall s | CPU s |\n|---|---|---|"
    yield row("reading, once", [timed(read)])
    yield row("scoring", [timed(lambda: score(ledger, asset=nowhere)) for _ in range(repeat)])
    [(scores, items)] = ledger.sql(
        "SELECT (SELECT count(*) FROM scores), (SELECT count(*) FROM item_scores)"
    ).fetchall()
    yield f"\n{scores:,} scores of {items:,} items"


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Return wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def row(what: str, several: list[tuple[float, float]]) -> str:
    """Return a line with the medians."""
    wall, cpu = (statistics.median(values) for values in zip(*several, strict=True))
    return f"| {what} | {wall:.1f} | {cpu:.1f} |"


def nowhere(name: str) -> Path:
    """Find no upstream file: scoring this needs none."""
    raise FileNotFoundError(name)


if __name__ == "__main__":
    main()
