"""Studies of which sources to merge, made from another study's best recipe: leave each one out, or add one more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from fuseval.ablation_file import AblationFile
from fuseval.config import ConfigError, did_you_mean
from fuseval.space import SOURCES, ParameterSpec
from fuseval.trials import Ablation
from fuseval.variant import Variant, per_source, variant


def leave_one_out(study: Ablation) -> AblationFile:
    """Return the study of a recipe's sources all together, and without each of them."""
    made = _recipe(study)
    if len(made.sources) < 2:
        raise ConfigError(f"{made.sources[0]!r} is the only source of the recipe: nothing is left without it")
    every = {f"{SOURCES}.{name}": True for name in made.sources}
    points = [every, *({**every, f"{SOURCES}.{name}": False} for name in made.sources)]
    return _study(study.plan.file, made, points, what="leave-one-out")


def add_source(study: Ablation, name: str) -> AblationFile:
    """Return the study of a recipe without and with one more source; what is set per source is the others' mean."""
    made, known = _recipe(study), study.run.models
    if name not in known or known[name].folder is None:
        there = [each for each, candidate in known.items() if candidate.folder is not None]
        more = did_you_mean(name, there)
        raise ConfigError(f"no model with weights is called {name!r} here; there are {', '.join(there)}.{more}")
    if name in made.sources or name == study.plan.file.merged_onto:
        raise ConfigError(f"{name!r} is in the recipe already: name another model of the file")
    params = {
        key: _with_one_more(setting, len(made.sources)) if per_source(key, made.method) else setting
        for key, setting in made.params.items()
    }
    points = [{f"{SOURCES}.{name}": False}, {f"{SOURCES}.{name}": True}]
    made = Variant(made.method, params, (*made.sources, name))
    return _study(study.plan.file, made, points, what=f"add-{name}")


def _recipe(study: Ablation) -> Variant:
    """Return the study's best recipe; where it has no space, the one that it is of."""
    if best := study.best:
        return variant(study.plan.space, json.loads(best.params))
    if study.plan.space.parameters:
        raise ConfigError(f"{study.plan.record.name} has no finished trial, whose recipe could be taken: run it first")
    return variant(study.plan.space, {})


def _with_one_more(setting: Any, sources: int) -> Any:
    if isinstance(setting, Mapping):
        return {glob: _with_one_more(inner, sources) for glob, inner in setting.items()}
    if not (isinstance(setting, list | tuple) and len(setting) == sources):
        return setting
    numbers = [value for value in setting if isinstance(value, int | float) and not isinstance(value, bool)]
    return [*setting, fmean(numbers) if len(numbers) == sources else setting[-1]]


def _study(file: AblationFile, made: Variant, points: list[dict[str, Any]], *, what: str) -> AblationFile:
    """Return the file with these points of the recipe's sources in place of its search."""
    switches = {name: ParameterSpec(values=[True, False]) for name in points[-1]}
    given = file.ablation.model_copy(
        update={
            "name": f"{file.title}-{what}", "method": made.method, "params": dict(made.params),
            "sources": list(made.sources),
            "space": switches, "points": points, "racing": None, "keep": "none",
        }
    )  # fmt: skip
    return file.model_copy(update={"ablation": given})
