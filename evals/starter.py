"""``starter``: a small set of our own, for demos, smoke tests and first experiments; no published figure exists.

Arithmetic and rewriting questions have one right answer and are checked without a judge; open questions (some of
two turns) are shown to a judge beside the baseline's answers, in both orders. Metrics, in per cent: ``accuracy``
and ``accuracy:<category>``; ``win_rate``, the mean preference over the baseline (50 is even), of which a question
counts only when both orders gave a verdict.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from evals.benchmark import ITEM_COLUMNS, Benchmark, Evidence, Locate, Scored, Wanted, judge_request, only_version
from evals.checks import CHECKS
from evals.records import Answer, JudgeRequest, Message, Question, Sampling, Verdict

if TYPE_CHECKING:
    from pandas import DataFrame

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


def score(evidence: Evidence) -> Scored:
    """Return ``accuracy`` and ``accuracy:<category>`` where checks are wanted, ``win_rate`` where a judge is."""
    import pandas as pd

    verdicts = evidence.verdicts[evidence.verdicts["counts"]]
    by_order = verdicts.drop_duplicates(["model", "judge", "baseline", "question", "order"], keep="last")
    rows = []
    for wanted in evidence.wanted:
        mine = by_order[(by_order["model"] == wanted.model) & (by_order["judge"] == wanted.judge)]
        if wanted.judge != "check":
            mine = mine[mine["baseline"] == wanted.baseline]
        values = mine.pivot(index="question", columns="order", values="value")
        rows += _rows(evidence.questions, wanted, values)
    return Scored(pd.DataFrame(rows, columns=list(ITEM_COLUMNS)).astype({"value": float, "weight": float}))


def _rows(questions: Sequence[Question], wanted: Wanted, values: DataFrame) -> list[tuple[object, ...]]:
    """Return the items of one model by one judge; ``values`` has a row a question and a column an order."""
    checked = wanted.judge == "check"
    orders = ["single"] if checked else list(BOTH_ORDERS)
    percent = 100.0 * values.reindex(columns=orders).mean(axis=1, skipna=False)
    rows: list[tuple[object, ...]] = []
    for q in questions:
        if q.id in wanted.questions and (q.check is not None) == checked:
            for metric in ("accuracy", f"accuracy:{q.category}") if checked else ("win_rate",):
                value = percent.get(q.id, float("nan"))
                rows.append((wanted.model, wanted.judge, wanted.baseline, metric, q.id, value, 1.0))
    return rows


def _prompt(question: Question, first: Sequence[Answer], second: Sequence[Answer]) -> str:
    lines = []
    for number, turn in enumerate(question.turns):
        lines += [f"[Question]\n{turn}", f"[Answer A]\n{first[number].text}", f"[Answer B]\n{second[number].text}"]
    return JUDGE_USER.format(conversation="\n\n".join(lines))


def load(_asset: Locate, *, version: str | None = None) -> Benchmark:
    """Return the benchmark; it has one version."""
    only_version(NAME, version, (VERSION,))
    return Benchmark(NAME, VERSION, questions, sampling, requests, check, score)
