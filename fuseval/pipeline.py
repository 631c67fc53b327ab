"""fuse → answer → judge → score, each stage resumable: what is in the ledger is never asked or made again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from evals.answer import answer, stored_answers
from evals.benchmark import Benchmark
from evals.catalog import find_benchmark
from evals.chat import ChatModel
from evals.records import Answer, JudgeRequest, Question, Sampling, Selection
from fuseval.config import BenchmarkSpec, ConfigError, Experiment
from fuseval.engines import Engines
from fuseval.models import Candidate, Watch, make, merge_coefficients, training_points
from fuseval.scoring import score
from judges.judge import judge, unjudged
from judges.replies import verdict
from results.store import Ledger


@dataclass(frozen=True, slots=True)
class Run:
    """What the stages share: the experiment, its models by name, the ledger, the engines, who watches."""

    experiment: Experiment
    models: Mapping[str, Candidate]
    ledger: Ledger
    engines: Engines
    watch: Watch
    limit: int | None = None

    @property
    def base(self) -> Candidate:
        """The model that the others are compared with."""
        return self.models[self.experiment.base]

    @property
    def candidates(self) -> list[Candidate]:
        """The models that are evaluated, the baseline first."""
        others = [m for m in self.models.values() if m.evaluate and m.name != self.base.name]
        return [self.base, *others]


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


def register(run: Run) -> None:
    """Store the experiment's models and questions; raises ConfigError where the ledger has other questions."""
    run.ledger.add(*(candidate.model for candidate in run.models.values()))
    for benchmark, questions, _ in _benchmarks(run):
        stored = {q.id: q for q in run.ledger.questions(benchmark.name, benchmark.version)}
        for q in questions:
            if stored.get(q.id, q) != q:
                raise ConfigError(
                    f"{run.ledger.path} holds another text of question {q.id!r} of {benchmark.name} "
                    f"{benchmark.version}, so its answers are to another question: give another --ledger"
                )
        run.ledger.add(*questions)


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
        for benchmark, questions, sampling in _benchmarks(run):
            stage = f"answer {benchmark.name}: {candidate.name}"
            wanted = sum(len(q.turns) for q in questions)
            before = stored_answers(questions, identity=candidate.id, sampling=sampling, stored=_stored(run.ledger))
            done = sum(len(answers) for answers in before.values())
            run.watch(stage, done, wanted)
            for record in answer(
                questions,
                identity=candidate.id,
                model=lambda c=candidate: _ready(run, c),  # type: ignore[misc]
                sampling=sampling,
                stored=_stored(run.ledger),
            ):
                run.ledger.add(record)
                done += isinstance(record, Answer)
                run.watch(stage, done, wanted)


def judge_all(run: Run) -> None:
    """Have every judge judge what it has not judged yet, each judgment stored as it comes; then read the verdicts."""
    for name in dict.fromkeys(spec.model for spec in run.experiment.judges):
        judge_model = run.models[name]
        for benchmark, questions, sampling in _benchmarks(run):
            requests = _requests(run, benchmark, questions, sampling, judge_model.id)
            run.ledger.add(*requests)
            missing = unjudged(requests, stored=lambda keys: run.ledger.have("judgments", keys))
            stage, total = f"judge {benchmark.name}: by {name}", len({r.judgment for r in requests})
            done = total - len(missing)
            run.watch(stage, done, total)
            if missing:
                for record in judge(missing, by=_ready(run, judge_model)):
                    run.ledger.add(record)
                    done += 1
                    run.watch(stage, done, total)
            judgments = {j.key: j for j in run.ledger.judgments(keys={r.judgment for r in requests})}
            run.ledger.add(*(verdict(r, judgments[r.judgment]) for r in requests if r.judgment in judgments))


def score_run(run: Run) -> None:
    """Select the experiment's own answers (an older sampling's may lie beside them) and score the ledger."""
    judges = tuple(dict.fromkeys(run.models[spec.model].id for spec in run.experiment.judges))
    names = set()
    for benchmark, questions, sampling in _benchmarks(run):
        names.add(benchmark.name)
        for candidate in run.candidates:
            found = stored_answers(questions, identity=candidate.id, sampling=sampling, stored=_stored(run.ledger))
            run.ledger.add(
                Selection(
                    model=candidate.id,
                    benchmark=benchmark.name,
                    version=benchmark.version,
                    questions=tuple(q.id for q in questions),
                    answers=tuple(a.key for answers in found.values() for a in answers),
                    baseline=run.base.id,
                    judges=judges,
                )
            )
    for name in sorted(names):
        score(run.ledger, benchmark=name, against=run.base.id)


