"""The sandbox: programs that attack it are contained, and programs that only compute run as they would outside."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from evals.assets import find
from fusion import sandbox
from fusion.errors import FusionError, RecipeError
from fusion.grading import grade_code
from fusion.sandbox import Isolation, Limits, isolation, judge_all, run_all, run_code

QUICK = Limits(cpu_seconds=2, wall_seconds=10.0, memory=256 << 20)

isolated = pytest.mark.skipif(
    not isolation().complete,
    reason=f"this machine isolates no programs ({isolation().why}): run as root, or allow them",
)


def run(program, limits=QUICK):
    return run_code(textwrap.dedent(program), limits=limits)


def alive(mark):
    """Return the command lines that hold ``mark``."""
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if mark in line]


@isolated
def test_a_program_that_computes_runs_with_the_standard_library():
    done = run(
        """
        import asyncio, dataclasses, decimal, json, math, random, re, sqlite3, tempfile, threading
        from concurrent.futures import ProcessPoolExecutor
        with tempfile.NamedTemporaryFile("w+") as file:
            file.write("kept"); file.flush()
            assert open(file.name).read() == "kept"
        async def two(): return 2
        thread = threading.Thread(target=print, args=("from a thread",)); thread.start(); thread.join()
        print(asyncio.run(two()), json.dumps({"é": math.pi}, ensure_ascii=False))
        """
    )
    assert done.status == "passed", done.stderr
    assert done.stdout == 'from a thread\n2 {"é": 3.141592653589793}\n'
    assert not done.stderr and not done.cut and done.exit_code == 0


@isolated
@pytest.mark.parametrize(
    ("program", "said"),
    [("assert 1 == 2", "AssertionError"), ("def f(:", "SyntaxError"), ("import torch", "ModuleNotFoundError"),
     ("raise SystemExit(3)", "")],
)  # fmt: skip
def test_a_program_that_is_wrong_fails(program, said):
    done = run(program)
    assert done.status == "failed" and said in done.stderr


@pytest.mark.slow
@isolated
def test_what_takes_too_long_is_ended():
    assert run("while True: pass", Limits(cpu_seconds=1)).status == "timeout"
    begun = time.monotonic()
    assert run("import time; time.sleep(60)", Limits(wall_seconds=0.5)).status == "timeout"
    assert time.monotonic() - begun < 20


@isolated
def test_what_takes_too_much_memory_is_ended():
    assert run("x = bytearray(10 << 30)").status == "memory"
    assert run("x = []\nwhile True: x.append(bytearray(1 << 20))").status == "memory"


@pytest.mark.slow
@isolated
def test_a_fork_bomb_is_held_to_its_number_of_processes_and_nothing_of_it_is_left():
    done = run(
        """
        import os
        try:
            while True:
                if os.fork() == 0:
                    while True: pass
        except BlockingIOError as error:
            print("no more")
            while True: pass
        """,
        Limits(cpu_seconds=1, wall_seconds=2.0, processes=8),
    )
    assert done.status == "timeout"
    assert not alive("/program.py")


@isolated
def test_a_daemon_does_not_outlive_its_program():
    begun = time.monotonic()
    done = run(
        """
        import os, signal, time
        if os.fork() == 0:
            os.setsid()
            for number in (signal.SIGHUP, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)
            if os.fork() == 0:
                time.sleep(60)
            os._exit(0)
        print("started")
        """
    )
    assert done.stdout == "started\n" and time.monotonic() - begun < 20
    assert not alive("/program.py")


@isolated
@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/outside", "/program.py", "/usr/lib/outside", "/dev/shm/outside", "/proc/1/mem"]
)
def test_nothing_outside_its_own_folder_can_be_written(path):
    done = run(f"open({path!r}, 'w')")
    assert done.status == "failed" and "Error" in done.stderr


@isolated
def test_no_file_of_the_machine_and_no_environment_variable_can_be_read(tmp_path, monkeypatch):
    secret = tmp_path / "key"
    secret.write_text("secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    done = run(
        f"""
        import os
        found = [path for path in ({str(secret)!r}, "/etc/shadow", "/etc/passwd", "/proc/self/environ", {os.getcwd()!r},
                                   {str(sandbox.__file__)!r}) if os.path.exists(path)]
        print(found, "OPENAI_API_KEY" in os.environ, os.getuid() > 0)
        """
    )
    assert done.stdout == "[] False True\n", done.stderr


@pytest.mark.slow
@isolated
def test_files_are_bounded_in_size_and_gone_afterwards():
    assert run("open('a', 'wb').write(bytes(64 << 20))").status in ("failed", "killed")
    many = "for i in range(100): open(f'{i}', 'wb').write(bytes(1 << 20))"
    assert "No space left" in run(many).stderr
    run("open('kept', 'w').write('x')")
    assert run("import os; print(os.listdir('.'))").stdout == "[]\n"


@pytest.mark.slow
@isolated
@pytest.mark.parametrize(
    "attempt",
    ["socket.create_connection(('127.0.0.1', 80), 1)", "socket.socket(socket.AF_UNIX).bind('/box/s')",
     "socket.socket(socket.AF_UNIX).connect('\\0abstract')", "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
     "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)"],
)  # fmt: skip
def test_there_are_no_sockets(attempt):
    done = run(f"import socket\n{attempt}")
    assert done.status == "failed" and "PermissionError" in done.stderr


@isolated
def test_no_other_process_can_be_seen_or_signalled():
    done = run(
        f"""
        import os, signal
        for pid in ({os.getpid()}, {os.getppid()}, 1):
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError) as error:
                print(type(error).__name__)
        try:
            os.kill(-1, signal.SIGTERM)
        except ProcessLookupError:
            pass
        """
    )
    assert done.stdout.splitlines()[-1:] == ["PermissionError"] and len(done.stdout.splitlines()) == 3


@isolated
@pytest.mark.parametrize("call", ["unshare(0x10000000)", "ptrace(0, 0, 0, 0)", "mount(b'x', b'/box', b'tmpfs', 0, 0)",
                                  "setuid(0)", "chroot(b'/box')", "sethostname(b'x', 1)"])  # fmt: skip
def test_no_rights_can_be_had_back(call):
    done = run(f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.{call}, ctypes.get_errno())")
    assert done.stdout == "-1 1\n", (done.stdout, done.stderr)


@isolated
def test_output_is_cut_where_there_is_much_of_it():
    done = run("import sys\nfor i in range(10**5): print('x' * 80)\nprint('é' * 9, file=sys.stderr)")
    assert done.status == "passed" and done.cut
    assert len(done.stdout) == QUICK.output and done.stderr == "é" * 9 + "\n"


@isolated
def test_a_program_that_closes_or_breaks_what_it_was_given_is_still_told_of():
    assert run("import os\nos.closerange(0, 64)\nos._exit(7)").exit_code == 7
    assert run("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)").status == "killed"
    forged = """
        import os
        for file in range(64):
            try:
                os.write(file, b'{"exit": 0, "cpu": 0}\\n')
            except OSError:
                pass
        raise SystemExit(1)
    """
    assert run(forged).status == "failed"


@isolated
def test_programs_run_at_a_time_and_come_back_in_order():
    told = []
    done = run_all([f"print({n})" for n in range(6)], limits=QUICK, on_done=lambda n, outcome: told.append(n))
    assert [one.stdout for one in done] == [f"{n}\n" for n in range(6)]
    assert sorted(told) == list(range(6))


@isolated
def test_code_is_right_only_where_its_tests_were_reached():
    tests = "assert f(2) == 4\nassert f(3) == 9"
    right = "Here it is:\n```python\ndef f(x):\n    return x * x\n```"
    wrong = "```python\ndef f(x):\n    return x + x\n```"
    early = "```python\nimport os\ndef f(x): os._exit(0)\n```"
    grades = grade_code([(right, tests), (wrong, tests), (early, tests)], lambda p: judge_all(p, limits=QUICK))
    assert [grade.correct for grade in grades] == [True, False, False]
    assert grades[2].note == "ended before its tests"


def test_where_the_machine_cannot_isolate_nothing_is_run(monkeypatch):
    lacking = Isolation(None, False, True, False, False, "network: unshare: Operation not permitted")
    monkeypatch.setattr(sandbox, "isolation", lambda: lacking)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("something was run"))
    with pytest.raises(FusionError, match=r"cannot isolate its network, its processes .*SYS_ADMIN.*leave prompts"):
        run_code("print(1)")
    with pytest.raises(FusionError, match="cannot isolate"):
        run_all(["print(1)"])


@pytest.mark.parametrize("bad", [{"cpu_seconds": 0}, {"memory": 1.5}, {"wall_seconds": float("inf")}])
def test_limits_that_make_no_sense_are_refused(bad):
    with pytest.raises(RecipeError, match=next(iter(bad))):
        Limits(**bad)


@isolated
def test_a_caller_that_is_killed_leaves_nothing_behind(tmp_path):
    mark = tmp_path / "started"
    code = (
        "from fusion.sandbox import run_code, isolation\nimport pathlib\nisolation()\n"
        f"pathlib.Path({str(mark)!r}).write_text('x')\nrun_code('import time\\ntime.sleep(50)  # {mark.name}')"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not mark.exists() or not alive("/program.py"):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    for _ in range(500):
        if not alive("/program.py"):
            return
        time.sleep(0.02)
    pytest.fail("the program lives on")


@isolated
@pytest.mark.slow
def test_humanevals_own_solutions_pass_and_broken_ones_fail(tmp_path):
    mirror = os.environ.get("FUSEVAL_ASSETS")
    if not mirror:
        pytest.skip("needs HumanEval: set FUSEVAL_ASSETS to a folder with the assets (`fuseval assets` lists them)")
    file = find("human_eval/HumanEval.jsonl", cache=tmp_path, mirror=Path(mirror))
    problems = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    tests = [f"{p['test']}\ncheck({p['entry_point']})" for p in problems]
    right = [f"```python\n{p['prompt']}{p['canonical_solution']}\n```" for p in problems]
    wrong = [f"```python\n{p['prompt']}    return None\n```" for p in problems]
    grades = grade_code([*zip(right, tests, strict=True), *zip(wrong, tests, strict=True)], judge_all)
    assert [p["task_id"] for p, grade in zip(problems, grades, strict=False) if not grade.correct] == []
    assert not any(grade.correct for grade in grades[len(problems) :])
