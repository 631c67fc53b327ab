"""lm-eval's tasks as benchmarks: questions with one right answer, asked and measured as EleutherAI's harness does.

Gao et al., https://github.com/EleutherAI/lm-evaluation-harness, version 0.4.13, used as a library: a task's prompts,
examples, filters, metrics and aggregations are its own. ``lm_eval:gsm8k`` is a task or group of its catalogue,
``lm_eval:my_task.yaml`` one of a file. Differences: ``limit`` counts the questions of a whole group, spread over its
tasks; a prompt's examples do not depend on which other questions are asked; code is run in a sandbox (evals.lm_code);
intervals are a bootstrap over questions, lm-eval's own standard errors lie beside in the ledger's table ``aggregates``.
A group's score is the mean over all of its questions. Values are on lm-eval's scale, mostly 0 to 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from evals.answer import Ask, Cost
from evals.assets import AssetError
from evals.benchmark import ITEM_COLUMNS, Benchmark, Evidence, Scored
from evals.lm_code import RunTests, check_contained, code_in
from evals.lm_options import PREFIX, TaskOptions, drawing, most_tokens
from evals.lm_tasks import Definition, build, find_definitions, version_of
from evals.records import (
    LOWER_IS_BETTER,
    Aggregate,
    Answer,
    Failure,
    JudgeRequest,
    Question,
    Sampling,
    Score,
    Verdict,
)

if TYPE_CHECKING:
    from pandas import DataFrame

    from evals.lm_model import Responder
    from evals.lm_samples import Document, Measured

LIKE_LM_EVAL = ":lm_eval"  # ends the name of lm-eval's own figure


class Harness:
    """The tasks behind one name, their data loaded when they are first needed."""

    def __init__(
        self, name: str, definitions: Sequence[Definition], options: TaskOptions, *, run_tests: RunTests | None
    ) -> None:
        self.name, self.options = PREFIX + name, options
        self.version = version_of(definitions, options)
        self._definitions, self._run_tests = definitions, run_tests

    @property
    def kinds(self) -> set[str]:
        """What models are asked for: generate_until, multiple_choice, loglikelihood, loglikelihood_rolling."""
        return {str(each.config.get("output_type", "generate_until")) for each in self._definitions}

    @property
    def drawn(self) -> Mapping[str, Mapping[str, Any]]:
        """How each task's replies are drawn, in lm-eval's words; of tasks that generate."""
        told = {each.name: each.generation(self.options) for each in self._definitions}
        return {name: drawing(how) for name, how in told.items() if how}

    @cached_property
    def tasks(self) -> dict[str, Any]:
        """lm-eval's tasks by name; raises AssetError where their data, a package or a sandbox lacks."""
        return {each.name: self._task(each) for each in self._definitions}

    @cached_property
    def documents(self) -> dict[str, Document]:
        """Every document by its question's id, in the tasks' order."""
        from evals.lm_samples import Document

        several = len(self.tasks) > 1
        return {
            question: Document(question, task, number, doc)
            for name, task in self.tasks.items()
            for number, doc in enumerate(task.eval_docs)
            for question in [f"{name}/{number}" if several else str(number)]
        }

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """The documents as questions; their ``check`` holds a digest of the document and of the examples' source."""
        sources = {name: _digest(task) for name, task in self.tasks.items()}
        return tuple(self._question(document, sources) for document in self.documents.values())

    def sampling(self, question: Question) -> Sampling:
        """Return how the replies to a question are drawn, as far as our own words say it."""
        definition = next(d for d in self._definitions if d.name == question.category)
        told = definition.generation(self.options)
        until = told.get("until") or ()
        drawn = bool(told.get("do_sample", told.get("temperature")))
        return Sampling(
            temperature=float(told.get("temperature") or 0.0) if drawn else 0.0,
            max_tokens=most_tokens(told) if told else 1,
            stop=(until,) if isinstance(until, str) else tuple(until),
        )

    def prompts(self, questions: Sequence[Question]) -> dict[str, list[str]]:
        """Return what a model would read of each question, without a chat template: the texts of all requests."""
        made = self._requests([q.id for q in questions], chat_template=None)
        return {
            question: ["".join(a for a in r.args if isinstance(a, str)) for r in requests]
            for question, requests in made.items()
        }

    def answers(
        self, wanted: Sequence[Ask], *, identity: str, model: Responder, cost: Cost
    ) -> Iterator[Answer | Failure]:
        """Yield an answer or a failure for each wanted question, as each comes."""
        from evals.lm_samples import answers

        template = model.apply_chat_template if self.options.apply_chat_template else None
        requests = self._requests([ask.question.id for ask in wanted], chat_template=template)
        yield from answers(wanted, requests, identity=identity, model=model, cost=cost)

    def measure(self, found: Sequence[Answer]) -> Measured:
        """Return what the tasks' metrics make of one model's answers."""
        from evals.lm_samples import measure

        return measure([(self.documents[answer.question], answer) for answer in found])

    def _requests(self, ids: Sequence[str], *, chat_template: Callable[..., str] | None) -> dict[str, list[Any]]:
        from evals.lm_samples import requests_of

        chosen = [self.documents[question] for question in ids]
        return requests_of(chosen, told=self.options.identity(), chat_template=chat_template)

    def _task(self, definition: Definition) -> Any:
        if definition.runs_text:
            raise AssetError(
                f"lm_eval:{definition.name} evaluates models' texts outside the sandbox, so it is refused: leave it out"
            )
        if not definition.config.get("unsafe_code"):
            return build(definition, self.options)
        if self._run_tests is None:
            raise AssetError(f"lm_eval:{definition.name} runs models' code, and there is no sandbox to run it in")
        self._run_tests([("pass", "pass")])  # raises, and says why, where this machine cannot isolate anything
        with code_in(self._run_tests):
            task = build(definition, self.options)
        check_contained(task, definition.name)
        return task

    def _question(self, document: Document, sources: Mapping[str, str]) -> Question:
        task, doc = document.task, document.doc
        name = str(task.config.task)
        text, target = task.doc_to_text(doc), task.doc_to_target(doc)
        choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else ()
        if choices and isinstance(target, int) and 0 <= target < len(choices):
            target = choices[target]
        shown = [text] if isinstance(text, str) else []
        shown += [f"- {choice}" for choice in choices]
        digest = hashlib.sha256(f"{sources[name]}{_plain(doc)}".encode()).hexdigest()[:16]
        return Question(
            benchmark=self.name,
            version=self.version,
            id=document.question,
            category=name,
            turns=("\n".join(shown),),
            reference=(target if isinstance(target, str) else _plain(target),),
            check=f"{self.name} {digest}",
        )


