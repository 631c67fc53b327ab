"""What an experiment asks: of every benchmark the chosen questions, how they are drawn, and what judges are shown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from evals.answer import stored_answers
from evals.benchmark import Benchmark, Locate, changed, published_answer, published_model
from evals.catalog import find_benchmark
from evals.keys import content_key
from evals.records import Answer, JudgeRequest, Model, Question, Sampling
from fuseval.config import ConfigError
from fuseval.controls import (
    Conversations,
    constant_control,
    control_requests,
    retest_of,
    retests,
    shuffled_control,
)
from fuseval.experiment import AuditSpec, BenchmarkSpec, Experiment, JudgeSpec
from fuseval.models import Candidate
from fuseval.unit_tests import run_tests
from judges.structured import structured
from results.store import Ledger

_NOT_YET = ":"  # in the key of an answer that is not there; content keys are hexadecimal


@dataclass(frozen=True, slots=True)
class Asked:
    """One benchmark of an experiment: which of its questions, and how their answers are drawn."""

    benchmark: Benchmark
    questions: Sequence[Question]
    sampling: Callable[[Question], Sampling]

    def answers(self, candidate: Candidate, ledger: Ledger) -> dict[str, tuple[Answer, ...]]:
        """Return what the ledger holds of the candidate's answers, where every turn of a question is answered."""
        return stored_answers(self.questions, identity=candidate.id, sampling=self.sampling, stored=stored(ledger))


def asked(
    experiment: Experiment, *, asset: Locate, limit: int | None = None, only: Collection[str] = ()
) -> list[Asked]:
    """Return the experiment's benchmarks; of each at most ``limit`` questions, or those of the ids in ``only``."""
    found = [_asked(spec, experiment, asset=asset, limit=limit) for spec in experiment.benchmarks]
    return _only(found, only) if only else found


def _only(found: Sequence[Asked], only: Collection[str]) -> list[Asked]:
    """Return the benchmarks that have a question in ``only``, with those questions; an id may be BENCHMARK:ID."""
    chosen: dict[int, set[str]] = defaultdict(set)
    for given in only:
        within = [n for n, one in enumerate(found) if given.startswith(f"{one.benchmark.name}:")]
        wanted = given.removeprefix(f"{found[within[0]].benchmark.name}:") if within else given
        places = [n for n in within or range(len(found)) if wanted in {q.id for q in found[n].benchmark.questions()}]
        if not places:
            raise ConfigError(f"no benchmark of the experiment has a question {given!r}")
        if len(places) > 1:
            names = " or ".join(f"{found[n].benchmark.name}:{wanted}" for n in places)
            raise ConfigError(f"several benchmarks have a question {wanted!r}: say {names}")
        chosen[places[0]].add(wanted)
    return [
        replace(one, questions=[q for q in one.benchmark.questions() if q.id in chosen[n]])
        for n, one in enumerate(found)
        if n in chosen
    ]


def stored(ledger: Ledger) -> Callable[[Sequence[str]], dict[str, Answer]]:
    """Return what looks answers up by their keys."""
    return lambda keys: {a.key: a for a in ledger.answers(keys=keys)} if keys else {}


def spread(questions: Sequence[Question], limit: int | None, *, seed: int | None = None) -> list[Question]:
    """Return ``limit`` questions spread evenly over the categories; a smaller limit's are among a larger one's.

    Of each category the first, or with a seed random ones.
    """
    if limit is None or limit >= len(questions):
        return list(questions)
    order = list(questions)
    if seed is not None:
        order.sort(key=lambda q: content_key("subset", seed, q.benchmark, q.version, q.id))
    seen: dict[str, int] = defaultdict(int)
    rank = {}
    for q in order:
        rank[q.id] = seen[q.category]
        seen[q.category] += 1
    kept = {q.id for q in sorted(order, key=lambda q: rank[q.id])[:limit]}
    return [q for q in questions if q.id in kept]


def published(one: Asked) -> tuple[list[Model], list[Answer]]:
    """Return the models that a benchmark brings answers of, and those answers to the chosen questions."""
    models: dict[str, Model] = {}
    answers: list[Answer] = []
    for q in one.questions if one.benchmark.baseline else ():
        name = one.benchmark.baseline(q)  # type: ignore[misc]
        models.setdefault(name, published_model(name, source=f"published with {one.benchmark.name}"))
        answers += _published_answers(one.benchmark, q)
    return list(models.values()), answers


@dataclass(frozen=True, slots=True)
class Judge:
    """A judge as it is asked: who is asked, how, and the model that its judgments are stored under.

    With a form or a bound of its own its judgments are other ones than the benchmark's, so it is a judge of its own.
    """

    spec: JudgeSpec
    candidate: Candidate
    model: Model

    @classmethod
    def of(cls, spec: JudgeSpec, candidate: Candidate) -> Judge:
        """Return the experiment's judge."""
        model, how = candidate.model, []
        if spec.structured:
            how.append("structured")
        if spec.max_tokens is not None:
            how.append(f"at most {spec.max_tokens} tokens")
        if how:
            identity = content_key("judge", model.id, spec.structured, spec.max_tokens)
            model = replace(model, id=identity, name=f"{model.name} ({', '.join(how)})", parent=model.id)
        return cls(spec, candidate, model)


