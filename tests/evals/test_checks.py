"""The checks accept what is right and nothing more."""

import pytest

from evals.checks import CHECKS, exact_text, final_number


@pytest.mark.parametrize(
    "answer",
    [
        "- a\n- b",
        "\n - a\n- b \n".replace(" -", "-", 1),
        "- a  \n- b",
        "```\n- a\n- b\n```",
        "```markdown\n- a\n- b\n```\n",
    ],
)
def test_exact_text_forgives_outer_space_line_ends_and_a_fence(answer: str):
    assert exact_text(answer, "- a\n- b")


@pytest.mark.parametrize(
    "answer", ["- A\n- b", "- a\n\n- b", "- a - b", "* a\n* b", "Here you are:\n- a\n- b", "- a\n- b.", ""]
)
def test_exact_text_forgives_nothing_else(answer: str):
    assert not exact_text(answer, "- a\n- b")


def test_exact_text_keeps_the_indentation_of_inner_lines():
    assert not exact_text("a\n b", "a\nb")


def test_exact_text_compares_composed_and_decomposed_letters_as_equal():
    assert exact_text("cafe\u0301", "caf\u00e9")


def test_a_fence_inside_the_text_stays():
    assert not exact_text("so:\n```\n7\n```", "so:\n7")


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("3 x 4 = 12.\nAnswer: 12", "12"),
        ("Answer: 12.", "12"),
        ("Answer: $1,250", "1250"),
        ("Answer: 12.50 dollars", "12.5"),
        ("Answer: 7 + 5 = 12", "12"),
        ("Answer: 3\nNo, wait.\nAnswer: 12\nThat was 2 steps.", "12"),
        ("She has 7 + 5 = 12 apples.", "12"),
        ("Answer: -4", "-4"),
        ("Answer: -$4", "-4"),
    ],
)
def test_final_number_reads_the_last_answer_line_or_else_the_last_number(answer: str, reference: str):
    assert final_number(answer, reference)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Answer: N",
        "12 it is.\nAnswer: twelve",
        "12 of 13",
        "The Answer: 12 or 13",
        "Answer: 120",
        "Answer: 1,2 and 13",
    ],
)
def test_final_number_is_wrong_where_the_number_is_missing_or_another(answer: str):
    assert not final_number(answer, "12")


def test_a_minus_between_numbers_is_no_sign():
    assert final_number("15-3", "3")


def test_commas_group_only_thousands():
    assert final_number("from 3 to 1,234,567", "1234567")
    assert final_number("1, 2,3", "3")


def test_every_check_is_named_in_the_table():
    assert {"exact_text": exact_text, "final_number": final_number} == CHECKS
