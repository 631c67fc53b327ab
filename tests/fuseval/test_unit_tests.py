"""Hostile completions of code tasks, in the real sandbox: nothing escapes, and none passes that ran no test."""

import pytest

from fuseval.unit_tests import run_tests
from fusion.sandbox import isolation

TESTS = "def check(f):\n    assert f(2) == 4\n\ncheck(double)\n"
RIGHT = "def double(x):\n    return 2 * x\n"


@pytest.fixture(autouse=True)
def _isolated():
    if not isolation().complete:
        pytest.skip(f"this machine cannot isolate a program: {isolation().why}")


def test_right_code_passes_and_wrong_code_does_not():
    assert run_tests([(RIGHT, TESTS), (RIGHT.replace("2 *", "3 *"), TESTS)]) == [True, False]


def test_code_that_ends_before_its_tests_does_not_pass():
    ways = ("import os; os._exit(0)", "raise SystemExit(0)", "import sys; sys.exit()", "quit()")
    assert run_tests([(f"{RIGHT}{way}\n", TESTS) for way in ways]) == [False] * len(ways)


def test_code_reaches_neither_files_nor_the_network_nor_other_processes(tmp_path):
    secret, left = tmp_path / "secret", tmp_path / "left"
    secret.write_text("key")
    ways = (
        f"open({str(secret)!r}).read()",
        f"open({str(left)!r}, 'w').write('x')",
        "import socket; socket.create_connection(('127.0.0.1', 80), 1)",
        f"import os; assert os.system('touch {left}') == 0",
        f"import os; os.kill({__import__('os').getpid()}, 0)",
    )
    assert run_tests([(f"{RIGHT}{way}\n", TESTS) for way in ways]) == [False] * len(ways)
    assert not left.exists()
