"""Tables as text: CSV that no spreadsheet runs, Markdown that no cell breaks, LaTeX for booktabs, JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Mapping, Sequence

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "†": r"$^{\dagger}$",
}


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> str:
    """Return the rows as CSV with a header; None is an empty cell, a list's parts are parted by spaces.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(row[name]) for name in columns})
    return text.getvalue()


def json_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Return the rows as a JSON list of objects."""
    return json.dumps(list(rows), ensure_ascii=False, indent=2) + "\n"


def markdown_table(
    header: Sequence[str], lines: Sequence[Sequence[str]], *, numeric: Collection[str] = (), notes: Sequence[str] = ()
) -> str:
    """Return a Markdown table (GitHub's kind); ``numeric`` columns are set to the right, ``notes`` follow below."""
    rule = ["---:" if name in numeric else "---" for name in header]
    escaped = [[markdown(cell) for cell in line] for line in (header, *lines)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in (escaped[0], rule, *escaped[1:]))
    return table + "".join(f"\n{markdown(note)}\n" for note in notes)


def latex_table(
    header: Sequence[str], lines: Sequence[Sequence[str]], *, numeric: Collection[str] = (), notes: Sequence[str] = ()
) -> str:
    """Return a LaTeX ``tabular`` with ``notes`` below; the document needs the package booktabs."""
    columns = "".join("r" if name in numeric else "l" for name in header)
    body = "".join(" & ".join(latex(cell) for cell in line) + " \\\\\n" for line in lines)
    rules = f"\\toprule\n{' & '.join(latex(name) for name in header)} \\\\\n\\midrule\n{body}\\bottomrule"
    below = "".join(f"\n\\par\\smallskip{{\\footnotesize {latex(note)}}}\n" for note in notes)
    return f"\\begin{{tabular}}{{{columns}}}\n{rules}\n\\end{{tabular}}\n{below}"


def markdown(text: str) -> str:
    """Return the text so that Markdown shows it as it is, on one line."""
    return re.sub(r"([\\`*<>\[\]|~&]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def latex(text: str) -> str:
    """Return the text so that LaTeX shows it as it is."""
    # A row that opens with "[" would be read as the optional argument of the "\\" before it.
    escaped = "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
    return f"{{}}{escaped}" if escaped.startswith("[") else escaped


def _cell(value: object) -> object:
    if isinstance(value, list | tuple):
        value = " ".join(str(each) for each in value)
    if not isinstance(value, str):
        return value
    plain = value.replace("\r", " ")  # which csv leaves as it is, and which ends a row
    return f"'{plain}" if plain.startswith(("=", "+", "-", "@", "\t")) else plain
