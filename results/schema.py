"""The schema of a ledger: read from ``schema.sql``, and brought from any earlier version to the latest."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import duckdb

from results.errors import LedgerError, LedgerTooNew, NotALedger

_HEADER = re.compile(r"^-- (version (?P<number>\d+)|views)\s*$", re.MULTILINE)
_META_COLUMNS = {"version", "fuseval", "created"}


@dataclass(frozen=True, slots=True)
class Schema:
    """The SQL that makes each version from the one before it, and the views of the latest."""

    sections: Mapping[int, str]
    views: str

    @property
    def latest(self) -> int:
        """The version that this fuseval writes."""
        return max(self.sections)


def parse_schema(text: str) -> Schema:
    """Split a schema text at its ``-- version N`` and ``-- views`` lines; versions must count up from 1."""
    headers = list(_HEADER.finditer(text))
    ends = [header.start() for header in headers[1:]] + [len(text)]
    bodies = [(header["number"], text[header.end() : end]) for header, end in zip(headers, ends, strict=True)]
    sections = {int(number): body for number, body in bodies if number}
    if list(sections) != list(range(1, len(sections) + 1)) or not sections:
        raise ValueError(f"a schema's versions count up from 1; this one has {list(sections)}")
    return Schema(sections=sections, views="".join(body for number, body in bodies if not number))


@cache
def current_schema() -> Schema:
    """Return the schema of ``schema.sql``."""
    return parse_schema(importlib.resources.files("results").joinpath("schema.sql").read_text(encoding="utf-8"))


def ledger_version(connection: Any, path: Path) -> int:
    """Return the version of the ledger at ``path``, 0 where the database is empty; raises NotALedger for others."""
    rows = connection.execute("SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal").fetchall()
    if not rows:
        return 0
    if {column for table, column in rows if table == "meta"} == _META_COLUMNS:
        [(version,)] = connection.execute("SELECT max(version) FROM meta").fetchall()
        if version is not None:
            return int(version)
    tables = ", ".join(sorted({table for table, _ in rows})[:5])
    raise NotALedger(
        f"{path} is a DuckDB database but no fuseval ledger (it holds {tables}): give another path for the ledger"
    )


def refuse_newer(version: int, path: Path, schema: Schema) -> None:
    """Raise LedgerTooNew where a ledger's version is later than any that this fuseval knows."""
    if version > schema.latest:
        raise LedgerTooNew(
            f"ledger {path} has version {version}, this fuseval knows up to {schema.latest}: upgrade fuseval"
        )


def migrate(connection: Any, path: Path, schema: Schema) -> int:
    """Bring the ledger to the schema's latest version and re-apply its views; return the version it had.

    Each version is one transaction: a ledger stopped on its way is a whole ledger of some version.
    """
    before = ledger_version(connection, path)
    refuse_newer(before, path, schema)
    for version in range(before + 1, schema.latest + 1):
        _apply(connection, path, f"version {version}", schema.sections[version], stamp=version)
    _apply(connection, path, "views", schema.views, stamp=None)
    return before


def _apply(connection: Any, path: Path, name: str, sql: str, *, stamp: int | None) -> None:
    connection.execute("BEGIN")
    try:
        connection.execute(sql)
        if stamp is not None:
            connection.execute("INSERT INTO meta (version, fuseval) VALUES (?, ?)", [stamp, _fuseval_version()])
        connection.execute("COMMIT")
    except duckdb.Error as error:
        connection.execute("ROLLBACK")
        raise LedgerError(
            f"ledger {path} could not be brought to {name} ({error}); it is as it was: report this with the file"
        ) from error


def _fuseval_version() -> str:
    try:
        return importlib.metadata.version("fuseval")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
