"""``starter``: a small set of our own, for demos, smoke tests and first experiments; no published figure exists.

Arithmetic and rewriting questions have one right answer and are checked without a judge; open questions (some of
two turns) are shown to a judge beside the baseline's answers, in both orders. Metrics, in per cent: ``accuracy``
and ``accuracy:<category>``; ``win_rate``, the mean preference over the baseline (50 is even), of which a question
counts only when both orders gave a verdict.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from importlib import resources

from evals.benchmark import Benchmark, Wanted, judge_request
from evals.checks import CHECKS
from evals.records import Answer, ItemScore, JudgeRequest, Message, Question, Sampling, Verdict

NAME, VERSION = "starter", "1"
BOTH_ORDERS = ("model_first", "baseline_first")

JUDGE_SYSTEM = "You compare two answers to the same question and say which one is better."
JUDGE_USER = """{conversation}

Which answer is more helpful, correct and to the point? Reply with one letter: A or B."""


@cache
def questions() -> tuple[Question, ...]:
    """Return the embedded questions, in their fixed order."""
    data = json.loads(resources.files("evals").joinpath("starter.json").read_text(encoding="utf-8"))
    return tuple(
        Question(
            benchmark=NAME,
            version=VERSION,
            id=q["id"],
            category=q["category"],
            turns=tuple(q["turns"]),
            reference=tuple(q["reference"] or ()),
            check=q["check"],
        )
        for q in data["questions"]
    )


def sampling(_question: Question) -> Sampling:
    """Greedy, at most 96 tokens a turn: every right answer fits."""
    return Sampling(temperature=0.0, max_tokens=96)


def check(question: Question, answers: Sequence[Answer]) -> Verdict | None:
    """Return whether the last answer is right, or None for a question that needs a judge."""
    if question.check is None:
        return None
    last = answers[-1]
    right = CHECKS[question.check](last.text, question.reference[-1])
    return Verdict(
        request=last.key,
        judge="check",
        benchmark=NAME,
        version=VERSION,
        question=question.id,
        turn=last.turn,
        model=last.model,
        baseline=None,
        order="single",
        value=1.0 if right else 0.0,
    )


def requests(
    question: Question, answers: Sequence[Answer], baseline_answers: Sequence[Answer], judge: str
) -> Sequence[JudgeRequest]:
    """Return the two requests (both orders) for an open question, none for a checked one or without a baseline."""
    if question.check is not None or not baseline_answers:
        return ()
    asked = []
    for order in BOTH_ORDERS:
        first, second = (answers, baseline_answers) if order == "model_first" else (baseline_answers, answers)
        messages = (Message("system", JUDGE_SYSTEM), Message("user", _prompt(question, first, second)))
        asked.append(
            judge_request(
                question,
                judge=judge,
                answers=(answers[-1], baseline_answers[-1]),
                order=order,
                messages=messages,
                sampling=Sampling(temperature=0.0, max_tokens=4),
                reply="a_or_b",
            )
        )
    return tuple(asked)


def items(questions: Sequence[Question], verdicts: Sequence[Verdict], wanted: Sequence[Wanted]) -> list[ItemScore]:
    """Return ``accuracy`` and ``accuracy:<category>`` where checks are wanted, ``win_rate`` where a judge is."""
    said: dict[tuple[str, str, str | None, str], list[Verdict]] = defaultdict(list)
    for v in verdicts:
        said[v.model, v.judge, v.baseline, v.question].append(v)
    scores = []
    for group in wanted:
        checked = group.judge == "check"
        for q in questions:
            if q.id not in group.questions or (q.check is not None) != checked:
                continue
            found = said[group.model, group.judge, group.baseline, q.id]
            value = _both_orders(found) if not checked else found[0].value if found else None
            percent = None if value is None else 100.0 * value
            for metric in ("accuracy", f"accuracy:{q.category}") if checked else ("win_rate",):
                scores.append(ItemScore(group.model, NAME, VERSION, group.judge, group.baseline, metric, q.id, percent))
    return scores


def _both_orders(verdicts: Sequence[Verdict]) -> float | None:
    by_order = {v.order: v.value for v in verdicts}
    values = [by_order.get(order) for order in BOTH_ORDERS]
    if any(v is None for v in values):
        return None
    return sum(v for v in values if v is not None) / len(values)


def _prompt(question: Question, first: Sequence[Answer], second: Sequence[Answer]) -> str:
    lines = []
    for number, turn in enumerate(question.turns):
        lines += [f"[Question]\n{turn}", f"[Answer A]\n{first[number].text}", f"[Answer B]\n{second[number].text}"]
    return JUDGE_USER.format(conversation="\n\n".join(lines))


BENCHMARK = Benchmark(NAME, VERSION, questions, sampling, requests, check, items)
