import json

import pytest

from evals.records import Answer, Model, Sampling
from results.store import Ledger
from tests.fuseval.test_cli import fuseval


@pytest.fixture
def folder(tmp_path):
    """Two ledgers that share a model and one of its answers."""
    for name, keys in (("mine", ("a1", "a2")), ("yours", ("a2", "a3"))):
        with Ledger.open(tmp_path / f"{name}.duckdb") as ledger:
            ledger.add(Model("m", "base", "checkpoint", "x"))
            ledger.add(*(Answer(k, "m", "b", "1", k, 1, k, "stop", 1, 1, 0.0, 0, Sampling()) for k in keys))
    return tmp_path


def answers(path):
    with Ledger.open(path, read_only=True) as ledger:
        return [row.key for row in ledger.answers()]


def test_ledgers_become_one_that_has_everything_once(folder):
    code, out, err = fuseval(folder, "ledger", "merge", "mine.duckdb", "yours.duckdb", "-o", "ours.duckdb", "--json")
    assert code == 0, err
    assert answers(folder / "ours.duckdb") == ["a1", "a2", "a3"]
    new = {(row["from"], row["table"]): row["new"] for row in json.loads(out)}
    assert (new["mine.duckdb", "answers"], new["yours.duckdb", "answers"]) == (2, 1)
    assert "fuseval score --ledger ours.duckdb" in err


def test_an_exported_ledger_is_taken_up_as_the_ledger_itself(folder):
    assert fuseval(folder, "ledger", "export", "--ledger", "mine.duckdb", "-o", "shared")[0] == 0
    assert fuseval(folder, "ledger", "merge", "shared", "-o", "yours.duckdb")[0] == 0
    assert answers(folder / "yours.duckdb") == ["a1", "a2", "a3"]


@pytest.mark.parametrize(
    ("place", "code", "said"),
    [("yours.duckdb", 2, "is the ledger that is added to"), ("nowhere", 1, "holds no exported ledger")],
)
def test_a_place_that_cannot_be_added_is_named(folder, place, code, said):
    found, _, err = fuseval(folder, "ledger", "merge", place, "-o", "yours.duckdb")
    assert found == code and said in err
