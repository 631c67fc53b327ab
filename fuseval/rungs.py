"""One rung of one trial: its merge into the live engine, its answers, their judgments, and what it is worth then."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from evals.chat import ChatError
from evals.racing import Standing
from evals.records import Outcome, Trial
from fuseval.judging import given_up, judge_all
from fuseval.metering import Meter
from fuseval.models import Candidate
from fuseval.pipeline import Run, answer_all
from fuseval.study import count
from fuseval.trials import SEARCH, Ablation, score_on, unwritten
from fuseval.turns import DROPPED, FAILED, FINISHED, RUNNING, leader, standings
from fusion.errors import FusionError

ESTIMATE = "estimate"


def ask_rung(ablation: Ablation, trial: Trial, *, rung: int, after: Candidate | None = None) -> Trial:
    """Have a trial answer a rung of questions, as far as it has not, and return it as it is stored then.

    ``after`` is the merge that will be asked next, if that is known: it is merged while this one answers. A merge that
    cannot be had fails its trial; one that could be had before raises FusionError.
    """
    plan, candidate, ledger = ablation.plan, ablation.candidate(trial), ablation.run.ledger
    run = _alone(ablation, candidate, rung)
    stage, ended = f"trials of {plan.record.name}", sum(t.state != RUNNING for t in ablation.trials)
    plan.run.watch(stage, ended, plan.most_trials or 0)
    meter = Meter(trial, ledger.add, lambda: run.engines.budget.spent)
    with unwritten(ablation, candidate):
        try:
            outcome = _outcome(ablation, run, candidate, meter, rung=rung, after=after)
        except _NotMerged as error:
            if trial.rung:  # it was merged once: what is wrong now is no fault of its point
                raise FusionError(str(error)) from error
            trial = replace(meter.trial, state=FAILED, note=str(error))
            ledger.add(trial)
        else:
            state = FINISHED if rung == len(plan.rungs) else RUNNING
            trial = replace(meter.trial, rung=rung, questions=count(run.asked), state=state)
            ledger.add(outcome, trial)  # together: a kill leaves both or none
    ledger.flush()
    plan.run.watch(stage, ended + (trial.state != RUNNING), plan.most_trials or 0)
    return trial


def decide(ablation: Ablation, waiting: Sequence[Trial]) -> list[Trial]:
    """Drop those of the trials, which have done the same rung, that can no longer win, and return the others."""
    plan, racing = ablation.plan, ablation.plan.file.ablation.racing
    found, rung = ablation.outcomes(), waiting[0].rung
    seen = [trial for trial in ablation.trials if trial.rung >= rung and trial.state != FAILED]
    best = leader(seen, found)
    if racing is None or best is None:
        return list(waiting)
    stand = _standings(ablation, seen, best)
    lost = [trial for trial in waiting if stand[trial.model].dropped]
    for trial in lost:
        mine = stand[trial.model]
        note = f"after {trial.questions} questions {mine.gap:+.3g} beside trial {best.number}, at most {mine.high:+.3g}"
        dropped = replace(trial, state=DROPPED, note=note)
        plan.run.ledger.add(dropped, _estimated(found[trial.model], mine.estimate))
    plan.run.ledger.flush()
    return [trial for trial in waiting if trial not in lost]


def settle(ablation: Ablation) -> None:
    """Estimate anew what dropped trials would be worth on all questions, once somebody was asked them all.

    Only where no proposal rests on these estimates: a study that goes on later would propose others.
    """
    plan, best = ablation.plan, ablation.best
    dropped = [trial for trial in ablation.trials if trial.state == DROPPED]
    if best is None or not dropped or not plan.ahead:
        return
    found, stand = ablation.outcomes(), _standings(ablation, dropped, best)
    plan.run.ledger.add(*(_estimated(found[t.model], stand[t.model].estimate) for t in dropped))
    plan.run.ledger.flush()


def lacks(outcome: Outcome) -> bool:
    """Tell whether a score or a constraint has no value for some question, or for none at all."""
    parts = [part for part in json.loads(outcome.parts) if part["kind"] in ("score", "constraint")]
    return any(part["missing"] or not part["n"] for part in parts)


class _NotMerged(Exception):
    """This merge cannot be had: the trial fails, and the study goes on."""


def _alone(ablation: Ablation, candidate: Candidate, rung: int) -> Run:
    """Return the run in which nobody but the candidate is evaluated, beside the base."""
    plan = ablation.plan
    others = {name: replace(c, evaluate=False) for name, c in plan.run.models.items()}
    models = {**others, candidate.name: replace(candidate, evaluate=True)}
    return replace(plan.run, models=models, given=plan.rungs[rung - 1])


def _outcome(
    ablation: Ablation, run: Run, candidate: Candidate, meter: Meter, *, rung: int, after: Candidate | None
) -> Outcome:
    """Ask, judge and score the candidate, and return what it is worth."""
    if not ablation.knows_prices:
        meter.trial = replace(meter.trial, dollars=None)
    if _is_to_be_asked(run, candidate):
        with meter.during("making"):
            _ready(run, candidate)
        if after is not None and not run.is_answered(after):
            run.engines.prepare(after)
        with meter.during("answering"):
            answer_all(run)
    with meter.during("judging"):
        judge_all(run)
        score_on(run, candidate, run.asked)
    return ablation.weigher.outcome(candidate, run.asked, part=SEARCH, rung=rung)


def _is_to_be_asked(run: Run, candidate: Candidate) -> bool:
    """Tell whether there is a question that the candidate neither answered nor failed for good."""
    if run.is_answered(candidate):
        return False
    never = given_up(run, stage="answer")
    for one in run.asked:
        failures = run.ledger.failures(stage="answer", benchmark=one.benchmark.name)
        lost = {f.question for f in failures if f.model == candidate.id and f.key in never}
        if {q.id for q in one.questions} - lost - one.answers(candidate, run.ledger).keys():
            return True
    return False


def _ready(run: Run, candidate: Candidate) -> None:
    try:
        run.ready(candidate)
    except FusionError as error:
        raise _NotMerged(str(error)) from error
    except ChatError as error:
        if isinstance(error.__cause__, FusionError):
            raise _NotMerged(str(error.__cause__)) from error
        raise


def _standings(ablation: Ablation, trials: Sequence[Trial], best: Trial) -> dict[str, Standing]:
    plan = ablation.plan
    racing, references = plan.file.ablation.racing, {m.id: m for m in (plan.base, *plan.sources)}
    assert racing is not None
    models = references | {t.model: ablation.candidate(t) for t in (best, *trials)}
    parts = ablation.weigher.parts(plan.file.ablation.objective[0], list(models.values()), plan.search)
    looks = max(1, len(plan.rungs) - 1)
    return standings(trials, parts, best=best, references=references, looks=looks, level=racing.level)


def _estimated(outcome: Outcome, value: float | None) -> Outcome:
    """Return the outcome with what the model would be worth on all questions, in place of an earlier estimate."""
    parts = [part for part in json.loads(outcome.parts) if part["kind"] != ESTIMATE]
    told = [*parts, {"name": ESTIMATE, "kind": ESTIMATE, "value": value}]
    return replace(outcome, parts=json.dumps(told, ensure_ascii=False))
