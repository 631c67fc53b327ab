"""The leaderboard and what its differences allow one to say, and the leaderboard as plain tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from evals.records import Score
from reports.claims import Statement, statement
from reports.formats import csv_text, json_text, latex_table, markdown_table
from reports.marks import detectors, footnotes, marked_models, marked_name
from reports.numbers import MISSING, interval, number
from results import queries
from results.queries import LeaderboardRow
from results.store import Ledger

ACROSS = 6  # columns of a table in a terminal, beside the first
WITHOUT = "without flagged"  # what the same score is without the answers that look like attacks
COLUMNS = ("model", "benchmark", "version", "judge", "metric", "value", "low", "high", "n", "missing", "flags")
BESIDE = (
    "unflagged",
    "unflagged_low",
    "unflagged_high",
    "unflagged_n",
)  # columns that follow where answers are flagged


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every score of a ledger, and what can be said of each candidate beside the model it was compared with."""

    rows: tuple[LeaderboardRow, ...]
    statements: tuple[Statement, ...]


def comparison(
    ledger: Ledger,
    *,
    benchmark: str | None = None,
    model: str | None = None,
    models: Collection[str] | None = None,
    figures: Sequence[Score] = (),
) -> Comparison:
    """Read the leaderboard and the differences of ``benchmark`` and of the model ``model`` (None: of all).

    ``model`` is a name or an identity; ``models`` are the identities to keep, of a difference both. ``figures`` are
    scores that are not stored and are shown beside those of their models.
    """
    rows = queries.leaderboard(ledger, benchmark=benchmark, model=model, models=models)
    rows += _beside(rows, figures, queries.display_names(ledger))
    found = queries.differences(ledger, benchmark=benchmark, model=model, models=models)
    marked = marked_models(queries.leaderboard(ledger, benchmark=benchmark) if found else ())  # of either model
    said = tuple(statement(row, marked=marked.get((row.benchmark, row.version), ())) for row in found)
    return Comparison(rows=tuple(rows), statements=said)


def _beside(rows: Sequence[LeaderboardRow], figures: Sequence[Score], names: Mapping[str, str]) -> list[LeaderboardRow]:
    """Return the figures of the rows' models as rows."""
    shown = {row.model: row for row in rows}
    return [
        replace(
            shown[f.model],
            benchmark=f.benchmark,
            version=f.version,
            judge=f.judge,
            judge_name=names.get(f.judge, f.judge),
            baseline_name=names.get(f.baseline, f.baseline) if f.baseline else None,
            metric=f.metric,
            value=f.value,
            low=f.low,
            high=f.high,
            n=f.n,
            missing=f.missing,
            flags=f.flags,
            unflagged=None,
            unflagged_low=None,
            unflagged_high=None,
            unflagged_n=None,
        )
        for f in figures
        if f.model in shown
    ]


