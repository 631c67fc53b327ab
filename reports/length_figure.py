"""How long answers are beside how well they were judged: what a judge that likes length gives away."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reports.figure_style import BLUE, INK, ORANGE, Drawing, drawing, grouped_by, short, spaced, title
from results.figure_queries import LengthRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CONTROLLED = ("lc_win_rate", "win_rate:style")


def length_figure(rows: Sequence[LengthRow], *, name: str = "length") -> Drawing:
    """Draw each model's score over its answers' mean length: a panel for each benchmark, judge and baseline.

    Where there is a score that controls for length, a hollow mark shows it, joined to the plain one; a dashed line is
    the length of the baseline's answers.
    """

    def panel_of(row: LengthRow) -> tuple[str, ...]:
        return (row.benchmark, row.version, row.judge_name, row.baseline_name or "")

    grouped = grouped_by(rows, panel_of)

    def draw(figure: Figure) -> None:
        if not grouped:
            return
        spaced(figure)
        grid = figure.subplots(len(grouped), squeeze=False)
        for axes, panel in zip(grid[:, 0], grouped.values(), strict=True):
            _draw(axes, panel)

    told = [dataclasses.asdict(row) for row in rows]
    label = "Scores over the mean length of answers"
    return drawing(draw, name=name, label=label, height=3.6 * len(grouped) or 1.0, rows=told)


def _draw(axes: Axes, panel: Sequence[LengthRow]) -> None:
    plain = {row.name: row for row in panel if row.metric not in _CONTROLLED}
    controlled = {row.name: row for row in panel if row.metric in _CONTROLLED}
    first = panel[0]
    places = [row.characters for row in panel] + [first.baseline_characters or panel[0].characters]
    middle = (min(places) + max(places)) / 2  # names stand towards it
    if controlled:
        metrics = sorted({row.metric for row in controlled.values()})
        axes.plot([], [], "o", color=ORANGE, markerfacecolor="none", label=" or ".join(metrics))
    axes.plot([], [], "o", color=BLUE, label=next(iter(plain.values()), first).metric)
    for name, row in (controlled | plain).items():
        low, high = (row.value, row.value) if row.low is None or row.high is None else (row.low, row.high)
        axes.plot([row.characters] * 2, [low, high], color=BLUE, linewidth=1.6)
        axes.plot(row.characters, row.value, "o", color=BLUE, markersize=6)
        if (other := controlled.get(name)) and other is not row:
            axes.plot([row.characters] * 2, [row.value, other.value], ":", color=ORANGE, linewidth=1.2)
            axes.plot(other.characters, other.value, "o", color=ORANGE, markersize=7, markerfacecolor="none")
        right = row.characters < middle
        axes.annotate(
            short(name),
            (row.characters, row.value),
            xytext=(7 if right else -7, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=8,
        )
    if first.baseline_characters is not None:
        axes.axvline(first.baseline_characters, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
    axes.margins(x=0.28, y=0.12)
    axes.set_xlabel("mean characters an answer")
    axes.set_ylabel("mean rating" if first.metric == "average" else "per cent")
    axes.grid(visible=True)
    axes.legend(frameon=False, fontsize=8, loc="best")
    against = f", against {first.baseline_name}" if first.baseline_name else ""
    axes.set_title(title(f"length and score, {first.benchmark} ({first.judge_name}){against}"))
