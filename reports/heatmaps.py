"""Heat maps: what a merge used by layer and module, who did better than whom, how far judges agree."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reports.figure_style import DIVERGING, SEQUENTIAL, WIDTH, Drawing, Row, drawing, grouped_by, short, spaced, title
from reports.measures import HUMAN
from results.audit_queries import AuditRow
from results.figure_queries import CoefficientMean, Meetings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AGREEMENT = {
    "judge_agreement": "agreement on pairs",
    "human_agreement": "agreement on pairs",
    "rating_agreement": "agreement on ratings",
}
_LEVELS = 64
_DARK = 0.45  # colours of less luminance take white text


@dataclasses.dataclass(frozen=True, slots=True)
class _Grid:
    """A heat map: ``values`` and ``texts`` by (line, column), and the range of its colours."""

    title: str
    lines: Sequence[str]
    columns: Sequence[str]
    values: Mapping[tuple[str, str], float]
    texts: Mapping[tuple[str, str], str]
    colours: str
    low: float
    high: float
    unit: str = ""

    @property
    def height(self) -> float:
        """In inches."""
        return 1.3 + 0.3 * len(self.lines) + 0.05 * max(len(column) for column in self.columns)


def coefficients_figure(rows: Sequence[CoefficientMean], *, name: str = "coefficients") -> Drawing:
    """Draw what merges used by layer (columns) and module (lines): a panel for each model, coefficient and source.

    All sources of one model's coefficient share their colours' range.
    """

    def panel_of(row: CoefficientMean) -> tuple[str, ...]:
        return (row.model_name, row.name, row.source_name or "")

    ranges = {
        key: _range([row.value for row in found])
        for key, found in grouped_by(rows, lambda row: (row.model_name, row.name)).items()
    }
    grids = []
    for (model, coefficient, source), panel in grouped_by(rows, panel_of).items():
        layers = sorted({row.layer for row in panel if row.layer is not None})
        columns = [*(["–"] if any(row.layer is None for row in panel) else []), *map(str, layers)]
        values = {(row.module, "–" if row.layer is None else str(row.layer)): row.value for row in panel}
        low, high = ranges[model, coefficient]
        of = f" of {source}" if source else ""
        grids.append(
            _Grid(f"{coefficient}{of} in {model}", sorted({row.module for row in panel}), columns, values, {},
                  SEQUENTIAL, low, high, coefficient)
        )  # fmt: skip
    told = [dataclasses.asdict(row) for row in rows]
    return _heatmaps(grids, name=name, label="Merge coefficients by layer and module", rows=told, across="layer")


def meetings_figure(rows: Sequence[Meetings], *, name: str = "meetings") -> Drawing:
    """Draw wins, ties and losses of each model (lines) against each other (columns): a panel a benchmark and judge.

    Colours say how many more questions were won than lost. Two models that were judged beside each other are compared
    by that, others by their scores on the same questions.
    """
    grids = []
    for (benchmark, version, judge), panel in grouped_by(
        rows, lambda row: (row.benchmark, row.version, row.judge_name)
    ).items():
        cells = _meeting_cells(panel)
        names = list(dict.fromkeys(one for pair in sorted(cells) for one in pair))
        names.sort(key=lambda name: -sum(_lead(cell) for (line, _), cell in cells.items() if line == name))
        values = {pair: _lead(cell) for pair, cell in cells.items()}
        texts = {pair: "/".join(map(str, cell)) for pair, cell in cells.items()}
        judged = "exact checks" if judge == "check" else judge
        head = f"wins/ties/losses of line against column, {benchmark} {version} ({judged})"
        grids.append(_Grid(head, names, names, values, texts, DIVERGING, -1.0, 1.0, "won less lost"))
    told = [dataclasses.asdict(row) for row in rows]
    return _heatmaps(grids, name=name, label="Wins, ties and losses between models", rows=told)


def agreement_figure(audits: Sequence[AuditRow], *, name: str = "agreement") -> Drawing:
    """Draw how often every two judges, and judges and people, agree: a panel a benchmark and kind of verdict."""
    used = [row for row in audits if row.measure in _AGREEMENT and row.value is not None]
    grids = []
    for (benchmark, version, what), panel in grouped_by(
        used, lambda row: (row.benchmark, row.version, _AGREEMENT[row.measure])
    ).items():
        values: dict[tuple[str, str], float] = {}
        for row in panel:
            other = "people" if row.other == HUMAN else row.other_name
            values[row.judge_name, other] = values[other, row.judge_name] = 100 * (row.value or 0.0)
        names = sorted({one for pair in values for one in pair}, key=lambda name: (name == "people", name))
        texts = {pair: f"{value:.0f}" for pair, value in values.items()}
        head = f"{what}, {benchmark} {version}"
        grids.append(_Grid(head, names, names, values, texts, SEQUENTIAL, 0.0, 100.0, "per cent"))
    columns = ("judge_name", "other_name", "benchmark", "version", "measure", "value", "low", "high", "n")
    told: list[Row] = [{column: getattr(row, column) for column in columns} for row in used]
    return _heatmaps(grids, name=name, label="Agreement between judges, per cent", rows=told)


def _meeting_cells(panel: Sequence[Meetings]) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Return (wins, ties, losses) by pair, both ways round; who met is not compared by way of a third."""
    met = {(row.name, row.other_name) for row in panel if row.other_name == row.baseline_name}
    met |= {(other, name) for name, other in met}
    cells: dict[tuple[str, str], tuple[int, int, int]] = {}
    for row in panel:
        direct = row.other_name == row.baseline_name
        if not direct and (row.name, row.other_name) in met:
            continue
        ways = [((row.name, row.other_name), (row.wins, row.ties, row.losses))]
        if direct:  # which is told from one side only
            ways.append(((row.other_name, row.name), (row.losses, row.ties, row.wins)))
        for pair, (wins, ties, losses) in ways:
            before = cells.get(pair, (0, 0, 0))
            cells[pair] = (before[0] + wins, before[1] + ties, before[2] + losses)
    return cells


