"""Results in a model card of the Hugging Face Hub: ``model-index`` metadata, and a section for people to read.

What else stands in the card stays: other metadata, other results, all text outside our own sections. A benchmark
written again replaces what we wrote of it before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.claims import Statement
from reports.compare import to_markdown
from reports.formats import markdown
from results.queries import LeaderboardRow

TASK = "text-generation"
_NAMES = {"mt_bench": "MT-Bench", "alpaca_eval": "AlpacaEval", "arena_hard": "Arena-Hard"}
_HEADING = "## Evaluation"


@dataclass(frozen=True, slots=True)
class Results:
    """What a card says of one model: its scores, and the sentences that its paired differences allow."""

    name: str
    rows: Sequence[LeaderboardRow]
    statements: Sequence[Statement]
    version: str  # of fuseval


class CardError(ValueError):
    """A card cannot be read; the message says what is wrong with it."""


def updated_card(card: str, results: Results) -> str:
    """Return the card with the results in it; of an empty ``card``, a new one.

    Raises CardError for a card whose metadata is not YAML, or whose ``model-index`` is not the Hub's.
    """
    import yaml
    from huggingface_hub import RepoCard

    given = card or f"---\nlibrary_name: transformers\n---\n# {markdown(results.name)}\n"
    if not re.match(r"\s*---\s*\n", given):
        given = f"---\n{{}}\n---\n{given}"
    try:
        made = RepoCard(given)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise CardError(f"its metadata cannot be read ({error}): mend the block between the lines '---'") from error
    made.data["model-index"] = _index(made.data.get("model-index"), results)
    made.text = _with_sections(made.text, results)
    return str(made) if str(made).endswith("\n") else f"{made}\n"


def _index(given: Any, results: Results) -> list[dict[str, Any]]:
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    made = [
        EvalResult(
            task_type=TASK,
            task_name="Text generation",
            dataset_type=row.benchmark,
            dataset_name=f"{_NAMES.get(row.benchmark, row.benchmark)} {row.version}",
            dataset_config=row.version,
            metric_type=row.metric,
            metric_name=_metric_name(row),
            metric_value=round(row.value, 4),
            metric_args=_arguments(row),
        )
        for row in results.rows
        if row.value is not None  # a missing score is no result
    ]
    new = eval_results_to_model_index(results.name, made)[0]["results"]
    index = [dict(entry) for entry in _checked(given)]
    if not index:
        return [{"name": results.name, "results": new}]
    mine = next((entry for entry in index if entry.get("name") == results.name), index[0])
    mine["results"] = [*_others(mine.get("results") or [], results.rows), *new]
    return index


def _checked(given: Any) -> list[Mapping[str, Any]]:
    entries = given or []
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("results") or [], list) for entry in entries
    ):
        raise CardError("its model-index is not a list of models with results: mend or remove it")
    return entries


def _others(results: Sequence[Any], rows: Sequence[LeaderboardRow]) -> list[Any]:
    """Return the results less those metrics that the rows have anew."""
    ours = {(row.benchmark, row.version, row.metric, row.judge_name, row.baseline_name) for row in rows}
    kept = []
    for result in results:
        if not isinstance(result, dict) or not isinstance(result.get("dataset"), dict):
            kept.append(result)
            continue
        place = (result["dataset"].get("type"), result["dataset"].get("config"))
        metrics = [m for m in result.get("metrics") or [] if not (isinstance(m, dict) and _key(place, m) in ours)]
        if metrics or not result.get("metrics"):
            kept.append({**result, "metrics": metrics} if result.get("metrics") else result)
    return kept


def _key(place: tuple[Any, ...], metric: Mapping[str, Any]) -> tuple[Any, ...]:
    told = metric.get("args") if isinstance(metric.get("args"), dict) else {}
    return (*place, metric.get("type"), (told or {}).get("judge"), (told or {}).get("baseline"))


def _metric_name(row: LeaderboardRow) -> str:
    against = f" against {row.baseline_name}" if row.baseline_name else ""
    judged = "" if row.judge_name == "check" else f", judged by {row.judge_name}"
    return f"{row.metric}{against}{judged}"


def _arguments(row: LeaderboardRow) -> dict[str, Any]:
    told = {
        "judge": row.judge_name,
        "baseline": row.baseline_name,
        "interval_95": None if row.low is None or row.high is None else [round(row.low, 4), round(row.high, 4)],
        "n": row.n,
        "missing": row.missing,
        "flags": list(row.flags) or None,
    }
    return {key: value for key, value in told.items() if value is not None}


def _with_sections(text: str, results: Results) -> str:
    """Put each benchmark's section where it stands already, else below the last of ours, else at the end."""
    for place in dict.fromkeys((row.benchmark, row.version) for row in results.rows):
        named = "-".join(re.sub(r"[^\w.]+", "-", part) for part in place)
        begin, end = f"<!-- fuseval: {named} -->", f"<!-- /fuseval: {named} -->"
        section = f"{begin}\n{_section(place, results)}\n{end}"
        if begin in text and end in text.split(begin, 1)[1]:
            before, rest = text.split(begin, 1)
            text = f"{before}{section}{rest.split(end, 1)[1]}"
        elif last := list(re.finditer(r"<!-- /fuseval: [^>]* -->", text)):
            text = f"{text[: last[-1].end()]}\n\n{section}{text[last[-1].end() :]}"
        else:
            text = f"{text.rstrip()}\n\n{_HEADING}\n\n{section}\n"
    return text


def _section(place: tuple[str, str], results: Results) -> str:
    rows = [row for row in results.rows if (row.benchmark, row.version) == place]
    said = [s for s in results.statements if (s.difference.benchmark, s.difference.version) == place]
    title = f"### {_NAMES.get(place[0], markdown(place[0]))} {markdown(place[1])}"
    how = (
        f"Scored with fuseval {results.version}. 95 % intervals are over questions; questions without an answer or a "
        "readable verdict are counted as missing, never scored."
    )
    sentences = "".join(f"- {markdown(s.sentence)}\n" for s in said)
    return "\n\n".join(part for part in (title, to_markdown(rows).rstrip(), sentences.rstrip(), how) if part)
