"""Several ledgers made one: the union of their rows by content keys, whatever the order in which they come.

Of two rows under one key the ledgers' own rule decides, by the time each was stored: of answers, judgments, requests,
questions and imported rows the first stored stays, of everything else the last; equal times are told apart by content.
So uniting is commutative and associative, and doing it twice changes nothing. What scoring makes (scores, their items
and differences, audits, flags) is left out: score the united ledger.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from evals.records import Answer, AnswerFlag, Audit, Difference, Failure, Imported, Judgment, Question, Score, Verdict
from results.errors import LedgerError
from results.tables import TABLES

Batches: TypeAlias = Any
"""A pyarrow.RecordBatchReader: a table's rows, some at a time."""

_MADE_BY_SCORING = (Score, Difference, Audit, AnswerFlag)
_SHOWN = 5  # questions named in an error
_OF_ANSWERS = {"measures": "answer", "rewards": "answer", "verdicts": "request"}  # whose columns hold answers' keys


@dataclass(frozen=True, slots=True)
class Rule:
    """How a table's rows are united: ``key`` tells rows apart, ``rank`` orders those of one key.

    Of these the first stays, or with ``last`` the last. ``told`` is the column that equal keys should have equal.
    """

    table: str
    key: tuple[str, ...]
    rank: str = "recorded_at"
    last: bool = False
    told: str | None = None


@dataclass(frozen=True, slots=True)
class United:
    """What became of one table's rows: how many came, were new, took another's place, or differed from what stayed."""

    table: str
    came: int
    new: int
    replaced: int
    differing: int  # under one key another text: sampled twice, or by a server that changed; one of them stays


def rules() -> tuple[Rule, ...]:
    """Return the tables that are united, in an order in which each is whole when it is there."""
    found = [Rule("runs", ("id",), rank="(ended IS NOT NULL, started)", last=True)]
    for type_, table in TABLES.items():
        if type_ in _MADE_BY_SCORING:
            continue
        rule = Rule(table.name, table.key, last=table.replace)
        if type_ is Imported:
            rule = Rule(table.name, ("key", "kind"))  # one row of a file, imported here and there
        elif type_ is Verdict:
            rule = Rule(table.name, table.key, rank="(coalesce(reader, 0), recorded_at)", last=True)
        elif type_ is Judgment:  # one that was asked for again, and stands for more replies, replaces the first
            rule = Rule(table.name, table.key, rank="-coalesce(asked, 1), recorded_at", told="text")
        elif type_ is Answer:
            rule = Rule(table.name, table.key, told="text")
        found.append(rule)
    return tuple(found)


def unite(connection: Any, tables: Mapping[str, Callable[[], Batches | None]], *, place: str) -> Iterator[United]:
    """Add the rows of ``tables`` (by name, each what reads it) to the connection's, and say what became of them.

    Happens inside the caller's transaction. LedgerError where ``place`` has other questions under the same names.
    """
    connection.execute("CREATE OR REPLACE TEMP TABLE disputed (key VARCHAR, theirs BOOLEAN)")
    for rule in rules():
        batches = tables[rule.table]() if rule.table in tables else None
        if batches is None:  # an older ledger has no such table
            continue
        with _spooled(connection, batches, rule.table):
            if rule.table == TABLES[Question].name:
                _refuse_other_questions(connection, place)
            _drop_what_is_of_other_texts(connection, rule)
            yield _unite(connection, rule)
    connection.execute("DROP TABLE disputed")
    _forget_failures(connection)


@contextlib.contextmanager
def _spooled(connection: Any, batches: Batches, table: str) -> Iterator[None]:
    """Hold the rows as the temporary table ``incoming``, in those columns of ``table`` that they have."""
    types = {name: kind for name, kind, *_ in connection.execute(f"DESCRIBE {table}").fetchall()}
    cast = ", ".join(f"CAST({name} AS {types[name]}) AS {name}" for name in batches.schema.names if name in types)
    connection.register("arriving", batches)
    connection.execute(f"CREATE OR REPLACE TEMP TABLE incoming AS SELECT {cast} FROM arriving")
    connection.unregister("arriving")
    yield
    connection.execute("DROP TABLE incoming")


