"""Gold answers against responses: what counts as the answer, and when two answers are equal."""

from __future__ import annotations

import json
import os
import pathlib
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from evals.assets import find
from fusion.errors import RecipeError
from fusion.grading import Grader, code_of, grade_all, grade_code
from fusion.sandbox_judge import ENDED

RIGHT = [
    # the golds' own forms
    ("#### 42", "She has 6 * 7 = <<6*7=42>>42 eggs.\n#### 42"),
    ("42.0", "42"),
    ("42", "The answer is 42.0."),
    (r"\boxed{7}", "7"),
    ("2,125", "$2125"),
    ("2125", "A total of 2,125 boxes."),
    # where the answer stands
    ("18", r"First 3. So \boxed{18}, not 20."),
    ("18", r"\boxed{3}, no, \boxed{18}"),
    ("18", r"\boxed{\text{18 eggs}}"),
    ("18", r"$\boxed{18\text{ eggs}}$"),
    ("18", "The answer is 17. No, the answer is 18. I took 3 steps."),
    ("18", "**Final Answer:** 18 dollars, out of 20."),
    ("18", "The answer to question 2 is 3 * 6 = 18 dollars a day."),
    ("18", "Answer: **18**"),
    ("18", "The answer is as follows:\n18"),
    ("18", "16 - 3 - 4 = 9 eggs, and 9 * 2 = 18."),
    ("18", "She makes **$18** a day."),
    ("18", "She had $5 and then $18."),
    ("18", "It costs $3 * 6 = $18."),
    ("18", r"Hence \( x = 18 \)."),
    ("18", "Hence $x = 18$."),
    ("18", "x = 18"),
    ("18", "3 × 6"),
    ("18", "We get 18 (see step 2a and H2O)."),
    ("18", "It is the 18. She was 3rd."),
    ("18", "#### 18 dollars"),
    ("18", "#### Step 3\nIt is 18.\n#### Final Answer\n18"),
    ("18", "#### 1. First\nIt is 18."),
    # numbers
    ("-5", "It is −5 degrees."),
    ("-5", "-$5"),
    ("5", "that is 10-5"),
    ("1000", r"\boxed{1\,000}"),
    ("1000", r"\boxed{1{,}000}"),
    ("1000", r"\boxed{1 000}"),
    ("1234567.5", "It is 1,234,567.50."),
    ("2500000", "about 2.5 million people"),
    ("1000", "1e3"),
    ("0.5", ".5"),
    ("0.5", "1/2"),
    ("1/2", r"\frac{1}{2}"),
    ("0.5", r"The answer is $\frac12$."),
    ("3.5", "3 1/2"),
    ("3.5", "It takes 3 1/2 hours."),
    ("3.5", r"\boxed{3\frac{1}{2}}"),
    ("-1/2", r"\boxed{-\dfrac{1}{2}}"),
    ("1/3", "0.333"),
    ("2/3", "0.6667"),
    ("50", "50%"),
    ("50%", r"\boxed{50\%}"),
    ("0.5", "50 percent"),
    ("50%", "0.5"),
    ("30", r"\boxed{30^\circ}"),
    ("12", r"\boxed{12\text{ cm}^2}"),
    # symbols and words
    ("x^2 - 1", "The answer is $(x-1)(x+1)$."),
    (r"\sqrt{2}", r"\boxed{2^{1/2}}"),
    ("2*pi", r"\boxed{2\pi}"),
    ("(1, 2)", r"\boxed{(1,2)}"),
    (r"\{1,2\}", r"\boxed{\{2,1\}}"),
    ("B", r"\boxed{(B)}"),
    (r"\text{Evelyn}", r"\boxed{\textbf{evelyn}}"),
]
WRONG = [
    ("18", ""),
    ("18", "I do not know."),
    ("18", "The answer is 18 plus 3, hence\n#### 21"),
    ("18", r"\boxed{17}, not 18"),
    ("-1/3", "0.333"),
    ("1/3", "0"),
    ("18", "18 of 20"),
    ("8", "8:00"),
    ("18", "15-18"),
    ("18", "18.01"),
    ("18", "-18"),
    ("18", "181"),
    ("18", "1,8"),
    ("18", "18x"),
    ("18", r"\boxed{18x}"),
    ("18", r"\boxed{(18, 19)}"),
    ("18", "the 18th"),
    ("18", r"\boxed{eighteen}"),
    ("1450000", "1450001"),
    ("1/3", "0.33"),
    ("1/3", "0.334"),
    ("0.5", "0.501"),
    ("50", "0.5"),
    ("1/2", "1/0"),
    ("1000000", "10^5"),
    ("x+1", "x-1"),
    ("x", "y"),
    ("B", r"\boxed{A}"),
    (r"\text{Evelyn}", "The answer is Briana"),
]


@pytest.fixture(scope="module")
def grader():
    with Grader(cpu_seconds=2) as grader:
        yield grader


@pytest.mark.parametrize(("gold", "text"), RIGHT)
def test_right_answers_are_correct(grader, gold, text):
    assert grader.grade(text, gold).correct, grader.grade(text, gold)


@pytest.mark.parametrize(("gold", "text"), WRONG)
def test_wrong_answers_are_not(grader, gold, text):
    assert not grader.grade(text, gold).correct, grader.grade(text, gold)


