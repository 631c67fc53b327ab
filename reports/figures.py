"""Figures as SVG text: one style, the same bytes for the same rows, safe to put into a page.

No figure holds a style sheet, a script or a style attribute, so that a page may forbid all three; ids start with
the figure's name, and ink is ``currentColor``, so that a figure follows the page into the dark.
"""

from __future__ import annotations

import io
import itertools
import textwrap
import unicodedata
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any
from xml.etree import ElementTree

from reports.claims import Statement
from reports.marks import MARK
from results.queries import LeaderboardRow, TrainingRow

# Okabe & Ito 2008, "Color Universal Design": told apart by colour-blind readers, on white and on near-black.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
LINES = tuple(itertools.product(("-", "--", ":"), (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)))
_INK = "#010203"  # stands for the page's text colour until the drawing is done
_WIDTH = 4.6  # inches: about a phone's width, so that text keeps its size there
_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a "$" in a model's name is a dollar
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    "grid.color": _INK,
}


def leaderboard_figure(
    rows: Sequence[LeaderboardRow], *, name: str = "leaderboard", marked: Collection[str] = ()
) -> str:
    """Draw every score with its 95 % interval, best first: one panel for each benchmark, judge and metric.

    The names of models that are ``marked``, whose answers look like attacks on the judge, bear the mark.
    """

    def draw(axes: Any, panel: list[LeaderboardRow]) -> None:
        panel = sorted(panel, key=lambda row: (row.value is None, -(row.value or 0.0), row.name))
        for place, row in enumerate(panel):
            _whisker(axes, place, (row.value, row.low, row.high), BLUE, filled=True)
        if panel[0].metric.startswith("accuracy") or panel[0].metric.endswith("win_rate"):
            axes.set_xlim(-2, 102)  # the whole scale, so that panels can be compared by eye
        if panel[0].metric.endswith("win_rate"):
            axes.axvline(50, color=_INK, linewidth=0.8, linestyle=(0, (3, 3)))
        against = f", against {panel[0].baseline_name}" if panel[0].baseline_name else ""
        title = f"{panel[0].metric}, {panel[0].benchmark} ({panel[0].judge_name}){against}"
        _axis(axes, [_label(row.name) + (f" {MARK}" if row.name in marked else "") for row in panel], title)

    def panel_of(row: LeaderboardRow) -> tuple[str, ...]:
        return (row.benchmark, row.version, row.judge_name, row.metric, row.baseline_name or "")

    return _panels(rows, panel_of, draw, name=name, label="Scores with 95 % intervals")


def differences_figure(statements: Sequence[Statement], *, name: str = "differences") -> str:
    """Draw paired differences as a forest plot; a grey tick in place of a dot is a difference that is not shown."""

    def draw(axes: Any, panel: list[Statement]) -> None:
        colours = {"better": BLUE, "worse": VERMILION}
        axes.axvline(0, color=_INK, linewidth=0.8)
        for place, each in enumerate(panel):
            row, colour = each.difference, colours.get(each.verdict, "#808080")
            _whisker(axes, place, (row.value, row.low, row.high), colour, filled=each.verdict in colours)
        first = panel[0].difference
        both = f" (both against {first.baseline_name})" if first.baseline_name not in (None, first.other_name) else ""
        title = f"{first.metric}, {first.benchmark} ({first.judge_name}): minus {first.other_name}{both}"
        _axis(axes, [_label(each.difference.name) for each in panel], title)

    def panel_of(each: Statement) -> tuple[str, ...]:
        row = each.difference
        return (row.benchmark, row.version, row.judge_name, row.baseline_name or "", row.metric, row.other_name)

    return _panels(statements, panel_of, draw, name=name, label="Paired differences with 95 % intervals")


