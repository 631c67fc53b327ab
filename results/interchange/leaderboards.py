"""Other projects' leaderboards: their rows out of the ledger, and published ones as rows beside it.

AlpacaEval (tatsu-lab/alpaca_eval@cd543a1, ``leaderboards/data_AlpacaEval_2``) publishes no intervals but standard
errors, and the mean number of characters of the outputs. Arena-Hard v0.1 (lmarena/arena-hard-auto@196f6b8,
``leaderboard/``) publishes intervals over games, rounded to two decimals. Its ``avg_tokens`` counts OpenAI's tokens;
here it is what each model's own tokenizer counted, and empty where nobody did.
"""

from __future__ import annotations

import csv
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.records import Score
from results.errors import LedgerError
from results.queries import LeaderboardRow, display_names

if TYPE_CHECKING:
    from results.store import Ledger

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """A project's leaderboard: its columns and, of the published one, the asset, its judge and its baseline."""

    benchmark: str
    version: str
    columns: tuple[str, ...]
    asset: str
    judge: str
    baseline: str


LEADERBOARDS: Mapping[str, Leaderboard] = {
    "alpaca_eval": Leaderboard(
        "alpaca_eval",
        "2.0",
        ("", "win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate", "mode",
         "avg_length", "length_controlled_winrate", "lc_standard_error"),
        "alpaca_eval/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv",
        "weighted_alpaca_eval_gpt4_turbo",
        "gpt4_1106_preview",
    ),
    "arena_hard": Leaderboard(
        "arena_hard",
        "v0.1",
        ("model", "score", "rating_q025", "rating_q975", "CI", "avg_tokens", "date"),
        "arena_hard/v0.1/arena_hard_leaderboard_20240731.csv",
        "gpt-4-1106-preview",
        "gpt-4-0314",
    ),
}  # fmt: skip

# Of each scored model: its items' wins, losses and draws, and how long its answers are. As in alpaca_eval's
# ``AbsoluteScoringRule``, a preference over one half is a win.
_ALPACA = """
WITH s AS (SELECT * FROM scores WHERE benchmark = 'alpaca_eval' AND version = '2.0'), games AS (
    SELECT model, judge, baseline, count(*) FILTER (value > 50) AS won, count(*) FILTER (value < 50) AS lost,
           count(*) FILTER (value = 50) AS drawn, count(*) AS total
    FROM item_scores
    WHERE benchmark = 'alpaca_eval' AND version = '2.0' AND metric = 'win_rate' AND value IS NOT NULL
    GROUP BY ALL
)
SELECT n.display, w.value, max(s.value) FILTER (s.metric = 'standard_error'), won, lost, drawn, total,
       max(s.value) FILTER (s.metric = 'discrete_win_rate'), w.model,
       max(s.value) FILTER (s.metric = 'lc_win_rate'), max(s.value) FILTER (s.metric = 'lc_standard_error')
FROM s JOIN s w ON w.metric = 'win_rate' AND w.model = s.model AND w.judge = s.judge AND w.baseline = s.baseline
JOIN games g ON g.model = s.model AND g.judge = s.judge AND g.baseline = s.baseline
JOIN model_names n ON n.id = s.model
JOIN model_names j ON j.id = s.judge
WHERE n.kind NOT IN ('panel', 'control', 'retest') AND j.name = $1
GROUP BY ALL ORDER BY max(s.value) FILTER (s.metric = 'lc_win_rate') DESC NULLS LAST, n.display
"""
_TOKENS = """
SELECT a.model, avg(a.output_tokens)
FROM answers a WHERE benchmark = 'arena_hard' AND version = 'v0.1' AND output_tokens > 0 GROUP BY a.model
"""


