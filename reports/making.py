"""How the report's models were made: their trainings and recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from evals.records import Model
from reports.figure_svg import svg
from reports.figures import training_figure
from reports.provenance import plain
from results.queries import TrainingRow


def trainings(rows: Sequence[TrainingRow]) -> dict[str, Any]:
    """Return every training's ends, and the figure of their losses."""
    curves = []
    for name in dict.fromkeys(row.model_name for row in rows):
        points = sorted((row for row in rows if row.model_name == name), key=lambda row: row.step)
        ends = {"first": points[0].loss, "last": points[-1].loss}
        curves.append({"model": name, "steps": points[-1].step, "tokens": points[-1].tokens, **ends})
    return {"curves": curves, "training_figure": svg(training_figure(rows)) if rows else ""}


def recipes(models: Sequence[Model]) -> list[dict[str, Any]]:
    """Return what each model with a recipe was made of, identities as names."""
    names = {model.id: model.name for model in models}
    made = []
    for model in models:
        if not model.recipe:
            continue
        try:
            recipe = json.loads(model.recipe)
        except ValueError:
            recipe = {"recipe": model.recipe}
        recipe = recipe if isinstance(recipe, dict) else {"recipe": recipe}
        facts = {"made from": names.get(model.parent, model.parent)} if model.parent else {}
        said = {"kind": model.kind, "base": model.parent}
        facts |= {key: plain(value, names) for key, value in recipe.items() if value is None or said.get(key) != value}
        made.append({"name": model.name, "kind": model.kind, "facts": list(facts.items())})
    return made
