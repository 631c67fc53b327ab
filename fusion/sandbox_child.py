"""The inner side of the sandbox: makes the walls, gives up all rights, and starts the program behind them.

fusion.sandbox starts it as an interpreter of its own, with nothing but the standard library. Three processes: the
first enters new namespaces and keeps the time; the second, process 1 of its own process namespace, builds a root of
its own and waits; the third gives up its rights and becomes the program. When process 1 dies, the kernel kills
whatever else is in its namespace, and lets it be waited for only then.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import struct
import sys
import time
from typing import Any, NoReturn

from fusion.sandbox_kernel import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, Refused, prctl, words
from fusion.sandbox_rights import FIRST_OWN_UID, become, drop_capabilities, drop_capability_bounds, filter_calls
from fusion.sandbox_root import build_root, enter_namespaces, enter_user_namespace


def main() -> None:
    """Read the order from standard input, run the program, and write one line of JSON to the file descriptor given."""
    report = int(sys.argv[1])
    os.set_inheritable(report, False)
    (length,) = struct.unpack("<Q", _read(8))
    order = json.loads(_read(length))
    try:
        answer = contain(order)
    except Refused as refusal:
        answer = {"refused": refusal.missing}
    os.write(report, json.dumps(answer).encode())


def contain(order: dict[str, Any]) -> dict[str, Any]:
    """Run the program of ``order``; when this returns, none of its processes is alive. Refused if that cannot be."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.umask(0o022)
    own = FIRST_OWN_UID + os.getpid()
    if order["way"] == "user":
        enter_user_namespace(own)
    enter_namespaces()
    told, tell = os.pipe()
    alive, keep_alive = os.pipe()  # breaks when this process dies
    try:
        first = os.fork()
    except OSError as error:
        raise Refused({"processes": f"fork: {error.strerror}"}) from None
    if first == 0:
        os.close(told)
        os.close(keep_alive)
        _supervise(order, own, tell, alive)
    os.close(tell)
    os.close(alive)
    events = select.poll()
    events.register(told, select.POLLIN)
    events.register(0, 0)  # hangs up when the caller gives up or dies
    woken = events.poll(order["wall_seconds"] * 1000)
    answer: dict[str, Any] = {"timeout": True}
    if any(at == told for at, _ in woken):
        with open(told, "rb") as lines:
            line = lines.readline()
        answer = json.loads(line) if line else {"signal": int(signal.SIGKILL), "cpu": 0.0}
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)  # comes back only when the whole namespace is dead
    if "refused" in answer:
        raise Refused(answer["refused"])
    return answer


def _supervise(order: dict[str, Any], own: int, tell: int, alive: int) -> NoReturn:
    """Be process 1: build the root, start the program, wait for it, tell how it ended."""
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_DUMPABLE, 0)
        if select.select([alive], [], [], 0)[0] or os.getpid() != 1:
            os._exit(1)
        try:
            build_root(order, own)
        except OSError as error:
            raise Refused({"files": words(error)}) from None
        start = time.monotonic()
        program = os.fork()
        if program == 0:
            _become_program(order, own, tell)
        cpu = 0.0
        while True:
            process, status, usage = os.wait4(-1, 0)
            cpu += usage.ru_utime + usage.ru_stime
            if process == program:
                break
        code = os.waitstatus_to_exitcode(status)
        answer = {"seconds": time.monotonic() - start, "cpu": cpu, "exit" if code >= 0 else "signal": abs(code)}
        os.write(tell, json.dumps(answer).encode() + b"\n")
    except Refused as refusal:
        os.write(tell, json.dumps({"refused": refusal.missing}).encode() + b"\n")
    finally:
        os._exit(0)


def _become_program(order: dict[str, Any], own: int, tell: int) -> NoReturn:
    try:
        os.setsid()
        drop_capability_bounds()
        if order["way"] == "root":
            become(own)
        drop_capabilities()
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        # In the user's own namespace the two processes outside this one count too.
        processes = order["processes"] + (2 if order["way"] == "user" else 0)
        for kind, limit in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, order["file_size"]),
            (resource.RLIMIT_NOFILE, order["open_files"]),
            (resource.RLIMIT_NPROC, processes),
            (resource.RLIMIT_MEMLOCK, 0),
        ):
            resource.setrlimit(kind, (limit, limit))
        filter_calls()  # a second wall: the first ones stand without it
        resource.setrlimit(resource.RLIMIT_CPU, (order["cpu_seconds"], order["cpu_seconds"] + 1))
        resource.setrlimit(resource.RLIMIT_AS, (order["memory"], order["memory"]))
        python = order["python"]
        os.execve(python, [python, "-I", "-S", "-B", "-X", "utf8", "/program.py"], {})  # noqa: S606
    except OSError as error:
        os.write(tell, json.dumps({"refused": {"privileges": words(error)}}).encode() + b"\n")
    finally:
        os._exit(126)


def _read(length: int) -> bytes:
    parts = []
    while length:
        part = os.read(0, length)
        if not part:
            raise EOFError("the order ended early")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
