"""propose → merge in memory → answer → judge → score → propose: every trial is stored, and a killed study goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from evals.records import Outcome, Trial
from evals.winner import Gain, gain
from fuseval.asking import Asked
from fuseval.judging import judge_all
from fuseval.metering import check_caps
from fuseval.models import Candidate, inputs
from fuseval.pipeline import answer_all, answer_stage
from fuseval.rungs import ask_rung, decide, lacks, settle
from fuseval.scoring import score
from fuseval.searching import Past, Searcher
from fuseval.space import Point
from fuseval.study import Plan, count, place
from fuseval.suggesting import Known
from fuseval.trials import HOLDOUT, SEARCH, Ablation, score_on, unwritten
from fuseval.turns import DROPPED, FAILED, FINISHED, RUNNING, following, turn
from results.study_queries import earlier_trials


def ablate(plan: Plan) -> Ablation:
    """Do what is left of a study: its references, its trials, and what its winner is worth on held-out questions.

    Raises CapReached at a cap of its own, and BudgetReached at the experiment's; what failed before is asked again.
    """
    ablation = Ablation(plan)
    if plan.record.id not in {study.id for study in plan.run.ledger.studies()}:
        plan.run.ledger.add(plan.record)
        plan.run.ledger.flush()  # what was there before it may seed it
    searcher = _searcher(ablation)
    _prepare_first(ablation, searcher)
    score_references(ablation)
    mend(ablation)
    while (trial := next_trial(ablation, searcher)) is not None:
        check_caps(plan.file.ablation.caps, ablation.trials)
        ask_rung(ablation, trial, rung=trial.rung + 1, after=_following(ablation, searcher, trial))
    settle(ablation)
    hold_out(ablation)
    for one in plan.search:
        score(plan.run.ledger, asset=plan.run.asset, benchmark=place(one), against=plan.run.base.id)
    return ablation


def score_references(ablation: Ablation) -> None:
    """Have the models that the file names answer all questions of the search, to compare with."""
    plan, done = ablation.plan, ablation.outcomes()
    models = {**ablation.run.models, plan.base.name: replace(plan.base, evaluate=True)}
    run = replace(ablation.run, models=models, given=plan.search)
    if not all(c.id in done and run.is_answered(c) and not lacks(done[c.id]) for c in run.candidates):
        answer_stage(run)
        judge_all(run)
        for candidate in run.candidates:
            score_on(run, candidate, plan.search)
        run.ledger.add(
            *(ablation.weigher.outcome(c, plan.search, part=SEARCH, rung=len(plan.rungs)) for c in run.candidates)
        )


def next_trial(ablation: Ablation, searcher: Searcher | None) -> Trial | None:
    """Return the trial to go on with, or a new one, which is not stored yet; None where nothing is left to try."""
    return turn(
        lambda: ablation.trials,
        begin=lambda: _begun(ablation, searcher, ablation.trials),
        decide=lambda waiting: decide(ablation, waiting),
    )


def mend(ablation: Ablation) -> None:
    """Ask again what failed in finished trials; what failed for good is left, unless that is wanted."""
    found = ablation.outcomes()
    for trial in ablation.trials:
        if trial.state == FINISHED and lacks(found[trial.model]):
            ask_rung(ablation, trial, rung=len(ablation.plan.rungs))


def _begun(ablation: Ablation, searcher: Searcher | None, trials: Sequence[Trial]) -> Trial | None:
    """Return a new trial; None where there is no other point, or where it depends on trials that still run."""
    plan, points = ablation.plan, ablation.plan.file.ablation.points
    if plan.most_trials is not None and len(trials) >= plan.most_trials:
        return None
    if not plan.ahead and any(trial.state == RUNNING for trial in trials):
        return None
    point: Point | None = searcher.ask(_history(ablation, trials)) if searcher else (points or [])[len(trials)]
    if point is None:
        return None
    params = json.dumps(dict(point), ensure_ascii=False)
    trial = Trial(plan.record.id, len(trials), "", params, RUNNING, 0, 0, 0.0, 0.0, 0.0, 0.0)
    return replace(trial, model=ablation.candidate(trial).id)


def _prepare_first(ablation: Ablation, searcher: Searcher | None) -> None:
    """Begin to merge the first trial, which the engine's start and the references' answers leave time for."""
    if ablation.trials or (trial := _begun(ablation, searcher, ())) is None:
        return
    candidate = ablation.candidate(trial)
    folders = [ablation.run.models[name].folder for name in inputs(candidate, ablation.run.models)]
    run = replace(ablation.run, given=ablation.plan.rungs[0])
    if all(folder and folder.exists() for folder in folders) and not run.is_answered(candidate):
        run.engines.prepare(candidate)


def _following(ablation: Ablation, searcher: Searcher | None, trial: Trial) -> Candidate | None:
    """Return the merge that is asked after this trial, where that is known already."""
    if not ablation.plan.ahead:
        return None
    trials = [t for t in ablation.trials if t.number != trial.number] + [trial]
    after = following(trials, trial, begin=lambda: _begun(ablation, searcher, trials))
    return ablation.candidate(after) if after else None


def past(ablation: Ablation) -> list[Past]:
    """Return the trials so far as a search knows them."""
    return _history(ablation, ablation.trials)


def _history(ablation: Ablation, trials: Sequence[Trial]) -> list[Past]:
    found = ablation.outcomes()
    return [_past(trial, found.get(trial.model)) for trial in sorted(trials, key=lambda t: t.number)]


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


def hold_out(ablation: Ablation) -> None:
    """Have the base and the winner answer the questions that the search did not see, and store what they are worth."""
    plan, best = ablation.plan, ablation.best
    if best is None or not count(plan.holdout):
        return
    candidate = ablation.candidate(best)
    done = ablation.outcomes(HOLDOUT)
    if all(model in done and not lacks(done[model]) for model in (plan.base.id, plan.run.base.id, best.model)):
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
