"""What the studies of a ledger found: the trials, what mattered, what the winner gained on questions it never saw.

Nothing of a search's own luck is claimed: the best of many noisy trials stands beside what it is worth on held-out
questions, and the trials' differences from the base are corrected after Holm for how many there are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.importance import importances
from evals.records import Outcome, Study
from evals.stats import holm
from reports.ablation_figures import Reference, parallel_figure, worth_figure
from reports.claims import LEVEL
from reports.figure_style import grouped_by
from reports.figure_svg import svg
from reports.heatmaps import coefficients_figure
from reports.numbers import MISSING, interval, number, p_text
from results import queries
from results.figure_queries import coefficient_means
from results.store import Ledger
from results.study_queries import TrialRow, trials_wide

_METRIC = "objective"  # of what unit, only the study knows: written to two places
_MOST_HEATS = 8  # maps shown of one winner
_SAME = 1e-9  # coefficients that differ by less


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial as the page shows it: ``params`` are texts by parameter, ``beside`` is its difference from the base."""

    number: int
    model: str
    params: Mapping[str, str]
    state: str
    best: bool
    feasible: bool
    value: float | None
    low: float | None
    high: float | None
    questions: int
    seconds: float
    dollars: float | None
    note: str


@dataclass(frozen=True, slots=True)
class Beside:
    """A trial minus the base, over the questions of both; ``verdict`` is better, worse, none or missing."""

    number: int
    model: str
    value: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    n: int
    verdict: str


def ablation(ledger: Ledger) -> dict[str, Any]:
    """Return the context of ``ablation.html``: a study each, the last first; nothing where there is no study."""
    names = queries.display_names(ledger)
    studies = [found for study in ledger.studies() if (found := _study(ledger, study, names))]
    for place, found in enumerate(reversed(studies)):
        found["anchor"] = f"study-{place}"
    return {"studies": list(reversed(studies))} if studies else {}


def besides(rows: Sequence[TrialRow]) -> list[Beside]:
    """Return each trial's paired difference from the base, with p-values corrected for all of them together."""
    found = [(row, gap) for row in rows if (gap := _part(row.parts, "gap")) is not None]
    tested = [at for at, (_, gap) in enumerate(found) if gap.get("p") is not None]
    corrected = dict(zip(tested, holm([float(found[at][1]["p"]) for at in tested]), strict=True))
    return [_beside(row, gap, corrected.get(at)) for at, (row, gap) in enumerate(found)]


def winner_sentences(best: TrialRow | None, held: Outcome | None, base: str, *, trials: int) -> list[str]:
    """Say what the winner is worth: on the questions that chose it, and on those that the search did not see."""
    if best is None:
        return ["No trial was finished that keeps every constraint, so there is no winner."]
    seen = _part(best.parts, "gap")
    said = [
        f"Trial {best.number} ({best.model_name}) is worth most of {trials}: {_figure(best.value, best.low, best.high)}"
        + (f", {_difference(seen)} beside {base}" if seen else "")
        + f", on the {best.questions} questions that chose it. The best of many is too good by the search's luck."
    ]
    unseen = _part(json.loads(held.parts), "gap") if held else None
    if held is None or unseen is None:
        return [*said, "It was not scored on questions that the search did not see, so no gain is claimed."]
    verdict = _verdict(unseen, unseen.get("p"))
    claim = {"better": "That is a gain.", "worse": "That is a loss.", "none": "No gain is shown."}
    said.append(
        f"On {held.questions} questions that the search did not see: {_difference(unseen)} beside {base}, "
        f"{p_text(unseen.get('p'))}. {claim.get(verdict, 'Nothing can be said: scores are missing.')}"
    )
    return said


def _study(ledger: Ledger, study: Study, names: Mapping[str, str]) -> dict[str, Any]:
    rows = trials_wide(ledger, study=study.id)
    if not rows:
        return {}
    search = _last(ledger.outcomes(study.id, part="search"))
    held = _last(ledger.outcomes(study.id, part="holdout"))
    base = names.get(study.base, study.base)
    best = next((row for row in rows if row.best), None)
    objective = _objective(study)
    references = [
        Reference(names.get(model, model), value)
        for model in (study.base, *study.sources)
        if model in search and (value := search[model].amounts[0]) is not None
    ]
    parameters = list(dict.fromkeys(name for row in rows for name in row.params))
    ended = [row for row in rows if row.state in ("finished", "dropped") and row.comparable is not None]
    drawn = len({str(sorted(row.params.items(), key=str)) for row in ended}) > 1
    figures = []
    if drawn:
        said = {"objective": objective}
        figures.append(svg(worth_figure(ended, references, name=f"ablation-{study.id[:12]}-along", **said)))
        figures.append(svg(parallel_figure(ended, name=f"ablation-{study.id[:12]}-parallel", **said)))
    return {
        "name": study.name,
        "objective": objective,
        "base": base,
        "sources": [names.get(source, source) for source in study.sources],
        "said": winner_sentences(best, held.get(best.model) if best else None, base, trials=len(rows)),
        "references": references,
        "parameters": parameters,
        "trials": [_trial(row, parameters) for row in rows],
        "besides": besides(rows),
        "importances": importances([row.params for row in ended], [row.comparable or 0.0 for row in ended]),
        "figures": figures,
        "heats": _heat_figures(ledger, study, best),
        "cost": _cost(rows),
    }


