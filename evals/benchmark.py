"""What a benchmark must say, so that one pipeline can run them all.

A benchmark is data and a few pure functions, in one file of this room; ``evals/catalog.py`` lists them. Each file has
``load(asset, *, version, **options)``, which returns the Benchmark and reads no upstream file before it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evals.keys import content_key
from evals.records import Aggregate, Answer, JudgeRequest, Message, Model, Question, Sampling, Score, Verdict

if TYPE_CHECKING:
    from pandas import DataFrame

    from evals.lm_harness import Harness

Locate = Callable[[str], Path]
"""From an asset's name to a checked local copy; raises :class:`evals.assets.AssetError`."""

ITEM_COLUMNS = ("model", "judge", "baseline", "metric", "question", "value", "weight")
VERDICT_COLUMNS = ("model", "judge", "baseline", "question", "turn", "order", "value", "counts")
ANSWER_COLUMNS = ("model", "question", "turn", "text")
MEASURE_COLUMNS = ("model", "question", "metric", "value", "weight")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Scores wanted of ``model``: by ``judge`` (or "check"), against ``baseline`` (or None), on ``questions``."""

    model: str
    judge: str
    baseline: str | None
    questions: frozenset[str]


class Evidence:
    """What a benchmark is scored from.

    ``questions`` are those of the ledger, in the benchmark's order. ``verdicts`` has VERDICT_COLUMNS, the oldest first:
    ``value`` is NaN where the reply held no verdict, ``baseline`` None where the answer stood alone, and ``counts``
    False where the answers it is about were replaced by newer ones.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        wanted: Sequence[Wanted],
        verdicts: DataFrame,
        answers: DataFrame | Callable[[], DataFrame],
        *,
        measured: Callable[[], tuple[DataFrame, Sequence[Aggregate]]] | None = None,
    ) -> None:
        self.questions, self.wanted, self.verdicts = questions, wanted, verdicts
        self._answers, self._measured = answers, measured

    @cached_property
    def answers(self) -> DataFrame:
        """The whole conversations that count, of models and of baselines, with ANSWER_COLUMNS; read when asked for."""
        return self._answers() if callable(self._answers) else self._answers

    @cached_property
    def _own_metrics(self) -> tuple[DataFrame, Sequence[Aggregate]]:
        import pandas as pd

        return self._measured() if self._measured else (pd.DataFrame(columns=list(MEASURE_COLUMNS)), ())

    @property
    def measures(self) -> DataFrame:
        """What a task's own metrics found of the answers that count, with MEASURE_COLUMNS; read when asked for."""
        return self._own_metrics[0]

    @property
    def aggregates(self) -> Sequence[Aggregate]:
        """The same over all of a model's answers, as the task aggregates it."""
        return self._own_metrics[1]


