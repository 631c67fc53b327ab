"""One self-contained page: leaderboard, differences, answers side by side, the judge's audit, provenance.

What models and judges wrote is hostile text. It enters the page in two ways only: escaped by the template, or as
JSON that the page's script puts into text nodes. The page's own policy forbids every script and style but ours, by
hash, and everything from the network.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evals.records import Model
from reports.compare import Comparison, Statement, comparison, interval, number, p_text
from reports.figures import differences_figure, leaderboard_figure, training_figure
from results import queries
from results.queries import AnswerRow, CheckRow, JudgeOrderRow, JudgmentRow, LeaderboardRow, RunRow, TrainingRow
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
    answers, judgments = queries.answers_wide(ledger), queries.judgments_wide(ledger)
    models = _models(ledger)
    runs = queries.runs(ledger)
    sections = {
        "scores": _score_groups(compared.rows),
        "differences": _difference_groups(compared.statements),
        "compared": len(compared.statements),
        "shown": [each for each in compared.statements if each.verdict in ("better", "worse")],
        "unshown": [each for each in compared.statements if each.verdict not in ("better", "worse")],
        "has_answers": bool(answers),
        "data": _data(answers, judgments, queries.checks(ledger), models),
        "orders": [_order(row) for row in queries.judge_order(ledger)],
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
    environment.filters.update({"number": number, "interval": interval, "p_text": p_text})
    css, js = ((_HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    names = {
        "leaderboard": True,
        "differences": context["differences"],
        "answers": context["has_answers"],
        "judges": context["orders"],
        "training": context["curves"],
        "recipes": context["recipes"],
        "failures": context["failures"],
        "provenance": True,
    }
    listed = [(f"section-{name}", name.capitalize()) for name, there in names.items() if there]
    made = environment.get_template("page.html").render(
        **context, css=css, js=js, policy=_policy(css=css, js=js), sections=listed
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
    groups = []
    for place, ((benchmark, version, metric, judge, baseline), found) in enumerate(grouped.items()):
        against = f", against {baseline} (50 is even with it)" if baseline else ""
        drawn = any(row.value is not None for row in found)
        figure = leaderboard_figure(found, name=f"leaderboard-{place}") if drawn else ""
        title = f"{benchmark} {version} · {metric}"
        flagged = any(row.flags for row in found)
        how = f"{_judged(judge)}{against}."
        groups.append({"title": title, "how": how, "rows": found, "flagged": flagged, "figure": figure})
    return groups


def _difference_groups(statements: Sequence[Statement]) -> list[dict[str, Any]]:
    grouped: dict[tuple[str, ...], list[Statement]] = {}
    for each in statements:
        row = each.difference
        key = (row.benchmark, row.version, row.metric, row.judge_name, row.other_name, row.baseline_name or "")
        grouped.setdefault(key, []).append(each)
    groups = []
    for place, ((benchmark, version, metric, judge, other, baseline), found) in enumerate(grouped.items()):
        drawn = any(each.verdict != "missing" for each in found)
        figure = differences_figure(found, name=f"differences-{place}") if drawn else ""
        title = f"{benchmark} {version} · {metric}, minus {other}"
        both = f", both against {baseline}" if baseline not in ("", other) else ""
        groups.append({"title": title, "how": f"{_judged(judge)}{both}; in points.", "rows": found, "figure": figure})
    return groups


def _judged(judge: str) -> str:
    return "Scored by exact checks, without a judge" if judge == "check" else f"Judged by {judge}"


def _data(
    answers: Sequence[AnswerRow],
    judgments: Sequence[JudgmentRow],
    checks: Sequence[CheckRow],
    models: Sequence[Model],
) -> str:
    """Return what the answer browser shows, as JSON that no HTML parser can read as markup."""
    questions: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in answers:
        new = {"benchmark": row.benchmark, "version": row.version, "id": row.question, "category": row.category}
        rows: dict[str, Any] = {"turns": {}, "answers": [], "judgments": [], "checks": []}
        question = questions.setdefault((row.benchmark, row.version, row.question), {**new, **rows})
        turn = {"turn": row.turn, "prompt": row.prompt, "reference": row.reference, "check": row.check}
        question["turns"].setdefault(row.turn, turn)
        names = ("turn", "text", "finish_reason", "output_tokens", "seconds", "temperature", "seed")
        question["answers"].append({"model": row.model_name, **{name: getattr(row, name) for name in names}})
    for judged in judgments:
        if question_ := questions.get((judged.benchmark, judged.version, judged.question)):
            shown = {"model": judged.model_name, "judge": judged.judge_name, "baseline": judged.baseline_name}
            likely = [pair for pair in judged.top_logprobs if math.isfinite(pair[1])]  # JSON has no infinity
            values = {name: getattr(judged, name) for name in ("turn", "order", "value", "reply")}
            question_["judgments"].append({**shown, **values, "top_logprobs": likely})
    for check in checks:
        if question_ := questions.get((check.benchmark, check.version, check.question)):
            question_["checks"].append({"model": check.model_name, "turn": check.turn, "value": check.value})
    for question in questions.values():
        question["turns"] = [question["turns"][turn] for turn in sorted(question["turns"])]
    answering = {row.model_name for row in answers}
    order = dict.fromkeys([*(m.name for m in models if m.name in answering), *(row.model_name for row in answers)])
    found = {"models": list(order), "questions": list(questions.values())}
    text = json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _order(row: JudgeOrderRow) -> dict[str, Any]:
    first, consistent = f"{row.first_preferred:.0%}", f"{row.consistent:.0%}"
    benchmark = f"{row.benchmark} {row.version}"
    warning = ""
    if row.consistent < 0.5 or abs(row.first_preferred - 0.5) >= 0.2:
        warning = (
            f"{row.judge_name} mostly judges by place on {benchmark}: it kept its preference in {consistent} of the "
            f"pairs when the answers changed places, and preferred the answer shown first in {first} of its judgments "
            "(50% would be fair). Its win rates say little about quality."
        )
    shown = {"consistent": consistent, "first": first, "warning": warning}
    return {"judge": row.judge_name, "benchmark": benchmark, "pairs": row.pairs, **shown}


def _training(rows: Sequence[TrainingRow]) -> dict[str, Any]:
    curves = []
    for name in dict.fromkeys(row.model_name for row in rows):
        points = sorted((row for row in rows if row.model_name == name), key=lambda row: row.step)
        ends = {"first": points[0].loss, "last": points[-1].loss}
        curves.append({"model": name, "steps": points[-1].step, "tokens": points[-1].tokens, **ends})
    return {"curves": curves, "training_figure": training_figure(rows) if rows else ""}


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
