"""What the inner side of the sandbox asks of Linux, and how it is told that something was refused."""

from __future__ import annotations

import ctypes
import os

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38

ZERO = ctypes.c_ulong(0)

libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The machine does not let a wall be made; holds what is missing and why."""

    def __init__(self, missing: dict[str, str]) -> None:
        super().__init__(missing)
        self.missing = missing


def prctl(option: int, value: int) -> None:
    """Call prctl(2); OSError where it refuses."""
    check("prctl", libc.prctl(option, ctypes.c_ulong(value), ZERO, ZERO, ZERO))


def check(what: str, result: int) -> None:
    """Raise OSError, which names the call, unless it returned 0."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def words(error: OSError) -> str:
    """Return what an error says, and of which file."""
    return f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)
