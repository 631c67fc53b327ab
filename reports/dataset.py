"""A ledger's leaderboard as a data set that the Hugging Face Hub shows: one file a table, and a card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reports import compare, differences
from reports.formats import markdown
from reports.marks import footnotes
from results import queries
from results.store import Ledger

LEADERBOARD, DIFFERENCES, ANSWERS = "leaderboard", "differences", "answers"


def write_dataset(ledger: Ledger, folder: Path, *, title: str, version: str, answers: bool = False) -> list[Path]:
    """Write README.md and a file of JSON lines a table into ``folder``, and return the paths.

    ``version`` is fuseval's. ``answers`` adds what the models said, by the questions' ids; the questions themselves
    belong to their benchmarks and are not in it.
    """
    compared = compare.comparison(ledger)
    tables: dict[str, list[dict[str, Any]]] = {
        LEADERBOARD: json.loads(compare.to_json(compared.rows)),
        DIFFERENCES: json.loads(differences.to_json(compared.statements)),
    }
    if answers:
        tables[ANSWERS] = list(_answers(ledger))
    folder.mkdir(parents=True, exist_ok=True)
    for name in (LEADERBOARD, DIFFERENCES, ANSWERS):  # none is left from another time
        (folder / f"{name}.jsonl").unlink(missing_ok=True)
    paths = []
    for name, rows in tables.items():
        if rows:
            paths.append(folder / f"{name}.jsonl")
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            paths[-1].write_text(lines.encode("utf-8", "replace").decode(), encoding="utf-8", newline="\n")
    card = folder / "README.md"
    card.write_text(_card(compared, title, version, [path.stem for path in paths]), encoding="utf-8", newline="\n")
    return [card, *paths]


def _answers(ledger: Ledger) -> Iterator[dict[str, Any]]:
    controls = {model.name for model in ledger.models() if model.kind == "control"}
    for row in queries.answers_wide(ledger):
        if row.model_name not in controls:
            yield {
                "model": row.model_name,
                "benchmark": row.benchmark,
                "version": row.version,
                "question": row.question,
                "category": row.category,
                "turn": row.turn,
                "text": row.text,
                "finish_reason": row.finish_reason,
            }


def _card(compared: compare.Comparison, title: str, version: str, tables: Sequence[str]) -> str:
    import yaml

    configs = [
        {"config_name": name, "data_files": f"{name}.jsonl", **({"default": True} if name == LEADERBOARD else {})}
        for name in tables
    ]
    told = {"pretty_name": title, "tags": ["leaderboard", "fuseval"], "configs": configs}
    sentences = [f"- {markdown(s.sentence)}" for s in compared.statements if s.verdict in ("better", "worse")]
    shown = ["## What the paired differences show", "\n".join(sentences)] if sentences else []
    undecided = sum(s.verdict not in ("better", "worse") for s in compared.statements)
    notes = [f"Comparisons that show no difference: {undecided:,}; `{DIFFERENCES}.jsonl` has them all."]
    parts = [
        f"---\n{yaml.safe_dump(told, allow_unicode=True, sort_keys=False)}---\n# {markdown(title)}",
        f"Scores made with fuseval {version}: 95 % intervals are over questions, p-values are corrected after Holm, "
        "and what is missing is counted beside each score.",
        *shown,
        *(notes if undecided else []),
        *[markdown(note) for note in footnotes(compared.rows)],
    ]
    return "\n\n".join(parts) + "\n"
