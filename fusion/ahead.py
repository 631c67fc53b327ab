"""Merged tensors that wait in memory until they are wanted, within a bound; perhaps made in the background."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Named = tuple[str, "Tensor"]
SWITCH = 2e-4  # seconds, not Python's 5e-3: so long an engine waits each time for a thread that has something to do
MOST = 4 << 30  # bytes that wait at a time; what a larger merge has beyond them is made as the first are taken


class _Dropped(Exception):
    """Nobody wants these tensors any more."""


@dataclass(slots=True)
class Ahead:
    """At most one merge that is made in the background, by whatever names it; used from one thread.

    It keeps to so many ``cores``, the last that this process may use: those who wait for each other on the rest are
    not held up.
    """

    most: int = MOST
    cores: int = 1
    _key: str = ""
    _buffer: _Buffer | None = None

    def begin(self, key: str, tensors: Callable[[], Iterator[Named]]) -> None:
        """Make these tensors now, in the background; another merge that waits is thrown away."""
        import torch

        torch.get_num_threads()  # this thread has its number from now on, whichever those that merge are given
        if self._buffer is None or key != self._key:
            self.drop()
            self._key, self._buffer = key, _Buffer(self.most, self.cores)
            self._buffer.fill(tensors)

    def take(self, key: str, tensors: Callable[[], Iterator[Named]]) -> Iterator[Named]:
        """Yield the tensors of a merge as they are ready, or make them now; what went wrong is raised here."""
        if self._buffer is None or key != self._key:
            yield from tensors()
            return
        buffer, self._buffer = self._buffer, None
        try:
            yield from buffer.taken()
        finally:
            buffer.drop()

    def drop(self) -> None:
        """Throw away what waits, and come back when nothing is computed any more."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.drop()


def in_stretches(tensors: Iterable[Named], most: int = MOST) -> Iterator[Named]:
    """Yield the tensors so that on a CPU as many as make up ``most`` bytes are computed before the first is taken.

    Threads that merge and those that an engine loads with hold each other up, if there are no more cores than either
    has: of a 135M model on two cores, both at the same time took 3.0 s, and one after the other 2.0.
    """
    waiting: deque[Named] = deque()
    size = 0
    for named in tensors:
        waiting.append(named)
        size += named[1].nbytes
        if size >= most or named[1].is_cuda:
            while waiting:
                yield waiting.popleft()
            size = 0
    while waiting:
        yield waiting.popleft()


@dataclass(slots=True)
class _Buffer:
    """Tensors between the thread that makes them and the one that takes them."""

    most: int
    cores: int
    _ready: deque[Named] = field(default_factory=deque)
    _bytes: int = 0
    _ended: bool = False
    _dropped: bool = False
    _error: BaseException | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None

    def fill(self, tensors: Callable[[], Iterator[Named]]) -> None:
        """Make the tensors in a thread of their own."""
        self._thread = threading.Thread(target=self._make, args=(tensors,), name="merge-ahead", daemon=True)
        self._thread.start()

    def taken(self) -> Iterator[Named]:
        """Yield the tensors in their order; an error of their making comes after those that it left."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self._ended)
                if not self._ready:
                    if self._error is not None:
                        raise self._error
                    return
                named = self._ready.popleft()
                self._bytes -= named[1].nbytes
                self._changed.notify_all()
            yield named

    def drop(self) -> None:
        """End the making."""
        with self._changed:
            self._dropped = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _make(self, tensors: Callable[[], Iterator[Named]]) -> None:
        usual = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH)
        try:
            _keep_to(self.cores)
            for named in tensors():
                self._put(named)
        except _Dropped:
            pass
        except BaseException as error:  # raised where the tensors are taken
            self._error = error
        finally:
            sys.setswitchinterval(usual)
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, named: Named) -> None:
        size = named[1].nbytes
        with self._changed:
            self._changed.wait_for(lambda: self._dropped or not self._ready or self._bytes + size <= self.most)
            if self._dropped:
                raise _Dropped
            self._ready.append(named)
            self._bytes += size
            self._changed.notify_all()


def _keep_to(cores: int) -> None:
    """Keep this thread, and those that it starts, to the last so many cores."""
    if hasattr(os, "sched_setaffinity"):  # of Linux alone; of 0 it is this thread's, not the process's
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