def _lead(cell: tuple[int, int, int]) -> float:
    wins, ties, losses = cell
    return (wins - losses) / (wins + ties + losses)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _heatmaps(grids: Sequence[_Grid], *, name: str, label: str, rows: Sequence[Row], across: str = "") -> Drawing:
    heights = [grid.height for grid in grids]

    def draw(figure: Figure) -> None:
        if not grids:
            return
        spaced(figure)
        places = figure.subplots(len(grids), squeeze=False, height_ratios=heights)
        for axes, grid in zip(places[:, 0], grids, strict=True):
            _heatmap(figure, axes, grid, across)

    longest = max((len(text) for grid in grids for text in grid.texts.values()), default=0)
    most = max((len(grid.columns) for grid in grids), default=0)
    width = max(WIDTH, 2.4 + (0.12 + 0.065 * longest) * most) if longest else WIDTH  # so that no text meets the next
    return drawing(draw, name=name, label=label, height=sum(heights) or 1.0, width=width, rows=rows)


def _heatmap(figure: Figure, axes: Axes, grid: _Grid, across: str) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours, scale = colormaps[grid.colours].resampled(_LEVELS), Normalize(grid.low, grid.high)
    matrix = [[grid.values.get((line, column), math.nan) for column in grid.columns] for line in grid.lines]
    axes.pcolormesh(matrix, cmap=colours, norm=scale, edgecolors="none", linewidth=0)
    for (line, column), text in grid.texts.items():
        red, green, blue, _ = colours(scale(grid.values[line, column]))
        ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < _DARK else "black"
        place = (grid.columns.index(column) + 0.5, grid.lines.index(line) + 0.5)
        axes.text(*place, text, ha="center", va="center", color=ink, fontsize=8)
    axes.invert_yaxis()
    axes.set_yticks([n + 0.5 for n in range(len(grid.lines))], [short(line) for line in grid.lines], fontsize=8)
    step = math.ceil(len(grid.columns) / 9) if across else 1
    shown = range(0, len(grid.columns), step)
    turned: dict[str, Any] = {} if across else {"rotation": 30, "ha": "right"}
    labels = [short(grid.columns[n], longest=18) for n in shown]
    axes.set_xticks([n + 0.5 for n in shown], labels, fontsize=8, **turned)
    axes.set_xlabel(across)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title(grid.title))
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, shrink=0.9, aspect=14)
    bar.solids.set_rasterized(False)  # type: ignore[union-attr]  # a page may hold no picture of pixels
    bar.set_label(grid.unit, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