def load_task(
    given: str, *, version: str | None, options: Mapping[str, Any] | None, run_tests: RunTests | None = None
) -> Benchmark:
    """Return the benchmark of an lm-eval task, group or YAML file; raises ValueError where there is no such.

    ``run_tests`` runs the programs of tasks of code; without it these are refused.
    """
    name, definitions = find_definitions(given)
    harness = Harness(name, definitions, TaskOptions.of(options or {}), run_tests=run_tests)
    if version not in (None, harness.version):
        raise ValueError(f"lm_eval:{name} with these options has version {harness.version!r} here, not {version!r}")
    return _benchmark(harness.name, harness.version, lambda: harness.questions, harness.sampling, harness)


def stored_task(name: str, version: str) -> Benchmark:
    """Return the benchmark that scores what a ledger holds of an lm-eval task; lm-eval itself is not needed."""

    def nothing() -> tuple[Question, ...]:
        raise AssetError(f"{name} {version} is only scored from the ledger here: run its experiment to ask it")

    return _benchmark(name, version, nothing, lambda _: Sampling(), None)


def _benchmark(
    name: str,
    version: str,
    questions: Callable[[], tuple[Question, ...]],
    sampling: Callable[[Question], Sampling],
    harness: Harness | None,
) -> Benchmark:
    return Benchmark(
        name=name,
        version=version,
        questions=questions,
        sampling=sampling,
        requests=_no_requests,
        check=_measured_already,
        score=score,
        against="nothing",
        like_published=like_lm_eval,
        harness=harness,
    )


