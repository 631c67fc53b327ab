"""From a path to a connection with a ledger of the right version behind it, or to one clear error."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import duckdb
import psutil

from results.errors import LedgerBusy, LedgerError, NotALedger
from results.schema import Schema, current_schema, ledger_version, migrate, refuse_newer

_HOLDER = re.compile(r"Conflicting lock is held in (?P<program>.*?) ?\(PID (?P<pid>\d+)\)")
_COMMAND_CHARACTERS = 120


def connect(path: Path, *, read_only: bool, schema: Schema | None = None) -> Any:
    """Open the ledger at ``path``; for writing, it is created where it is missing and migrated where it is old.

    What the ledger is gets looked at read-only first, so that a file that is refused stays byte for byte as it was.
    """
    schema = schema or current_schema()
    if read_only and not path.exists():
        raise LedgerError(f"there is no ledger {path}: give another path, or run an experiment that writes it")
    if not read_only:
        _make_folder(path)
    if path.exists():
        connection = _open(path, read_only=True)
        try:
            _look(connection, path, schema, read_only=read_only)
        except BaseException:
            connection.close()
            raise
        if read_only:
            return connection
        connection.close()
    connection = _open(path, read_only=False)
    try:
        migrate(connection, path, schema)
    except BaseException:
        connection.close()
        raise
    return connection


def _look(connection: Any, path: Path, schema: Schema, *, read_only: bool) -> None:
    version = ledger_version(connection, path)
    refuse_newer(version, path, schema)
    if read_only and version < schema.latest:
        raise LedgerError(
            f"ledger {path} has version {version}, this fuseval reads version {schema.latest}: open it once for "
            "writing (any fuseval command that writes to it does) to bring it up to date"
        )


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(f"the folder of ledger {path} cannot be made ({error}): give another path") from error


def _open(path: Path, *, read_only: bool) -> Any:
    try:
        return duckdb.connect(str(path), read_only=read_only)
    except duckdb.ConnectionException as error:
        if "different configuration" not in str(error):
            raise LedgerError(f"ledger {path} cannot be opened: {error}") from error
        raise LedgerBusy(
            f"ledger {path} is already open in this very process (pid {os.getpid()}), for writing beside reading: "
            "use that Ledger, or close it first",
            pid=os.getpid(),
        ) from error
    except duckdb.Error as error:
        raise _translated(error, path) from error


def _translated(error: Exception, path: Path) -> LedgerError:
    text = str(error)
    if "Could not set lock" in text:
        holder = _HOLDER.search(text)
        pid = int(holder["pid"]) if holder else None
        return LedgerBusy(
            f"ledger {path} is in use by {_process(pid)}: wait until that ends, or stop it. "
            "A ledger is open to one writer or to any number of readers, never to both",
            pid=pid,
        )
    if "not a valid DuckDB database" in text:
        what = "is an empty file: delete it" if path.stat().st_size == 0 else "is not a DuckDB file: give another path"
        return NotALedger(f"ledger {path} {what}")
    return LedgerError(f"ledger {path} cannot be opened: {text}")


def _process(pid: int | None) -> str:
    if pid is None:
        return "another process"
    try:
        command = " ".join(" ".join(psutil.Process(pid).cmdline()).split())
    except psutil.Error:  # ended since, or in another container
        return f"process {pid}"
    return f"process {pid} ({command[:_COMMAND_CHARACTERS]})" if command else f"process {pid}"