@dataclass(frozen=True, slots=True)
class Scored:
    """What came of it.

    ``items`` has ITEM_COLUMNS: one row a question, the resampling unit, for every metric that is a weighted mean over
    questions; each wanted question has its row, with NaN where it is missing. ``scores`` are the other metrics, and
    ``same`` those that equal another: by their names, the other's. ``flags`` say what to know of the means of items,
    by (model, judge, baseline, metric).
    """

    items: DataFrame
    scores: Sequence[Score] = ()
    same: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[tuple[str, str, str | None, str], tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark: its questions, how they are asked, what a judge is asked about the answers, how that is scored.

    ``requests(question, answers, baseline_answers, judge)`` returns what to ask ``judge`` (an identity) about one
    model's answers to one question, every turn answered; nothing where no judge is needed. ``check(question,
    answers)`` returns the verdict of a check without a judge, or None. ``against`` says beside what an answer is
    judged: alone ("nothing"), beside the experiment's base ("base"), beside each model before it ("each"), or beside
    answers that were published with the benchmark ("published"): then ``baseline(question)`` names whose, and
    ``baseline_answers(name)`` maps question ids to that model's text of every turn. ``like_published`` returns the
    published way's figures where they differ; ``needs`` are the upstream files that scoring takes. ``harness`` asks and
    measures instead of all this where the benchmark is a task of lm-eval.
    """

    name: str
    version: str
    questions: Callable[[], tuple[Question, ...]]
    sampling: Callable[[Question], Sampling]
    requests: Callable[[Question, Sequence[Answer], Sequence[Answer], str], Sequence[JudgeRequest]]
    check: Callable[[Question, Sequence[Answer]], Verdict | None]
    score: Callable[[Evidence], Scored]
    against: Literal["nothing", "base", "each", "published"] = "base"
    baseline: Callable[[Question], str] | None = None
    baseline_answers: Callable[[str], Mapping[str, tuple[str, ...]]] | None = None
    like_published: Callable[[Evidence], Sequence[Score]] | None = None
    needs: Sequence[str] = ()
    harness: Harness | None = None


def only_version(name: str, version: str | None, versions: Sequence[str]) -> str:
    """Return ``version``, or the first of ``versions`` where it is None; ValueError for one that there is not."""
    if version not in (None, *versions):
        raise ValueError(f"benchmark {name!r} has version {' or '.join(map(repr, versions))} here, not {version!r}")
    return version or versions[0]


def no_check(_question: Question, _answers: Sequence[Answer]) -> Verdict | None:
    """Return None: the ``check`` of a benchmark whose answers only a judge can tell apart."""
    return None


def published_model(name: str, *, source: str = "published") -> Model:
    """Return the model called ``name`` whose answers or judgments were published: known by its name alone."""
    return Model(id=content_key("published", name), name=name, kind="published", source=source)


def published_answer(question: Question, *, model: str, turn: int, text: str) -> Answer:
    """Return an answer of ``model`` (an identity) that was not asked for by us; how it was drawn is not known."""
    key = content_key("published answer", model, question.benchmark, question.version, question.id, turn, text)
    return Answer(
        key=key,
        model=model,
        benchmark=question.benchmark,
        version=question.version,
        question=question.id,
        turn=turn,
        text=text,
        finish_reason="stop",
        prompt_tokens=0,
        output_tokens=0,
        seconds=0.0,
        seed=0,
        sampling=Sampling(),
    )


def judge_request(
    question: Question,
    *,
    judge: str,
    answers: Sequence[Answer],
    order: str,
    messages: Sequence[Message],
    sampling: Sampling,
    reply: str,
) -> JudgeRequest:
    """Return the request to show ``judge`` these answers (the model's, then the baseline's if any), with its keys."""
    judgment = content_key("judgment", judge, messages, sampling, reply)
    keys = tuple(answer.key for answer in answers)
    model, baseline = answers[0], answers[1] if len(answers) > 1 else None
    return JudgeRequest(
        key=_request_key((question.benchmark, question.version, question.id), keys, order, judgment),
        judgment=judgment,
        judge=judge,
        benchmark=question.benchmark,
        version=question.version,
        question=question.id,
        turn=model.turn,
        model=model.model,
        baseline=baseline.model if baseline else None,
        order=order,
        answers=keys,
        messages=tuple(messages),
        sampling=sampling,
        reply=reply,
    )


def changed(
    request: JudgeRequest,
    *,
    judge: str | None = None,
    messages: Sequence[Message] | None = None,
    sampling: Sampling | None = None,
    reply: str | None = None,
) -> JudgeRequest:
    """Return the request put to another judge, in other words, drawn or read otherwise, with the keys of that."""
    new = replace(
        request,
        judge=request.judge if judge is None else judge,
        messages=request.messages if messages is None else tuple(messages),
        sampling=request.sampling if sampling is None else sampling,
        reply=request.reply if reply is None else reply,
    )
    judgment = content_key("judgment", new.judge, new.messages, new.sampling, new.reply)
    if judgment == request.judgment:
        return request
    place = (request.benchmark, request.version, request.question)
    return replace(new, key=_request_key(place, request.answers, request.order, judgment), judgment=judgment)


def _request_key(asked: tuple[str, str, str], answers: Sequence[str], order: str, judgment: str) -> str:
    return content_key("request", *asked, answers, order, judgment)
