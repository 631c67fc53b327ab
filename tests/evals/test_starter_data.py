"""The starter questions are well formed, answerable, and new to the models that were trained for the demo."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from evals.checks import CHECKS

ROOT = Path(__file__).parents[2]
QUESTIONS: list[dict[str, Any]] = json.loads((ROOT / "evals/starter.json").read_text(encoding="utf-8"))["questions"]
VERIFIABLE = [q for q in QUESTIONS if q["check"]]
STEP = re.compile(r"(\d+) ([-+x/]) (\d+) = (\d+)")


def training(name: str) -> list[tuple[str, str]]:
    lines = (ROOT / "fuseval/demo" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    conversations = [json.loads(line)["messages"] for line in lines]
    assert all([m["role"] for m in c] == ["user", "assistant"] for c in conversations)
    return [(c[0]["content"], c[1]["content"]) for c in conversations]


TRAINING = {name: training(name) for name in ("rewriting", "arithmetic")}


def numbers(text: str) -> tuple[str, ...]:
    return tuple(sorted(re.findall(r"\d+", text)))


def plain(text: str) -> str:
    return " ".join(text.lower().split())


def test_every_question_has_its_own_id_and_text():
    assert len({q["id"] for q in QUESTIONS}) == len(QUESTIONS) == 64
    assert len({plain(q["turns"][0]) for q in QUESTIONS}) == len(QUESTIONS)


def test_categories_and_turns_are_as_documented():
    counts = Counter(q["category"] for q in QUESTIONS)
    assert counts == {"arithmetic": 24, "rewriting": 24, "writing": 4, "explaining": 4, "advice": 4, "planning": 4}
    assert [len(q["turns"]) for q in QUESTIONS].count(2) == 4


def test_verifiable_questions_have_one_reference_a_known_check_and_one_turn():
    wanted = {"arithmetic": "final_number", "rewriting": "exact_text"}
    for question in QUESTIONS:
        assert question["check"] == wanted.get(question["category"])
        assert len(question["reference"]) == (1 if question["check"] else 0)
        assert not question["check"] or len(question["turns"]) == 1


@pytest.mark.parametrize("question", VERIFIABLE, ids=lambda q: q["id"])
def test_a_reference_passes_its_own_check_and_the_question_does_not(question: dict[str, Any]):
    check, [reference] = CHECKS[question["check"]], question["reference"]
    assert check(reference, reference)
    assert not check(question["turns"][0], reference)


def test_no_question_or_reference_text_is_in_the_training_sets():
    prompts = {plain(prompt) for rows in TRAINING.values() for prompt, _ in rows}
    replies = {plain(reply) for rows in TRAINING.values() for _, reply in rows}
    for question in QUESTIONS:
        assert not prompts & {plain(turn) for turn in question["turns"]}, question["id"]
        assert question["check"] != "exact_text" or plain(question["reference"][0]) not in replies, question["id"]


def test_no_arithmetic_question_has_the_numbers_of_a_training_problem():
    seen = {numbers(prompt) for prompt, _ in TRAINING["arithmetic"]}
    assert not [q["id"] for q in QUESTIONS if q["category"] == "arithmetic" and numbers(q["turns"][0]) in seen]


def test_every_training_sum_is_right_and_ends_in_its_answer():
    apply = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__, "/": int.__floordiv__}
    for prompt, reply in TRAINING["arithmetic"]:
        steps = STEP.findall(reply)
        assert steps, prompt
        assert all(apply[op](int(a), int(b)) == int(c) and (op != "/" or int(a) % int(b) == 0) for a, op, b, c in steps)
        assert reply.endswith(f"\nAnswer: {steps[-1][3]}"), prompt


def test_no_training_prompt_is_there_twice():
    prompts = [prompt for rows in TRAINING.values() for prompt, _ in rows]
    assert len(set(prompts)) == len(prompts)