def _no_requests(
    _question: Question, _answers: Sequence[Answer], _beside: Sequence[Answer], _judge: str
) -> Sequence[JudgeRequest]:
    return ()


def _measured_already(_question: Question, _answers: Sequence[Answer]) -> Verdict | None:
    """Return None: a task's metrics were computed after the answers came, and lie in the ledger."""
    return None


def score(evidence: Evidence) -> Scored:
    """Return each metric: a mean over questions as items, any other as lm-eval's own aggregate."""
    import pandas as pd

    questions = {q.id: q.category for q in evidence.questions}
    several = len(set(questions.values())) > 1
    found = dict(list(evidence.measures.groupby(["model", "metric"], sort=False)))
    told = {(a.model, a.metric): a for a in evidence.aggregates}
    measured = evidence.measures.groupby("metric")["question"]
    tasks = {metric: {questions.get(question) for question in of_metric} for metric, of_metric in measured}
    rows: list[tuple[object, ...]] = []
    scores: list[Score] = []
    flags: dict[tuple[str, str, str | None, str], tuple[str, ...]] = {}
    for wanted in (w for w in evidence.wanted if w.judge == "check"):  # judges are not asked
        for (model, metric), aggregate in told.items():
            if model != wanted.model:
                continue
            if aggregate.is_mean:
                values = _by_question(found.get((model, metric)))
                for question in (q for q in questions if q in wanted.questions and questions[q] in tasks[metric]):
                    value, weight = values.get(question, (float("nan"), 1.0))
                    names = (metric, f"{metric}:{questions[question]}") if several else (metric,)
                    rows += [(model, wanted.judge, None, name, question, value, weight) for name in names]
                    flags |= {(model, wanted.judge, None, name): _flags(aggregate) for name in names}
            else:
                scores.append(_own_score(aggregate, wanted.judge, missing=len(wanted.questions) - aggregate.n))
    items = pd.DataFrame(rows, columns=list(ITEM_COLUMNS)).astype({"value": float, "weight": float})
    return Scored(items, scores, flags=flags)


def like_lm_eval(evidence: Evidence) -> list[Score]:
    """Return lm-eval's own aggregates, with 1.96 of its standard errors around them."""
    models = {wanted.model for wanted in evidence.wanted}
    return [
        _own_score(each, "check", missing=0, name=each.metric + LIKE_LM_EVAL)
        for each in evidence.aggregates
        if each.model in models
    ]


def _by_question(measures: DataFrame | None) -> dict[str, tuple[float, float]]:
    if measures is None:
        return {}
    columns = (measures[name] for name in ("question", "value", "weight"))
    return {str(q): (float(v), float(w)) for q, v, w in zip(*columns, strict=True)}


def _own_score(told: Aggregate, judge: str, *, missing: int, name: str | None = None) -> Score:
    spread = 1.96 * told.stderr if told.stderr is not None else None
    known = spread is not None and told.value is not None
    return Score(
        model=told.model,
        benchmark=told.benchmark,
        version=told.version,
        judge=judge,
        baseline=None,
        metric=name or told.metric,
        value=told.value,
        low=(told.value or 0.0) - (spread or 0.0) if known else None,
        high=(told.value or 0.0) + (spread or 0.0) if known else None,
        n=told.n,
        missing=max(0, missing),
        flags=_flags(told),
    )


def _flags(told: Aggregate) -> tuple[str, ...]:
    return () if told.higher_is_better else (LOWER_IS_BETTER,)


def _digest(task: Any) -> str:
    """Return a digest of what examples are taken from; "" where there are none."""
    if not task.get_config("num_fewshot"):
        return ""
    source = hashlib.sha256()
    for doc in task.sampler.df:
        source.update(_plain(doc).encode("utf-8", "surrogatepass"))
    return source.hexdigest()


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
