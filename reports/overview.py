"""The overview of the leaderboard: a row a model, a column a benchmark, with the one metric that is cited most."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.costs import Cost
from results.queries import LeaderboardRow

CITED = ("lc_win_rate", "average", "elo", "accuracy", "win_rate")  # the first of these that a benchmark has
_NOT_CITED = ("standard_error", "lc_standard_error")


@dataclass(frozen=True, slots=True)
class Column:
    """One benchmark, judged by one judge, against one baseline or none, in its most cited metric."""

    benchmark: str
    version: str
    judge: str
    baseline: str
    metric: str

    @property
    def scored(self) -> str:
        """How the metric came about, in words."""
        by = "checked" if self.judge == "check" else f"by {self.judge}"
        return f"{by}, against {self.baseline}" if self.baseline else by


@dataclass(frozen=True, slots=True)
class Line:
    """One model: its score in each column (None: not scored there), whether it bears the mark, what it cost."""

    name: str
    kind: str
    marked: bool
    cells: Sequence[LeaderboardRow | None]
    missing: int
    cost: Cost | None


def overview(
    rows: Sequence[LeaderboardRow],
    *,
    marked: Mapping[tuple[str, str], Collection[str]],
    costs: Mapping[str, Cost],
) -> dict[str, Any]:
    """Return the ``columns`` and the ``lines`` of the overview, the best of the first column first."""
    columns = _columns(rows)
    cells: dict[str, dict[Column, LeaderboardRow]] = {}
    kinds: dict[str, str] = {}
    for row in rows:
        column = _column(row)
        kinds.setdefault(row.name, row.kind)
        if column in columns:
            cells.setdefault(row.name, {})[column] = row
    lines = [
        Line(
            name=name,
            kind=kinds[name],
            marked=any(name in names for names in marked.values()),
            cells=[found.get(column) for column in columns],
            missing=sum(row.missing for row in found.values()),
            cost=costs.get(name),
        )
        for name, found in cells.items()
    ]
    return {"columns": columns, "lines": sorted(lines, key=_best_first)}


def _columns(rows: Sequence[LeaderboardRow]) -> list[Column]:
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for row in rows:
        if row.metric not in _NOT_CITED:
            key = (row.benchmark, row.version, row.judge_name, row.baseline_name or "")
            found.setdefault(key, []).append(row.metric)
    return [Column(*key, cited(metrics)) for key, metrics in found.items()]


def cited(metrics: Sequence[str]) -> str:
    """Return which of a benchmark's metrics is cited most."""
    return next((metric for metric in CITED if metric in metrics), metrics[0])


def _column(row: LeaderboardRow) -> Column:
    return Column(row.benchmark, row.version, row.judge_name, row.baseline_name or "", row.metric)


def _best_first(line: Line) -> list[tuple[bool, float]]:
    values = [None if cell is None else cell.value for cell in line.cells]
    return [(value is None, -(value or 0.0)) for value in values]