def alpaca_eval_rows(ledger: Ledger, *, judge: str, lengths: Mapping[str, float]) -> list[Row]:
    """Return rows as AlpacaEval's leaderboard has them, of every model that ``judge`` (a name) judged.

    ``lengths`` are the models' mean characters an answer; ``mode`` is "community", as for all results that its
    authors did not make.
    """
    columns = LEADERBOARDS["alpaca_eval"].columns
    found = []
    for row in ledger.sql(_ALPACA, judge).fetchall():
        name, win_rate, error, won, lost, drawn, total, discrete, model, controlled, controlled_error = row
        length = int(lengths[model]) if model in lengths else None
        values = (name, win_rate, error, won, lost, drawn, total, discrete, "community", length, controlled)
        found.append(dict(zip(columns, (*values, controlled_error), strict=True)))
    return found


def arena_hard_rows(ledger: Ledger, published: Sequence[Score]) -> list[Row]:
    """Return rows as Arena-Hard v0.1's leaderboard has them; ``published`` are the published way's figures."""
    names = display_names(ledger)
    told = dict(ledger.sql(_TOKENS).fetchall())
    rows = []
    for s in sorted(published, key=lambda s: (-(s.value or 0.0), names.get(s.model, s.model))):
        wanted = s.benchmark == "arena_hard" and s.version == "v0.1" and s.metric == "bradley_terry:published"
        if not wanted or s.value is None or s.low is None or s.high is None:
            continue
        tokens = told.get(s.model)
        rows.append({
            "model": names.get(s.model, s.model), "score": s.value, "rating_q025": s.low, "rating_q975": s.high,
            "CI": f"({s.low - s.value:+.2f}, {s.high - s.value:+.2f})",
            "avg_tokens": None if tokens is None else round(tokens, 1), "date": _judged_on(ledger, s),
        })  # fmt: skip
    return rows


def published_rows(kind: str, file: Path, *, source: str, pattern: str = "*") -> list[LeaderboardRow]:
    """Return a published leaderboard's scores as rows of ours, each flagged as published, where and when.

    ``pattern`` picks models by name, as file names are picked (``*``, ``?``). Raises LedgerError for a file that is no
    such leaderboard, and for a pattern that picks nothing.
    """
    board = LEADERBOARDS[kind]
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        if tuple(reader.fieldnames or ()) != board.columns:
            raise LedgerError(
                f"{file} is no leaderboard of {kind}: its columns are {', '.join(reader.fieldnames or ())}"
            )
        raws = list(reader)
    name_of = board.columns[0]
    found = [
        row
        for raw in raws
        if fnmatch.fnmatchcase(raw[name_of], pattern)
        for row in _context(board, raw, raw[name_of], source)
    ]
    if not found:
        close = ", ".join(raw[name_of] for raw in raws[:5])
        raise LedgerError(f"{pattern!r} picks none of the {len(raws)} models that {kind} published ({close}, …)")
    return found


def _context(board: Leaderboard, raw: Mapping[str, str], name: str, source: str) -> Iterable[LeaderboardRow]:
    when = f"published {raw['date']}" if raw.get("date") else "published"
    said = f"{when} in {source}"
    place = (f"published:{name}", name, "published", board.benchmark, board.version, board.judge, board.judge)
    if board.benchmark == "arena_hard":
        low, high = float(raw["rating_q025"]), float(raw["rating_q975"])
        flags = (f"{said}; interval over games",)
        yield LeaderboardRow(*place, board.baseline, "win_rate", float(raw["score"]), low, high, 500, 0, flags)
        return
    n = int(raw["n_total"])
    columns = {"win_rate": "win_rate", "discrete_win_rate": "discrete_win_rate",
               "lc_win_rate": "length_controlled_winrate"}  # fmt: skip
    for metric, column in columns.items():
        if raw[column]:  # some rows have no length-controlled figure
            yield LeaderboardRow(*place, board.baseline, metric, float(raw[column]), None, None, n, 0, (said,))


def _judged_on(ledger: Ledger, score: Score) -> str | None:
    """Return the day of the last judgment."""
    query = """
        SELECT max(g.recorded_at)::DATE::VARCHAR FROM judge_requests r JOIN judgments g ON g.key = r.judgment
        WHERE r.benchmark = $1 AND r.version = $2 AND r.model = $3 AND r.judge = $4
    """
    found: Any = ledger.sql(query, score.benchmark, score.version, score.model, score.judge).fetchone()
    return found[0] if found else None
