"""One self-contained page: leaderboard, differences, answers side by side, the judges' audit, costs, provenance.

What models and judges wrote is hostile text. It enters the page in two ways only: escaped by the template, or as
JSON that the page's script puts into text nodes. The page's own policy forbids every script and style but ours, by
hash, and everything from the network.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evals.records import Model
from reports.ablation import ablation
from reports.audit import judge_audit, visible
from reports.browser import browser_data
from reports.claims import Statement
from reports.compare import Comparison, comparison, without_flagged
from reports.costs import cost_groups, cost_parts, cost_total
from reports.figure_svg import svg
from reports.figures import differences_figure, leaderboard_figure, training_figure
from reports.marks import ATTACK, MARK, detectors, footnotes, marked_models
from reports.numbers import interval, number, p_text
from results import audit_queries, queries
from results.queries import AnswerRow, JudgmentRow, LeaderboardRow, RunRow, TrainingRow
from results.store import Ledger

_HERE = Path(__file__).parent
_KINDS = {kind: place for place, kind in enumerate(("checkpoint", "endpoint", "sft", "merge"))}  # the base first


def write_page(ledger: Ledger, path: Path, *, title: str, notes: Sequence[str] | None = None) -> None:
    """Write the page of :func:`page` to ``path``; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(ledger, title=title, notes=notes), encoding="utf-8", newline="\n")


def page(ledger: Ledger, *, title: str, notes: Sequence[str] | None = None) -> str:
    """Return the whole report as HTML.

    ``notes`` stand at its top, where nobody misses them; None means those of the last run's experiment.
    """
    compared = comparison(ledger)
    models = _models(ledger)
    controls = {model.name for model in models if model.kind == "control"}  # they answer nothing
    answers = [row for row in queries.answers_wide(ledger) if row.model_name not in controls]
    judgments, runs = queries.judgments_wide(ledger), queries.runs(ledger)
    answered = Counter((row.model_name, row.benchmark, row.version) for row in answers)
    audit, costs = judge_audit(ledger, compared.rows, answered=answered), audit_queries.costs(ledger)
    sections = {
        "scores": _score_groups(compared.rows),
        "differences": _difference_groups(compared.statements, marked_models(compared.rows)),
        "compared": len(compared.statements),
        "shown": [each for each in compared.statements if each.verdict in ("better", "worse")],
        "unshown": [each for each in compared.statements if each.verdict not in ("better", "worse")],
        "has_answers": bool(answers),
        "data": browser_data(
            answers,
            judgments,
            queries.checks(ledger),
            models=[model.name for model in models],
            flagged=audit["flagged"] + audit["stray"],
        ),
        **({"studies": []} | ablation(ledger)),
        **audit,
        "cost_total": cost_total(costs),
        "cost_groups": cost_groups(costs),
        "cost_parts": cost_parts(costs),
        **_training(queries.training(ledger)),
        "recipes": _recipes(models),
        "failures": _table(queries.failures(ledger), without=("key",)),
        "models": _table(models, without=("recipe", "parent")),
        "runs": _table(runs, without=("id", "experiment")),
        "experiment": runs[-1].experiment if runs else "",
        "facts": _facts(answers, judgments),
    }
    notes = _notes(runs) if notes is None else notes
    return _render(title=title, notes=notes, summary=_summary(compared, answers, models), **sections)


def _models(ledger: Ledger) -> list[Model]:
    """Return the models by kind and name, each with the name it is shown under."""
    names = queries.display_names(ledger)
    models = [dataclasses.replace(model, name=names[model.id]) for model in ledger.models()]
    return sorted(models, key=lambda model: _KINDS.get(model.kind, len(_KINDS)))  # stable: then by name


def _notes(runs: Sequence[RunRow]) -> list[str]:
    try:
        experiment = json.loads(runs[-1].experiment) if runs else {}
    except ValueError:
        return []
    notes = experiment.get("notes") if isinstance(experiment, dict) else None
    return [str(note) for note in notes] if isinstance(notes, list) else []