def requests(
    one: Asked,
    by: Judge,
    *,
    candidates: Sequence[Candidate],
    ledger: Ledger,
    unanswered: bool = False,
) -> Iterator[JudgeRequest]:
    """Yield what to ask a judge about the stored answers of the candidates, whose first is the experiment's base.

    With ``unanswered``, about empty ones too, to be counted only. One candidate's answers are held at a time, and those
    that they are shown beside.
    """
    ask = asking(one, by)
    before: list[Conversations] = []
    for candidate in candidates:
        answered = _answered(one, candidate, ledger, unanswered=unanswered)
        for beside in _beside(one, before):
            for q in one.questions:
                shown = beside.get(q.id, ())
                if q.id in answered and not (shown and shown[0].model == candidate.id):
                    yield from ask(q, answered[q.id], shown)
        if one.benchmark.against == "each" or (one.benchmark.against == "base" and not before):
            before.append(answered)


def asking(one: Asked, by: Judge) -> Callable[[Question, Sequence[Answer], Sequence[Answer]], Sequence[JudgeRequest]]:
    """Return what makes judge requests of a question, answers, and answers beside them, as the judge is to be asked."""

    def ask(question: Question, answers: Sequence[Answer], beside: Sequence[Answer]) -> list[JudgeRequest]:
        found = one.benchmark.requests(question, answers, beside, by.model.id)
        if by.spec.structured:
            found = [structured(r) for r in found]
        if by.spec.max_tokens is not None:
            found = [changed(r, sampling=replace(r.sampling, max_tokens=by.spec.max_tokens)) for r in found]
        return list(found)

    return ask


def audit_requests(
    one: Asked,
    by: Judge,
    *,
    audit: AuditSpec,
    candidates: Sequence[Candidate],
    ledger: Ledger,
    unanswered: bool = False,
) -> Iterator[JudgeRequest]:
    """Yield what :func:`requests` does, some of it for a second time, and requests about answers that must lose.

    What the answers and the models of the latter need in the ledger is stored.
    """
    found = requests(one, by, candidates=candidates, ledger=ledger, unanswered=unanswered)
    if audit.retest:
        judged = [c.id for c in candidates[one.benchmark.against in ("base", "each") :]]
        sample = [q.id for q in spread([q for q in one.questions if q.check is None], audit.retest, seed=0)]
        yield from retests(found, judge=retest_of(by.model).id, questions=sample, models=judged)
    else:
        yield from found
    if not audit.controls:
        return
    questions = spread([q for q in one.questions if q.check is None], audit.controls, seed=0)
    base = _answered(one, candidates[0], ledger, unanswered=unanswered)
    controls = [constant_control(questions), shuffled_control(questions, base)]
    if not unanswered:
        for control in controls:
            ledger.add(control.model, *(answer for answers in control.answers.values() for answer in answers))
    beside = next(iter(_beside(one, [base])), {})
    yield from control_requests(
        controls,
        questions=questions,
        beside=lambda q: beside.get(q.id, ()),
        ask=asking(one, by),
    )


def _asked(spec: BenchmarkSpec, experiment: Experiment, *, asset: Locate, limit: int | None) -> Asked:
    benchmark = find_benchmark(spec.name, asset=asset, options=spec.options, run_tests=run_tests)
    limits = [most for most in (spec.limit, limit) if most is not None]
    given = {k: v for k, v in experiment.sampling.model_dump().items() if v is not None and not benchmark.harness}
    if "stop" in given:
        given["stop"] = tuple(given["stop"])

    def sampling(question: Question) -> Sampling:
        return replace(benchmark.sampling(question), seed=experiment.seed, **given)

    return Asked(benchmark, spread(benchmark.questions(), min(limits, default=None), seed=spec.seed), sampling)


def _answered(one: Asked, candidate: Candidate, ledger: Ledger, *, unanswered: bool) -> Conversations:
    empty = {q.id: _no_answers(q, candidate) for q in one.questions} if unanswered else {}
    return {**empty, **one.answers(candidate, ledger)}


def _beside(one: Asked, before: Sequence[Conversations]) -> list[Conversations]:
    """Return whose answers a candidate's are shown beside; ``before`` are those of the candidates before it."""
    if one.benchmark.against == "published":
        return [{q.id: _published_answers(one.benchmark, q) for q in one.questions}]
    if one.benchmark.against == "nothing":
        return [{}]
    return list(before if one.benchmark.against == "each" else before[:1])


def _published_answers(benchmark: Benchmark, question: Question) -> tuple[Answer, ...]:
    assert benchmark.baseline is not None and benchmark.baseline_answers is not None
    name = benchmark.baseline(question)
    model, turns = published_model(name).id, benchmark.baseline_answers(name)[question.id]
    return tuple(published_answer(question, model=model, turn=turn, text=text) for turn, text in enumerate(turns, 1))


def is_shown_unanswered(request: JudgeRequest) -> bool:
    """Tell whether a request is about an answer that is not there yet."""
    return any(_NOT_YET in key for key in request.answers)


def _no_answers(question: Question, candidate: Candidate) -> tuple[Answer, ...]:
    turns = range(1, len(question.turns) + 1)
    key = f"{candidate.id}{_NOT_YET}{question.id}"
    return tuple(
        Answer(f"{key}:{turn}", candidate.id, question.benchmark, question.version, question.id, turn,
               f"[{candidate.name}]", "stop", 0, 0, 0.0, 0, Sampling())
        for turn in turns
    )  # fmt: skip
