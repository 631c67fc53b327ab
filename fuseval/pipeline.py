"""fuse → answer → judge → score, each stage resumable: what is in the ledger is never asked or made again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from evals.answer import answer
from evals.benchmark import Locate
from evals.budget import usd
from evals.chat import ChatModel
from evals.records import Answer, Model, Selection
from fuseval.asking import Asked, Judge, asked, published, stored
from fuseval.config import ConfigError
from fuseval.engines import Engines, missing_engines
from fuseval.experiment import Experiment
from fuseval.harness import answers, check_harness, measure_all
from fuseval.judging import benchmark_requests, given_up, judge_all, wanted
from fuseval.models import Candidate, Watch, inputs, make, merge_coefficients
from fuseval.panels import panel_model
from fuseval.prices import unpriced
from fuseval.sampling import Asker
from fuseval.scoring import score
from fuseval.training import training_points
from results.store import Ledger


@dataclass(frozen=True)
class Run:
    """What the stages share: the experiment, its models by name, the ledger, the engines, who watches."""

    experiment: Experiment
    models: Mapping[str, Candidate]
    ledger: Ledger
    engines: Engines
    watch: Watch
    asset: Locate
    limit: int | None = None
    only: tuple[str, ...] = ()  # ids of questions
    people: Path | None = None  # file of people's votes on answers
    retry_failed: bool = False  # ask again, too, what will most likely fail again
    given: tuple[Asked, ...] | None = None  # the benchmarks with their questions; None: the experiment's

    @property
    def base(self) -> Candidate:
        """The model that the others are compared with."""
        return self.models[self.experiment.base]

    @property
    def candidates(self) -> list[Candidate]:
        """The models that are evaluated, the baseline first."""
        others = [m for m in self.models.values() if m.evaluate and m.name != self.base.name]
        return [self.base, *others]

    @cached_property
    def judges(self) -> list[Judge]:
        """The judges, each as it is to be asked."""
        return [Judge.of(spec, self.models[spec.model]) for spec in self.experiment.judges]

    @cached_property
    def panels(self) -> list[Model]:
        """The models that stand for several judges."""
        names = {judge.spec.model: judge.model.id for judge in self.judges}
        return [panel_model(panel, names) for panel in self.experiment.panels]

    @cached_property
    def asked(self) -> list[Asked]:
        """The benchmarks, each with the questions that are asked."""
        if self.given is not None:
            return list(self.given)
        return asked(self.experiment, asset=self.asset, limit=self.limit, only=self.only)

    def is_answered(self, candidate: Candidate) -> bool:
        """Tell whether the ledger holds every answer that is wanted of the candidate."""
        return all(len(one.answers(candidate, self.ledger)) == len(one.questions) for one in self.asked)

    def ready(self, candidate: Candidate) -> ChatModel:
        """Return the candidate ready to chat, made if need be; the last one returned is not usable any more."""
        fuse(self, [candidate])
        return self.engines.chat_model(candidate)


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of what was wanted is there, counted in questions a model (answers) and requests (verdicts)."""

    answers: int
    answers_wanted: int
    verdicts: int
    verdicts_wanted: int

    @property
    def share(self) -> float:
        """The smaller of the two shares, in [0, 1]."""
        pairs = ((self.answers, self.answers_wanted), (self.verdicts, self.verdicts_wanted))
        return min((got / wanted for got, wanted in pairs if wanted), default=1.0)


def run_all(run: Run) -> Coverage:
    """Do every stage and return what is covered."""
    answer_stage(run)
    judge_all(run)
    score_run(run)
    return coverage(run)


def answer_stage(run: Run) -> None:
    """Make what has not answered everything yet, and have it answer."""
    register(run)
    check_means(run)
    check_harness(run)
    check_assets(run)
    fuse(run, [c for c in run.candidates if not run.is_answered(c)])
    answer_all(run)
    measure_all(run)


def check_means(run: Run) -> None:
    """Raise ConfigError for what is known to be missing now and would stop the run after hours of work."""
    waiting = [c for c in run.candidates if not run.is_answered(c)]
    judges = [judge.candidate for judge in run.judges]
    asked = {c.name: c for c in (*waiting, *judges, *_sampled(run, waiting))} if waiting else {}
    missing = []
    for c in asked.values():
        if c.endpoint and c.endpoint.api_key_env and not run.engines.environ.get(c.endpoint.api_key_env):
            missing.append(f"model {c.name!r} needs its key in the environment variable {c.endpoint.api_key_env}")
        if c.endpoint and run.experiment.budget is not None and run.engines.price(c) is None:
            missing.append(unpriced(c.name, model=c.endpoint.model, base_url=c.endpoint.base_url))
    missing += missing_engines(asked.values(), run.experiment.engine)
    unmade = [c.name for c in waiting if c.target and c.folder and not c.folder.exists()]
    for package in ("trl", "datasets", "accelerate"):
        if unmade and not find_spec(package):
            missing.append(f"training {', '.join(unmade)} needs {package}: pip install 'fuseval[train]'")
    if missing:
        raise ConfigError("\n".join(missing))


