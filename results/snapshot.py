"""A ledger that another process is filling, read without disturbing it.

DuckDB lets one process write and then no other read, and a copy of the file under a writer's hands may be torn. So who
wants to look asks: a file ``<ledger>.snapshot-wanted`` beside the ledger, which the writing process finds; it writes
what is committed, as one transaction sees it, to ``<ledger>.snapshot``, a ledger of its own that appears when it is
whole. A ledger that nobody is writing is copied by the reader itself, who holds it open for no longer than that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from results.connect import connect
from results.errors import LedgerBusy, LedgerError

if TYPE_CHECKING:
    from results.store import Ledger

_LOOK_EVERY = 0.25  # seconds between two looks for a request
Stamp = tuple[int, int]
"""Which of the snapshots that replace each other: inode and time of writing."""

_SHARE = 10  # a snapshot is not begun before ten times what the last one took: a tenth of one core at most


def snapshot_path(ledger: Path) -> Path:
    """Return where the process that writes the ledger puts a snapshot of it."""
    return ledger.with_name(f"{ledger.name}.snapshot")


def request_path(ledger: Path) -> Path:
    """Return the file that asks for a snapshot by being there."""
    return ledger.with_name(f"{ledger.name}.snapshot-wanted")


@contextlib.contextmanager
def answering_requests(ledger: Ledger) -> Iterator[None]:
    """Write a snapshot of this ledger whenever one is asked for; at the end, none is left lying about.

    One that cannot be written (a full disk) disturbs nobody: who asked for it goes without.
    """
    if ledger.read_only:
        yield
        return
    ended = threading.Event()
    snapshot_path(ledger.path).unlink(missing_ok=True)  # of a run that was killed
    thread = threading.Thread(target=_answer, args=(ledger, ended), name="ledger-snapshots", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for path in (snapshot_path(ledger.path), request_path(ledger.path)):
            path.unlink(missing_ok=True)


def write_snapshot(ledger: Ledger, path: Path) -> None:
    """Write everything added to the ledger so far to ``path``, as a ledger of its own; it appears when it is whole."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    [(name,)] = ledger.sql("SELECT current_database()").fetchall()
    try:
        ledger.sql(f"ATTACH {_text(part)} AS fuseval_snapshot_copy")
        try:
            ledger.sql(f"COPY FROM DATABASE {_name(name)} TO fuseval_snapshot_copy")
        finally:
            ledger.sql("DETACH fuseval_snapshot_copy")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
        Path(f"{part}.wal").unlink(missing_ok=True)


def copy_ledger(path: Path, into: Path, *, seen: Stamp | None = None, wait: float = 10.0) -> Stamp | None:
    """Copy the ledger at ``path`` to ``into``; of one that somebody is filling, return which snapshot that is.

    ``seen`` is the snapshot that was copied last: a later one is waited for. Raises LedgerBusy where the writer gives
    none within ``wait`` seconds, LedgerError for what is no ledger.
    """
    into.unlink(missing_ok=True)
    try:
        connect(path, read_only=True).close()  # whatever is wrong with it is said here
        _copy_free(path, into)
    except LedgerBusy as error:
        return _copy_asked(path, into, seen, wait, error)
    return None


def _copy_free(path: Path, into: Path) -> None:
    with duckdb.connect() as memory:
        try:
            memory.execute(f"ATTACH {_text(path)} AS source (READ_ONLY)")
        except duckdb.Error as error:  # a writer came in between
            raise LedgerBusy(f"ledger {path} is in use: {error}") from error
        try:
            memory.execute(f"ATTACH {_text(into)} AS copy")
            memory.execute("COPY FROM DATABASE source TO copy")
        except duckdb.Error as error:
            raise LedgerError(f"ledger {path} cannot be copied to {into} ({error}); is the disk full?") from error


def _copy_asked(path: Path, into: Path, seen: Stamp | None, wait: float, busy: LedgerBusy) -> Stamp:
    snapshot, request = snapshot_path(path), request_path(path)
    try:
        request.touch()
    except OSError as error:
        raise LedgerBusy(f"{busy}; and no snapshot of it can be asked for ({error})", pid=busy.pid) from error
    end = time.monotonic() + wait
    while (found := _stamp(snapshot)) in (None, seen):
        if time.monotonic() > end:
            request.unlink(missing_ok=True)
            raise LedgerBusy(f"{busy}; it gives no snapshot to look at, as `fuseval run` does", pid=busy.pid) from None
        time.sleep(_LOOK_EVERY / 2)
    try:
        shutil.copyfile(snapshot, into)  # which is replaced, never written to
    except FileNotFoundError as error:  # the run ended just now
        raise LedgerBusy(f"the run that filled {path} is ending: look again", pid=busy.pid) from error
    return found


def _answer(ledger: Ledger, ended: threading.Event) -> None:
    request, pause = request_path(ledger.path), _LOOK_EVERY
    while not ended.wait(pause):
        pause = _LOOK_EVERY
        if not request.exists():
            continue
        began = time.monotonic()
        with contextlib.suppress(LedgerError, OSError, duckdb.Error):
            request.unlink(missing_ok=True)
            write_snapshot(ledger, snapshot_path(ledger.path))
        pause = max(_LOOK_EVERY, _SHARE * (time.monotonic() - began))


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_ino, found.st_mtime_ns)


def _text(path: Path) -> str:
    escaped = str(path).replace("'", "''")
    return f"'{escaped}'"


def _name(name: Any) -> str:
    escaped = str(name).replace('"', '""')
    return f'"{escaped}"'
