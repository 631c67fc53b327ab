"""A ledger is looked at while a real process fills it, and is whole whenever it is looked at."""

import subprocess
import sys
import threading

import pytest

from evals.records import Model, TrainingPoint
from results.errors import LedgerBusy, LedgerError
from results.snapshot import answering_requests, copy_ledger, request_path, snapshot_path, write_snapshot
from results.store import Ledger

# Adds two records at a time, that must always be seen together, and says so after each; ends when its input closes.
WRITER = """
import sys, threading, time
from evals.records import TrainingPoint
from results.snapshot import answering_requests
from results.store import Ledger

ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
with Ledger.open(sys.argv[1]) as ledger, answering_requests(ledger):
    step = 0
    while not ended.is_set():
        ledger.add(*(TrainingPoint(name, step, 1.0, 0.1, step) for name in ("a", "b")))
        ledger.flush()
        if step == 0:
            print("begun", flush=True)
        step += 1
        time.sleep(0.01)
"""


@pytest.fixture
def path(tmp_path):
    with Ledger.open(tmp_path / "ledger.duckdb") as ledger:
        ledger.add(Model("id", "sce", "merge", "made"))
    return tmp_path / "ledger.duckdb"


@pytest.fixture
def writer(path):
    """A process that fills the ledger."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], **pipes) as process:
        assert process.stdout.readline() == "begun\n"
        yield process
        process.stdin.close()
        assert process.wait(timeout=20) == 0


def steps(path):
    with Ledger.open(path, read_only=True) as copy:
        return {name: [p.step for p in copy.training(name)] for name in ("a", "b")}


@pytest.mark.slow
def test_a_ledger_that_a_process_fills_is_copied_whole_again_and_again(path, writer, tmp_path):
    with pytest.raises(LedgerBusy):
        Ledger.open(path, read_only=True)
    seen, stamp = [], None
    for _ in range(2):
        before, stamp = stamp, copy_ledger(path, tmp_path / "copy.duckdb", seen=stamp, wait=20)
        assert stamp not in (None, before)
        found = steps(tmp_path / "copy.duckdb")
        assert found["a"] == found["b"] == list(range(len(found["a"])))
        seen.append(len(found["a"]))
    assert 0 < seen[0] < seen[1]


def test_a_ledger_that_nobody_fills_is_copied_without_asking_and_not_held(path, tmp_path):
    assert copy_ledger(path, tmp_path / "copy.duckdb") is None
    assert not request_path(path).exists()
    with Ledger.open(path), Ledger.open(tmp_path / "copy.duckdb") as copy:  # both can be written again
        assert [model.name for model in copy.models()] == ["sce"]


def test_a_writer_that_gives_no_snapshot_is_named_and_the_request_taken_back(path, tmp_path):
    code = "import sys, duckdb; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes) as process:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(LedgerBusy, match="gives no snapshot") as caught:
            copy_ledger(path, tmp_path / "copy.duckdb", wait=0.2)
        assert caught.value.pid == process.pid
        process.stdin.close()
    assert not request_path(path).exists()


def test_what_is_no_ledger_is_said_to_be_none(tmp_path):
    (tmp_path / "text").write_text("not a database, but long enough to look like a file of some kind")
    with pytest.raises(LedgerError, match="is not a DuckDB file"):
        copy_ledger(tmp_path / "text", tmp_path / "copy.duckdb")


def test_a_killed_runs_snapshot_is_not_taken_for_the_next_ones(path):
    snapshot_path(path).write_text("old")
    with Ledger.open(path) as ledger, answering_requests(ledger):
        assert not snapshot_path(path).exists()


def test_nothing_is_left_beside_the_ledger_when_the_run_ends(path):
    with Ledger.open(path) as ledger, answering_requests(ledger):
        write_snapshot(ledger, snapshot_path(path))
        request_path(path).touch()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_snapshot_that_cannot_be_written_disturbs_nobody(path):
    with Ledger.open(path) as ledger, answering_requests(ledger):
        snapshot_path(path).mkdir()  # nothing can take its place
        request_path(path).touch()
        asked = threading.Event()
        while request_path(path).exists():
            asked.wait(0.05)
        ledger.add(TrainingPoint("a", 0, 1.0, 0.1, 0))
        snapshot_path(path).rmdir()
    assert steps(path) == {"a": [0], "b": []}