def among(rows: Sequence[LeaderboardRow], context: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """Return the rows with published ones among them, the best of each metric first."""
    every = [*rows, *context]
    order = {place: number for number, place in enumerate(dict.fromkeys(map(_place, every)))}
    return sorted(every, key=lambda row: (order[_place(row)], *row.rank)) if context else every


def _place(row: LeaderboardRow) -> tuple[str, ...]:
    return (row.benchmark, row.version, row.judge_name, row.baseline_name or "", row.metric)


def without_flagged(row: LeaderboardRow, *, span: bool = False) -> str:
    """Write a score without the flagged answers, with ``span`` its interval too; "" where no answer is flagged."""
    if row.unflagged_n is None:
        return ""
    if row.unflagged is None:
        return "none left"
    low, high = row.unflagged_low, row.unflagged_high
    return number(row.unflagged, row.metric) + (f" {interval(low, high, row.metric)}" if span else "")


def to_json(rows: Sequence[LeaderboardRow]) -> str:
    """Return the rows as a JSON list of objects; ``model`` and ``judge`` are names, a missing value is null.

    Where answers are flagged as attacks, every row also has the score without them: ``unflagged`` and its parts.
    """
    columns = _columns(rows)
    return json_text([_plain(row, columns) for row in rows])


def to_csv(rows: Sequence[LeaderboardRow]) -> str:
    """Return the rows as CSV with a header; a missing value is an empty cell, flags are parted by spaces.

    Columns for the scores without flagged answers follow where there are such scores.
    """
    columns = _columns(rows)
    return csv_text(columns, [_plain(row, columns) for row in rows])


def grids(rows: Sequence[LeaderboardRow]) -> dict[str, list[dict[str, str]]]:
    """Return small tables by title, a benchmark each: a row a model, a column a metric, what is missing under it.

    Of many metrics, few models make a row a metric and a column a model, and many models several tables. Models whose
    answers look like attacks are marked: print :func:`reports.marks.footnotes` below the tables.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    against, marked = _against(rows), marked_models(rows)
    for row in rows:
        judged = "" if row.judge_name == "check" else f"\nby {row.judge_name}"
        judged += f"\n{against[row]}" if against[row] else ""
        missing = f"\n{row.missing} {MISSING}" if row.missing and row.value is not None else ""
        flags = "".join(f"\n{flag}" for flag in row.flags if not detectors([flag]))  # the name's mark says those
        span = "" if row.value is None else f"\n{interval(row.low, row.high, row.metric)}"
        without = "" if row.unflagged_n is None else f"\n{WITHOUT}: {without_flagged(row)}"
        cell = f"{number(row.value, row.metric)}{span}{without}{missing}{flags}"
        models = found.setdefault(f"{row.benchmark} {row.version}", {})
        column = row.metric.replace(":", ":\n", 1) + judged
        models.setdefault(marked_name(row.name, marked[row.benchmark, row.version]), {})[column] = cell
    return {title: table for benchmark, models in found.items() for title, table in _laid_out(benchmark, models)}


def _against(rows: Sequence[LeaderboardRow]) -> dict[LeaderboardRow, str]:
    """Return, by row, "against BASELINE" where the rows hold the same metric against several, else nothing."""
    baselines: dict[tuple[str, ...], set[str | None]] = {}
    for row in rows:
        baselines.setdefault((row.benchmark, row.version, row.metric, row.judge), set()).add(row.baseline_name)
    several = {place for place, names in baselines.items() if len(names) > 1}
    return {
        row: f"against {row.baseline_name}"
        if row.baseline_name and (row.benchmark, row.version, row.metric, row.judge) in several
        else ""
        for row in rows
    }


def _laid_out(benchmark: str, models: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield titles and tables that fit a terminal."""
    columns = sorted({column for cells in models.values() for column in cells})
    if len(columns) > ACROSS >= len(models):
        rows = [
            {
                "metric": column.replace(":\n", ":").replace("\n", " "),
                **{name: cells.get(column, "").replace("\n", " ") for name, cells in models.items()},
            }
            for column in columns
        ]
        yield benchmark, rows
        return
    parts = [columns[begun : begun + ACROSS] for begun in range(0, len(columns), ACROSS)]
    for place, part in enumerate(parts, start=1):
        title = benchmark if len(parts) == 1 else f"{benchmark} ({place} of {len(parts)})"
        yield title, [{"model": name, **{c: cells.get(c, "") for c in part}} for name, cells in models.items()]


def _columns(rows: Sequence[LeaderboardRow]) -> tuple[str, ...]:
    return (*COLUMNS, *BESIDE) if _any_unflagged(rows) else COLUMNS


def _any_unflagged(rows: Sequence[LeaderboardRow]) -> bool:
    return any(row.unflagged_n is not None for row in rows)


def _plain(row: LeaderboardRow, columns: Sequence[str]) -> dict[str, object]:
    named = {"model": row.name, "judge": row.judge_name, "flags": list(row.flags)}
    return {name: named[name] if name in named else getattr(row, name) for name in columns}


_NUMERIC = frozenset({"value", "95 % interval", WITHOUT, "n", "missing"})


def to_markdown(rows: Sequence[LeaderboardRow]) -> str:
    """Return the rows as a Markdown table (GitHub's kind), with footnotes to the models that are marked."""
    return markdown_table(_header(rows), _table(rows), numeric=_NUMERIC, notes=footnotes(rows))


def to_latex(rows: Sequence[LeaderboardRow]) -> str:
    """Return the rows as a LaTeX ``tabular``, with footnotes to the models that are marked below it.

    The document needs the package booktabs.
    """
    return latex_table(_header(rows), _table(rows), numeric=_NUMERIC, notes=footnotes(rows))


def _header(rows: Sequence[LeaderboardRow]) -> list[str]:
    without = [WITHOUT] if _any_unflagged(rows) else []
    return ["model", "benchmark", "judge", "metric", "value", "95 % interval", *without, "n", "missing", "flags"]


def _table(rows: Sequence[LeaderboardRow]) -> list[list[str]]:
    """Return a line of cells for each row, as people read them."""
    names = _header(rows)
    against, marked = _against(rows), marked_models(rows)
    return [
        [
            marked_name(row.name, marked[row.benchmark, row.version]),
            f"{row.benchmark} {row.version}",
            row.judge_name,
            f"{row.metric} {against[row]}",
            number(row.value, row.metric),
            interval(row.low, row.high, row.metric),
            *([without_flagged(row, span=True)] if WITHOUT in names else []),
            str(row.n),
            str(row.missing),
            ", ".join(row.flags),
        ]
        for row in rows
    ]
