"""Uniting ledgers is a union by content keys: in any order, any number of times, from files or from Parquet."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evals.records import Answer, Failure, Imported, Judgment, Model, Question, Reward, Sampling, Score, Verdict
from results.errors import LedgerBusy, LedgerError, LedgerTooNew, NotALedger
from results.parquet import export_parquet, parquet_tables
from results.places import add_place
from results.store import Ledger

QUESTION = Question("starter", "1", "q1", "maths", ("1+1?",), None, ("2",), "number")
MODEL = Model("m1", "base", "checkpoint", "somewhere")
TWICE = Imported("i1", "fastchat/answers", 1, "{}")  # the same row as another, imported elsewhere


def answer(key: str, text: str = "2") -> Answer:
    return Answer(key, "m1", "starter", "1", "q1", 1, text, "stop", 1, 1, 0.5, 0, Sampling())


POOL = [
    MODEL,
    QUESTION,
    *(answer(f"a{n}") for n in range(3)),
    answer("a0", "two"),  # the same key and another text
    *(Failure(f"a{n}", "answer", "m1", "starter", "q1", "timeout", "late", 1) for n in range(4)),
    Judgment("g1", "j", "A", "stop", (("A", -0.1),), 1, 1, 0.5, "served"),
    Verdict("r1", "j", "starter", "1", "q1", 1, "m1", None, "single", None),
    Verdict("r1", "j", "starter", "1", "q1", 1, "m1", None, "single", 0.5, reader=2),
    Imported("i1", "fastchat/answers", 0, "{}"),
    TWICE,
    Reward("a1", "s", 0.5, "fine"),
    Reward("a1", "s", 0.75, "finer"),
]
TOLD = {
    "models": "id", "questions": "id", "answers": "key, text", "failures": "key", "judgments": "key, text",
    "verdicts": "request, value, reader", "imported": "key, kind, position", "rewards": "answer, value",
}  # fmt: skip


def ledger(path: Path, records: Iterable[object]) -> Path:
    with Ledger.open(path) as opened:
        for record in records:
            opened.add(record)
            opened.flush()  # each has a time of its own
    return path


def union(path: Path, *places: Path | str) -> Path:
    with Ledger.open(path) as opened:
        for place in places:
            add_place(opened, str(place))
    return path


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with Ledger.open(path, read_only=True) as opened:
        return {
            table: opened.sql(f"SELECT {told}, recorded_at FROM {table} ORDER BY ALL").fetchall()
            for table, told in TOLD.items()
        }


@pytest.mark.slow
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(st.sampled_from(POOL), max_size=10), min_size=3, max_size=3))
def test_any_order_of_uniting_gives_the_same_ledger_and_once_more_changes_nothing(several: list[list[object]]):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = [ledger(folder / f"{n}.duckdb", records) for n, records in enumerate(several)]
        orders = list(itertools.permutations(parts))
        first = union(folder / "first.duckdb", *orders[0])
        expected = rows(first)
        assert rows(union(folder / "last.duckdb", *orders[-1])) == expected
        nested = union(folder / "pair.duckdb", parts[1], parts[2])
        assert rows(union(folder / "nested.duckdb", nested, parts[0])) == expected
        assert rows(union(first, *parts)) == expected
        keys = {record.key for records in several for record in records if isinstance(record, Answer)}
        assert {key for key, *_ in expected["answers"]} == keys
        assert not keys & {key for key, *_ in expected["failures"]}


def test_a_ledger_through_parquet_is_the_ledger_itself(tmp_path: Path):
    made = ledger(tmp_path / "a.duckdb", [record for record in POOL if record != TWICE])
    with Ledger.open(made) as opened:
        opened.start_run(command="run", experiment="{}", versions={"fuseval": "0.1.0"})
        opened.add(answer("a9"))
        export_parquet(opened, str(tmp_path / "out"))
    assert len(list((tmp_path / "out" / "answers" / "run=none").glob("rows-*.parquet"))) == 1
    back = union(tmp_path / "b.duckdb", tmp_path / "out")
    assert rows(back) == rows(made)
    with Ledger.open(back, read_only=True) as opened:
        assert opened.answers(keys=["a9"]) == [answer("a9")]
        assert [run for (run,) in opened.sql("SELECT command FROM runs").fetchall()] == ["run"]


def test_an_object_store_takes_several_ledgers_in_one_place(tmp_path: Path):
    place = "memory://team/ledgers"
    for number in range(2):
        with Ledger.open(tmp_path / f"{number}.duckdb") as opened:
            opened.start_run(command="run", experiment="{}", versions={})
            opened.add(MODEL, QUESTION, answer(f"a{number}"))
            export_parquet(opened, place)
    assert len(fsspec.filesystem("memory").glob("/team/ledgers/answers/run=*/rows-*.parquet")) == 2
    assert [key for key, *_ in rows(union(tmp_path / "all.duckdb", place))["answers"]] == ["a0", "a1"]


def test_rows_say_what_came_what_is_new_and_what_differs(tmp_path: Path):
    ours = ledger(tmp_path / "ours.duckdb", [answer("a0"), answer("a1")])
    theirs = ledger(tmp_path / "theirs.duckdb", [answer("a0", "two"), answer("a2")])
    with Ledger.open(ours) as opened:
        found = {each.table: each for each in add_place(opened, str(theirs))}["answers"]
    assert (found.came, found.new, found.replaced, found.differing) == (2, 1, 0, 1)


def test_scores_are_not_united_for_scoring_makes_them(tmp_path: Path):
    score = Score("m1", "starter", "1", "check", None, "accuracy", 50.0, 40.0, 60.0, 10, 2)
    with Ledger.open(tmp_path / "a.duckdb") as opened:
        opened.put_scores([score], benchmark="starter", version="1", provenance={})
    with Ledger.open(union(tmp_path / "b.duckdb", tmp_path / "a.duckdb"), read_only=True) as opened:
        assert opened.scores() == []


def test_other_questions_under_the_same_names_are_refused_and_nothing_is_taken(tmp_path: Path):
    ours = ledger(tmp_path / "ours.duckdb", [QUESTION])
    theirs = ledger(tmp_path / "theirs.duckdb", [replace(QUESTION, turns=("1+2?",)), answer("a0")])
    with pytest.raises(LedgerError, match=r"theirs\.duckdb has another text of 1 questions \(starter 1 q1\)"):
        union(ours, theirs)
    assert rows(ours)["answers"] == []


def test_a_ledger_that_somebody_writes_to_is_refused_with_the_process(tmp_path: Path):
    busy = ledger(tmp_path / "busy.duckdb", [])
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(busy)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        with pytest.raises(LedgerBusy, match="is in use by process"):
            union(tmp_path / "all.duckdb", busy)
        process.stdin.close()


@pytest.mark.parametrize(
    ("manifest", "error", "said"),
    [
        (None, NotALedger, "holds no exported ledger"),
        ('{"ledger": 999}', LedgerTooNew, "upgrade fuseval"),
        ("[]", NotALedger, "does not say which version"),
    ],
)
def test_a_place_that_is_no_export_is_refused(tmp_path: Path, manifest: str | None, error: type[Exception], said: str):
    if manifest:
        (tmp_path / "ledger.json").write_text(manifest)
    with pytest.raises(error, match=said):
        parquet_tables(str(tmp_path))


def test_an_export_does_not_write_among_other_things(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    made = ledger(tmp_path / "ledgers" / "a.duckdb", [MODEL])
    with Ledger.open(made, read_only=True) as opened, pytest.raises(NotALedger, match="holds other things"):
        export_parquet(opened, str(tmp_path))


def test_a_protocol_that_is_not_installed_is_named(tmp_path: Path):
    made = ledger(tmp_path / "a.duckdb", [MODEL])
    with Ledger.open(made, read_only=True) as opened, pytest.raises(LedgerError, match="cannot be reached"):
        export_parquet(opened, "nowhere://bucket/ledger")


@pytest.mark.slow
def test_what_was_found_of_a_text_that_gave_way_does_not_become_the_other_texts(tmp_path: Path):
    right = ledger(tmp_path / "right.duckdb", [answer("a0", "right"), Reward("a0", "s", 1.0, "")])
    wrong = ledger(tmp_path / "wrong.duckdb", [answer("a0", "wrong"), Reward("a0", "s", 0.0, "")])
    for name, order in (("one", (right, wrong)), ("two", (wrong, right))):
        with Ledger.open(union(tmp_path / f"{name}.duckdb", *order), read_only=True) as opened:
            assert [a.text for a in opened.answers()] == ["right"]
            assert [r.value for r in opened.rewards()] == [1.0]


def test_a_judgment_that_was_asked_for_again_is_not_undone_by_an_older_copy(tmp_path: Path):
    first = Judgment("g1", "j", "no verdict", "stop", (), 1, 1, 0.5, "served")
    old = ledger(tmp_path / "old.duckdb", [first])
    new = union(tmp_path / "new.duckdb", old)
    with Ledger.open(new) as opened:
        opened.put_again(replace(first, text="[[5]]", asked=2))
        add_place(opened, str(old))
        assert [judgment.text for judgment in opened.judgments()] == ["[[5]]"]


def test_ledgers_that_hold_rows_of_no_run_do_not_overwrite_each_others_files(tmp_path: Path):
    place = str(tmp_path / "shared [1]")
    for key in ("a0", "a1"):
        with Ledger.open(ledger(tmp_path / f"{key}.duckdb", [answer(key)]), read_only=True) as opened:
            export_parquet(opened, place)
    assert [key for key, *_ in rows(union(tmp_path / "all.duckdb", place))["answers"]] == ["a0", "a1"]
