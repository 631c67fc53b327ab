"""A study on its way: its trials, the merges that they are of, and how a model is scored for it."""

from __future__ import annotations

import contextlib
import json
import operator
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from evals.records import Outcome, Selection, Trial
from fuseval.asking import Asked
from fuseval.experiment import Merge
from fuseval.harness import measure
from fuseval.merging import streamed
from fuseval.models import Candidate, merge_candidate, without_thinking
from fuseval.pipeline import Run
from fuseval.scoring import score_models
from fuseval.study import Plan, unpriced_judges
from fuseval.turns import FINISHED
from fuseval.variant import variant
from fuseval.worth import Weigher

SEARCH, HOLDOUT = "search", "holdout"


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
    def knows_prices(self) -> bool:
        """Whether it is known what everybody charges who may be asked for a trial."""
        return not unpriced_judges(self.run)

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


@contextlib.contextmanager
def unwritten(ablation: Ablation, candidate: Candidate) -> Iterator[None]:
    """Take away the folder of a merge that had to be written to be loaded, unless all are kept."""
    folder = candidate.folder
    temporary = candidate.stream is None and folder is not None and not folder.exists()
    yield
    if temporary and folder is not None and ablation.plan.file.ablation.keep != "all":
        shutil.rmtree(folder, ignore_errors=True)


def score_on(run: Run, candidate: Candidate, asked: Sequence[Asked]) -> None:
    """Score one model on these questions, and leave all other scores as they are.

    What it was selected for before (another study's questions) stays selected.
    """
    for one in asked:
        judges = [*(judge.model.id for judge in run.judges), *(panel.id for panel in run.panels)]
        name, version = one.benchmark.name, one.benchmark.version
        mine = [a.key for each in one.answers(candidate, run.ledger).values() for a in each]
        questions = [q.id for q in one.questions]
        for old in run.ledger.selections(benchmark=name, version=version):
            if old.model == candidate.id:
                kept = run.ledger.answers(keys=old.answers)
                mine += [a.key for a in kept if a.question not in questions]
                judges += old.judges
                questions += [q for q in old.questions if q not in questions]
        if one.benchmark.harness:  # its own figures are over all that is selected
            chosen = set(questions)
            measure(run, candidate, replace(one, questions=[q for q in one.benchmark.questions() if q.id in chosen]))
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


def _rung(outcome: Outcome) -> int:
    return outcome.rung