def _sampled(run: Run, waiting: Iterable[Candidate]) -> list[Candidate]:
    """Return the models that are asked in making these: sources and judges of implicit fusions."""
    found = []
    for candidate in waiting:
        names = inputs(candidate, run.models) if candidate.folder and not candidate.folder.exists() else ()
        if candidate.target and candidate.target.kind == "implicit":
            found += [run.models[name] for name in names if name != candidate.target.reward.model]
        found += _sampled(run, [run.models[name] for name in names])
    return found


def check_assets(run: Run) -> None:
    """Find what scoring needs, and make what judges will be shown of one question a category.

    So an upstream file that cannot be had shows before the work, not after it.
    """
    for one in run.asked:
        for name in one.benchmark.needs:
            run.asset(name)
        first = {q.category: q for q in reversed(one.questions)}
        for judge in run.judges:
            try:
                for _ in wanted(run, replace(one, questions=list(first.values())), judge, unanswered=True):
                    pass
            except ValueError as error:
                raise ConfigError(f"{one.benchmark.name} {one.benchmark.version} cannot be judged: {error}") from error


def register(run: Run) -> None:
    """Store the experiment's models and questions; raises ConfigError where the ledger has other questions."""
    run.ledger.add(*(candidate.model for candidate in run.models.values()))
    for one in run.asked:
        name, version = one.benchmark.name, one.benchmark.version
        known = {q.id: q for q in run.ledger.questions(name, version)}
        for q in one.questions:
            if known.get(q.id, q) != q:
                raise ConfigError(
                    f"{run.ledger.path} holds another text of question {q.id!r} of {name} {version}, "
                    "so its answers are to another question: give another --ledger"
                )
        models, answers = published(one)
        run.ledger.add(*one.benchmark.questions(), *models, *answers)


def fuse(run: Run, candidates: Iterable[Candidate]) -> None:
    """Make the weights of these candidates, and of what goes into them, where they are missing."""
    run.ledger.add(*(candidate.model for candidate in run.models.values()))
    asker = Asker(run.ledger, run.engines, run.watch, run.experiment.seed, run.retry_failed)
    for candidate in candidates:
        make(candidate, run.models, watch=run.watch, asker=asker, cluster=run.experiment.engine.cluster)
    trained = {point.model for point in run.ledger.training()}
    for candidate in run.models.values():
        if candidate.id not in trained:
            run.ledger.add(*training_points(candidate))
    merged = run.ledger.merged()
    for candidate in run.models.values():
        if candidate.id not in merged:
            run.ledger.add(*merge_coefficients(candidate))


def answer_all(run: Run) -> None:
    """Have every candidate answer every question that it has not answered yet, each answer stored as it comes."""
    skipped, budget = given_up(run, stage="answer"), run.engines.budget
    for candidate in run.candidates:
        for one in run.asked:
            stage = f"answer {one.benchmark.name}: {candidate.name}"
            turns = sum(len(q.turns) for q in one.questions)
            done = sum(len(answers) for answers in one.answers(candidate, run.ledger).values())
            run.watch(stage, done, turns)
            by_turns = answer(
                one.questions,
                identity=candidate.id,
                model=lambda c=candidate: run.ready(c),  # type: ignore[misc]
                sampling=one.sampling,
                stored=stored(run.ledger),
                cost=run.engines.cost_of(candidate),
                given_up=skipped,
            )
            for record in answers(run, candidate, one) if one.benchmark.harness else by_turns:
                run.ledger.add(record)
                done += isinstance(record, Answer)
                run.watch(stage, done, turns, usd(budget.spent) if budget.spent else "")


def score_run(run: Run) -> None:
    """Select the experiment's own answers (an older sampling's may lie beside them) and score the ledger."""
    judges = tuple(dict.fromkeys([*(judge.model.id for judge in run.judges), *(panel.id for panel in run.panels)]))
    for one in run.asked:
        for candidate in run.candidates:
            run.ledger.add(
                Selection(
                    model=candidate.id,
                    benchmark=one.benchmark.name,
                    version=one.benchmark.version,
                    questions=tuple(q.id for q in one.questions),
                    answers=tuple(a.key for answers in one.answers(candidate, run.ledger).values() for a in answers),
                    baseline=run.base.id if one.benchmark.against == "base" else None,
                    judges=judges,
                )
            )
    for one in run.asked:
        place = f"{one.benchmark.name}@{one.benchmark.version}"
        score(run.ledger, asset=run.asset, benchmark=place, against=run.base.id, people=run.people)


def coverage(run: Run) -> Coverage:
    """Count what is there of what the experiment wants."""
    counts = [0, 0, 0, 0]
    for one in run.asked:
        for candidate in run.candidates:
            counts[0] += len(one.answers(candidate, run.ledger))
            counts[1] += len(one.questions)
        for judge in run.judges:
            said = run.ledger.verdicts(benchmark=one.benchmark.name, judge=judge.model.id)
            read = {v.request for v in said if v.value is not None}
            for request in benchmark_requests(run, one, judge):
                counts[2] += request.key in read
                counts[3] += 1
    return Coverage(*counts)
