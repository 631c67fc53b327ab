"""Figures of scores, paired differences and trainings."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from reports.claims import Statement
from reports.figure_style import BLUE, GREY, INK, LINES, VERMILION, Drawing, drawing, lines, panels, short, whisker
from reports.marks import MARK
from reports.numbers import LOWER
from results.queries import PUBLISHED, LeaderboardRow, TrainingRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def leaderboard_figure(
    rows: Sequence[LeaderboardRow], *, name: str = "leaderboard", marked: Collection[str] = ()
) -> Drawing:
    """Draw every score with its 95 % interval, best first: one panel for each benchmark, judge and metric.

    Scores that others published are grey beside one's own.

    The names of models that are ``marked``, whose answers look like attacks on the judge, bear the mark.
    """

    def draw(axes: Axes, panel: list[LeaderboardRow]) -> None:
        panel = sorted(panel, key=lambda row: (*row.rank, row.name))
        mixed = len({row.kind == PUBLISHED for row in panel}) > 1
        for place, row in enumerate(panel):
            colour = GREY if mixed and row.kind == PUBLISHED else BLUE
            whisker(axes, place, (row.value, row.low, row.high), colour, filled=True)
        if panel[0].metric.startswith("accuracy") or panel[0].metric.endswith("win_rate"):
            axes.set_xlim(-2, 102)  # the whole scale, so that panels can be compared by eye
        if panel[0].metric.endswith("win_rate"):
            axes.axvline(50, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        against = f", against {panel[0].baseline_name}" if panel[0].baseline_name else ""
        lower = f", {LOWER}" if panel[0].lower_is_better else ""
        title = f"{panel[0].metric}, {panel[0].benchmark} ({panel[0].judge_name}){against}{lower}"
        lines(axes, [short(row.name) + (f" {MARK}" if row.name in marked else "") for row in panel], title)

    def panel_of(row: LeaderboardRow) -> tuple[str, ...]:
        return (row.benchmark, row.version, row.judge_name, row.metric, row.baseline_name or "")

    columns = ("name", "benchmark", "version", "judge_name", "baseline_name", "metric", "value", "low", "high", "n",
               "missing")  # fmt: skip
    told = [{column: getattr(row, column) for column in columns} for row in rows]
    return panels(rows, panel_of, draw, name=name, label="Scores with 95 % intervals", rows=told)


def differences_figure(statements: Sequence[Statement], *, name: str = "differences") -> Drawing:
    """Draw paired differences as a forest plot; a grey tick in place of a dot is a difference that is not shown."""

    def draw(axes: Axes, panel: list[Statement]) -> None:
        colours = {"better": BLUE, "worse": VERMILION}
        axes.axvline(0, color=INK, linewidth=0.8)
        for place, each in enumerate(panel):
            row, colour = each.difference, colours.get(each.verdict, GREY)
            whisker(axes, place, (row.value, row.low, row.high), colour, filled=each.verdict in colours)
        first = panel[0].difference
        both = f" (both against {first.baseline_name})" if first.baseline_name not in (None, first.other_name) else ""
        lower = f", {LOWER}" if first.lower_is_better else ""
        title = f"{first.metric}, {first.benchmark} ({first.judge_name}): minus {first.other_name}{both}{lower}"
        lines(axes, [short(each.difference.name) for each in panel], title)

    def panel_of(each: Statement) -> tuple[str, ...]:
        row = each.difference
        return (row.benchmark, row.version, row.judge_name, row.baseline_name or "", row.metric, row.other_name)

    columns = ("name", "other_name", "benchmark", "version", "judge_name", "baseline_name", "metric", "value", "low",
               "high", "p", "p_holm", "n", "missing", "detectable")  # fmt: skip
    told = [
        {**{column: getattr(each.difference, column) for column in columns}, "verdict": each.verdict}
        for each in statements
    ]
    return panels(statements, panel_of, draw, name=name, label="Paired differences with 95 % intervals", rows=told)


def training_figure(rows: Sequence[TrainingRow], *, name: str = "training") -> Drawing:
    """Draw the training loss of each model over the tokens it has seen."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        models = list(dict.fromkeys(row.model_name for row in rows))
        for model, (line, colour) in zip(models, itertools.cycle(LINES)):
            points = sorted((row for row in rows if row.model_name == model), key=lambda row: row.step)
            tokens, losses = [row.tokens for row in points], [row.loss for row in points]
            marker = "o" if len(points) < 40 else ""
            axes.plot(tokens, losses, line, color=colour, marker=marker, markersize=3, label=short(model))
        axes.set_xlabel("tokens seen")
        axes.set_ylabel("loss (nats a token)")
        axes.grid(visible=True)
        if models:
            axes.legend(frameon=False)

    told = [
        {"model": row.model_name, "step": row.step, "tokens": row.tokens, "loss": row.loss,
         "learning_rate": row.learning_rate}
        for row in rows
    ]  # fmt: skip
    return drawing(draw, height=3.2, name=name, label="Training loss over tokens seen", rows=told)
