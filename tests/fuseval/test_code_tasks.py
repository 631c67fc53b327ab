"""HumanEval and MBPP by lm-eval's own definitions, from local files of their form: pass@1 by the real sandbox alone."""

import json
import os

import pytest

from evals.answer import asks, no_price
from evals.assets import AssetError
from evals.lm_harness import load_task
from fuseval.unit_tests import run_tests
from fusion.sandbox import isolation
from tests.evals.lm_task_files import Says

pytestmark = pytest.mark.filterwarnings("default")  # of datasets and evaluate, when they are imported

HUMAN_EVAL = [
    {"task_id": f"T/{name}", "prompt": f"def {name}(x):\n", "entry_point": name, "canonical_solution": "",
     "test": f"def check(f):\n    assert f(2) == {answer}\n"}
    for name, answer in (("double", 4), ("square", 4), ("treble", 6))
]  # fmt: skip
MBPP = [{"task_id": 900 + n, "text": f"Write a function f that returns {n}.", "code": f"def f():\n  return {n}",
         "test_list": [f"assert f() == {n}", "assert f() is not None", "assert callable(f)"]}
        for n in range(3)]  # fmt: skip


@pytest.fixture(autouse=True)
def _isolated():
    if not isolation().complete:
        pytest.skip(f"this machine cannot isolate a program: {isolation().why}")


def measured(folder, name, docs, reply, run=run_tests):
    (folder / "test.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    task = load_task(name, version=None, options={"data": str(folder)}, run_tests=run)
    wanted = list(asks(task.questions(), identity="m", sampling=task.sampling))
    found = list(task.harness.answers(wanted, identity="m", model=Says(reply), cost=no_price))
    done = task.harness.measure(found)
    return {m.question: m.value for m in done.measures}, done.aggregates


@pytest.mark.slow
def test_humaneval_is_passed_by_right_code_alone(tmp_path):
    says = {"double": "    return 2 * x\n", "square": "    return x - x\n", "treble": "    return 3 * x\n"}
    values, [told] = measured(tmp_path, "humaneval", HUMAN_EVAL, lambda i: says[i.doc["entry_point"]])
    assert values == {"0": 1.0, "1": 0.0, "2": 1.0}
    assert (told.metric, told.value) == ("pass@1,create_test", pytest.approx(2 / 3))


@pytest.mark.slow
def test_mbpp_is_passed_by_right_code_alone(tmp_path):
    def reply(instance):
        return f"def f():\n    return {instance.doc['task_id'] % 100 % 2}\n"

    values, [told] = measured(tmp_path, "mbpp", MBPP, reply)
    assert values == {"0": 1.0, "1": 1.0, "2": 0.0}
    assert told.value == pytest.approx(2 / 3)


def test_hostile_completions_reach_nothing_of_this_process_and_do_not_pass(tmp_path):
    left = tmp_path / "left"
    ways = iter(
        (
            f"    open({str(left)!r}, 'w').write('x'); return 2 * x\n",
            f"    import os; os.kill({os.getpid()}, 9); return x * x\n",
            f"    import subprocess; subprocess.run(['touch', {str(left)!r}], check=True); return 3 * x\n",
        )
    )
    values, _ = measured(tmp_path, "humaneval", HUMAN_EVAL, lambda _: next(ways))
    assert values == {"0": 0.0, "1": 0.0, "2": 0.0}
    assert not left.exists()


def test_every_program_that_is_measured_goes_through_the_sandbox_that_is_passed_in(tmp_path):
    ran = []

    def sandbox(programs):
        ran.extend(programs)
        return [True] * len(programs)

    values, _ = measured(tmp_path, "humaneval", HUMAN_EVAL, lambda _: "    import this_would_fail_here\n", sandbox)
    assert set(values.values()) == {1.0}  # as the sandbox says, which alone looked at them
    assert sum("this_would_fail_here" in str(program) for program in ran) == len(HUMAN_EVAL)


@pytest.mark.parametrize("name", ["cruxeval_input", "longproc_pseudo_to_code_0.5k"])
def test_tasks_that_run_code_in_a_way_of_their_own_are_refused(name, tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps(HUMAN_EVAL[0]) + "\n")
    with pytest.raises(AssetError, match=r"outside the sandbox|cannot be made of"):
        load_task(name, version=None, options={"data": str(tmp_path)}, run_tests=run_tests).questions()
