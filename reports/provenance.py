"""Where a report's figures come from: models, versions, hashes, seeds, prompts, dates, and how to make them again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from evals.assets import asset_table
from evals.records import Model
from results.detail_queries import ProvenanceRow, RequestRow
from results.queries import AnswerRow, JudgmentRow, RunRow

_LONGEST = 6000  # characters of one message of a judge's request
_DIGESTS = {"judgments": "Digest of the judgments", "verdicts": "Digest of the verdicts"}


def provenance(
    answers: Sequence[AnswerRow],
    judgments: Sequence[JudgmentRow],
    *,
    models: Sequence[Model],
    runs: Sequence[RunRow],
    scored: Sequence[ProvenanceRow],
    requests: Sequence[RequestRow],
) -> dict[str, Any]:
    """Return what the page's section on provenance shows."""
    return {
        "facts": _facts(answers, judgments, runs, published={m.name for m in models if m.kind == "published"}),
        "models": table(models, without=("recipe", "parent")),
        "runs": table(runs, without=("id", "experiment")),
        "scored": [(f"{row.benchmark} {row.version}", _scored(row)) for row in scored],
        "requests": [(_request(row), [(r, _cut(text)) for r, text in row.messages]) for row in requests],
        "experiment": _experiment(runs),
        "commands": commands(models, runs),
    }


def commands(models: Sequence[Model], runs: Sequence[RunRow]) -> list[str]:
    """Return the commands that make these figures again, as lines for a shell."""
    version = next((run.versions["fuseval"] for run in reversed(runs) if "fuseval" in run.versions), "")
    lines = [f"pip install fuseval=={version}  # or: git clone, make venv"] if version else []
    if any(run.command.removeprefix("fuseval ") == "import" for run in runs) or any(
        m.kind == "published" for m in models
    ):
        lines.append(
            "fuseval import {alpaca_eval|fastchat|arena_hard} FILES --ledger fuseval.duckdb  # published files"
        )
    if _experiment(runs):
        what = "ablate" if [run.command for run in runs if run.experiment not in ("", "{}")][-1] == "ablate" else "run"
        lines.append(
            f"fuseval {what} experiment.yaml --ledger fuseval.duckdb  # the experiment below, saved under this name"
        )
    if lines:
        lines.append("fuseval score --ledger fuseval.duckdb")
        lines.append("fuseval report --ledger fuseval.duckdb -o report.html")
    return lines


def table(rows: Sequence[Any], *, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fields of equal records as ``columns`` and ``rows`` of text."""
    if not rows:
        return {}
    columns = [field.name for field in dataclasses.fields(rows[0]) if field.name not in without]
    cells = [["" if (value := getattr(row, name)) is None else plain(value) for name in columns] for row in rows]
    return {"columns": [name.removesuffix("_name").replace("_", " ") for name in columns], "rows": cells}


def plain(value: object, names: Mapping[str, str] | None = None) -> str:
    """Write a value of JSON for people; a model's identity becomes its name."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(each, names)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(plain(each, names) for each in value) or "none"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else (names or {}).get(str(value), str(value))


def _experiment(runs: Sequence[RunRow]) -> str:
    """Return the last run's experiment as indented JSON, which is YAML too; imports have none."""
    text = next((run.experiment for run in reversed(runs) if run.experiment not in ("", "{}")), "")
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, indent=2) if text else ""
    except ValueError:
        return text


def _scored(row: ProvenanceRow) -> list[tuple[str, str]]:
    said = row.provenance
    facts = [("Scored", plain(row.scored_at))]
    if tools := said.get("scored_with"):
        facts.append(("With", plain(tools)))
    if samplings := said.get("sampling"):
        facts += [("Answers sampled with", plain(each)) for each in samplings]
    facts += [(name, str(said[key])) for key, name in _DIGESTS.items() if said.get(key)]
    assets = [asset for asset in asset_table() if asset.name.startswith(f"{row.benchmark}/")]
    facts += [(asset.name, f"sha256 {asset.sha256}") for asset in assets if asset.sha256]
    return facts


def _request(row: RequestRow) -> str:
    order = {
        "single": "",
        "model_first": ", the model's answer first",
        "baseline_first": ", the baseline's answer first",
    }
    sampling = row.sampling
    drawn = ", ".join(
        f"{name} {plain(sampling[name])}" for name in ("temperature", "max_tokens", "seed") if name in sampling
    )
    asked = f"{row.judge_name} on {row.benchmark} {row.version}, question {row.question}{order.get(row.order, '')}"
    return f"{asked} (read as {row.reply}; {drawn})"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text):,} characters)"


def _facts(
    answers: Sequence[AnswerRow],
    judgments: Sequence[JudgmentRow],
    runs: Sequence[RunRow],
    *,
    published: Collection[str],
) -> list[tuple[str, str]]:
    """Return what is known of all answers and judgments; how others drew theirs (``published``) nobody told us."""
    times = [run.started for run in runs] + [run.ended for run in runs if run.ended]
    drawn = [row for row in answers if row.model_name not in published]
    imported = len(answers) - len(drawn)
    facts = {
        "Benchmarks": ", ".join(dict.fromkeys(f"{row.benchmark} {row.version}" for row in answers)),
        "Answers": f"{len(drawn):,}, of {sum(row.output_tokens for row in drawn):,} tokens" if drawn else "",
        "Imported answers": f"{imported:,}, drawn by others in ways not known here" if imported else "",
        "Judgments": f"{len(judgments):,}, of which {sum(row.value is None for row in judgments):,} without a verdict",
        "Temperature of answers": ", ".join(
            f"{value:g}" for value in sorted({row.temperature for row in drawn if row.temperature is not None})
        ),
        "Seeds of answers": _range({row.seed for row in drawn}),
        "Runs": f"{plain(min(times))} to {plain(max(times))}" if times else "",
    }
    return [(name, value) for name, value in facts.items() if value]


def _range(seeds: set[int]) -> str:
    if len(seeds) <= 3:
        return ", ".join(str(seed) for seed in sorted(seeds))
    return f"{len(seeds)} different ones, from {min(seeds)} to {max(seeds)}; each stands beside its answer"
