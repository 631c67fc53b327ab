"""Figures of a search over merges: what trials are worth along each parameter, and all parameters at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.figure_style import BLUE, GREY, INK, LINES, SEQUENTIAL, VERMILION, Drawing, drawing, short
from results.study_queries import TrialRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN_HEIGHT = 2.1  # inches of one coefficient's panel


@dataclass(frozen=True, slots=True)
class Reference:
    """A model that the trials are held against, and what it is worth on the same questions."""

    name: str
    value: float


def worth_figure(rows: Sequence[TrialRow], references: Sequence[Reference], *, objective: str, name: str) -> Drawing:
    """Draw what the trials are worth along each parameter, with 95 % intervals; references are lines across."""
    names = _varying(rows)
    valued = [row for row in rows if row.comparable is not None]

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(names), squeeze=False, sharey=True)
        for axes, parameter in zip(grid[:, 0], names, strict=True):
            _along(axes, parameter, [row for row in valued if parameter in row.params])
            for (line, colour), reference in zip(LINES[2:], references, strict=False):
                axes.axhline(reference.value, color=colour, linestyle=line, linewidth=1, label=short(reference.name))
        figure.supylabel(short(objective, longest=60), fontsize=10)
        if references:
            drawn, labels = grid[0, 0].get_legend_handles_labels()
            figure.legend(drawn, labels, loc="outside upper left", frameon=False, fontsize=8, ncols=2)

    told: list[dict[str, object]] = [
        {"trial": row.number, "state": row.state, **row.params, "value": row.comparable}
        | dict(zip(("low", "high"), row.interval, strict=True))
        for row in valued
    ]
    told += [{"reference": each.name, "value": each.value} for each in references]
    label = f"What the trials are worth along {', '.join(names)}, with 95 % intervals"
    return drawing(draw, name=name, label=label, height=0.4 + COLUMN_HEIGHT * max(1, len(names)), rows=told)


def parallel_figure(rows: Sequence[TrialRow], *, objective: str, name: str) -> Drawing:
    """Draw each trial as a line through its parameters to its worth; the best is thick, and the colour is the worth."""
    names = _varying(rows)
    valued = sorted(
        (row for row in rows if row.comparable is not None), key=lambda row: (row.best, row.comparable or 0.0)
    )

    def draw(figure: Figure) -> None:
        from matplotlib import colormaps

        axes = figure.subplots()
        columns = [_shares([row.params.get(parameter) for row in valued]) for parameter in names]
        worth = _shares([row.comparable for row in valued])
        for row, *shares, height in zip(valued, *columns, worth, strict=True):
            colour = VERMILION if row.best else colormaps[SEQUENTIAL](height or 0.0)
            # A parameter that the trial has not is passed over.
            there = [(at, share) for at, share in enumerate((*shares, height)) if share is not None]
            axes.plot(*zip(*there, strict=True), color=colour, linewidth=2.5 if row.best else 1, alpha=0.9)
        for at, values in enumerate(
            [[row.params.get(p) for row in valued] for p in names] + [[r.comparable for r in valued]]
        ):
            _scale(axes, at, values)
        labels = [short(parameter, longest=20) for parameter in names] + [short(objective, longest=20)]
        axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right")
        axes.set_yticks([])
        axes.set_xlim(-0.2, len(labels) - 0.5)
        axes.spines["left"].set_visible(False)

    told = [{"trial": row.number, **row.params, "value": row.comparable, "best": row.best} for row in valued]
    return drawing(draw, name=name, label="Trials as lines through their parameters", height=3.4, rows=told)


def _along(axes: Axes, parameter: str, rows: Sequence[TrialRow]) -> None:
    """Draw the trials along one parameter; those that share a name lie side by side."""
    places, ticks = _places([row.params[parameter] for row in rows])
    beside: dict[str, int] = {}
    for row in rows:
        value = str(row.params[parameter])
        _point(axes, places[value] + (0.06 * beside.get(value, 0) if ticks else 0.0), row)
        beside[value] = beside.get(value, 0) + 1
    if ticks:
        axes.set_xticks(range(len(ticks)), [short(tick, longest=14) for tick in ticks])
    axes.set_xlabel(short(parameter, longest=48))
    axes.grid(visible=True, axis="y")


def _point(axes: Axes, place: float, row: TrialRow) -> None:
    """Draw a trial: filled where it was asked everything, hollow where it was dropped, the best in another colour."""
    colour = VERMILION if row.best else BLUE if row.state == "finished" else GREY
    if row.comparable is None:
        return
    low, high = row.interval
    if low is not None and high is not None:
        axes.plot([place, place], [low, high], color=colour, linewidth=1.2, alpha=0.7)
    filled = row.state == "finished" and row.feasible
    axes.plot(place, row.comparable, "o", color=colour, markersize=5, markerfacecolor=colour if filled else "none")


def _places(values: Sequence[Any]) -> tuple[dict[str, float], list[str]]:
    """Return where each value lies, and the ticks' texts where the values are no numbers."""
    if _numbers(values):
        return {str(value): float(value) for value in values}, []
    ticks = list(dict.fromkeys(map(str, values)))
    return {tick: float(at) for at, tick in enumerate(ticks)}, ticks


def _shares(values: Sequence[Any]) -> list[float | None]:
    """Return the values on a scale from 0 to 1; None where there is none."""
    there = [value for value in values if value is not None]
    places, ticks = _places(there)
    low, high = (
        (0.0, len(ticks) - 1.0) if ticks else (min(places.values(), default=0.0), max(places.values(), default=0.0))
    )
    return [None if v is None else (places[str(v)] - low) / (high - low) if high > low else 0.5 for v in values]


def _scale(axes: Axes, at: int, values: Sequence[Any]) -> None:
    """Draw an axis of the parallel coordinates, with the ends of its scale or the names of its values."""
    axes.axvline(at, color=INK, linewidth=0.8)
    there = [value for value in values if value is not None]
    if _numbers(there) and there:
        ends: Mapping[float, str] = {0.0: f"{min(there):.4g}", 1.0: f"{max(there):.4g}"}
    else:
        _, ticks = _places(there)
        ends = {place / max(1, len(ticks) - 1): short(tick, longest=12) for place, tick in enumerate(ticks)}
    for height, text in ends.items():
        axes.text(at + 0.03, height, text, fontsize=7, va="center")


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _varying(rows: Sequence[TrialRow]) -> list[str]:
    """Return the parameters that have two values or more, or that only some trials have."""
    names = dict.fromkeys(name for row in rows for name in row.params)
    return [name for name in names if len({str(row.params.get(name)) for row in rows}) > 1]
