"""Work that several processes do together: started by `accelerate launch`, watched from here.

The function and its arguments are written to a file; fusion.launched, in each process, reads it and calls the function.
What the function tells its callback comes back line by line, so that this process alone keeps records.
"""

from __future__ import annotations

import fcntl
import functools
import inspect
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar, get_args, get_type_hints

from fusion import errors
from fusion.errors import FusionError, need

P = ParamSpec("P")
R = TypeVar("R")

JOB, LOCK, OUTPUT, TOLD = "job-{}.json", "lock", "output.txt", "told-{}.jsonl"
"""Files of a launch: what to do, what is locked as long as this process lives, what they print, what they tell."""

CALLBACKS = ("on_step", "watch", "on_batch")
"""Arguments that are not passed on, but called here."""

_LOOK_EVERY = 0.2  # seconds
_PATIENCE = 10.0  # seconds in which processes may end that were asked to, or of which one failed
_SHOWN = 2000  # characters of what failing processes printed


@dataclass(frozen=True, slots=True)
class Launch:
    """How processes are started: by `accelerate launch` with a configuration file and perhaps more arguments."""

    config: Path
    folder: Path  # made for what passes between them and this process; all machines must see it
    arguments: tuple[str, ...] = ()
    through: tuple[str, ...] = ()  # a command that runs its arguments on every machine, such as srun
    processes: int = 1  # that these start, on all machines together

    def command(self, job: Path) -> list[str]:
        """Return the command that starts the processes."""
        accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(self.config)]
        return [*self.through, *accelerate, *self.arguments, "-m", "fusion.launched", str(job)]


def together(function: Callable[P, R], launch: Launch | None) -> Callable[P, R]:
    """Return the function, done by the processes of ``launch`` where there is one; it must be of fusion.launched.

    The launch's folder is removed after it; where the processes fail, it stays, with all that they printed. The errors
    of the function are raised as if it ran here; FusionError where the processes end otherwise. When this process
    ends, they end too.
    """
    if launch is None:
        return function

    @functools.wraps(function)
    def launched(*args: P.args, **kwargs: P.kwargs) -> R:
        need("accelerate", extra="train")
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        callback = next((given.pop(name) for name in CALLBACKS if name in given), None)
        folder = launch.folder
        if folder.exists():
            shutil.rmtree(folder)  # of a process that was killed
        folder.mkdir(parents=True)
        # Of this launch alone: processes of one that was killed, which come to it late, find no job of theirs.
        job = folder / JOB.format(uuid.uuid4().hex)
        said = {"function": function.__name__, "arguments": encoded(function, given), "processes": launch.processes}
        job.write_text(json.dumps(said))
        listener = _Listener(folder, told_type(function), callback or (lambda _: None))
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            status = _run(launch.command(job), folder, listener)
        if listener.failed:
            raise _error(*listener.failed)
        if status or not listener.results:
            raise FusionError(
                f"the processes of `accelerate launch` ended with status {status} and without a result; the end of "
                f"what they said ({folder / OUTPUT} has all of it):\n{_end(folder / OUTPUT)}"
            )
        shutil.rmtree(folder)
        found: R = _adapter(get_type_hints(function)["return"]).validate_python(listener.results[0])
        return found

    return launched


def encoded(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments as JSON values, by the function's type hints."""
    hints = get_type_hints(function)
    return {name: _adapter(hints[name]).dump_python(value, mode="json") for name, value in given.items()}


def decoded(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what :func:`encoded` was given."""
    hints = get_type_hints(function)
    return {name: _adapter(hints[name]).validate_python(value) for name, value in given.items()}


def told_type(function: Callable[..., Any]) -> Any:
    """Return the type of what the function tells its callback."""
    hints = get_type_hints(function)
    [hint] = [hints[name] for name in CALLBACKS if name in hints]
    called = [part for part in (hint, *get_args(hint)) if get_args(part) and isinstance(get_args(part)[0], list)]
    return get_args(called[0])[0][0]


def callback_name(function: Callable[..., Any]) -> str:
    """Return the name of the function's argument that is a callback."""
    return next(name for name in CALLBACKS if name in inspect.signature(function).parameters)


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


class _Listener:
    """Reads what the processes tell, as far as it is written."""

    def __init__(self, folder: Path, kind: Any, callback: Callable[[Any], None]) -> None:
        self._folder, self._adapter, self._callback = folder, _adapter(kind), callback
        self._read: dict[Path, int] = {}
        self.failed: tuple[str, str] | None = None  # the class and the text of the first error
        self.results: list[Any] = []

    def __call__(self) -> None:
        for file in sorted(self._folder.glob(TOLD.format("*"))):
            with file.open("rb") as lines:
                lines.seek(self._read.get(file, 0))
                new = lines.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read[file] = self._read.get(file, 0) + len(whole)
            for line in whole.splitlines():
                self._hear(json.loads(line))

    def _hear(self, said: dict[str, Any]) -> None:
        if "told" in said:
            self._callback(self._adapter.validate_python(said["told"]))
        elif "error" in said:
            self.failed = self.failed or (said["error"], said["text"])
        else:
            self.results.append(said["result"])


def _run(command: list[str], folder: Path, listen: _Listener) -> int:
    """Run the command to its end and return its status; whatever happens, its processes are dead then.

    Where one has told of an error, those of other machines may wait for it for ever: they are ended after a while.
    """
    root = str(Path(__file__).resolve().parents[1])  # this very code, wherever it was started from
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with (folder / OUTPUT).open("wb") as output, _started(command, output, path) as process:
        patience = _PATIENCE
        while (status := process.poll()) is None and patience > 0:
            listen()
            time.sleep(_LOOK_EVERY)
            patience -= _LOOK_EVERY if listen.failed else 0
    listen()
    return 1 if status is None else status


@contextmanager
def _started(command: list[str], output: IO[bytes], path: str) -> Iterator[subprocess.Popen[bytes]]:
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # an interruption comes here, and ends them in order
        )
    except OSError as error:
        raise FusionError(f"cannot start {command[0]!r}: {error.strerror}; it is meant to run accelerate") from error
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _error(kind: str, text: str) -> Exception:
    known = getattr(errors, kind, None)
    return known(text) if isinstance(known, type) and issubclass(known, FusionError) else FusionError(text)


def _end(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")[-_SHOWN:].strip()