def _drop_what_is_of_other_texts(connection: Any, rule: Rule) -> None:
    """Leave out what was found of answers whose text gave way to another under the same key: it is not that text's."""
    column = _OF_ANSWERS.get(rule.table)
    if column is None:
        return
    connection.execute(f"DELETE FROM incoming WHERE {column} IN (SELECT key FROM disputed WHERE NOT theirs)")
    connection.execute(f"DELETE FROM {rule.table} WHERE {column} IN (SELECT key FROM disputed WHERE theirs)")


def _unite(connection: Any, rule: Rule) -> United:
    columns = [name for name, *_ in connection.execute("DESCRIBE incoming").fetchall()]
    names, key = ", ".join(columns), ", ".join(rule.key)
    order = f"{rule.rank} {'DESC' if rule.last else 'ASC'}, md5(CAST({{{_fields(columns)}}} AS VARCHAR))"
    # Of the rows under one key, ours among them, the one that stays; `theirs` says whose it is.
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE winners AS SELECT {names}, theirs FROM ("
        f"SELECT {names}, true AS theirs FROM incoming UNION ALL "
        f"SELECT {names}, false FROM {rule.table} WHERE ({key}) IN (SELECT ({key}) FROM incoming)"
        f") QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {order}, theirs) = 1"
    )
    known = f"({key}) IN (SELECT ({key}) FROM {rule.table})"
    [(came, new, replaced)] = connection.execute(
        f"SELECT count(*), count(*) FILTER (NOT {known}), count(*) FILTER (theirs AND {known}) FROM winners"
    ).fetchall()
    differing = _differing(connection, rule)
    if rule.table == TABLES[Imported].name:  # its primary key holds the position too, so ours would stay beside theirs
        connection.execute(
            "DELETE FROM imported USING winners w WHERE w.theirs AND imported.key = w.key AND imported.kind = w.kind "
            "AND imported.position <> w.position"
        )
    if rule.table == TABLES[Answer].name:
        connection.execute(
            "INSERT INTO disputed SELECT DISTINCT i.key, w.theirs FROM incoming i "
            "JOIN answers t ON i.key = t.key JOIN winners w ON i.key = w.key WHERE i.text <> t.text"
        )
    connection.execute(f"INSERT OR REPLACE INTO {rule.table} BY NAME SELECT {names} FROM winners WHERE theirs")
    connection.execute("DROP TABLE winners")
    return United(rule.table, came=came, new=new, replaced=replaced, differing=differing)


def _fields(columns: list[str]) -> str:
    return ", ".join(f"'{name}': {name}" for name in columns)


def _differing(connection: Any, rule: Rule) -> int:
    if rule.told is None:
        return 0
    same = " AND ".join(f"i.{name} = t.{name}" for name in rule.key)
    query = f"SELECT count(*) FROM incoming i JOIN {rule.table} t ON {same} WHERE i.{rule.told} <> t.{rule.told}"
    [(count,)] = connection.execute(query).fetchall()
    return int(count)


def _refuse_other_questions(connection: Any, place: str) -> None:
    told = ("category", "turns", "system", "reference", "check_rule")
    other = " OR ".join(f"i.{name} IS DISTINCT FROM q.{name}" for name in told)
    found = connection.execute(
        "SELECT benchmark || ' ' || version || ' ' || id FROM incoming GROUP BY benchmark, version, id "
        f"HAVING count(DISTINCT {{{_fields(list(told))}}}) > 1 UNION "
        "SELECT i.benchmark || ' ' || i.version || ' ' || i.id FROM incoming i JOIN questions q "
        f"ON i.benchmark = q.benchmark AND i.version = q.version AND i.id = q.id WHERE {other} ORDER BY 1"
    ).fetchall()
    if found:
        names = ", ".join(name for (name,) in found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
        raise LedgerError(
            f"{place} has another text of {len(found)} questions ({names}), so its answers are to other questions: "
            "keep the two ledgers apart; nothing of it was taken"
        )


def _forget_failures(connection: Any) -> None:
    """Leave out the failures of what one of the ledgers has; what they cost is added to it no second time."""
    name = TABLES[Failure].name
    connection.execute(
        f"DELETE FROM {name} WHERE key IN (SELECT key FROM answers) OR key IN (SELECT key FROM judgments)"
    )
