"""Whether two mathematical expressions are equal, by math-verify in a process of its own.

The expressions come from models: sympy may be led to work for ever, or to fill the memory, in C where no exception
gets through. So the kernel ends that process after some seconds of CPU time, and it may have only so much memory.
math-verify's own time limits are signals, which only work in a main thread; they are switched off.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from fusion.errors import FusionError, need

CPU_SECONDS = 5.0  # for one comparison; math-verify's own limit is 5 s each for reading and comparing
WALL_SECONDS = 120.0  # after which it is ended in any case
MEMORY = 2 << 30  # bytes of address space

_START = "import sys; sys.path.insert(0, sys.argv[1]); from fusion.math_process import serve; serve(float(sys.argv[2]))"


class MathProcess:
    """Compares expressions, one after the other; started when it is first asked, and again after it was ended."""

    def __init__(self, *, cpu_seconds: float = CPU_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def readable(self, expression: str) -> bool | None:
        """Tell whether math-verify can read LaTeX; None where it did not come to an end."""
        return self._ask(expression)

    def equal(self, gold: str, answer: str) -> bool | None:
        """Tell whether two expressions in LaTeX are equal; None where that could not be decided within the limits."""
        return self._ask(gold, answer)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, *expressions: str) -> bool | None:
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self.close()  # somebody else ended it
            process = self._process or self._started()
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(expressions) + "\n")
                process.stdin.flush()
            said = _line(process)
            if said not in ("true", "false", "null"):
                self.close()
                return None
            answer: bool | None = json.loads(said)
            return answer

    def _started(self) -> subprocess.Popen[str]:
        need("math_verify", "antlr4", extra="train")
        root = str(Path(__file__).parent.parent)
        self._process = process = subprocess.Popen(
            [sys.executable, "-c", _START, root, str(self._cpu_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if _line(process) != "ready":
            self.close()
            raise FusionError(
                "math-verify, which compares answers to maths, does not start here; "
                "see what `python -c 'import math_verify'` says, or install it anew with antlr4-python3-runtime"
            )
        return process


def _line(process: subprocess.Popen[str]) -> str:
    """Return the next line, or nothing where the process ends or is silent for too long."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], WALL_SECONDS)
    return process.stdout.readline().strip() if ready else ""


def serve(cpu_seconds: float) -> None:
    """Answer questions from stdin, one JSON list a line, as the process that :class:`MathProcess` starts."""
    import logging
    import os
    import resource
    import signal

    logging.disable(logging.CRITICAL)
    with suppress(OSError, ValueError):  # not every system can
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asking process ends this one
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    import math_verify  # noqa: F401

    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process, wherever it is
    replies.write("ready\n")
    replies.flush()
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        try:
            found = _decide(*json.loads(line))
        except (Exception, MemoryError, RecursionError):
            found = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps(found) + "\n")
        replies.flush()


def _decide(gold: str, answer: str | None = None) -> bool:
    from math_verify import verify

    known = _read(gold)
    if answer is None:
        return bool(known)
    return bool(known) and verify(known, _read(answer), timeout_seconds=None)


def _read(expression: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    found: list[Any] = parse(
        f"${expression}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None
    )
    return found
