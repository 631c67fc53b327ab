"""People's votes: read from every form of the file, and turned into verdicts."""

import json

import pandas as pd
import pytest

from evals.benchmark import VERDICT_COLUMNS
from judges.people import VotesError, by_people, human_verdicts, read_votes

TALK = [{"content": "Tell me\u2028more.", "role": "user"}, {"content": "No.", "role": "assistant"}]


def row(**changed):
    plain = {
        "question_id": 81, "model_a": "alpaca-13b", "model_b": "gpt-4", "winner": "model_b", "judge": "expert_17",
        "conversation_a": TALK, "conversation_b": TALK, "turn": 2,
    }  # fmt: skip
    return plain | changed


ROWS = [
    row(),
    row(winner="tie", judge="author_2", turn=1),
    row(winner="tie (inconsistent)", model_a="gpt-4", model_b="claude-v1"),
    row(winner="model_a", judge=["gpt-4", "pair-v2"]),
]


def written(folder, form):
    path = folder / f"votes.{form}"
    if form == "parquet":
        flat = [
            each | {"judge": each["judge"] if isinstance(each["judge"], str) else " ".join(each["judge"])}
            for each in ROWS
        ]
        pd.DataFrame(flat).to_parquet(path)
    elif form == "json":
        path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(each, ensure_ascii=False) for each in ROWS) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["parquet", "jsonl", "json"])
def test_votes_are_read_from_every_form(tmp_path, form):
    votes = read_votes(written(tmp_path, form))
    assert [v.value for v in votes] == [0.0, 0.5, 0.5, 1.0]
    assert [v.judge for v in votes] == ["expert_17", "author_2", "expert_17", "gpt-4 pair-v2"]
    assert (votes[0].question, votes[0].turn, votes[0].model_a, votes[0].model_b) == ("81", 2, "alpaca-13b", "gpt-4")


def test_people_are_experts_and_authors_only_where_wanted(tmp_path):
    votes = read_votes(written(tmp_path, "jsonl"))
    assert [v.judge for v in by_people(votes)] == ["expert_17", "expert_17"]
    assert [v.judge for v in by_people(votes, authors=True)] == ["expert_17", "author_2", "expert_17"]


def test_verdicts_are_on_the_models_that_are_known(tmp_path):
    votes = read_votes(written(tmp_path, "jsonl"))
    found = human_verdicts(votes, {"alpaca-13b": "id-a", "gpt-4": "id-g"})
    assert list(found.columns) == list(VERDICT_COLUMNS)
    assert found["model"].tolist() == ["id-a"] * 3 and found["baseline"].tolist() == ["id-g"] * 3
    assert found["value"].tolist() == [0.0, 0.5, 1.0]
    assert set(found["order"]) == {"unknown"} and found["counts"].all()
    assert human_verdicts([], {}).columns.tolist() == list(VERDICT_COLUMNS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(row(winner="model_c")), r"row 1 has the winner 'model_c'; it is one of model_a"),
        (json.dumps({"question_id": 1}), r"row 1 has no 'model_a'"),
        ("7", r"row 1 has no 'question_id'"),
        ("{not json", r"line 1, is no JSON"),
    ],
)
def test_a_row_that_is_no_vote_is_told_of(tmp_path, line, message):
    path = tmp_path / "votes.jsonl"
    path.write_text(line)
    with pytest.raises(VotesError, match=message):
        read_votes(path)


def test_a_parquet_file_of_something_else_is_told_of(tmp_path):
    pd.DataFrame({"question_id": [1]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(VotesError, match="no column 'model_a'"):
        read_votes(tmp_path / "x.parquet")
