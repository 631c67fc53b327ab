"""What a benchmark must say, so that one pipeline can run them all.

A benchmark is data and a few pure functions, in one file of this room; ``evals/catalog.py`` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evals.keys import content_key
from evals.records import Answer, ItemScore, JudgeRequest, Message, Question, Sampling, Verdict


@dataclass(frozen=True, slots=True)
class Wanted:
    """Scores wanted of ``model``: by ``judge`` (or "check"), against ``baseline`` (or None), on ``questions``."""

    model: str
    judge: str
    baseline: str | None
    questions: frozenset[str]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark: its questions, how they are asked, what a judge is asked about the answers, how that is scored.

    ``requests(question, answers, baseline_answers, judge)`` returns what to ask ``judge`` (an identity) about one
    model's answers to one question, every turn answered; nothing where no judge is needed. ``check(question,
    answers)`` returns the verdict of a check without a judge, or None. ``items(questions, verdicts, wanted)`` returns
    what is wanted: a value, or None where there is no verdict, for each question that the metric rests on.
    """

    name: str
    version: str
    questions: Callable[[], tuple[Question, ...]]
    sampling: Callable[[Question], Sampling]
    requests: Callable[[Question, Sequence[Answer], Sequence[Answer], str], Sequence[JudgeRequest]]
    check: Callable[[Question, Sequence[Answer]], Verdict | None]
    items: Callable[[Sequence[Question], Sequence[Verdict], Sequence[Wanted]], list[ItemScore]]


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
        key=content_key("request", question.benchmark, question.version, question.id, keys, order, judgment),
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
