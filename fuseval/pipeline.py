"""fuse → answer → judge → score, each stage resumable: what is in the ledger is never asked or made again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec

from evals.answer import answer
from evals.benchmark import Locate
from evals.chat import ChatModel
from evals.records import Answer, JudgeRequest, Selection
from fuseval.asking import Asked, asked, published, requests, stored
from fuseval.config import ConfigError
from fuseval.engines import Engines
from fuseval.experiment import Experiment, JudgeSpec
from fuseval.models import Candidate, Watch, make, merge_coefficients, training_points
from fuseval.scoring import read_judgments, score
from judges.judge import judge, unjudged
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
    def asked(self) -> list[Asked]:
        """The benchmarks, each with the questions that are asked."""
        return asked(self.experiment, asset=self.asset, limit=self.limit, only=self.only)


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
    check_assets(run)
    fuse(run, [c for c in run.candidates if not _is_answered(run, c)])
    answer_all(run)


def check_means(run: Run) -> None:
    """Raise ConfigError for what is known to be missing now and would stop the run after hours of work."""
    waiting = [c for c in run.candidates if not _is_answered(run, c)]
    judges = [run.models[spec.model] for spec in run.experiment.judges]
    asked = {c.name: c for c in (*waiting, *(judges if waiting else ()))}
    missing = []
    for c in asked.values():
        if c.endpoint and c.endpoint.api_key_env and not run.engines.environ.get(c.endpoint.api_key_env):
            missing.append(f"model {c.name!r} needs its key in the environment variable {c.endpoint.api_key_env}")
    if any(c.folder for c in asked.values()) and not find_spec("vllm"):
        missing.append("vLLM is not installed; `fuseval doctor` says how to install it")
    unmade = [c.name for c in waiting if c.target and c.folder and not c.folder.exists()]
    for package in ("trl", "datasets", "accelerate"):
        if unmade and not find_spec(package):
            missing.append(f"training {', '.join(unmade)} needs {package}: pip install 'fuseval[train]'")
    if missing:
        raise ConfigError("\n".join(missing))


def check_assets(run: Run) -> None:
    """Find what scoring needs, and make what judges will be shown of one question a category.

    So an upstream file that cannot be had shows before the work, not after it.
    """
    for one in run.asked:
        for name in one.benchmark.needs:
            run.asset(name)
        first = {q.category: q for q in reversed(one.questions)}
        for spec in run.experiment.judges:
            try:
                _requests(run, replace(one, questions=list(first.values())), spec, unanswered=True)
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
    for candidate in candidates:
        make(candidate, run.models, watch=run.watch)
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
    for candidate in run.candidates:
        for one in run.asked:
            stage = f"answer {one.benchmark.name}: {candidate.name}"
            wanted = sum(len(q.turns) for q in one.questions)
            done = sum(len(answers) for answers in one.answers(candidate, run.ledger).values())
            run.watch(stage, done, wanted)
            for record in answer(
                one.questions,
                identity=candidate.id,
                model=lambda c=candidate: _ready(run, c),  # type: ignore[misc]
                sampling=one.sampling,
                stored=stored(run.ledger),
            ):
                run.ledger.add(record)
                done += isinstance(record, Answer)
                run.watch(stage, done, wanted)


def judge_all(run: Run) -> None:
    """Have every judge judge what it has not judged yet, each judgment stored as it comes."""
    for spec in run.experiment.judges:
        judge_model = run.models[spec.model]
        for one in run.asked:
            wanted = _requests(run, one, spec)
            run.ledger.add(*wanted)
            missing = unjudged(wanted, stored=lambda keys: run.ledger.have("judgments", keys))
            stage, total = f"judge {one.benchmark.name}: by {spec.model}", len({r.judgment for r in wanted})
            done = total - len(missing)
            run.watch(stage, done, total)
            if missing:
                for record in judge(missing, by=_ready(run, judge_model)):
                    run.ledger.add(record)
                    done += 1
                    run.watch(stage, done, total)
            read_judgments(run.ledger, benchmark=one.benchmark.name, version=one.benchmark.version)


def score_run(run: Run) -> None:
    """Select the experiment's own answers (an older sampling's may lie beside them) and score the ledger."""
    judges = tuple(dict.fromkeys(run.models[spec.model].id for spec in run.experiment.judges))
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
        score(run.ledger, asset=run.asset, benchmark=place, against=run.base.id)


def coverage(run: Run) -> Coverage:
    """Count what is there of what the experiment wants."""
    counts = [0, 0, 0, 0]
    for one in run.asked:
        for candidate in run.candidates:
            counts[0] += len(one.answers(candidate, run.ledger))
            counts[1] += len(one.questions)
        for spec in run.experiment.judges:
            wanted = _requests(run, one, spec)
            read = {v.request for v in run.ledger.verdicts(benchmark=one.benchmark.name) if v.value is not None}
            counts[2] += sum(request.key in read for request in wanted)
            counts[3] += len(wanted)
    return Coverage(*counts)


def plan(run: Run) -> list[dict[str, object]]:
    """Return what is still to be made and asked, a row a stage and model; nothing is done."""
    rows: list[dict[str, object]] = []
    for candidate in run.candidates:
        made = candidate.folder is None or candidate.folder.exists()
        if not made and not _is_answered(run, candidate):
            rows.append({"stage": "make", "model": candidate.name, "of": candidate.model.kind, "missing": 1})
        for one in run.asked:
            found = one.answers(candidate, run.ledger)
            turns = sum(len(q.turns) for q in one.questions if q.id not in found)
            rows.append({"stage": "answer", "model": candidate.name, "of": one.benchmark.name, "missing": turns})
    for spec in run.experiment.judges:
        for one in run.asked:
            wanted = _requests(run, one, spec, unanswered=True)
            there = run.ledger.have("judgments", {r.judgment for r in wanted})
            missing = sum(r.judgment not in there for r in wanted)
            rows.append({"stage": "judge", "model": spec.model, "of": one.benchmark.name, "missing": missing})
    return rows


def _requests(run: Run, one: Asked, spec: JudgeSpec, *, unanswered: bool = False) -> list[JudgeRequest]:
    judge_id = run.models[spec.model].id
    return requests(one, spec, judge_id, candidates=run.candidates, ledger=run.ledger, unanswered=unanswered)


def _is_answered(run: Run, candidate: Candidate) -> bool:
    return all(len(one.answers(candidate, run.ledger)) == len(one.questions) for one in run.asked)


def _ready(run: Run, candidate: Candidate) -> ChatModel:
    fuse(run, [candidate])
    return run.engines.chat_model(candidate)