def _render(**context: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        {"number": number, "interval": interval, "p_text": p_text, "without": without_flagged, "visible": visible}
    )
    css, js = ((_HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    names = {
        "leaderboard": True,
        "differences": context["differences"],
        "ablation": context["studies"],
        "answers": context["has_answers"],
        "judges": any(context[name] for name in ("orders", "blocks", "matrices", "flagged", "stray", "served")),
        "costs": context["cost_groups"],
        "training": context["curves"],
        "recipes": context["recipes"],
        "failures": context["failures"],
        "provenance": True,
    }
    listed = [(f"section-{name}", name.capitalize()) for name, there in names.items() if there]
    made = environment.get_template("page.html").render(
        **context,
        css=css,
        js=js,
        policy=_policy(css=css, js=js),
        sections=listed,
        there=names,
        mark=MARK,
        attack=ATTACK,
    )
    return re.sub("[\ud800-\udfff]", "\ufffd", made) + "\n"


def _policy(*, css: str, js: str) -> str:
    def allowed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {allowed(js)}; style-src {allowed(css)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _summary(compared: Comparison, answers: Sequence[AnswerRow], models: Sequence[Model]) -> str:
    names = dict.fromkeys([row.model_name for row in answers] or [row.name for row in compared.rows])
    asked: dict[str, set[str]] = {}
    for row in answers:
        asked.setdefault(f"{row.benchmark} {row.version}", set()).add(row.question)
    judges = dict.fromkeys(row.judge_name for row in compared.rows if row.judge_name != "check")
    baselines = dict.fromkeys(row.baseline_name for row in compared.rows if row.baseline_name)
    known = [model.name for model in models if model.name in names]
    parts = [f"{_count(len(names), 'model')} ({', '.join(dict.fromkeys([*known, *names]))})"]
    if asked:
        parts.append("on " + ", ".join(f"{name} ({_count(len(found), 'question')})" for name, found in asked.items()))
    if judges:
        parts.append(f"judged by {', '.join(judges)}")
    if baselines:
        parts.append(f"against the answers of {', '.join(baselines)}")
    return ", ".join(parts).replace(", on ", " on ", 1) + "."


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _score_groups(rows: Sequence[LeaderboardRow]) -> list[dict[str, Any]]:
    grouped: dict[tuple[str, str, str, str, str], list[LeaderboardRow]] = {}
    for row in rows:
        key = (row.benchmark, row.version, row.metric, row.judge_name, row.baseline_name or "")
        grouped.setdefault(key, []).append(row)
    groups, marked = [], marked_models(rows)
    for place, ((benchmark, version, metric, judge, baseline), found) in enumerate(grouped.items()):
        against = f", against {baseline} (50 is even with it)" if baseline else ""
        drawn = any(row.value is not None for row in found)
        names = marked[benchmark, version] & {row.name for row in found}
        of_names = [r for r in rows if r.name in names and (r.benchmark, r.version) == (benchmark, version)]
        groups.append(
            {
                "title": f"{benchmark} {version} · {metric}",
                "how": f"{_judged(judge)}{against}.",
                "rows": found,
                "flagged": any(len(row.flags) > len(detectors(row.flags)) for row in found),
                "unflagged": any(row.unflagged_n is not None for row in found),
                "marked": names,
                "footnotes": footnotes(of_names),
                "figure": svg(leaderboard_figure(found, name=f"leaderboard-{place}", marked=names)) if drawn else "",
            }
        )
    return groups


def _difference_groups(
    statements: Sequence[Statement], marked: Mapping[tuple[str, str], Collection[str]]
) -> list[dict[str, Any]]:
    grouped: dict[tuple[str, ...], list[Statement]] = {}
    for each in statements:
        row = each.difference
        key = (row.benchmark, row.version, row.metric, row.judge_name, row.other_name, row.baseline_name or "")
        grouped.setdefault(key, []).append(each)
    groups = []
    for place, ((benchmark, version, metric, judge, other, baseline), found) in enumerate(grouped.items()):
        drawn = any(each.verdict != "missing" for each in found)
        figure = svg(differences_figure(found, name=f"differences-{place}")) if drawn else ""
        title = f"{benchmark} {version} · {metric}, minus {other}"
        both = f", both against {baseline}" if baseline not in ("", other) else ""
        shown = {"rows": found, "figure": figure, "marked": marked.get((benchmark, version), ())}
        groups.append({"title": title, "how": f"{_judged(judge)}{both}; in points.", **shown})
    return groups


def _judged(judge: str) -> str:
    return "Scored by exact checks, without a judge" if judge == "check" else f"Judged by {judge}"


def _training(rows: Sequence[TrainingRow]) -> dict[str, Any]:
    curves = []
    for name in dict.fromkeys(row.model_name for row in rows):
        points = sorted((row for row in rows if row.model_name == name), key=lambda row: row.step)
        ends = {"first": points[0].loss, "last": points[-1].loss}
        curves.append({"model": name, "steps": points[-1].step, "tokens": points[-1].tokens, **ends})
    return {"curves": curves, "training_figure": svg(training_figure(rows)) if rows else ""}


def _recipes(models: Sequence[Model]) -> list[dict[str, Any]]:
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
        facts |= {key: _text(value, names) for key, value in recipe.items() if value is None or said.get(key) != value}
        made.append({"name": model.name, "kind": model.kind, "facts": list(facts.items())})
    return made


def _text(value: object, names: Mapping[str, str] | None = None) -> str:
    """Write a value of JSON for people; a model's identity becomes its name."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(each, names)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_text(each, names) for each in value) or "none"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else (names or {}).get(str(value), str(value))


def _table(rows: Sequence[Any], *, without: Sequence[str] = ()) -> dict[str, Any]:
    if not rows:
        return {}
    columns = [field.name for field in dataclasses.fields(rows[0]) if field.name not in without]
    cells = [["" if (value := getattr(row, name)) is None else _text(value) for name in columns] for row in rows]
    return {"columns": [name.removesuffix("_name").replace("_", " ") for name in columns], "rows": cells}


def _facts(answers: Sequence[AnswerRow], judgments: Sequence[JudgmentRow]) -> list[tuple[str, str]]:
    facts = {
        "Benchmarks": ", ".join(dict.fromkeys(f"{row.benchmark} {row.version}" for row in answers)),
        "Answers": f"{len(answers):,}, of {sum(row.output_tokens for row in answers):,} tokens",
        "Judgments": f"{len(judgments):,}, of which {sum(row.value is None for row in judgments):,} without a verdict",
        "Temperature of answers": ", ".join(f"{value:g}" for value in sorted({row.temperature for row in answers})),
        "Seeds of answers": _range({row.seed for row in answers}),
    }
    return [(name, value) for name, value in facts.items() if value]


def _range(seeds: set[int]) -> str:
    if len(seeds) <= 3:
        return ", ".join(str(seed) for seed in sorted(seeds))
    return f"{len(seeds)} different ones, from {min(seeds)} to {max(seeds)}; each stands beside its answer"
