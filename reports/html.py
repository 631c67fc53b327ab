"""One self-contained page: leaderboard, differences, answers side by side, the judges' audit, costs, provenance.

What models and judges wrote is hostile text. It enters the page in two ways only: escaped by the template, or packed
in base64, which the page's script puts into text nodes or, as Markdown, through DOMPurify. The page's own policy
forbids every script and style but ours, by hash, markup from strings past DOMPurify, and everything from the network.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evals.records import LOWER_IS_BETTER, Model
from reports.ablation import ablation
from reports.audit import judge_audit, visible
from reports.browser import INLINE, Material, Packed, pack
from reports.compare import Comparison, among, comparison, without_flagged
from reports.costs import cost_groups, cost_parts, cost_total, model_costs
from reports.figure_files import further_drawings
from reports.figure_svg import svg
from reports.making import recipes, trainings
from reports.marks import ATTACK, MARK, marked_models
from reports.numbers import interval, number, p_text
from reports.overview import overview
from reports.provenance import provenance, table
from reports.score_groups import difference_groups, score_groups
from results import audit_queries, detail_queries, queries
from results.queries import AnswerRow, LeaderboardRow, RunRow
from results.store import Ledger

_HERE = Path(__file__).parent
_KINDS = {kind: place for place, kind in enumerate(("checkpoint", "endpoint", "sft", "merge"))}  # the base first
_LIBRARIES = ("purify.min.js", "markdown-it.min.js", "katex.min.js")  # reports/vendor/VENDOR.md says what they are
_SCRIPTS = ("texts.js", "parts.js", "tables.js", "answers.js", "scatter.js", "page.js")


def write_page(
    ledger: Ledger,
    path: Path,
    *,
    title: str,
    notes: Sequence[str] | None = None,
    context: Sequence[LeaderboardRow] = (),
    inline: int = INLINE,
) -> list[Path]:
    """Write the page of :func:`page` to ``path``, and return the files written; folders are made where missing.

    Of the answers and replies, at most ``inline`` characters are in the page, and the rest in the folder ``NAME.parts``
    beside it, which has to go wherever the page goes. ``context`` are published scores to show among the ledger's.
    """
    parts = path.with_suffix(".parts")
    text, beside = _built(ledger, title=title, notes=notes, context=context, inline=inline, parts=parts.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, content in beside.items():
        parts.mkdir(exist_ok=True)
        (parts / f"{name}.js").write_text(f'fusevalPart("{name}","{content}");\n', encoding="ascii", newline="\n")
    for stale in set(parts.glob("*.js")) - {parts / f"{name}.js" for name in beside}:  # of an earlier page
        stale.unlink()
    path.write_text(text, encoding="utf-8", newline="\n")
    return [path, *(parts / f"{name}.js" for name in beside)]


def page(ledger: Ledger, *, title: str, notes: Sequence[str] | None = None) -> str:
    """Return the whole report as HTML, with all answers in it.

    ``notes`` stand at its top, where nobody misses them; None means those of the last run's experiment.
    """
    return _built(ledger, title=title, notes=notes, context=(), inline=2**62, parts="")[0]


def _built(
    ledger: Ledger,
    *,
    title: str,
    notes: Sequence[str] | None,
    context: Sequence[LeaderboardRow],
    inline: int,
    parts: str,
) -> tuple[str, dict[str, str]]:
    """Return the page, and what does not fit into it by name."""
    compared = comparison(ledger)
    models, runs = _models(ledger), queries.runs(ledger)
    controls = {model.name for model in models if model.kind == "control"}  # they answer nothing
    answers = [row for row in queries.answers_wide(ledger) if row.model_name not in controls]
    judgments = queries.judgments_wide(ledger)
    answered = Counter((row.model_name, row.benchmark, row.version) for row in answers)
    audit, costs = judge_audit(ledger, compared.rows, answered=answered), audit_queries.costs(ledger)
    marked = marked_models(compared.rows)
    material = Material(
        answers=answers,
        judgments=judgments,
        checks=queries.checks(ledger),
        items=detail_queries.plain_items(ledger),
        models=[model.name for model in models],
        flagged=audit["flagged"] + audit["stray"],
    )
    packed = pack(material, inline=inline) if answers else Packed("", {}, {})
    text = _render(
        title=title,
        notes=_notes(runs) if notes is None else notes,
        summary=_summary(compared, answers, models),
        overview=overview(compared.rows, marked=marked, costs=model_costs(costs)),
        scores=score_groups(among(compared.rows, context)),
        differences=difference_groups(compared.statements, marked),
        figures=[(each.label, svg(each)) for each in further_drawings(ledger, compared.rows)],
        compared=len(compared.statements),
        shown=[each for each in compared.statements if each.verdict in ("better", "worse")],
        unshown=[each for each in compared.statements if each.verdict not in ("better", "worse")],
        packed=packed,
        parts=parts if packed.beside else "",
        **({"studies": []} | ablation(ledger)),
        **audit,
        cost_total=cost_total(costs),
        cost_groups=cost_groups(costs),
        cost_parts=cost_parts(costs),
        **trainings(queries.training(ledger)),
        recipes=recipes(models),
        failures=table(queries.failures(ledger), without=("key",)),
        **provenance(
            answers,
            judgments,
            models=models,
            runs=runs,
            scored=detail_queries.provenances(ledger),
            requests=detail_queries.first_requests(ledger),
        ),
    )
    return text, dict(packed.beside)


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
    there = {
        "leaderboard": True,
        "differences": context["differences"],
        "figures": context["figures"],
        "ablation": context["studies"],
        "answers": context["packed"].index,
        "judges": any(context[name] for name in ("orders", "blocks", "matrices", "flagged", "stray", "served")),
        "costs": context["cost_groups"],
        "training": context["curves"],
        "recipes": context["recipes"],
        "failures": context["failures"],
        "provenance": True,
    }
    css = _read("page.css")
    scripts = ['"use strict";\n' + "\n".join(_read(name) for name in _SCRIPTS)]
    if context["packed"].index:  # only answers need them
        scripts = [*(_read(f"vendor/{name}") for name in _LIBRARIES), *scripts]
    made = environment.get_template("page.html").render(
        **context,
        css=css,
        scripts=scripts,
        policy=_policy(css=css, scripts=scripts, beside=bool(context["parts"])),
        sections=[(f"section-{name}", name.capitalize()) for name, value in there.items() if value],
        there=there,
        mark=MARK,
        attack=ATTACK,
        lower=LOWER_IS_BETTER,
        published=queries.PUBLISHED,
    )
    return re.sub("[\ud800-\udfff]", "\ufffd", made) + "\n"


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _policy(*, css: str, scripts: Sequence[str], beside: bool) -> str:
    """Return the page's Content-Security-Policy; files ``beside`` it are scripts that ours may load."""

    def allowed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    sources = [*map(allowed, scripts), *(["'strict-dynamic'"] if beside else [])]
    return (
        f"default-src 'none'; script-src {' '.join(sources)}; style-src {allowed(css)}; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types dompurify fuseval"
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
