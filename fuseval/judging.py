"""The judging stage: what judges have not judged yet is put to them, each judgment stored as it comes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from evals.budget import usd
from evals.chat import FAILURES
from evals.records import JudgeRequest, Judgment
from fuseval.asking import Asked, Judge, audit_requests, requests
from fuseval.controls import retest_of
from fuseval.scoring import read_judgments
from judges.judge import after, judge
from results.evidence import unreadable

if TYPE_CHECKING:
    from fuseval.pipeline import Run
    from fuseval.sampling import Asker

_AT_ONCE = 1_000  # requests that are stored at a time


def judge_all(run: Run) -> None:
    """Have every judge judge what it has not judged yet."""
    register_judges(run)
    for by in run.judges:
        for one in run.asked:
            _judge(run, one, by)


def register_judges(run: Run) -> None:
    """Store the judges as they are asked, and who stands for several of them, or for one that is asked again."""
    judges = [by.model for by in run.judges]
    run.ledger.add(*judges, *run.panels)
    if run.experiment.audit.retest:
        run.ledger.add(*map(retest_of, judges))


def _judge(run: Run, one: Asked, by: Judge) -> None:
    keys: set[str] = set()
    for some in _batches(wanted(run, one, by)):
        run.ledger.add(*some)
        keys.update(r.judgment for r in some)
    again = _unfinished(run, one, by)
    there = run.ledger.have("judgments", keys) - again.keys()
    left = keys - there - given_up(run, stage="judge")
    stage, done, budget = f"judge {one.benchmark.name}: by {by.model.name}", len(there), run.engines.budget
    total = done + len(left)
    run.watch(stage, done, total)
    if left:
        # Made once more, and not kept: of many long prompts only those in flight are in memory.
        missing = (r for r in wanted(run, one, by) if r.judgment in left)
        model, cost = run.ready(by.candidate), run.engines.cost_of(by.candidate)
        for record in judge(missing, by=model, attempts=by.spec.attempts, cost=cost):
            if record.key in again and isinstance(record, Judgment):
                run.ledger.put_again(after(again[record.key], record))
            else:
                run.ledger.add(record)
            done += 1
            run.watch(stage, done, total, usd(budget.spent) if budget.spent else "")
    read_judgments(run.ledger, benchmark=one.benchmark.name, version=one.benchmark.version)


def _unfinished(run: Run, one: Asked, by: Judge) -> dict[str, Judgment]:
    """Return, by key, the judgments without a verdict for which fewer replies were asked than the judge may give."""
    if by.spec.attempts == 1:
        return {}
    read_judgments(run.ledger, benchmark=one.benchmark.name, version=one.benchmark.version)
    keys = unreadable(
        run.ledger, benchmark=one.benchmark.name, version=one.benchmark.version, judge=by.model.id,
        asked_below=by.spec.attempts,
    )  # fmt: skip
    return {judgment.key: judgment for judgment in run.ledger.judgments(keys=keys)}


def wanted(run: Run, one: Asked, by: Judge, *, unanswered: bool = False) -> Iterator[JudgeRequest]:
    """Yield everything that a judge is to be asked about a benchmark, what tells of the judge itself too."""
    return audit_requests(
        one,
        by,
        audit=run.experiment.audit,
        candidates=run.candidates,
        ledger=run.ledger,
        unanswered=unanswered,
    )


def benchmark_requests(run: Run, one: Asked, by: Judge) -> Iterator[JudgeRequest]:
    """Yield what a judge is to be asked for the benchmark's scores alone."""
    return requests(one, by, candidates=run.candidates, ledger=run.ledger)


def given_up(run: Run | Asker, *, stage: str) -> set[str]:
    """Return the keys of what failed in a way that the very same request will fail again, unless that is wanted."""
    if run.retry_failed:
        return set()
    return {failure.key for failure in run.ledger.failures(stage=stage) if not FAILURES.get(failure.kind, True)}


def _batches(items: Iterable[JudgeRequest]) -> Iterator[list[JudgeRequest]]:
    rest = iter(items)
    while some := list(islice(rest, _AT_ONCE)):
        yield some
