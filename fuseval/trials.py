"""A study's trials: each merged straight into the live engine, asked rung after rung, and stored as it goes."""

from __future__ import annotations

import contextlib
import json
import operator
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from evals.chat import ChatError
from evals.composite import worth
from evals.racing import race
from evals.records import Outcome, Selection, Trial
from fuseval.asking import Asked
from fuseval.experiment import Merge
from fuseval.harness import measure
from fuseval.judging import judge_all
from fuseval.merging import streamed
from fuseval.models import Candidate, merge_candidate, without_thinking
from fuseval.pipeline import Run, answer_all
from fuseval.scoring import score_models
from fuseval.study import Plan, count
from fuseval.variant import variant
from fuseval.worth import Weigher
from fusion.errors import FusionError
from results.study_queries import spent_on

SEARCH, HOLDOUT = "search", "holdout"
RUNNING, FINISHED, DROPPED, FAILED = "running", "finished", "dropped", "failed"


@dataclass(frozen=True)
class Ablation:
    """A study on its way."""

    plan: Plan
    weigher: Weigher = field(init=False)
    _candidates: dict[str, Candidate] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weigher", Weigher(self.plan))

    @property
    def run(self) -> Run:
        """What its stages share."""
        return self.plan.run

    @property
    def trials(self) -> list[Trial]:
        """The trials so far, by number."""
        return self.run.ledger.trials(self.plan.record.id)

    @property
    def best(self) -> Trial | None:
        """The finished trial that keeps all constraints and is worth most; None of several objectives."""
        if len(self.plan.file.ablation.objective) > 1:
            return None
        found = self.outcomes()
        worths = [
            (outcome.amounts[0], trial)
            for trial in self.trials
            if trial.state == FINISHED and (outcome := found[trial.model]).feasible
        ]
        valued = [(value, trial) for value, trial in worths if value is not None]
        return max(valued, key=lambda each: (each[0], -each[1].number))[1] if valued else None

    @property
    def front(self) -> list[Trial]:
        """The finished trials that keep all constraints and that no other beats in one objective and equals in all."""
        found = self.outcomes()
        worths = {
            trial.number: tuple(v for v in found[trial.model].amounts if v is not None)
            for trial in self.trials
            if trial.state == FINISHED and found[trial.model].feasible and None not in found[trial.model].amounts
        }
        return [
            trial
            for trial in self.trials
            if (mine := worths.get(trial.number))
            and not any(other != mine and all(map(operator.ge, other, mine)) for other in worths.values())
        ]

    def candidate(self, trial: Trial) -> Candidate:
        """Return the merge that a trial is of, as one that is never written."""
        if trial.params not in self._candidates:
            self._candidates[trial.params] = self._candidate(trial)
        return self._candidates[trial.params]

    def _candidate(self, trial: Trial) -> Candidate:
        given = self.plan.file.ablation
        made = variant(self.plan.space, json.loads(trial.params))
        merge = Merge(
            name=self._name(trial.number),
            base=self.plan.file.merged_onto,
            sources=list(made.sources),
            method=made.method,
            params=dict(made.params),
            dtype=given.dtype,
            seed=given.seed,
            strip_thinking=given.strip_thinking,
        )
        found = merge_candidate(merge, self.run.models, folder=Path(self.run.experiment.checkpoints).expanduser())
        found = without_thinking(found) if given.strip_thinking else found
        known = {model.id: model for model in self.run.ledger.models()}
        found = replace(found, model=known.get(found.id, found.model))  # a variant that has a name keeps it
        if self.run.engines.settings.tensor_parallel > 1:  # its workers are processes, which take weights from a folder
            return found
        return streamed(found, self.run.models, hear=lambda used: self.run.ledger.add(*used))

    def _name(self, number: int) -> str:
        name = f"{self.plan.file.title}-{number:03d}"
        while name in self.run.models:
            name += "-trial"
        return name

    def outcomes(self, part: str = SEARCH) -> dict[str, Outcome]:
        """Return, by model, what it is worth on most questions."""
        return {o.model: o for o in sorted(self.run.ledger.outcomes(self.plan.record.id, part=part), key=_rung)}


def run_trial(ablation: Ablation, trial: Trial) -> Trial:
    """Ask a trial rung after rung, until it has answered everything or can no longer win, and return its end."""
    plan, candidate = ablation.plan, ablation.candidate(trial)
    others = {name: replace(c, evaluate=False) for name, c in plan.run.models.items()}
    run = replace(plan.run, models={**others, candidate.name: replace(candidate, evaluate=True)})
    plan.run.watch(f"trials of {plan.record.name}", trial.number, plan.most_trials or 0)
    with unwritten(ablation, candidate):
        for rung in range(trial.rung + 1, len(plan.rungs) + 1):
            try:
                trial = _one_rung(ablation, trial, candidate, replace(run, given=plan.rungs[rung - 1]), rung)
            except _NotMerged as error:
                trial = replace(trial, state=FAILED, note=str(error))
            plan.run.ledger.add(trial)
            plan.run.ledger.flush()
            if trial.state != RUNNING:
                break
    plan.run.watch(f"trials of {plan.record.name}", trial.number + 1, plan.most_trials or 0)
    return trial