def test_a_power_of_ten_is_read_as_a_whole(grader):
    assert grader.grade("so it is 10^5", "100000").correct
    assert not grader.grade("so it is 10^5", "5").correct


def test_a_response_without_an_answer_is_incorrect_and_says_so(grader):
    grade = grader.grade("Let me think about it.", "4")
    assert (grade.correct, grade.answer, grade.note) == (False, None, "no answer")


@pytest.mark.parametrize("gold", ["", "####", "####  ", r"\frac{", "+++", "?", "1" * 301, "one\ntwo", "1 + (2"])
def test_a_gold_answer_that_cannot_be_read_is_an_error_that_names_it(grader, gold):
    with pytest.raises(RecipeError, match=r"gold answer '.*cannot be read"):
        grader.grade("5", gold)


@pytest.mark.parametrize(
    "text",
    [
        "9" * 100_000,
        r"\boxed{" + "9" * 100_000 + "}",
        r"\boxed{" * 20_000,
        "$" * 100_000,
        "$1" * 50_000,
        "1/" * 50_000,
        "1,111" * 20_000,
        "1e" * 50_000,
        "-" * 100_000,
        "the answer " * 10_000,
        "answer: " * 10_000,
        "(" * 100_000,
        r"\(" * 50_000,
        "a " * 50_000,
        "= " * 50_000,
        r"\boxed{" + r"\frac{1}{" * 30 + "1" + "}" * 30 + "}",
        r"\boxed{1e999}",
        "\ud800 \x00 \\boxed{\ud800\x00}",
    ],
    ids=lambda text: text[:12].encode("unicode_escape").decode(),
)
def test_hostile_text_is_incorrect_and_does_no_harm(grader, text):
    assert not grader.grade(text, "18").correct


@pytest.mark.slow
def test_what_works_for_ever_is_ended_and_the_next_answer_is_graded(grader):
    grade = grader.grade(r"\boxed{9^{9^{9^9}}}", "18")
    assert not grade.correct and "limits" in grade.note
    assert grader.grade("3 * 6", "18").correct


def test_a_process_that_somebody_ended_is_started_again(grader):
    assert grader.grade("3 * 6", "18").correct
    process = grader._process._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert grader.grade("3 * 6", "18").correct


def test_grading_works_outside_the_main_thread_and_leaves_the_alarm_alone(grader):
    before = signal.getsignal(signal.SIGALRM)
    with ThreadPoolExecutor(2) as pool:
        grades = list(pool.map(lambda text: grader.grade(text, "18").correct, ["3 * 6", "3 * 7", "6 * 3"]))
    assert grades == [True, False, True]
    assert signal.getsignal(signal.SIGALRM) is before


def test_many_are_graded_in_order():
    assert [grade.correct for grade in grade_all([("#### 1", "1"), ("2", "1"), ("x", "1")])] == [True, False, False]


TESTS = "assert double(2) == 4"
CODE = "def double(x):\n    return 2 * x"


@pytest.mark.parametrize(
    "response",
    [
        CODE,
        f"Here:\n```python\n{CODE}\n```\nDone.",
        f"```python\ndef double(x): return x\n```\nBetter:\n```python\n{CODE}\n```\nUse:\n```python\ndouble(2)\n```",
        f"```py\n{CODE}\n```\nIt prints\n```\n4\n```",
        f"```\n{CODE}\n```",
        f"Cut off:\n```python\n{CODE}",
    ],
)
def test_the_code_of_a_response_is_its_last_definition(response):
    assert code_of(response).rstrip() == CODE


@dataclass(frozen=True)
class Ran:
    status: str
    exit_code: int | None


def test_code_is_correct_only_where_its_tests_passed():
    seen = []
    ends = [Ran("passed", 0), Ran("failed", 1), Ran("failed", ENDED), Ran("timeout", None)]
    grades = grade_code([(f"```python\n{CODE}\n```", TESTS)] * 4, lambda pairs: seen.extend(pairs) or ends)
    assert [(code.rstrip(), tests) for code, tests in seen] == [(CODE, TESTS)] * 4
    assert [(grade.correct, grade.note) for grade in grades] == [
        (True, ""),
        (False, "failed"),
        (False, "ended before its tests"),
        (False, "timeout"),
    ]


def golds(name: str, field: str) -> list[str]:
    if "FUSEVAL_ASSETS" not in os.environ:
        pytest.skip("set FUSEVAL_ASSETS to a folder with the assets under their names (`fuseval assets` lists them)")
    file = find(name, cache=pathlib.Path("not-read"), mirror=pathlib.Path(os.environ["FUSEVAL_ASSETS"]))
    return [str(json.loads(line)[field]) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("name", "field"), [("gsm8k/test.jsonl", "answer"), ("svamp/test.jsonl", "Answer")])
def test_every_gold_of_a_set_is_correct_against_itself_and_wrong_by_one(grader, name, field):
    for gold in golds(name, field):
        value = float(grader.gold(gold).replace(",", ""))
        assert grader.grade(gold, gold).correct, gold
        assert not grader.grade(f"The answer is {value + 1:.2f}.", gold).correct, gold
