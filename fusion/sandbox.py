"""Runs a model's Python code, which is hostile text, where it can reach nothing: for rewards by unit tests.

Each program gets Linux namespaces of its own: no network, no process but its own, and a root that holds Python's files
read-only and one small folder in memory. It runs as a user that owns nothing, without capabilities, under limits, and
behind a filter of system calls. Where the machine cannot do that, nothing is run. The walls are sandbox_child's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fusion.errors import FusionError, RecipeError

Status = Literal["passed", "failed", "timeout", "memory", "killed"]

GRACE = 10.0  # seconds beyond the wall limit after which the sandbox itself counts as broken
TAIL = 4096  # bytes of the end of stderr that are looked at for a MemoryError

SYSTEM_PATHS = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/nix/store",
                "/usr/share/zoneinfo", "/etc/ld.so.cache")  # fmt: skip

PROBE = """
import ctypes, errno, json, os, signal
libc = ctypes.CDLL(None, use_errno=True)
filtered = libc.socket(1, 1, 0) < 0 and ctypes.get_errno() == errno.EPERM
try:
    os.mkdir("/outside")
except OSError:
    read_only = True
print(json.dumps({"user": min(os.getresuid()), "process": os.getpid(), "files": read_only, "filtered": filtered}))
"""


JUDGE = ("sandbox_judge.py", "sandbox_link.py", "sandbox_standins.py")
START_JUDGE = "import sys\nsys.path.append('/')\nfrom fusion.sandbox_judge import main\nmain()\n"
START_CHILD = "import sys\nsys.path.append({!r})\nfrom fusion.sandbox_child import main\nmain()\n"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use. Together its processes may use ``processes`` times ``memory``, and a folder of memory."""

    cpu_seconds: int = 10
    """Seconds of CPU for each process."""
    wall_seconds: float = 20.0
    memory: int = 512 << 20
    """Bytes of address space for each process; Python itself needs about 20 MiB."""
    processes: int = 16
    """Processes and threads at a time."""
    file_size: int = 16 << 20
    folder_size: int = 32 << 20
    """Bytes of all files in its folder together."""
    open_files: int = 64
    output: int = 64 << 10
    """Bytes that are kept of each of stdout and stderr, from the start."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise RecipeError(f"sandbox limit {field.name} is {value}; it must be a number above 0")
            if field.name != "wall_seconds" and not isinstance(value, int):
                raise RecipeError(f"sandbox limit {field.name} is {value}; it must be a whole number")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended. Of a hostile one, exit 0 says nothing: judge_all has the tests in a process of their own."""

    status: Status
    """passed: exit 0; failed: any other; timeout: of CPU or wall; memory: MemoryError; killed: by another signal."""
    stdout: str
    stderr: str
    cut: bool
    """True where there was more output than is kept."""
    seconds: float
    """Wall time."""
    exit_code: int | None
    """None where the program was killed."""


@dataclass(frozen=True, slots=True)
class _Program:
    """A program, its standard input, and what else lies in its root, by path."""

    text: str
    given: str = ""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Isolation:
    """What this machine can keep from a program."""

    way: Literal["root", "user"] | None
    """By root's rights, or by a user namespace; None where neither is enough to run anything."""
    network: bool
    files: bool
    processes: bool
    filtered: bool
    """A filter of system calls stands behind the other walls; programs are run without it too."""
    why: str
    """What was refused, where something is missing."""

    @property
    def complete(self) -> bool:
        """Whether programs may be run here."""
        return self.way is not None and self.network and self.files and self.processes

    def check(self) -> None:
        """Raise FusionError, which says what is missing and how to get it, unless programs may be run here."""
        if self.complete:
            return
        missing = [
            words
            for words, there in (
                ("its network", self.network),
                ("its file system", self.files),
                ("its processes", self.processes),
            )
            if not there
        ]
        raise FusionError(
            f"a model's code is not run here, since this machine cannot isolate {', '.join(missing) or 'it'} "
            f"({self.why}). On Linux, allow user namespaces (sysctl -w kernel.unprivileged_userns_clone=1 "
            "user.max_user_namespaces=10000; on Ubuntu also kernel.apparmor_restrict_unprivileged_userns=0), or use a "
            "container with --cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined, "
            "or leave prompts with code out"
        )