def coverage(run: Run) -> Coverage:
    """Count what is there of what the experiment wants."""
    counts = [0, 0, 0, 0]
    for benchmark, questions, sampling in _benchmarks(run):
        for candidate in run.candidates:
            found = stored_answers(questions, identity=candidate.id, sampling=sampling, stored=_stored(run.ledger))
            counts[0] += len(found)
            counts[1] += len(questions)
        for spec in run.experiment.judges:
            requests = _requests(run, benchmark, questions, sampling, run.models[spec.model].id)
            read = {v.request for v in run.ledger.verdicts(benchmark=benchmark.name) if v.value is not None}
            counts[2] += sum(request.key in read for request in requests)
            counts[3] += len(requests)
    return Coverage(*counts)


def plan(run: Run) -> list[dict[str, object]]:
    """Return what is still to be made and asked, a row a stage and model; nothing is done."""
    rows: list[dict[str, object]] = []
    for candidate in run.candidates:
        made = candidate.folder is None or candidate.folder.exists()
        if not made and not _is_answered(run, candidate):
            rows.append({"stage": "make", "model": candidate.name, "of": candidate.model.kind, "missing": 1})
        for benchmark, questions, sampling in _benchmarks(run):
            found = stored_answers(questions, identity=candidate.id, sampling=sampling, stored=_stored(run.ledger))
            turns = sum(len(q.turns) for q in questions if q.id not in found)
            rows.append({"stage": "answer", "model": candidate.name, "of": benchmark.name, "missing": turns})
    for spec in run.experiment.judges:
        for benchmark, questions, sampling in _benchmarks(run):
            judge_id = run.models[spec.model].id
            requests = _requests(run, benchmark, questions, sampling, judge_id, unanswered=True)
            stored = run.ledger.have("judgments", {r.judgment for r in requests})
            missing = sum(r.judgment not in stored for r in requests)
            rows.append({"stage": "judge", "model": spec.model, "of": benchmark.name, "missing": missing})
    return rows


def first_questions(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """Return ``limit`` questions spread evenly over the categories; a smaller limit's are among a larger one's."""
    if limit is None or limit >= len(questions):
        return list(questions)
    seen: dict[str, int] = defaultdict(int)
    rank = {}
    for q in questions:
        rank[q.id] = seen[q.category]
        seen[q.category] += 1
    kept = {q.id for q in sorted(questions, key=lambda q: rank[q.id])[:limit]}
    return [q for q in questions if q.id in kept]


Selected = tuple[Benchmark, list[Question], Callable[[Question], Sampling]]


def _benchmarks(run: Run) -> list[Selected]:
    return [_select(spec, run) for spec in run.experiment.benchmarks]


def _select(spec: BenchmarkSpec, run: Run) -> Selected:
    benchmark = find_benchmark(spec.name)
    limits = [limit for limit in (spec.limit, run.limit) if limit is not None]
    given = {k: v for k, v in run.experiment.sampling.model_dump().items() if v is not None}
    if "stop" in given:
        given["stop"] = tuple(given["stop"])

    def sampling(question: Question) -> Sampling:
        return replace(benchmark.sampling(question), seed=run.experiment.seed, **given)

    return benchmark, first_questions(benchmark.questions(), min(limits, default=None)), sampling


def _stored(ledger: Ledger) -> Callable[[Sequence[str]], dict[str, Answer]]:
    return lambda keys: {a.key: a for a in ledger.answers(keys=keys)} if keys else {}


def _is_answered(run: Run, candidate: Candidate) -> bool:
    return all(
        len(stored_answers(questions, identity=candidate.id, sampling=sampling, stored=_stored(run.ledger)))
        == len(questions)
        for _, questions, sampling in _benchmarks(run)
    )


def _ready(run: Run, candidate: Candidate) -> ChatModel:
    fuse(run, [candidate])
    return run.engines.chat_model(candidate)


def _requests(
    run: Run,
    benchmark: Benchmark,
    questions: Sequence[Question],
    sampling: Callable[[Question], Sampling],
    judge_id: str,
    *,
    unanswered: bool = False,
) -> list[JudgeRequest]:
    """Return what to ask about the stored answers; with ``unanswered``, about empty ones too, to be counted only."""

    def of(candidate: Candidate) -> dict[str, tuple[Answer, ...]]:
        found = stored_answers(questions, identity=candidate.id, sampling=sampling, stored=_stored(run.ledger))
        empty = {q.id: _no_answers(q, candidate) for q in questions} if unanswered else {}
        return {**empty, **found}

    base = of(run.base)
    asked: list[JudgeRequest] = []
    for candidate in run.candidates[1:]:
        answers = of(candidate)
        for q in questions:
            if q.id in answers:
                asked += benchmark.requests(q, answers[q.id], base.get(q.id, ()), judge_id)
    return asked


def _no_answers(question: Question, candidate: Candidate) -> tuple[Answer, ...]:
    turns = range(1, len(question.turns) + 1)
    return tuple(
        Answer(f"{candidate.id}:{question.id}:{turn}", candidate.id, question.benchmark, question.version, question.id,
               turn, f"[{candidate.name}]", "stop", 0, 0, 0.0, 0, Sampling())
        for turn in turns
    )  # fmt: skip