def _trial(row: TrialRow, parameters: Sequence[str]) -> Trial:
    return Trial(
        number=row.number,
        model=row.model_name,
        params={name: _text(row.params[name]) if name in row.params else "" for name in parameters},
        state=row.state,
        best=row.best,
        feasible=row.feasible,
        value=row.comparable,
        low=row.interval[0],
        high=row.interval[1],
        questions=row.questions,
        seconds=row.making + row.answering + row.judging,
        dollars=row.dollars,
        note=row.note,
    )


def _beside(row: TrialRow, gap: Mapping[str, Any], p_holm: float | None) -> Beside:
    figures = (gap.get("value"), gap.get("low"), gap.get("high"), gap.get("p"))
    verdict = _verdict(gap, p_holm)
    return Beside(row.number, row.model_name, *figures, p_holm, int(gap.get("n") or 0), verdict)


def _verdict(gap: Mapping[str, Any], p: float | None) -> str:
    if gap.get("value") is None:
        return "missing"
    low, high = gap.get("low"), gap.get("high")
    if low is None or high is None or p is None or p >= LEVEL:
        return "none"
    return "better" if low > 0 else "worse" if high < 0 else "none"


def _part(parts: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any] | None:
    return next((part for part in parts if part.get("kind") == kind), None)


def _last(outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    """Return, by model, the outcome that rests on most questions."""
    return {outcome.model: outcome for outcome in sorted(outcomes, key=lambda outcome: outcome.rung)}


def _objective(study: Study) -> str:
    """Return the first objective in words, as ``0.5 · arena_hard win_rate``."""
    try:
        told = json.loads(study.objective)
    except ValueError:
        return _METRIC
    objectives = told.get("objectives") if isinstance(told, dict) else None
    scores = (objectives or [{}])[0].get("scores", [])
    words = [
        ("" if score.get("weight", 1) == 1 else f"{score['weight']:g} · ")
        + f"{str(score.get('benchmark')).partition('@')[0]} {score.get('metric')}"
        for score in scores
    ]
    return " + ".join(words) or _METRIC


def _heat_figures(ledger: Ledger, study: Study, best: TrialRow | None) -> list[str]:
    """Draw what the best merge used by layer and module; a coefficient that is the same everywhere has no map."""
    if best is None:
        return []
    groups = grouped_by(coefficient_means(ledger, model=best.model), lambda row: (row.name, row.source_name or ""))
    varied = [rows for rows in groups.values() if max(r.value for r in rows) - min(r.value for r in rows) > _SAME]
    shown = [row for rows in varied[:_MOST_HEATS] for row in rows]
    return [svg(coefficients_figure(shown, name=f"ablation-{study.id[:12]}-used"))] if shown else []


def _cost(rows: Sequence[TrialRow]) -> list[tuple[str, str]]:
    """Return what the trials cost, by what it was spent on."""
    priced = [row.dollars for row in rows if row.dollars is not None]
    dollars = f"{sum(priced):,.2f}" + (
        f" ({len(rows) - len(priced)} of unknown price)" if len(priced) < len(rows) else ""
    )
    most = max(row.questions for row in rows)
    asked = sum(row.questions for row in rows)
    return [
        ("Merging and loading", _seconds(sum(row.making for row in rows))),
        ("Answering", _seconds(sum(row.answering for row in rows))),
        ("Judging and scoring", _seconds(sum(row.judging for row in rows))),
        ("US dollars", dollars if priced else "of unknown price"),
        ("Questions asked", f"{asked:,} of {most * len(rows):,} that all trials up to the last would have taken"),
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds < 120 else f"{seconds / 60:,.1f} min"


def _figure(value: float | None, low: float | None, high: float | None) -> str:
    return MISSING if value is None else f"{number(value, _METRIC)} {interval(low, high, _METRIC)}"


def _difference(gap: Mapping[str, Any]) -> str:
    if gap.get("value") is None:
        return MISSING
    counted = f" (n = {gap['n']}, {gap['missing']} missing)" if gap.get("missing") else ""
    return f"{number(gap['value'], _METRIC, sign=True)} {interval(gap.get('low'), gap.get('high'), _METRIC)}{counted}"


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