def training_figure(rows: Sequence[TrainingRow], *, name: str = "training") -> str:
    """Draw the training loss of each model over the tokens it has seen."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        models = list(dict.fromkeys(row.model_name for row in rows))
        for model, (line, colour) in zip(models, itertools.cycle(LINES)):
            points = sorted((row for row in rows if row.model_name == model), key=lambda row: row.step)
            tokens, losses = [row.tokens for row in points], [row.loss for row in points]
            marker = "o" if len(points) < 40 else ""
            axes.plot(tokens, losses, line, color=colour, marker=marker, markersize=3, label=_label(model))
        axes.set_xlabel("tokens seen")
        axes.set_ylabel("loss (nats a token)")
        axes.grid(visible=True)
        if models:
            axes.legend(frameon=False)

    return _svg(draw, height=3.2, name=name, label="Training loss over tokens seen")


def _panels(
    rows: Sequence[Any],
    panel_of: Callable[[Any], tuple[str, ...]],
    draw: Callable[[Any, list[Any]], None],
    *,
    name: str,
    label: str,
) -> str:
    grouped: dict[tuple[str, ...], list[Any]] = {}
    for row in rows:
        grouped.setdefault(panel_of(row), []).append(row)
    heights = [0.95 + 0.26 * len(panel) for panel in grouped.values()]

    def draw_all(figure: Any) -> None:
        if not grouped:
            return
        figure.get_layout_engine().set(h_pad=0.12)
        grid = figure.subplots(len(grouped), squeeze=False, height_ratios=heights)
        for axes, panel in zip(grid[:, 0], grouped.values(), strict=True):
            draw(axes, panel)

    return _svg(draw_all, height=sum(heights) or 1.0, name=name, label=label)


def _whisker(axes: Any, place: int, values: tuple[float | None, ...], colour: str, *, filled: bool) -> None:
    value, low, high = values
    if value is None:
        axes.text(0.5, place, "missing", va="center", ha="center", transform=axes.get_yaxis_transform(), alpha=0.6)
        return
    if low is not None and high is not None:
        axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
    marker, size = ("o", 7) if filled else ("|", 10)
    axes.plot(value, place, marker, color=colour, markersize=size, markeredgewidth=2)


def _axis(axes: Any, names: list[str], title: str) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title(textwrap.fill(_label(title, longest=96), width=38))
    axes.grid(visible=True, axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _label(text: str, *, longest: int = 24) -> str:
    # Control and direction marks have no place in a picture, and lone surrogates none in XML.
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    if len(text) <= longest:
        return text
    name, dot, digits = text.rpartition("·")
    end = dot + digits if name and len(digits) < longest // 2 else ""  # it tells models of one name apart
    return f"{text[: longest - 1 - len(end)]}…{end}"


def _svg(draw: Callable[[Any], None], *, height: float, name: str, label: str) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    text = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # Text stays text, so a letter that matplotlib's own font lacks is drawn by the reader's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return _without_styles(text.getvalue(), name=name, label=label)


def _without_styles(svg: str, *, name: str, label: str) -> str:
    """Turn style attributes into presentation attributes, and make every id the figure's own."""
    root = ElementTree.fromstring(svg)  # noqa: S314  (matplotlib wrote it a moment ago)
    for parent in root.iter():
        for sheet in [child for child in parent if child.tag == f"{{{_SVG}}}style"]:
            parent.remove(sheet)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        element.tail = None
        for declaration in element.attrib.pop("style", "").split(";"):
            key, _, value = declaration.partition(":")
            if key.strip() and key.strip() != "font-family":
                element.set(key.strip(), value.strip().replace(_INK, "currentColor"))
        if "id" in element.attrib:
            element.set("id", f"{name}-{element.attrib['id']}")
        if _HREF in element.attrib:
            element.set("href", f"#{name}-{element.attrib.pop(_HREF).removeprefix('#')}")
        if "clip-path" in element.attrib:
            element.set("clip-path", element.attrib["clip-path"].replace("url(#", f"url(#{name}-"))
    root.attrib.update({"xmlns": _SVG, "role": "img", "aria-label": label, "font-family": "sans-serif"})
    root.attrib.update({"stroke-linejoin": "round", "stroke-linecap": "butt"})
    return ElementTree.tostring(root, encoding="unicode") + "\n"
