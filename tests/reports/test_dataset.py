import json

import pytest
import yaml

from evals.records import Answer, Difference, Model, Question, Sampling, Score
from reports.dataset import write_dataset
from results.store import Ledger


@pytest.fixture
def ledger(tmp_path):
    about = ("starter", "1", "check", None, "accuracy")
    with Ledger.open(tmp_path / "ledger.duckdb") as opened:
        opened.add(*(Model(name, name, "merge", "made") for name in ("base", "sce")))
        opened.add(
            Score("sce", *about, 60.0, 50.0, 70.0, 9, 1), Difference("sce", "base", *about, 20, 10, 30, 0.001, 9, 0)
        )
        opened.add(Question("starter", "1", "q", "math", ("What is 1 + 1?",)))
        opened.add(Answer("k", "sce", "starter", "1", "q", 1, "Two\u2028.", "stop", 1, 1, 0.0, 0, Sampling()))
        yield opened


def rows(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_a_data_set_has_a_file_a_table_and_a_card_that_names_them(ledger, tmp_path):
    card, *tables = write_dataset(ledger, tmp_path / "set", title="Fusions", version="1.2.3")
    told = yaml.safe_load(card.read_text().split("---\n")[1])
    assert [config["data_files"] for config in told["configs"]] == [path.name for path in tables]
    assert rows(tables[0])[0]["missing"] == 1
    assert rows(tables[1])[0]["verdict"] == "better"
    assert "- sce beats base on starter accuracy by 20.0" in card.read_text()


def test_answers_are_in_it_only_where_asked_for_and_questions_never(ledger, tmp_path):
    paths = write_dataset(ledger, tmp_path, title="Fusions", version="1.2.3", answers=True)
    assert rows(paths[-1])[0]["text"] == "Two\u2028."
    assert not any("What is 1 + 1?" in path.read_text() for path in paths)
    write_dataset(ledger, tmp_path, title="Fusions", version="1.2.3")
    assert not (tmp_path / "answers.jsonl").exists()
