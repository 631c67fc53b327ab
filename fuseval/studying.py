"""What `fuseval ablate` does: a study, or what its ledger says of what to try next, or its winner as a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from fuseval.ablate import ablate, known
from fuseval.ablation_file import AblationFile
from fuseval.config import ConfigError
from fuseval.findings import rows, sentences, table
from fuseval.metering import CapReached
from fuseval.pipeline import Run
from fuseval.promotion import kept, promoted
from fuseval.searching import SearchError, all_points
from fuseval.source_studies import add_source, leave_one_out
from fuseval.study import count, plan_study
from fuseval.suggesting import suggest
from fuseval.trials import HOLDOUT, Ablation


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for beside the file."""

    suggest: int | None = None
    promote: Path | None = None
    keep: str | None = None
    leave_one_out: bool = False
    add: str | None = None
    dry_run: bool = False

    @property
    def only_looks(self) -> bool:
        """Nothing is asked or stored."""
        return self.dry_run or self.suggest is not None


@dataclass(frozen=True, slots=True)
class Told:
    """What there is to show; ``stopped`` says at which cap the study stopped, if it did."""

    title: str
    rows: Sequence[dict[str, Any]]
    table: Sequence[dict[str, Any]]
    sentences: Sequence[str] = ()
    stopped: str = ""
    coverage: float = 1.0


def study(run: Run, wanted: Wanted) -> Told:
    """Do what is wanted of the study that the run's file describes; raises ConfigError, FusionError, ChatError."""
    file = _file(run, wanted)
    ablation = Ablation(plan_study(file, run))
    if wanted.leave_one_out or wanted.add is not None:
        other = leave_one_out(ablation) if wanted.add is None else add_source(ablation, wanted.add)
        ablation = Ablation(plan_study(other, run))
    if wanted.suggest is not None:
        return _suggested(ablation, wanted.suggest)
    if wanted.dry_run:
        still = _still(ablation)
        return Told("Still to do", still, still)
    stopped = ""
    try:
        ablate(ablation.plan)
    except CapReached as error:
        stopped = str(error)
    said = list(sentences(ablation))
    said += kept(ablation)
    if wanted.promote is not None:
        said.append(promoted(ablation, wanted.promote))
    title = f"Trials of {ablation.plan.record.name}"
    return Told(title, rows(ablation), table(ablation), said, stopped, coverage(ablation))


def coverage(ablation: Ablation) -> float:
    """Return the share of values that are there, of those that the scores of the study's models should have.

    Its trials count, the models that they are held against, and whoever answered the questions held out.
    """
    last = [*ablation.outcomes().values(), *ablation.outcomes(HOLDOUT).values()]
    parts = [part for o in last for part in json.loads(o.parts) if part["kind"] == "score"]
    there, missing = sum(part["n"] for part in parts), sum(part["missing"] for part in parts)
    return there / (there + missing) if there + missing else 1.0


def _file(run: Run, wanted: Wanted) -> AblationFile:
    file = cast("AblationFile", run.experiment)
    if wanted.leave_one_out and wanted.add is not None:
        raise ConfigError("--leave-one-out and --add are two studies: give one")
    if wanted.promote is not None and wanted.only_looks:
        raise ConfigError("--promote writes a checkpoint, and --suggest and --dry-run only look: give one")
    if wanted.promote is not None and wanted.promote.exists():
        raise ConfigError(f"{wanted.promote} is there already: name a new folder with --promote, or remove it")
    if wanted.keep is None:
        return file
    if wanted.keep not in ("best", "all", "none"):
        raise ConfigError(f"--keep is best, all or none, not {wanted.keep!r}")
    return file.model_copy(update={"ablation": file.ablation.model_copy(update={"keep": wanted.keep})})


def _still(ablation: Ablation) -> list[dict[str, Any]]:
    """Return what is still to be made and asked of a study, a row a kind."""
    plan, trials = ablation.plan, ablation.trials
    run = replace(plan.run, given=plan.search)
    waiting = [c.name for c in run.candidates if not run.is_answered(c)]
    done = sum(trial.state != "running" for trial in trials)
    is_grid = plan.file.ablation.points is None and plan.file.ablation.search.kind == "grid"
    most = sum(1 for _ in all_points(plan.space)) if is_grid else plan.most_trials
    left = max(0, min(filter(None, (most, plan.most_trials)), default=0) - done)
    held = count(plan.holdout)
    first = f"from {count(plan.rungs[0])} to {count(plan.search)}" if len(plan.rungs) > 1 else count(plan.search)
    return [
        {"what": "models to compare with", "number": len(waiting), "questions each": count(plan.search)},
        {"what": "trials", "number": left, "questions each": first},
        {"what": "base and winner, held out", "number": 2 if held else 0, "questions each": held},
    ]


def _suggested(ablation: Ablation, number: int) -> Told:
    """Return the recipes to try next, with what they are predicted to be worth by the first objective."""
    name = ablation.plan.record.name
    try:
        tried = [json.loads(trial.params) for trial in ablation.trials]
        found = suggest(ablation.plan.space, known(ablation), number, tried=tried, seed=ablation.plan.record.seed)
    except SearchError as error:
        raise ConfigError(f"{name}: {error}") from None
    told = [
        {**one.point, "predicted": one.value, "low": one.low, "high": one.high, "chance to be best": one.chance}
        for one in found
    ]
    shown = [{key: f"{v:.4g}" if isinstance(v, float) else str(v) for key, v in row.items()} for row in told]
    said = () if told else (f"Every point of {name} was tried.",)
    return Told(f"What to try next in {name}", told, shown, said)
