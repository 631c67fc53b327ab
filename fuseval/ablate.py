"""propose → merge in memory → answer → judge → score → propose: every trial is stored, and a killed study goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from evals.budget import usd
from evals.records import Outcome, Trial
from evals.winner import Gain, gain
from fuseval.asking import Asked
from fuseval.judging import judge_all
from fuseval.pipeline import answer_all, answer_stage
from fuseval.scoring import score
from fuseval.searching import Past, Searcher
from fuseval.space import Point
from fuseval.study import Plan, count, place
from fuseval.suggesting import Known
from fuseval.trials import DROPPED, FAILED, FINISHED, HOLDOUT, RUNNING, SEARCH, Ablation, run_trial, score_on, unwritten
from results.study_queries import earlier_trials


class CapReached(Exception):
    """The study stopped before its end, at a cap that the file sets; the message says which and how to go on."""


def ablate(plan: Plan) -> Ablation:
    """Do what is left of a study: its references, its trials, and what its winner is worth on held-out questions.

    Raises CapReached at a cap of its own, and BudgetReached at the experiment's.
    """
    ablation = Ablation(plan)
    if plan.record.id not in {study.id for study in plan.run.ledger.studies()}:
        plan.run.ledger.add(plan.record)
        plan.run.ledger.flush()  # what was there before it may seed it
    score_references(ablation)
    searcher = _searcher(ablation)
    while (trial := next_trial(ablation, searcher)) is not None:
        run_trial(ablation, trial)
    hold_out(ablation)
    for one in plan.search:
        score(plan.run.ledger, asset=plan.run.asset, benchmark=place(one), against=plan.run.base.id)
    return ablation


def score_references(ablation: Ablation) -> None:
    """Have the models that the file names answer all questions of the search, to compare with."""
    plan, done = ablation.plan, ablation.outcomes()
    models = {**ablation.run.models, plan.base.name: replace(plan.base, evaluate=True)}
    run = replace(ablation.run, models=models, given=plan.search)
    if not all(c.id in done and run.is_answered(c) for c in run.candidates):
        answer_stage(run)
        judge_all(run)
        for candidate in run.candidates:
            score_on(run, candidate, plan.search)
        run.ledger.add(
            *(ablation.weigher.outcome(c, plan.search, part=SEARCH, rung=len(plan.rungs)) for c in run.candidates)
        )


def next_trial(ablation: Ablation, searcher: Searcher | None) -> Trial | None:
    """Return the trial to go on with, or the next to begin; None where there is nothing left to try."""
    plan, trials = ablation.plan, ablation.trials
    if waiting := [trial for trial in trials if trial.state == RUNNING]:
        return waiting[0]
    if plan.most_trials is not None and len(trials) >= plan.most_trials:
        return None
    _check_caps(ablation, trials)
    points = plan.file.ablation.points
    point: Point | None = searcher.ask(past(ablation)) if searcher else (points or [])[len(trials)]
    if point is None:
        return None
    params = json.dumps(dict(point), ensure_ascii=False)
    trial = Trial(plan.record.id, len(trials), "", params, RUNNING, 0, 0, 0.0, 0.0, 0.0, None)
    trial = replace(trial, model=ablation.candidate(trial).id)
    plan.run.ledger.add(trial)
    plan.run.ledger.flush()
    return trial


def past(ablation: Ablation) -> list[Past]:
    """Return the trials so far as a search knows them."""
    found = ablation.outcomes()
    return [_past(trial, found.get(trial.model)) for trial in ablation.trials]


def _past(trial: Trial, outcome: Outcome | None) -> Past:
    point: Point = json.loads(trial.params)
    if trial.state in (FAILED, RUNNING) or outcome is None:
        return Past(point, None, failed=trial.state != RUNNING)
    parts = json.loads(outcome.parts)
    values = list(outcome.amounts)
    for one in parts:
        if one["kind"] == "estimate" and trial.state == DROPPED and one["value"] is not None:
            values = [one["value"]]
    if any(value is None for value in values):
        return Past(point, None, failed=True)
    violations = tuple(float(one["broken"]) for one in parts if one["kind"] == "constraint")
    return Past(point, tuple(float(value) for value in values if value is not None), violations)


def known(ablation: Ablation) -> list[Known]:
    """Return what the trials so far were worth by the first objective, with the intervals of those asked everything."""
    found, tried = ablation.outcomes(), []
    for trial in ablation.trials:
        one = found.get(trial.model)
        worth = _past(trial, one).values
        if one is not None and worth is not None:
            whole = trial.state == FINISHED
            tried.append(
                Known(
                    json.loads(trial.params), worth[0], one.lows[0] if whole else None, one.highs[0] if whole else None
                )
            )
    return tried


def _searcher(ablation: Ablation) -> Searcher | None:
    """Return what proposes points; None where the file lists them."""
    plan, search = ablation.plan, ablation.plan.file.ablation.search
    if plan.file.ablation.points is not None:
        return None
    earlier: list[Past] = []
    if search.earlier and search.kind != "grid":
        mine, alike = json.loads(plan.record.objective), ("objectives", "baseline", "constraints")
        for study, trial, outcome in earlier_trials(plan.run.ledger, plan.record):
            told = json.loads(study.objective)
            if all(told[name] == mine[name] for name in alike) and study.space == plan.record.space:
                earlier.append(_past(trial, outcome))
    objectives = len(plan.file.ablation.objective)
    return Searcher(plan.space, search.kind, search.seed, objectives=objectives, earlier=tuple(earlier))


def _check_caps(ablation: Ablation, trials: Sequence[Trial]) -> None:
    caps = ablation.plan.file.ablation.caps
    dollars = sum(trial.dollars or 0.0 for trial in trials)
    if caps.dollars is not None and dollars >= caps.dollars:
        raise CapReached(
            f"{len(trials)} trials cost {usd(dollars)}, and ablation.caps.dollars is {caps.dollars:g}: raise it to go "
            "on"
        )
    hours = sum(trial.making + trial.answering + trial.judging for trial in trials) / 3600
    if caps.hours is not None and hours >= caps.hours:
        raise CapReached(
            f"{len(trials)} trials took {hours:.2f} hours, and ablation.caps.hours is {caps.hours:g}: raise it to go on"
        )


def hold_out(ablation: Ablation) -> None:
    """Have the base and the winner answer the questions that the search did not see, and store what they are worth."""
    plan, best = ablation.plan, ablation.best
    if best is None or not count(plan.holdout):
        return
    candidate = ablation.candidate(best)
    if {plan.base.id, plan.run.base.id, best.model} <= ablation.outcomes(HOLDOUT).keys():
        return
    asked = tuple(one for one in plan.holdout if one.questions)
    others = {name: replace(c, evaluate=False) for name, c in plan.run.models.items()}
    shown = {c.name: replace(c, evaluate=True) for c in (plan.run.base, plan.base, candidate)}
    run = replace(plan.run, models={**others, **shown}, given=asked)
    with unwritten(ablation, candidate):
        answer_all(run)
        judge_all(run)
    both = _joined(plan.search, plan.holdout)
    for model in shown.values():
        score_on(run, model, both)
    for model in shown.values():
        run.ledger.add(ablation.weigher.outcome(model, plan.holdout, part=HOLDOUT, rung=1))


def winner_gain(ablation: Ablation) -> Gain | None:
    """Return what the winner gained over the base, on the questions of the search and on those held out."""
    plan, best = ablation.plan, ablation.best
    if best is None:
        return None
    objective, both = plan.file.ablation.objective[0], [plan.base, ablation.candidate(best)]
    seen, unseen = (ablation.weigher.parts(objective, both, asked) for asked in (plan.search, plan.holdout))
    return gain(seen, unseen, best.model, plan.base.id)


def _joined(search: Sequence[Asked], holdout: Sequence[Asked]) -> list[Asked]:
    return [
        replace(one, questions=[*one.questions, *held.questions]) for one, held in zip(search, holdout, strict=True)
    ]
