"""A ledger opens, or one clear error says who, what and what next."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from results.connect import connect
from results.errors import LedgerBusy, LedgerError, LedgerTooNew, NotALedger
from results.schema import current_schema, parse_schema
from results.store import Ledger

TWO_VERSIONS = """
-- version 1
CREATE TABLE meta (version INTEGER PRIMARY KEY, fuseval VARCHAR, created TIMESTAMPTZ DEFAULT now());
CREATE TABLE things (name VARCHAR PRIMARY KEY);
-- version 2
ALTER TABLE things ADD COLUMN size BIGINT;
UPDATE things SET size = length(name);
-- views
CREATE OR REPLACE VIEW big AS SELECT name FROM things WHERE {condition};
"""
ONE_VERSION = TWO_VERSIONS.split("-- version 2", maxsplit=1)[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.duckdb"


def hold(path: Path) -> subprocess.Popen[str]:
    code = (
        "import sys\nfrom results.store import Ledger\nLedger.open(sys.argv[1])\nprint(1, flush=True)\nsys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "1\n"
    return child


@pytest.mark.slow
@pytest.mark.parametrize("read_only", [False, True])
def test_a_busy_ledger_names_the_process_that_holds_it(path: Path, read_only: bool) -> None:
    child = hold(path)
    try:
        with pytest.raises(LedgerBusy, match=rf"in use by process {child.pid} \(.*python.*\): wait") as caught:
            Ledger.open(path, read_only=read_only)
        assert caught.value.pid == child.pid
    finally:
        child.communicate("")
    Ledger.open(path).close()


def test_a_later_ledger_is_refused_and_left_byte_for_byte(path: Path) -> None:
    Ledger.open(path).close()
    with duckdb.connect(str(path)) as plain:
        plain.execute("INSERT INTO meta (version, fuseval) VALUES (?, '9.0')", [current_schema().latest + 1])
    before = path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(
            LedgerTooNew, match=r"ledger\.duckdb has version \d+, this fuseval knows up to \d+: upgrade fuseval"
        ):
            Ledger.open(path, read_only=read_only)
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == [path]


def write_text(path: Path) -> None:
    path.write_text("model,score\n" * 1000)


def write_nothing(path: Path) -> None:
    path.touch()


def write_other_tables(path: Path) -> None:
    with duckdb.connect(str(path)) as plain:
        plain.execute("CREATE TABLE meta (version INTEGER); CREATE TABLE sales (id INTEGER)")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (write_text, "is not a DuckDB file: give another path"),
        (write_nothing, "is an empty file: delete it"),
        (write_other_tables, r"no fuseval ledger \(it holds meta, sales\)"),
    ],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_that_is_no_ledger_is_refused_and_left_as_it_was(
    path: Path, make: Callable[[Path], None], message: str, read_only: bool
) -> None:
    make(path)
    before = path.read_bytes()
    with pytest.raises(NotALedger, match=message):
        Ledger.open(path, read_only=read_only)
    assert path.read_bytes() == before


def test_reading_a_ledger_that_is_not_there_makes_none(path: Path) -> None:
    with pytest.raises(LedgerError, match=r"there is no ledger .*ledger\.duckdb"):
        Ledger.open(path, read_only=True)
    assert not path.exists()


def test_a_folder_or_a_file_for_a_folder_is_an_error_with_the_path(path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger.open(path.parent)
    write_text(path)
    with pytest.raises(LedgerError, match=r"folder of ledger .* cannot be made"):
        Ledger.open(path / "below.duckdb")


def test_a_database_without_tables_becomes_a_ledger(path: Path) -> None:
    duckdb.connect(str(path)).close()  # what is left of a process killed between creating and filling the file
    with Ledger.open(path) as ledger:
        assert ledger.models() == []


def test_an_earlier_ledger_is_brought_up_to_date_with_its_rows(path: Path) -> None:
    with connect(path, read_only=False, schema=parse_schema(ONE_VERSION)) as old:
        old.execute("INSERT INTO things VALUES ('abc'), ('a')")
    schema = parse_schema(TWO_VERSIONS.format(condition="size > 2"))
    with pytest.raises(LedgerError, match="has version 1, this fuseval reads version 2: open it once for writing"):
        connect(path, read_only=True, schema=schema)
    with connect(path, read_only=False, schema=schema) as new:
        assert new.execute("SELECT version FROM meta ORDER BY ALL").fetchall() == [(1,), (2,)]
        assert new.execute("SELECT * FROM things ORDER BY ALL").fetchall() == [("a", 1), ("abc", 3)]
        assert new.execute("SELECT * FROM big").fetchall() == [("abc",)]


def test_a_migration_that_fails_leaves_the_version_before(path: Path) -> None:
    with connect(path, read_only=False, schema=parse_schema(ONE_VERSION)) as old:
        old.execute("INSERT INTO things VALUES ('abc')")
    broken = parse_schema(TWO_VERSIONS.replace("length(name)", "no_such_column"))
    with pytest.raises(LedgerError, match=r"could not be brought to version 2 .*no_such_column"):
        connect(path, read_only=False, schema=broken)
    with duckdb.connect(str(path)) as plain:
        assert plain.execute("SELECT max(version) FROM meta").fetchone() == (1,)
        assert plain.execute("SELECT * FROM things").fetchall() == [("abc",)]


def test_views_are_applied_at_every_writable_open(path: Path) -> None:
    for condition, expected in (("size > 2", [("abc",)]), ("size < 2", [("a",)])):
        schema = parse_schema(TWO_VERSIONS.format(condition=condition))
        with connect(path, read_only=False, schema=schema) as connection:
            connection.execute("INSERT OR IGNORE INTO things VALUES ('abc', 3), ('a', 1)")
            assert connection.execute("SELECT * FROM big").fetchall() == expected


def test_the_versions_of_a_schema_count_up_from_one() -> None:
    assert current_schema().latest == len(current_schema().sections)
    for text in ("-- version 2\n", "-- views\n", "-- version 1\n-- version 3\n"):
        with pytest.raises(ValueError, match="count up from 1"):
            parse_schema(text)


def test_a_ledger_records_which_fuseval_made_it(path: Path) -> None:
    with Ledger.open(path) as ledger:
        told = ledger.sql("SELECT version, fuseval <> '', created <= now() FROM meta ORDER BY version").fetchall()
        assert told == [(version, True, True) for version in current_schema().sections]


def test_a_file_without_the_right_to_read_is_an_error_with_the_path(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    Ledger.open(path).close()
    path.chmod(0)
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger.open(path, read_only=True)
