"""The overview of the leaderboard: a row a model, a column a benchmark, with the one metric that is cited most."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.costs import Cost
from reports.numbers import LOWER
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
    lower_is_better: bool

    @property
    def scored(self) -> str:
        """How the metric came about, in words."""
        by = "checked" if self.judge == "check" else f"by {self.judge}"
        against = f", against {self.baseline}" if self.baseline else ""
        return f"{by}{against}{f', {LOWER}' if self.lower_is_better else ''}"


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
    found: dict[tuple[str, str, str, str], dict[str, LeaderboardRow]] = {}
    for row in rows:
        if row.metric not in _NOT_CITED:
            key = (row.benchmark, row.version, row.judge_name, row.baseline_name or "")
            found.setdefault(key, {}).setdefault(row.metric, row)
    return [_column(metrics[cited(list(metrics))]) for metrics in found.values()]


def cited(metrics: Sequence[str]) -> str:
    """Return which of a benchmark's metrics is cited most."""
    return next((metric for metric in CITED if metric in metrics), metrics[0])


def _column(row: LeaderboardRow) -> Column:
    return Column(row.benchmark, row.version, row.judge_name, row.baseline_name or "", row.metric, row.lower_is_better)


def _best_first(line: Line) -> list[tuple[bool, float]]:
    return [(True, 0.0) if cell is None else cell.rank for cell in line.cells]
