"""One of the processes that fusion.launch starts: reads what is to be done, does its share, tells how it gets on."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, get_type_hints

from fusion.errors import FusionError
from fusion.explicit import fuse_explicitly
from fusion.launch import LOCK, TOLD, callback_name, decoded, told_type
from fusion.prefer import prefer
from fusion.rewards import give_rewards
from fusion.sft import fine_tune

FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (fine_tune, fuse_explicitly, give_rewards, prefer)
}
"""What can be done together: each has one callback, and does its share as :mod:`fusion.crew` tells it."""

_LONGEST_WAIT = timedelta(days=7)  # of a process for the others: the first alone may prepare for hours
_LOOK_EVERY = 0.1  # seconds


def main() -> None:
    """Do what the file given says; end with status 1 where that failed, and was told."""
    job = Path(sys.argv[1])
    _end_with_the_caller(job.parent / LOCK)
    said = json.loads(job.read_text(encoding="utf-8"))
    number, count = _join()
    with (job.parent / TOLD.format(number)).open("w", encoding="utf-8") as told:
        try:
            check_count(count, told=said["processes"])
            _do(FUNCTIONS[said["function"]], said["arguments"], told, main=number == 0)
        except FusionError as error:
            _tell(told, {"error": type(error).__name__, "text": str(error)})
            traceback.print_exc()
            os._exit(1)  # or it would wait for the others, which wait for it


def _do(function: Callable[..., Any], arguments: dict[str, Any], told: IO[str], *, main: bool) -> None:
    from pydantic import TypeAdapter

    kind: TypeAdapter[Any] = TypeAdapter(told_type(function))

    def tell(what: Any) -> None:
        _tell(told, {"told": kind.dump_python(what, mode="json")})

    result = function(**decoded(function, arguments), **{callback_name(function): tell})
    if main:
        _tell(told, {"result": TypeAdapter(get_type_hints(function)["return"]).dump_python(result, mode="json")})


def _tell(told: IO[str], what: dict[str, Any]) -> None:
    told.write(json.dumps(what) + "\n")
    told.flush()


def check_count(count: int, *, told: int) -> None:
    """Raise FusionError where other than as many processes were started as a model's identity says."""
    if count != told:
        raise FusionError(
            f"accelerate started {count} of the {told} processes that num_processes promises, which decides the size "
            "of a batch: set num_processes to what this machine can start, or see distributed_type in accelerate's "
            "file (on CPUs as in examples/accelerate/cpu.yaml)"
        )


def _join() -> tuple[int, int]:
    """Join the other processes, before a library does it with a shorter patience; return which of how many this is."""
    import torch
    from accelerate import PartialState  # type: ignore[import-untyped]

    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    state = PartialState(cpu=not torch.cuda.is_available(), **({} if alone else {"timeout": _LONGEST_WAIT}))
    return int(state.process_index), int(state.num_processes)


def _end_with_the_caller(file: Path) -> None:
    """Watch from now on whether the process that holds the lock is alive, and end this one where it is not.

    It may be killed without a chance to end anybody, and started again: two trainings in one folder would follow. Where
    the file system knows no locks, nothing is watched.
    """
    lock = file.open()

    def look() -> None:
        while True:
            time.sleep(_LOOK_EVERY)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError:
                return
            os._exit(1)

    threading.Thread(target=look, daemon=True).start()


if __name__ == "__main__":
    main()
