"""Code that models wrote: pass@k of what the sandbox says, and hostile completions that get nowhere."""

from math import comb

import pytest

from evals.lm_code import SandboxedCodeEval, code_in, pass_at_k

pytestmark = pytest.mark.filterwarnings("default")


def test_pass_at_k_is_the_share_of_draws_that_hold_a_correct_one():
    for n, c, k in ((5, 2, 1), (5, 2, 3), (4, 0, 2), (4, 4, 1), (64, 10, 8)):
        draws = comb(n, k)
        assert pass_at_k(n, c, k) == pytest.approx(1 - comb(n - c, k) / draws)
    assert pass_at_k(5, 2, 1) == pytest.approx(2 / 5)


def test_every_candidate_is_run_with_its_own_tests_and_averaged_over_tasks():
    ran = []
    metric = SandboxedCodeEval(lambda pairs: [ran.append(pair) or "good" in pair[0] for pair in pairs])
    found, passed = metric.compute(references=["t1", "t2"], predictions=[["good", "bad"], ["bad", "bad"]], k=[1, 2, 5])
    assert ran == [("good", "t1"), ("bad", "t1"), ("bad", "t2"), ("bad", "t2")]
    assert found == {"pass@1": 0.25, "pass@2": 0.5}
    assert passed[0] == [True, False]


def test_evaluate_gives_the_sandbox_inside_the_block_and_its_own_outside():
    import evaluate

    own = evaluate.load
    with code_in(lambda programs: [True] * len(programs)):
        assert isinstance(evaluate.load("code_eval"), SandboxedCodeEval)
    assert evaluate.load is own
