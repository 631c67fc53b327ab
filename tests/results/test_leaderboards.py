import pytest

from results.errors import LedgerError
from results.interchange.leaderboards import LEADERBOARDS, published_rows

ALPACA = ",".join(LEADERBOARDS["alpaca_eval"].columns) + (
    "\nLlama-3-8B,21.8,1.4,170,630,5,805,21.1,verified,2181,20.9,0.5\ngemma,3.4,0.5,23,782,0,805,2.9,minimal,1041,,\n"
)
ARENA = ",".join(LEADERBOARDS["arena_hard"].columns) + '\ngpt-4,50.0,49.0,51.5,"(-1.0, +1.5)",600.0,2024-07-31\n'


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "board.csv").write_text(text)
        return tmp_path / "board.csv"

    return write


def test_published_rows_say_that_they_are_published_where_and_when(file):
    [row] = published_rows("arena_hard", file(ARENA), source="lmarena/arena-hard-auto@196f6b8")
    assert (row.kind, row.name, row.value, row.low, row.high) == ("published", "gpt-4", 50.0, 49.0, 51.5)
    assert row.flags == ("published 2024-07-31 in lmarena/arena-hard-auto@196f6b8; interval over games",)


def test_what_was_not_published_is_not_made_up(file):
    rows = published_rows("alpaca_eval", file(ALPACA), source="x@1")
    assert {(row.low, row.high) for row in rows} == {(None, None)}
    assert [row.metric for row in rows if row.name == "gemma"] == ["win_rate", "discrete_win_rate"]


def test_a_pattern_picks_models_and_one_that_picks_none_is_refused(file):
    rows = published_rows("alpaca_eval", file(ALPACA), source="x@1", pattern="Llama*")
    assert {row.name for row in rows} == {"Llama-3-8B"}
    with pytest.raises(LedgerError, match="picks none of the 2 models"):
        published_rows("alpaca_eval", file(ALPACA), source="x@1", pattern="lama")


def test_another_projects_file_is_refused(file):
    with pytest.raises(LedgerError, match="is no leaderboard of alpaca_eval"):
        published_rows("alpaca_eval", file(ARENA), source="x@1")
