"""The paired differences, with what each allows one to say, as plain tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from reports.claims import Statement
from reports.formats import csv_text, json_text, latex_table, markdown_table
from reports.marks import MARK, marked_name
from reports.numbers import LOWER, interval, number, p_text

COLUMNS = ("model", "other", "benchmark", "version", "judge", "baseline", "metric", "value", "low", "high", "p",
           "p_holm", "n", "missing", "detectable", "verdict", "sentence")  # fmt: skip
_HEADER = ("model", "minus", "benchmark", "judge", "metric", "difference", "95 % interval", "p", "Holm", "n",
           "missing", "shown")  # fmt: skip
_NUMERIC = frozenset({"difference", "95 % interval", "p", "Holm", "n", "missing"})
_SHOWN = {"better": "better", "worse": "worse", "none": "no difference shown", "missing": "missing"}


def to_json(statements: Sequence[Statement]) -> str:
    """Return the differences as a JSON list of objects; a missing value is null."""
    return json_text([_plain(each) for each in statements])


def to_csv(statements: Sequence[Statement]) -> str:
    """Return the differences as CSV with a header; a missing value is an empty cell."""
    return csv_text(COLUMNS, [_plain(each) for each in statements])


def to_markdown(statements: Sequence[Statement], *, marked: Collection[str] = ()) -> str:
    """Return the differences as a Markdown table (GitHub's kind); models that are ``marked`` bear the mark."""
    return markdown_table(_HEADER, _lines(statements, marked), numeric=_NUMERIC, notes=_notes(marked))


def to_latex(statements: Sequence[Statement], *, marked: Collection[str] = ()) -> str:
    """Return the differences as a LaTeX ``tabular``; the document needs the package booktabs."""
    return latex_table(_HEADER, _lines(statements, marked), numeric=_NUMERIC, notes=_notes(marked))


def _plain(each: Statement) -> dict[str, object]:
    row = each.difference
    named = {
        "model": row.name,
        "other": row.other_name,
        "judge": row.judge_name,
        "baseline": row.baseline_name,
        "verdict": each.verdict,
        "sentence": each.sentence,
    }
    return {name: named[name] if name in named else getattr(row, name) for name in COLUMNS}


def _lines(statements: Sequence[Statement], marked: Collection[str]) -> list[list[str]]:
    return [
        [
            marked_name(row.name, marked),
            marked_name(row.other_name, marked),
            f"{row.benchmark} {row.version}",
            row.judge_name,
            row.metric
            + (f" against {row.baseline_name}" if row.baseline_name else "")
            + (f" ({LOWER})" if row.lower_is_better else ""),
            number(row.value, row.metric, sign=True),
            interval(row.low, row.high, row.metric),
            p_text(row.p).removeprefix("p ").removeprefix("= "),
            "" if row.p_holm is None else p_text(row.p_holm).removeprefix("p ").removeprefix("= "),
            str(row.n),
            str(row.missing),
            _SHOWN[each.verdict],
        ]
        for each in statements
        for row in [each.difference]
    ]


def _notes(marked: Collection[str]) -> list[str]:
    return [f"{MARK} answers look like attacks on the judge."] if marked else []
