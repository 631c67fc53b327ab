"""One style for all figures: colours that colour-blind readers tell apart, and what a drawing is.

A drawing is a matplotlib figure with the numbers in it. It goes into a page by :func:`reports.figure_svg.svg`, and to
files by :func:`reports.figure_files.write_drawing`.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008, "Color Universal Design": told apart by colour-blind readers, on white and on near-black.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
GREY = "#808080"
LINES = tuple(itertools.product(("-", "--", ":"), (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)))
MARKERS = ("o", "s", "^", "D", "v", "P")
SEQUENTIAL, DIVERGING = "cividis", "PuOr"  # both read alike by colour-blind readers
INK = "#010203"  # stands for a page's text colour until the drawing is put into it
WIDTH = 4.6  # inches: about a phone's width, so that text keeps its size there
STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # fonts that journals take
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
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "grid.color": INK,
}

Row = dict[str, object]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure, the ``rows`` of numbers in it, and a ``label`` that says what it shows to those who cannot see it.

    ``name`` is the stem of its files, and begins its ids in a page.
    """

    name: str
    label: str
    figure: Figure
    rows: tuple[Row, ...]


def drawing(
    draw: Callable[[Figure], None],
    *,
    name: str,
    label: str,
    height: float,
    rows: Sequence[Row],
    width: float = WIDTH,
) -> Drawing:
    """Return what ``draw`` draws on an empty figure of ``width`` x ``height`` inches, in the style."""
    from matplotlib.figure import Figure

    with in_style(name):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
    return Drawing(name=name, label=label, figure=figure, rows=tuple(rows))


@contextlib.contextmanager
def in_style(name: str) -> Iterator[None]:
    """Draw, or save, in the style; the same ``name`` and numbers give the same bytes."""
    import matplotlib

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # Text stays text, so a letter that matplotlib's own font lacks is drawn by the reader's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def panels(
    items: Sequence[T],
    panel_of: Callable[[T], tuple[str, ...]],
    draw: Callable[[Axes, list[T]], None],
    *,
    name: str,
    label: str,
    rows: Sequence[Row],
) -> Drawing:
    """Return a drawing of one panel below the other: those items share one for which ``panel_of`` is the same."""
    grouped = grouped_by(items, panel_of)
    heights = [1.2 + 0.26 * len(panel) for panel in grouped.values()]

    def draw_all(figure: Figure) -> None:
        if not grouped:
            return
        spaced(figure)
        grid = figure.subplots(len(grouped), squeeze=False, height_ratios=heights)
        for axes, panel in zip(grid[:, 0], grouped.values(), strict=True):
            draw(axes, panel)

    return drawing(draw_all, name=name, label=label, height=sum(heights) or 1.0, rows=rows)


def spaced(figure: Figure) -> None:
    """Leave room between panels that lie one below the other."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(h_pad=0.12)  # type: ignore[call-arg]


def grouped_by(items: Sequence[T], key: Callable[[T], tuple[str, ...]]) -> dict[tuple[str, ...], list[T]]:
    """Return the items by key, in the order in which the keys come first."""
    found: dict[tuple[str, ...], list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def whisker(axes: Axes, place: int, values: tuple[float | None, ...], colour: str, *, filled: bool) -> None:
    """Draw a value with its interval on line ``place``, or the word where it is missing."""
    value, low, high = values
    if value is None:
        axes.text(0.5, place, "missing", va="center", ha="center", transform=axes.get_yaxis_transform(), alpha=0.6)
        return
    if low is not None and high is not None:
        axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
    marker, size = ("o", 7) if filled else ("|", 10)
    axes.plot(value, place, marker, color=colour, markersize=size, markeredgewidth=2)


def lines(axes: Axes, names: Sequence[str], title_: str) -> None:
    """Name the lines of a panel, the first on top, and give it a title."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title(title(title_))
    axes.grid(visible=True, axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def title(text: str) -> str:
    """Return a panel's title in lines that fit beside the names of its lines."""
    return _Wrapper(width=32).fill(short(text, longest=110))


class _Wrapper(textwrap.TextWrapper):
    """Parts names like ``weighted_alpaca_eval_gpt4_turbo`` behind an underscore."""

    wordsep_re = re.compile(r"(\s+|(?<=_)(?=\w))")


def short(text: str, *, longest: int = 24) -> str:
    """Return a name as a picture can hold it, shortened where it is long; the end that tells names apart stays."""
    # Control and direction marks have no place in a picture, and lone surrogates none in XML.
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    if len(text) <= longest:
        return text
    name, dot, digits = text.rpartition("·")
    end = dot + digits if name and len(digits) < longest // 2 else ""  # it tells models of one name apart
    return f"{text[: longest - 1 - len(end)]}…{end}"
