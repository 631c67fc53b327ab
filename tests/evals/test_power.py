import numpy as np
import pytest

from evals.power import detectable_difference, questions_needed


def test_the_textbook_case_by_hand():
    # (1.959964 + 0.841621)² = 7.8489: half a standard deviation takes 31.4 pairs.
    assert questions_needed(1.0, 0.5) == 32
    assert detectable_difference(10.0, 100) == pytest.approx(2.801585, abs=1e-6)


@pytest.mark.parametrize("questions", [1, 80, 500, 805])
def test_one_is_the_inverse_of_the_other(questions):
    assert questions_needed(37.0, detectable_difference(37.0, questions)) == questions


def test_models_that_never_differ_by_question_need_one():
    assert questions_needed(0.0, 1.0) == 1


def test_a_test_with_so_many_questions_has_the_power_that_was_asked_for():
    n = questions_needed(10.0, 3.0, power=0.9)
    gaps = np.random.default_rng(0).normal(3.0, 10.0, (4000, n))
    z = gaps.mean(axis=1) / (gaps.std(axis=1, ddof=1) / np.sqrt(n))
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.9, abs=0.015)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: questions_needed(1.0, 0.0), "a difference of 0.0"),
        (lambda: questions_needed(-1.0, 1.0), "-1.0 is no standard deviation"),
        (lambda: detectable_difference(1.0, 0), "over 0 questions"),
        (lambda: detectable_difference(1.0, 9, alpha=5.0), "a level of 5.0"),
        (lambda: detectable_difference(1.0, 9, power=80.0), "a power of 80.0"),
    ],
)
def test_what_cannot_be_is_an_error_that_names_it(call, said):
    with pytest.raises(ValueError, match=said):
        call()
