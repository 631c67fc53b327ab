"""Large files written past the page cache, so that what is computed does not wait for the kernel's memory.

A write of gigabytes into the page cache has the kernel find, clear and fill as many pages: several CPU seconds on a
virtual machine whose host takes free memory back. And it puts out of the cache what was read, the models that are
merged, for a file that is not read again soon. Written directly, the disk fetches the bytes itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

ALIGNED = 4096  # what memory, place and length must be multiples of: pages, and the sectors of every usual disk
_STAGE = 1 << 22  # bytes written at once; less is slower, more is not faster
_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux has it


class DirectFile:
    """A new file, written front to back from ``start`` on, which must be a multiple of ALIGNED.

    Whole stages go past the page cache where the file system lets them; the rest, and files smaller than a stage, go
    through it. Only what ``close`` has returned from is written.
    """

    def __init__(self, path: Path, *, start: int = 0) -> None:
        assert start % ALIGNED == 0
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        # They begin with a page, as a direct write must; and numpy copies while other threads run Python.
        self._stages = [np.frombuffer(mmap.mmap(-1, _STAGE), np.uint8) for _ in range(2)]  # one is filled
        self._place, self._filled = start, 0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: Future[None] | None = None  # the other

    def write(self, data: memoryview) -> None:
        """Append bytes; an error may be that of an earlier write."""
        while data:
            part, data = data[: _STAGE - self._filled], data[_STAGE - self._filled :]
            np.copyto(self._stages[0][self._filled : self._filled + len(part)], np.frombuffer(part, np.uint8))
            self._filled += len(part)
            if self._filled == _STAGE:
                self._flush(direct=True)

    def close(self, *, head: bytes = b"") -> None:
        """Write what is left, and ``head`` at the beginning of the file."""
        try:
            self._flush(direct=False)
            self._wait()
            self._write(memoryview(head), 0, direct=False)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the file as it is."""
        self._writer.shutdown()
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)

    def _flush(self, *, direct: bool) -> None:
        self._wait()
        data = self._stages[0].data[: self._filled]
        self._writing = self._writer.submit(self._write, data, self._place, direct=direct)
        self._stages.reverse()
        self._place, self._filled = self._place + self._filled, 0

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _write(self, data: memoryview, place: int, *, direct: bool) -> None:
        direct = self._past_cache(direct)
        while data:
            try:
                written = os.pwrite(self._file, data, place)  # perhaps not all of it
            except OSError as error:
                if not direct or error.errno not in (errno.EINVAL, errno.ENOTSUP):
                    raise
                direct = self._past_cache(False)  # larger sectors, or a write cut short between two of them
                continue
            data, place = data[written:], place + written

    def _past_cache(self, direct: bool) -> bool:
        """Choose how the next write goes, and return whether it goes directly."""
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        with contextlib.suppress(OSError):  # of a file system that has no direct writes
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | _DIRECT if direct else flags & ~_DIRECT)
        return bool(_DIRECT and fcntl.fcntl(self._file, fcntl.F_GETFL) & _DIRECT)