@contextlib.contextmanager
def unwritten(ablation: Ablation, candidate: Candidate) -> Iterator[None]:
    """Take away the folder of a merge that had to be written to be loaded, unless all are kept."""
    folder = candidate.folder
    temporary = candidate.stream is None and folder is not None and not folder.exists()
    yield
    if temporary and folder is not None and ablation.plan.file.ablation.keep != "all":
        shutil.rmtree(folder, ignore_errors=True)


class _NotMerged(Exception):
    """This merge cannot be had: the trial fails, and the study goes on."""


def _one_rung(ablation: Ablation, trial: Trial, candidate: Candidate, run: Run, rung: int) -> Trial:
    """Return the trial after one rung, which is stored with what it is worth then."""
    plan, asked = ablation.plan, run.asked
    making = answering = 0.0
    if not run.is_answered(candidate):
        making = _timed(lambda: _ready(run, candidate))
        answering = _timed(lambda: answer_all(run))
    judging = _timed(lambda: _judge_and_score(run, candidate, asked))
    outcome = ablation.weigher.outcome(candidate, asked, part=SEARCH, rung=rung)
    trial = replace(
        trial,
        rung=rung,
        questions=count(asked),
        making=trial.making + making,
        answering=trial.answering + answering,
        judging=trial.judging + judging,
        dollars=spent_on(plan.run.ledger, candidate.id),
    )
    if rung == len(plan.rungs):
        plan.run.ledger.add(outcome)
        return replace(trial, state=FINISHED)
    estimate, why = _race(ablation, trial, candidate)
    told = [*json.loads(outcome.parts), {"name": "estimate", "kind": "estimate", "value": estimate}]
    plan.run.ledger.add(replace(outcome, parts=json.dumps(told, ensure_ascii=False)))
    return replace(trial, state=DROPPED, note=why) if why else trial


def _ready(run: Run, candidate: Candidate) -> None:
    try:
        run.ready(candidate)
    except FusionError as error:
        raise _NotMerged(str(error)) from error
    except ChatError as error:
        if isinstance(error.__cause__, FusionError):
            raise _NotMerged(str(error.__cause__)) from error
        raise


def _judge_and_score(run: Run, candidate: Candidate, asked: Sequence[Asked]) -> None:
    judge_all(run)
    score_on(run, candidate, asked)


def score_on(run: Run, candidate: Candidate, asked: Sequence[Asked]) -> None:
    """Score one model on these questions, and leave all other scores as they are.

    What it was selected for before (another study's questions) stays selected.
    """
    judges = [*(judge.model.id for judge in run.judges), *(panel.id for panel in run.panels)]
    for one in asked:
        if one.benchmark.harness:
            measure(run, candidate, one)
        name, version = one.benchmark.name, one.benchmark.version
        mine = [a.key for each in one.answers(candidate, run.ledger).values() for a in each]
        questions = [q.id for q in one.questions]
        for old in run.ledger.selections(benchmark=name, version=version):
            if old.model == candidate.id:
                kept = run.ledger.answers(keys=old.answers)
                mine += [a.key for a in kept if a.question not in questions]
                judges += old.judges
                questions += [q for q in old.questions if q not in questions]
        run.ledger.add(
            Selection(
                model=candidate.id,
                benchmark=name,
                version=version,
                questions=tuple(questions),
                answers=tuple(mine),
                baseline=run.base.id if one.benchmark.against == "base" else None,
                judges=tuple(dict.fromkeys(judges)),
            )
        )
        score_models(run.ledger, one.benchmark, [candidate.id])


def _race(ablation: Ablation, trial: Trial, candidate: Candidate) -> tuple[float | None, str]:
    """Return what the trial would be worth on all questions by the leader's example, and why it is dropped, or ""."""
    plan, leader = ablation.plan, ablation.best
    racing = plan.file.ablation.racing
    if leader is None or racing is None or leader.model == trial.model:
        return None, ""
    seen = {leader.model: ablation.candidate(leader)}
    seen |= {
        t.model: ablation.candidate(t) for t in ablation.trials if t.rung >= trial.rung and t.number < trial.number
    }
    seen[trial.model] = candidate
    parts = ablation.weigher.parts(plan.file.ablation.objective[0], list(seen.values()), plan.search)
    asked = worth(parts, leader.model, rounds=1).n  # the leader was asked everything
    looks = len(plan.rungs) - 1
    standings = race(parts, list(seen), leader=leader.model, total=asked, looks=looks, level=racing.level)
    [mine] = [each for each in standings if each.candidate == trial.model]
    if not mine.dropped:
        return mine.estimate, ""
    return mine.estimate, (
        f"after {trial.questions} questions {mine.gap:+.3g} beside trial {leader.number}, at most {mine.high:+.3g}"
    )


def _rung(outcome: Outcome) -> int:
    return outcome.rung


def _timed(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
