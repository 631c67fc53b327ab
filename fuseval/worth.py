"""What models are worth by a study's objective, read from the ledger's scores of single questions."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from evals.composite import Part, gap, worth
from evals.records import LOWER_IS_BETTER, ItemScore, Outcome
from evals.stats import EVEN
from evals.winner import broken
from fuseval.ablation_file import ObjectiveSpec, ScoreSpec
from fuseval.asking import Asked
from fuseval.config import ConfigError
from fuseval.models import Candidate
from fuseval.study import Plan, count, place

CHECK = "check"
_TOKENS = 100  # that a length penalty is for


@dataclass(frozen=True, slots=True)
class Weigher:
    """Reads scores of a study's models. Answers' lengths are read once."""

    plan: Plan
    _lengths: dict[tuple[str, str, tuple[str, ...]], dict[str, int]] = field(default_factory=dict)

    def outcome(self, model: Candidate, asked: Sequence[Asked], *, part: str, rung: int) -> Outcome:
        """Return what a model is worth on these questions, which it and the base were asked and scored on."""
        given, told, amounts = self.plan.file.ablation, [], []
        for objective in given.objective:
            parts = self.parts(objective, list({m.id: m for m in (model, self.plan.base)}.values()), asked)
            amounts.append(worth(parts, model.id))
            told += self._told(objective, parts, model)
            if model.id != self.plan.base.id:
                beside = gap(parts, model.id, self.plan.base.id)
                told.append({"name": "beside the base", "kind": "gap", **asdict(beside)})
        if model.id != self.plan.base.id:
            told.append(self._beside_base(model, asked))
        held = [self._constraint(score, model, asked) for score in given.constraints]
        return Outcome(
            study=self.plan.record.id,
            model=model.id,
            part=part,
            rung=rung,
            questions=count(asked),
            amounts=tuple(one.value for one in amounts),
            lows=tuple(one.low for one in amounts),
            highs=tuple(one.high for one in amounts),
            feasible=not any(one["broken"] or one["value"] is None for one in held),
            parts=json.dumps([*told, *held], ensure_ascii=False),
        )

    def parts(self, objective: ObjectiveSpec, models: Sequence[Candidate], asked: Sequence[Asked]) -> list[Part]:
        """Return the objective's parts with the values of these models on these questions, as far as they have any."""
        found = _grouped([self._part(score, models, asked, weight=score.weight) for score in objective.scores])
        return found + (self._penalty(objective, found, models, asked) if objective.length_penalty else [])

    def _part(self, score: ScoreSpec, models: Sequence[Candidate], asked: Sequence[Asked], *, weight: float) -> Part:
        one, base = self.plan.benchmark_of(score, asked), self.plan.run.base.id
        questions = {q.id for q in one.questions}
        rows = [row for row in self._rows(score, one, {model.id for model in models}) if row.question in questions]
        values: dict[str, dict[str, float | None]] = {}
        counts: dict[str, float] = {}
        for row in rows:
            values.setdefault(row.model, {})[row.question] = row.value
            counts[row.question] = row.weight
        if rows and self._is_lower_better(score, one):
            weight = -abs(weight)
        compared = any(row.judge != CHECK and row.baseline == base for row in rows) or self._is_compared(score, one)
        if compared and base in {model.id for model in models} and base not in values:
            mine = counts or {q.id: 1.0 for q in one.questions if q.check is None}
            values[base] = dict.fromkeys(mine, EVEN)  # against itself
        return Part(place(one), weight, values, counts)

    def _rows(self, score: ScoreSpec, one: Asked, models: Collection[str]) -> list[ItemScore]:
        """Return the stored values of a score, by the judge that it names and against the study's baseline."""
        base, wanted = self.plan.run.base.id, self.plan.judge_id(score)
        rows = self.plan.run.ledger.item_scores(
            benchmark=one.benchmark.name, version=one.benchmark.version, metric=score.metric, models=models
        )
        judges = {judge.model.id for judge in self.plan.run.judges} | {panel.id for panel in self.plan.run.panels}
        rows = [row for row in rows if row.judge == (wanted or row.judge) and row.judge in (*judges, CHECK)]
        if len({row.judge for row in rows}) > 1:
            raise ConfigError(f"several judges give {score.metric} of {score.benchmark}: name one as the score's judge")
        against = {row.baseline for row in rows}
        if len(against) > 1:
            rows = [row for row in rows if row.baseline == base]
        if not rows and set(models) - {base}:
            self._check_metric(score, one)
        return rows

    def _is_lower_better(self, score: ScoreSpec, one: Asked) -> bool:
        """Tell whether less of a score is better, as its stored values say."""
        query = "SELECT 1 FROM scores WHERE benchmark = ? AND version = ? AND metric = ? AND list_contains(flags, ?)"
        place = (one.benchmark.name, one.benchmark.version, score.metric, LOWER_IS_BETTER)
        return bool(self.plan.run.ledger.sql(f"{query} LIMIT 1", *place).fetchall())

    def _is_compared(self, score: ScoreSpec, one: Asked) -> bool:
        """Tell whether a score compares with the baseline, of which itself there are no rows."""
        rows = self.plan.run.ledger.sql(
            "SELECT 1 FROM item_scores WHERE benchmark = ? AND version = ? AND metric = ? AND baseline = ? LIMIT 1",
            one.benchmark.name, one.benchmark.version, score.metric, self.plan.run.base.id,
        ).fetchall()  # fmt: skip
        return bool(rows)

    def _check_metric(self, score: ScoreSpec, one: Asked) -> None:
        """Raise ConfigError where no model at all has this score question by question."""
        known = self.plan.run.ledger.sql(
            "SELECT DISTINCT metric FROM item_scores WHERE benchmark = ? AND version = ? ORDER BY metric",
            one.benchmark.name, one.benchmark.version,
        ).fetchall()  # fmt: skip
        metrics = [metric for (metric,) in known]
        if score.metric not in metrics:
            raise ConfigError(
                f"{score.benchmark} gives no {score.metric!r} question by question here; it gives "
                f"{', '.join(metrics) or 'nothing'}: name one of these in ablation.objective and ablation.constraints, "
                "or add the judge that it takes"
            )

    def _penalty(
        self, objective: ObjectiveSpec, parts: Sequence[Part], models: Sequence[Candidate], asked: Sequence[Asked]
    ) -> list[Part]:
        """Return the penalty on tokens beyond the base's, on the questions that the scores rest on, which count alike.

        It has a part a group of questions, as :mod:`evals.composite` draws them.
        """
        groups: dict[str, set[str]] = {}
        for part in parts:
            groups.setdefault(part.benchmark, set()).update(_questions(part))
        of = {part.benchmark: score for part, score in zip(parts, objective.scores, strict=True)}
        total, base, found = sum(map(len, groups.values())), self.plan.run.base, []
        for group, questions in groups.items():
            one = self.plan.benchmark_of(of[group], asked)
            usual = {q: n for q, n in self._tokens(base, one).items() if q in questions}
            values = {
                model.id: {q: float(max(0, n - usual[q])) for q, n in self._tokens(model, one).items() if q in usual}
                for model in models
            }
            found.append(Part(group, -objective.length_penalty / _TOKENS * len(questions) / max(1, total), values))
        return found

    def _tokens(self, model: Candidate, one: Asked) -> Mapping[str, int]:
        """Return how many tokens the model's answers to each question have."""
        key = (model.id, place(one), tuple(q.id for q in one.questions))
        if key not in self._lengths:
            answers = one.answers(model, self.plan.run.ledger)
            found = {q: sum(a.output_tokens for a in each) for q, each in answers.items()}
            if len(found) < len(one.questions):
                return found  # more may come, of a later rung
            self._lengths[key] = found
        return self._lengths[key]

    def _told(self, objective: ObjectiveSpec, parts: Sequence[Part], model: Candidate) -> list[dict[str, Any]]:
        """Return what a reader is told of an objective's scores and penalty."""
        told = []
        for score, part in zip(objective.scores, parts, strict=False):
            found = worth([Part(part.benchmark, 1.0, part.values, part.counts)], model.id)
            told.append(
                _named(score, part) | {"kind": "score", "weight": score.weight, "value": found.value, "low": found.low,
                "high": found.high, "n": found.n, "missing": found.missing}
            )  # fmt: skip
        if objective.length_penalty:
            points = worth(parts[len(objective.scores) :], model.id, rounds=1)
            told.append({"name": "length", "kind": "penalty", "value": points.value, "n": points.n})
        return told

    def _beside_base(self, model: Candidate, asked: Sequence[Asked]) -> dict[str, Any]:
        """Return the model minus the base by the first objective, question by question."""
        parts = self.parts(self.plan.file.ablation.objective[0], [model, self.plan.base], asked)
        found = gap(parts, model.id, self.plan.base.id)
        return {"name": f"beside {self.plan.base.name}", "kind": "gap", **asdict(found)}

    def _constraint(self, score: ScoreSpec, model: Candidate, asked: Sequence[Asked]) -> dict[str, Any]:
        base = self.plan.base
        part = self._part(score, [model, base], asked, weight=1.0)
        found = gap([part], model.id, base.id)
        return _named(score, part) | {
            "kind": "constraint", "value": found.value, "low": found.low, "high": found.high, "n": found.n,
            "missing": found.missing, "broken": broken(found),
        }  # fmt: skip


def _grouped(parts: Sequence[Part]) -> list[Part]:
    """Return the parts with those of one benchmark told apart that share no question: they are drawn apart.

    A win rate over open questions and an accuracy over checked ones may be of one benchmark.
    """
    groups: list[tuple[str, set[str]]] = []
    found = []
    for part in parts:
        questions = _questions(part)
        for name, known in groups:
            if name.partition("#")[0] == part.benchmark and (known & questions or not questions):
                known.update(questions)
                break
        else:
            so_far = sum(name.partition("#")[0] == part.benchmark for name, _ in groups)
            name = f"{part.benchmark}#{so_far + 1}" if so_far else part.benchmark
            groups.append((name, questions))
        found.append(Part(name, part.weight, part.values, part.counts))
    return found


def _questions(part: Part) -> set[str]:
    return {question for values in part.values.values() for question in values}


def _named(score: ScoreSpec, part: Part) -> dict[str, Any]:
    benchmark = part.benchmark.partition("#")[0]
    return {"name": f"{score.benchmark} {score.metric}", "benchmark": benchmark, "metric": score.metric}
