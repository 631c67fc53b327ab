"""Every figure of a ledger as files: SVG, PNG and PDF, each beside its numbers as CSV."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from reports.category_figures import categories_figure, category_rows, radar_figure
from reports.claims import Statement
from reports.compare import comparison
from reports.figure_style import Drawing, grouped_by, in_style
from reports.figures import differences_figure, leaderboard_figure, training_figure
from reports.formats import csv_text
from reports.heatmaps import agreement_figure, coefficients_figure, meetings_figure
from reports.length_figure import length_figure
from reports.marks import marked_models
from results import audit_queries, figure_queries, queries
from results.queries import LeaderboardRow
from results.store import Ledger

DOTS = 200  # per inch, of PNG
_NO_SCORE = ("standard_error", "lc_standard_error")
# Nothing that tells when, where or by which version a file was made: the same numbers give the same bytes.
_NOTHING: dict[str, dict[str, None]] = {
    "svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
    "png": dict.fromkeys(("Software",)),
    "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")),
}


def write_figures(ledger: Ledger, folder: Path) -> list[Path]:
    """Write every figure that the ledger has numbers for into ``folder``, and return the paths.

    Files of the same names are replaced, others left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths, names = [], set()
    for each in drawings(ledger):
        name = next(n for n in _candidates(each.name) if n.casefold() not in names)
        names.add(name.casefold())  # some file systems tell no case apart
        paths += write_drawing(replace(each, name=name), folder)
    return paths


def write_drawing(drawn: Drawing, folder: Path) -> list[Path]:
    """Write one drawing as SVG, PNG, PDF and CSV, and return the paths."""
    paths = []
    with in_style(drawn.name):
        for kind, nothing in _NOTHING.items():
            paths.append(folder / f"{drawn.name}.{kind}")
            drawn.figure.savefig(paths[-1], format=kind, dpi=DOTS, metadata=nothing)
    paths.append(folder / f"{drawn.name}.csv")
    columns = list(drawn.rows[0]) if drawn.rows else []
    paths[-1].write_text(csv_text(columns, drawn.rows), encoding="utf-8", newline="")
    return paths


def drawings(ledger: Ledger) -> Iterator[Drawing]:
    """Yield every figure that the ledger has numbers for: scores, differences and categories by benchmark."""
    compared = comparison(ledger)
    yield from _of_scores(compared.rows)
    yield from _of_differences(compared.statements)
    yield from further_drawings(ledger, compared.rows)
    if trained := queries.training(ledger):
        yield training_figure(trained)


def further_drawings(ledger: Ledger, rows: Sequence[LeaderboardRow]) -> Iterator[Drawing]:
    """Yield what a reader of scores and differences may want to see besides; ``rows`` is the leaderboard."""
    for (benchmark, version), found in grouped_by(rows, lambda row: (row.benchmark, row.version)).items():
        if single := category_rows(found):
            radar = radar_figure(single, name=_file("radar", benchmark, version))
            yield from [radar] if radar.rows else []
            yield categories_figure(single, name=_file("categories", benchmark, version))
    if met := figure_queries.meetings(ledger):
        yield meetings_figure(met)
    agreed = agreement_figure(audit_queries.audits(ledger))
    if agreed.rows:
        yield agreed
    if lengths := figure_queries.lengths(ledger):
        yield length_figure(lengths)
    means = figure_queries.coefficient_means(ledger)
    for (model,), of_model in grouped_by(means, lambda row: (row.model_name,)).items():
        yield coefficients_figure(of_model, name=_file("coefficients", model))


def _of_scores(rows: Sequence[LeaderboardRow]) -> Iterator[Drawing]:
    marked = marked_models(rows)
    for (benchmark, version), found in grouped_by(rows, lambda row: (row.benchmark, row.version)).items():
        single = category_rows(found)
        whole = [row for row in found if row not in single and row.metric not in _NO_SCORE]
        if whole:
            name = _file("leaderboard", benchmark, version)
            yield leaderboard_figure(whole, name=name, marked=marked[benchmark, version])


def _of_differences(statements: Sequence[Statement]) -> Iterator[Drawing]:
    def place(each: Statement) -> tuple[str, ...]:
        return (each.difference.benchmark, each.difference.version)

    for (benchmark, version), found in grouped_by(statements, place).items():
        yield differences_figure(found, name=_file("differences", benchmark, version))


def _candidates(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


def _file(*parts: str) -> str:
    """Return a file's stem; what a file system or an XML id may not take becomes a dash."""
    return "-".join(re.sub(r"[^\w.]+", "-", part).strip("-.")[:60] or "unnamed" for part in parts)
