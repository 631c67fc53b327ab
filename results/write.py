"""Rows into tables: one transaction, one statement a table."""

from __future__ import annotations

import contextlib
import operator
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from evals.records import Answer, Failure, Judgment
from results.errors import LedgerError
from results.tables import TABLES, Table

_COST = {
    type_: [column.name for column in TABLES[type_].columns].index("cost") for type_ in (Answer, Judgment, Failure)
}
_BULK = 2_000  # rows; from here on building an Arrow table is faster than passing lists


@dataclass(frozen=True, slots=True)
class Row:
    """A record of type ``type`` as its table holds it; ``extra`` are the values of the table's extra columns."""

    type: type[Any]
    values: tuple[Any, ...]
    extra: tuple[Any, ...] = ()


@contextlib.contextmanager
def transaction(connection: Any, path: Path) -> Iterator[None]:
    """Commit what happens inside, or roll it back; errors of the database become LedgerError."""
    try:
        connection.execute("BEGIN")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(duckdb.Error):  # a COMMIT that fails has rolled back already
                connection.execute("ROLLBACK")
            raise
    except duckdb.Error as error:
        raise LedgerError(
            f"ledger {path} could not be written ({error}): look at the disk's space and rights; "
            "nothing is lost while this process lives, the next write tries again"
        ) from error


def write(connection: Any, rows: Sequence[Row], *, run: str | None, bulk: bool = True) -> None:
    """Store rows under the rules of their tables, inside the caller's transaction.

    Without ``bulk``, pyarrow is not used: its first use imports pandas, which takes a second.
    """
    by_type: dict[type[Any], list[Row]] = defaultdict(list)
    for row in _with_failed_costs(connection, rows):
        by_type[row.type].append(row)
    for type_, table in TABLES.items():
        mine = _distinct(table, by_type[type_])
        if not mine:
            continue
        if bulk and len(mine) >= _BULK:
            connection.register("incoming", _arrow(table, mine))
            _insert(connection, type_, "SELECT * FROM incoming", [], run)
            connection.unregister("incoming")
        else:
            columns = table.columns + table.extra
            source = "SELECT " + ", ".join(f"unnest(?::{column.type}[]) AS {column.name}" for column in columns)
            _insert(connection, type_, source, [list(values) for values in zip(*mine, strict=True)], run)
    _forget_failures(connection, rows)


def _insert(connection: Any, type_: type[Any], source: str, values: list[Any], run: str | None) -> None:
    table = TABLES[type_]
    rule = "REPLACE" if table.replace else "IGNORE"
    condition = ""
    if type_ is Failure:
        condition = "WHERE key NOT IN (SELECT key FROM answers) AND key NOT IN (SELECT key FROM judgments)"
    connection.execute(
        f"INSERT OR {rule} INTO {table.name} BY NAME "
        f"SELECT *, ?::VARCHAR AS run, now() AS recorded_at FROM ({source}) {condition}",
        [run, *values],
    )


def _distinct(table: Table, rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    names = [column.name for column in table.columns]
    key_of = operator.itemgetter(*(names.index(name) for name in table.key))
    distinct: dict[Any, tuple[Any, ...]] = {}
    for row in rows:
        key = key_of(row.values)
        if table.replace or key not in distinct:
            distinct[key] = row.values + row.extra
    return list(distinct.values())


def _with_failed_costs(connection: Any, rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows with what earlier failures of the same keys cost: these are replaced, the money stays spent."""
    keys = [row.values[0] for row in rows if row.type in _COST]
    if not keys:
        return rows
    query = "SELECT key, cost FROM failures WHERE cost > 0 AND key IN (SELECT unnest(?::VARCHAR[]))"
    paid = dict(connection.execute(query, [keys]).fetchall())
    told = []
    for row in rows:  # in their order: a failure and then the judgment may come together
        if row.type in _COST and row.values[0] in paid:
            row = _dearer(row, paid.pop(row.values[0]))  # noqa: PLW2901
        if row.type is Failure and (dollars := row.values[_COST[Failure]]):
            paid[row.values[0]] = dollars
        told.append(row)
    return told


def _dearer(row: Row, dollars: float) -> Row:
    place = _COST[row.type]
    values = list(row.values)
    values[place] = (values[place] or 0.0) + dollars
    return replace(row, values=tuple(values))


def _forget_failures(connection: Any, rows: Sequence[Row]) -> None:
    keys = [row.values[0] for row in rows if row.type in (Answer, Judgment)]
    if keys:
        connection.execute("DELETE FROM failures WHERE key IN (SELECT unnest(?::VARCHAR[]))", [keys])


def _arrow(table: Table, rows: Sequence[tuple[Any, ...]]) -> Any:
    import pyarrow

    columns = table.columns + table.extra
    arrays = [
        pyarrow.array(list(values), type=_arrow_type(column.type))
        for column, values in zip(columns, zip(*rows, strict=True), strict=True)
    ]
    return pyarrow.table(arrays, names=[column.name for column in columns])


def _arrow_type(name: str) -> Any:
    import pyarrow

    if name.endswith("[]"):
        return pyarrow.list_(_arrow_type(name.removesuffix("[]")))
    if name.startswith("STRUCT("):
        members = [member.split() for member in name.removeprefix("STRUCT(").removesuffix(")").split(", ")]
        return pyarrow.struct([(member, _arrow_type(kind)) for member, kind in members])
    return {
        "VARCHAR": pyarrow.string(),
        "JSON": pyarrow.string(),
        "BIGINT": pyarrow.int64(),
        "BOOLEAN": pyarrow.bool_(),
        "DOUBLE": pyarrow.float64(),
        "TIMESTAMPTZ": pyarrow.timestamp("us", tz="UTC"),
    }[name]
