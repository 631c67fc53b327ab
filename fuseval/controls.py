"""What judges are asked besides the benchmark itself, so that one can tell how far to trust them.

Controls are answers that must lose: one sentence to every question, and the base's answer to another question. A retest
puts some of the very same requests to the judge once more. Both are stored like all else, but the models that stand for
them (of kind "control" and "retest") are on no leaderboard, and no score rests on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from evals.benchmark import changed, published_answer
from evals.keys import content_key
from evals.records import Answer, JudgeRequest, Model, Question

CONSTANT = "Thank you for asking. That is a very good question, and I hope that this answer helps you."

Conversations = Mapping[str, tuple[Answer, ...]]  # question id -> its answers, turn by turn


@dataclass(frozen=True, slots=True)
class Control:
    """Answers that must lose, to some questions, and the model that stands for whoever gave them."""

    model: Model
    answers: Conversations


def constant_control(questions: Sequence[Question]) -> Control:
    """Return the control that says the same to every question."""
    model = _control("one answer to everything", "the same sentence to every question")
    return Control(model, {q.id: _said(q, model, [CONSTANT] * len(q.turns)) for q in questions})


def shuffled_control(questions: Sequence[Question], answers: Conversations) -> Control:
    """Return the control that says of each question what ``answers`` say of the next one with as many turns."""
    model = _control("another question's answer", "the base's answers, each to the question before its own")
    there = [q for q in questions if q.id in answers]
    found: dict[str, tuple[Answer, ...]] = {}
    for turns in {len(q.turns) for q in there}:
        alike = [q for q in there if len(q.turns) == turns]
        for q, other in zip(alike, [*alike[1:], *alike[:1]], strict=True):
            if other is not q:
                found[q.id] = _said(q, model, [answer.text for answer in answers[other.id]])
    return Control(model, found)


def retest_of(judge: Model) -> Model:
    """Return the model that stands for ``judge`` when it is asked the same once more."""
    identity = content_key("retest", judge.id)
    return Model(identity, f"{judge.name} (again)", "retest", judge.source, parent=judge.id)


def retests(
    requests: Iterator[JudgeRequest], *, judge: str, questions: Sequence[str], models: Sequence[str]
) -> Iterator[JudgeRequest]:
    """Yield the requests, and put some of them to ``judge`` (an identity) once more: one model's of each question."""
    chosen = {(q, models[n % len(models)]) for n, q in enumerate(questions)} if models else set()
    for request in requests:
        yield request
        if (request.question, request.model) in chosen:
            yield changed(request, judge=judge)


def control_requests(
    controls: Sequence[Control],
    *,
    questions: Sequence[Question],
    beside: Callable[[Question], tuple[Answer, ...]],
    ask: Callable[[Question, Sequence[Answer], Sequence[Answer]], Sequence[JudgeRequest]],
) -> Iterator[JudgeRequest]:
    """Yield what ``ask`` makes of each control's answers beside those that ``beside`` gives."""
    for control in controls:
        for q in questions:
            if q.id in control.answers:
                yield from ask(q, control.answers[q.id], beside(q))


def _control(name: str, source: str) -> Model:
    return Model(content_key("control", name), name, "control", source)


def _said(question: Question, model: Model, texts: Sequence[str]) -> tuple[Answer, ...]:
    return tuple(published_answer(question, model=model.id, turn=turn, text=t) for turn, t in enumerate(texts, 1))
