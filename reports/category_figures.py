"""Figures of a benchmark's categories: a radar to see shapes by, and lines with intervals to compare by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reports.figure_style import (
    LINES,
    MARKERS,
    Drawing,
    Row,
    drawing,
    grouped_by,
    lines,
    short,
    spaced,
    title,
)
from reports.numbers import LOWER, points
from results.queries import LeaderboardRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODELS = 6  # drawn at most, the best: more cannot be told apart
_NO_CATEGORY = frozenset({"fastchat", "introsort", "style", "same_style", "unflagged"})


def category_rows(rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """Return the scores of single categories, such as ``category:math`` or ``accuracy:rewriting``."""
    return [row for row in rows if ":" in row.metric and _category(row) not in _NO_CATEGORY]


def radar_figure(rows: Sequence[LeaderboardRow], *, name: str = "radar") -> Drawing:
    """Draw the best models' scores by category on spokes: one panel for each benchmark, judge and metric.

    A category that a model has no score in breaks its line. Fewer than three categories have no radar.
    """
    grouped = {key: panel for key, panel in _panels(rows).items() if len(_categories(panel)) > 2}
    heights = [4.2 + 0.2 * len(_best(panel)) for panel in grouped.values()]

    def draw(figure: Figure) -> None:
        if not grouped:
            return
        spaced(figure)
        grid = figure.subplots(len(grouped), squeeze=False, height_ratios=heights, subplot_kw={"projection": "polar"})
        for axes, panel in zip(grid[:, 0], grouped.values(), strict=True):
            _radar(axes, panel)

    told = [row for panel in grouped.values() for row in _told(panel)]
    return drawing(draw, name=name, label="Scores by category", height=sum(heights) or 1.0, rows=told)


def categories_figure(rows: Sequence[LeaderboardRow], *, name: str = "categories") -> Drawing:
    """Draw the best models' scores by category with their 95 % intervals: a panel a benchmark, judge and metric."""
    grouped = _panels(rows)
    heights = [1.3 + (0.16 + 0.13 * len(_best(panel))) * len(_categories(panel)) for panel in grouped.values()]

    def draw(figure: Figure) -> None:
        if not grouped:
            return
        spaced(figure)
        grid = figure.subplots(len(grouped), squeeze=False, height_ratios=heights)
        for axes, panel in zip(grid[:, 0], grouped.values(), strict=True):
            _whiskers(axes, panel)

    told = [row for panel in grouped.values() for row in _told(panel)]
    label = "Scores by category with 95 % intervals"
    return drawing(draw, name=name, label=label, height=sum(heights) or 1.0, rows=told)


def _radar(axes: Any, panel: Sequence[LeaderboardRow]) -> None:
    categories = _categories(panel)
    angles = [2 * math.pi * place / len(categories) for place in range(len(categories))]
    for (line, colour), marker, model in zip(LINES, MARKERS, _best(panel), strict=False):
        values = {_category(row): row.value for row in panel if row.name == model}
        around = [math.nan if (value := values.get(category)) is None else value for category in categories]
        axes.plot(
            [*angles, angles[0]],
            [*around, around[0]],
            line,
            marker=marker,
            markersize=4,
            color=colour,
            label=short(model),
        )
    axes.set_xticks(angles, [short(category, longest=14) for category in categories])
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):  # names stand outside, on either side
        label.set_horizontalalignment("left" if 0.1 < angle < 3.1 else "right" if 3.2 < angle < 6.2 else "center")
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_ylim(0, _scale(panel))
    axes.tick_params(axis="y", labelsize=7)
    axes.tick_params(axis="x", pad=2)
    axes.grid(alpha=0.3)
    axes.set_title(title(_title(panel)), pad=18)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.09))


def _whiskers(axes: Axes, panel: Sequence[LeaderboardRow]) -> None:
    categories, models = _categories(panel), _best(panel)
    step = 0.7 / max(len(models), 1)
    for number, (model, (_, colour)) in enumerate(zip(models, LINES, strict=False)):
        found = {_category(row): row for row in panel if row.name == model and row.value is not None}
        places = [place + (number - (len(models) - 1) / 2) * step for place, c in enumerate(categories) if c in found]
        told = [found[category] for category in categories if category in found]
        for place, row in zip(places, told, strict=True):
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [place, place], color=colour, linewidth=1.4)
        marker = MARKERS[number % len(MARKERS)]
        axes.plot([row.value or 0.0 for row in told], places, marker, color=colour, markersize=5, label=short(model))
    lines(axes, [short(category) for category in categories], _title(panel))
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.35 / max(len(categories), 1)))


def _panels(rows: Sequence[LeaderboardRow]) -> dict[tuple[str, ...], list[LeaderboardRow]]:
    def panel_of(row: LeaderboardRow) -> tuple[str, ...]:
        return (row.benchmark, row.version, row.judge_name, row.baseline_name or "", row.metric.split(":")[0])

    return grouped_by(category_rows(rows), panel_of)


def _category(row: LeaderboardRow) -> str:
    return row.metric.partition(":")[2]


def _categories(panel: Sequence[LeaderboardRow]) -> list[str]:
    return sorted({_category(row) for row in panel})


def _best(panel: Sequence[LeaderboardRow]) -> list[str]:
    """Return the models that are drawn, the best on average first."""
    values: dict[str, list[float]] = {}
    for row in panel:
        values.setdefault(row.name, []).extend([] if row.value is None else [row.value])
    sign = 1 if panel and panel[0].lower_is_better else -1
    mean = {name: sign * sum(found) / len(found) if found else math.inf for name, found in values.items()}
    return sorted(mean, key=lambda name: (mean[name], name))[:MODELS]


def _scale(panel: Sequence[LeaderboardRow]) -> float:
    """Return the end of the spokes: of ratings and per cents their scale's, of a task of lm-eval 1 or its largest."""
    metric = panel[0].metric
    if points(metric):
        return 10 if metric.startswith("category:") else 100
    return max([1.0, *(row.value for row in panel if row.value is not None)])


def _title(panel: Sequence[LeaderboardRow]) -> str:
    first, models = panel[0], {row.name for row in panel}
    kind = first.metric.split(":")[0].replace("category", "rating")
    against = f", against {first.baseline_name}" if first.baseline_name else ""
    against += f", {LOWER}" if first.lower_is_better else ""
    some = f"; best {MODELS} of {len(models)} models" if len(models) > MODELS else ""
    return f"{kind} by category, {first.benchmark} ({first.judge_name}){against}{some}"


def _told(panel: Sequence[LeaderboardRow]) -> list[Row]:
    columns = ("name", "benchmark", "version", "judge_name", "baseline_name", "metric")
    values = ("value", "low", "high", "n", "missing")
    return [
        {**{c: getattr(row, c) for c in columns}, "category": _category(row), **{v: getattr(row, v) for v in values}}
        for row in panel
    ]
