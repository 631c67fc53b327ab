"""The judging stage: what judges have not judged yet is put to them, each judgment stored as it comes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from evals.budget import usd
from evals.chat import FAILURES
from evals.records import JudgeRequest
from fuseval.asking import Asked, audit_requests, requests
from fuseval.controls import retest_of
from fuseval.panels import panel_model
from fuseval.scoring import read_judgments
from judges.judge import judge
from results.store import Ledger

if TYPE_CHECKING:
    from fuseval.experiment import JudgeSpec
    from fuseval.pipeline import Run

_AT_ONCE = 1_000  # requests that are stored at a time


def judge_all(run: Run) -> None:
    """Have every judge judge what it has not judged yet."""
    register_judges(run)
    for spec in run.experiment.judges:
        for one in run.asked:
            _judge(run, one, spec)


def register_judges(run: Run) -> None:
    """Store who stands for several judges, or for one that is asked again."""
    judges = {spec.model: run.models[spec.model].model for spec in run.experiment.judges}
    run.ledger.add(
        *(panel_model(panel, {name: judge.id for name, judge in judges.items()}) for panel in run.experiment.panels)
    )
    if run.experiment.audit.retest:
        run.ledger.add(*(retest_of(judge) for judge in judges.values()))


def _judge(run: Run, one: Asked, spec: JudgeSpec) -> None:
    candidate = run.models[spec.model]
    keys: set[str] = set()
    for some in _batches(wanted(run, one, spec)):
        run.ledger.add(*some)
        keys.update(r.judgment for r in some)
    there = run.ledger.have("judgments", keys)
    left = keys - there - given_up(run, stage="judge")
    stage, done, budget = f"judge {one.benchmark.name}: by {spec.model}", len(there), run.engines.budget
    run.watch(stage, done, len(keys))
    if left:
        # Made once more, and not kept: of many long prompts only those in flight are in memory.
        missing = (r for r in wanted(run, one, spec) if r.judgment in left)
        by, cost = run.ready(candidate), run.engines.cost_of(candidate)
        for record in judge(missing, by=by, attempts=spec.attempts, cost=cost):
            run.ledger.add(record)
            done += 1
            run.watch(stage, done, len(keys), usd(budget.spent) if budget.spent else "")
    read_judgments(run.ledger, benchmark=one.benchmark.name, version=one.benchmark.version)


def wanted(run: Run, one: Asked, spec: JudgeSpec, *, unanswered: bool = False) -> Iterator[JudgeRequest]:
    """Yield everything that a judge is to be asked about a benchmark, what tells of the judge itself too."""
    return audit_requests(
        one,
        spec,
        run.models[spec.model].model,
        audit=run.experiment.audit,
        candidates=run.candidates,
        ledger=run.ledger,
        unanswered=unanswered,
    )


def benchmark_requests(run: Run, one: Asked, spec: JudgeSpec) -> Iterator[JudgeRequest]:
    """Yield what a judge is to be asked for the benchmark's scores alone."""
    return requests(one, spec, run.models[spec.model].id, candidates=run.candidates, ledger=run.ledger)


def given_up(run: Run, *, stage: str) -> set[str]:
    """Return the keys of what failed in a way that the very same request will fail again, unless that is wanted."""
    if run.retry_failed:
        return set()
    return lasting_failures(run.ledger, stage=stage)


def lasting_failures(ledger: Ledger, *, stage: str) -> set[str]:
    """Return the keys of the stored failures that time does not mend."""
    return {failure.key for failure in ledger.failures(stage=stage) if not FAILURES.get(failure.kind, True)}


def _batches(items: Iterable[JudgeRequest]) -> Iterator[list[JudgeRequest]]:
    rest = iter(items)
    while some := list(islice(rest, _AT_ONCE)):
        yield some
