"""A study's merges as checkpoints: the best, promoted with what it scored, or those that the file keeps."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fuseval.ablate import winner_gain
from fuseval.config import ConfigError
from fuseval.models import Candidate, make
from fuseval.trials import Ablation
from fuseval.turns import FINISHED
from results.study_queries import trials_wide

SCORES = "scores.json"


def promoted(ablation: Ablation, folder: Path) -> str:
    """Write the study's best recipe into ``folder``, and say where it is; raises ConfigError where there is none."""
    best = ablation.best
    if best is None:
        raise ConfigError(
            f"{ablation.plan.record.name} has no single winner (no finished trial that keeps all constraints, or "
            "several objectives): nothing to write"
        )
    _write(ablation, best.number, ablation.candidate(best), folder.absolute())
    return f"checkpoint: {folder}"


def kept(ablation: Ablation) -> list[str]:
    """Write the merges that the file wants kept, where their folders are not there yet, and say where they are."""
    keep, best = ablation.plan.file.ablation.keep, ablation.best
    if keep == "none" or (keep == "best" and best is None):
        return []
    wanted = [best] if keep == "best" and best else [trial for trial in ablation.trials if trial.state == FINISHED]
    said = []
    for trial in wanted:
        candidate = ablation.candidate(trial)
        assert candidate.folder is not None
        if not candidate.folder.exists():
            _write(ablation, trial.number, candidate, candidate.folder)
        said.append(f"checkpoint: {candidate.folder}")
    return list(dict.fromkeys(said))


def _write(ablation: Ablation, number: int, candidate: Candidate, folder: Path) -> None:
    """Write one merge with its recipe, coefficients and model card, and what it scored."""
    written = replace(candidate, stream=None, folder=folder)
    run = ablation.run
    make(written, run.models, watch=run.watch, cluster=run.experiment.engine.cluster)
    scores = _scores(ablation, number)
    (folder / SCORES).write_text(json.dumps(scores, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write("\n".join(_section(scores)))


def _scores(ablation: Ablation, number: int) -> dict[str, Any]:
    [row] = [row for row in trials_wide(ablation.run.ledger, study=ablation.plan.record.id) if row.number == number]
    best, found = ablation.best, winner_gain(ablation)
    told = {
        "study": row.study_name,
        "trial": row.number,
        "params": dict(row.params),
        "questions": row.questions,
        "values": list(row.amounts),
        "lows": list(row.lows),
        "highs": list(row.highs),
        "parts": [dict(part) for part in row.parts],
    }
    if found and best and best.number == number:
        told["gain"] = asdict(found)
    return told


def _section(scores: dict[str, Any]) -> list[str]:
    lines = ["", "## Scores", "", f"Trial {scores['trial']} of the study {scores['study']}.", ""]
    lines += ["| score | value | 95 % interval | questions | missing |", "|---|---|---|---|---|"]
    for part in scores["parts"]:
        if part["kind"] == "score":
            lines.append(_line(part["name"], part))
    if "gain" in scores:
        for title, key in (("questions that chose it", "seen"), ("questions held out", "unseen")):
            gap = scores["gain"][key]
            if gap["value"] is not None:
                lines.append(_line(f"over the base, {title}", gap))
    return [*lines, ""]


def _line(name: str, of: dict[str, Any]) -> str:
    return f"| {name} | {_number(of['value'])} | {_interval(of)} | {of['n']} | {of['missing']} |"


def _interval(of: dict[str, Any]) -> str:
    return "" if of["low"] is None else f"{of['low']:.2f} to {of['high']:.2f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