def run_code(program: str, *, limits: Limits | None = None) -> Outcome:
    """Run Python code with the standard library, isolated; when this returns, all of its processes are dead.

    Its working folder, the only place that it can write to, is gone then too. A program may use threads, processes
    and asyncio, but no sockets. FusionError where this machine cannot isolate it: see isolation.
    """
    return _run(_Program(program), limits)


def _run(program: _Program, limits: Limits | None) -> Outcome:
    found = isolation()
    found.check()
    outcome, refused = _contained(program, limits or Limits(), way=found.way or "user")
    if outcome is None:
        raise FusionError(f"the sandbox worked before and does not now: {_said(refused)}; nothing was run. Try again")
    return outcome


def run_all(
    programs: Sequence[str],
    *,
    limits: Limits | None = None,
    workers: int | None = None,
    on_done: Callable[[int, Outcome], None] | None = None,
) -> list[Outcome]:
    """Run the programs, ``workers`` at a time (as many as there are cores), and return the outcomes in their order.

    ``on_done`` is called in this thread with the number of a program and its outcome, as they end.
    """
    return _all(list(map(_Program, programs)), limits=limits, workers=workers, on_done=on_done)


def judge_all(pairs: Sequence[tuple[str, str]], *, limits: Limits | None = None) -> list[Outcome]:
    """Hold each (code, its tests) to the tests, which run in a process that the code cannot reach; in order.

    An outcome is ``passed`` where the tests ran to their end and nothing was raised; ENDED is the exit code where the
    code or the tests ended before that. What tests can ask of the code is told in :mod:`fusion.sandbox_judge`.
    """
    files = {f"fusion/{name}": Path(__file__).with_name(name).read_text(encoding="utf-8") for name in JUDGE}
    given = [json.dumps({"code": code, "tests": tests}) for code, tests in pairs]
    return _all([_Program(START_JUDGE, one, files) for one in given], limits=limits)


def _all(
    programs: Sequence[_Program],
    *,
    limits: Limits | None,
    workers: int | None = None,
    on_done: Callable[[int, Outcome], None] | None = None,
) -> list[Outcome]:
    isolation().check()
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)), thread_name_prefix="sandbox") as pool:
        try:
            numbers = {pool.submit(_run, program, limits): number for number, program in enumerate(programs)}
            for future in as_completed(numbers):
                outcome = future.result()
                if on_done is not None:
                    on_done(numbers[future], outcome)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in numbers]


@functools.cache
def isolation() -> Isolation:
    """Return what this machine can isolate: found once, by running a harmless program in the sandbox."""
    if sys.platform != "linux":
        return Isolation(None, False, False, False, False, f"it needs Linux's namespaces; this is {sys.platform}")
    limits = Limits(cpu_seconds=10, wall_seconds=30, memory=256 << 20, processes=8)
    ways: tuple[Literal["root", "user"], ...] = ("root", "user") if os.geteuid() == 0 else ("user",)
    best = Isolation(None, False, False, False, False, "")
    reasons = []
    for way in ways:
        outcome, refused = _contained(_Program(PROBE), limits, way=way)
        if outcome is not None and outcome.status == "passed":
            seen = json.loads(outcome.stdout)
            if seen["user"] > 0 and seen["process"] == 2 and seen["files"]:
                return Isolation(way, True, True, True, seen["filtered"], "")
            refused = {"privileges": f"the probe still saw {seen}"}
        elif outcome is not None:
            refused = {"privileges": f"the probe {outcome.status}: {outcome.stderr.strip()[-300:]}"}
        reasons.append(f"as {way}: {_said(refused)}")
        all_of_it = "user" in refused
        best = Isolation(
            None,
            best.network or not ("network" in refused or all_of_it),
            best.files or not ("files" in refused or all_of_it),
            best.processes or not ("processes" in refused or all_of_it),
            False,
            "; ".join(reasons),
        )
    return best


def _said(refused: dict[str, str]) -> str:
    return ", ".join(f"{what}: {why}" for what, why in refused.items())


def _contained(program: _Program, limits: Limits, *, way: str) -> tuple[Outcome | None, dict[str, str]]:
    """Return the outcome of the program, or None and what the machine refused to isolate, and why."""
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103  (stays empty: what is mounted on it is seen only inside)
        python, paths = _python()
        order = dataclasses.asdict(limits) | {
            "program": program.text,
            "input": program.given,
            "files": program.files,
            "way": way,
            "folder": os.path.realpath(folder),
            "python": python,
            "paths": paths,
        }
        answer, stdout, stderr, seconds = _ask(python, json.dumps(order).encode(), limits)
    if answer is None:
        return None, {"sandbox": f"it broke: {stderr.end.decode(errors='replace').strip()[-300:]}"}
    if "refused" in answer:
        return None, answer["refused"]
    return Outcome(
        status=_status(answer, stderr.end, limits),
        stdout=stdout.start.decode(errors="replace"),
        stderr=stderr.start.decode(errors="replace"),
        cut=stdout.cut or stderr.cut,
        seconds=answer.get("seconds", seconds),
        exit_code=answer.get("exit"),
    ), {}


def _status(answer: dict[str, Any], stderr: bytes, limits: Limits) -> Status:
    if "timeout" in answer:
        return "timeout"
    if "signal" in answer:
        ended = answer["signal"] == signal.SIGKILL and answer["cpu"] >= 0.9 * limits.cpu_seconds
        return "timeout" if ended or answer["signal"] == signal.SIGXCPU else "killed"
    if answer["exit"] == 0:
        return "passed"
    return "memory" if stderr.rstrip().rpartition(b"\n")[2].startswith(b"MemoryError") else "failed"


class _Kept:
    """The start of a stream, as much as is kept, and its end."""

    def __init__(self, most: int) -> None:
        self.most, self.start, self.end, self.cut = most, bytearray(), b"", False

    def add(self, data: bytes) -> None:
        room = self.most - len(self.start)
        self.cut |= len(data) > room
        self.start += data[:room]
        self.end = (self.end + data)[-TAIL:]


def _ask(python: str, order: bytes, limits: Limits) -> tuple[dict[str, Any] | None, _Kept, _Kept, float]:
    """Return the answer of sandbox_child, None where it broke, with both outputs and the seconds it took."""
    start = time.monotonic()
    report, report_in = os.pipe()
    try:
        child = START_CHILD.format(str(Path(__file__).resolve().parents[1]))
        process = subprocess.Popen(
            [python, "-I", "-S", "-B", "-c", child, str(report_in)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[report_in],
            bufsize=0,
            env={},
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        os.close(report)
        raise FusionError(f"the sandbox did not start: {python}: {error.strerror}") from error
    finally:
        os.close(report_in)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    stdout, stderr, answer = _Kept(limits.output), _Kept(limits.output), _Kept(1 << 16)
    try:
        with process.stdin:  # open until the end: it breaking tells the child that nobody waits
            with contextlib.suppress(BrokenPipeError):
                _write(process.stdin.fileno(), struct.pack("<Q", len(order)) + order)
            deadline = start + limits.wall_seconds + GRACE
            streams = {process.stdout.fileno(): stdout, process.stderr.fileno(): stderr, report: answer}
            _drain(streams, deadline)
    finally:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:  # the kernel then kills what is inside, its parent being dead
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()
        os.close(report)
    said = json.loads(bytes(answer.start)) if answer.start else None
    return said, stdout, stderr, time.monotonic() - start


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _drain(streams: dict[int, _Kept], deadline: float) -> None:
    """Read the files until all have ended or the time is over."""
    with selectors.DefaultSelector() as selector:
        for file in streams:
            selector.register(file, selectors.EVENT_READ)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                data = os.read(key.fd, 1 << 16)
                streams[key.fd].add(data)
                if not data:
                    selector.unregister(key.fd)


@functools.cache
def _python() -> tuple[str, list[str]]:
    """Return the interpreter below any virtual environment, and the paths that it and its libraries lie in."""
    python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    base, library = os.path.realpath(sys.base_prefix), os.path.dirname(os.path.realpath(os.__file__))
    wanted = [*SYSTEM_PATHS, library, f"{base}/lib", f"{base}/lib64", python]
    paths: list[str] = []
    for path in sorted({path for path in wanted if os.path.exists(path)}, key=lambda path: (len(path), path)):
        if not any(path.startswith(f"{kept}/") for kept in paths):
            paths.append(path)
    return python, paths
