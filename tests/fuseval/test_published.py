"""Published files through the commands: imported, scored as published, and exported as they were."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fuseval.cli import app


@pytest.fixture
def files():
    """The folder of published answers and judgments."""
    if "FUSEVAL_ASSETS" not in os.environ:
        pytest.skip("set FUSEVAL_ASSETS to a folder with the assets under their names (`fuseval assets` lists them)")
    return Path(os.environ["FUSEVAL_ASSETS"]) / "published"


@pytest.fixture
def fuseval(tmp_path):
    ledger = str(tmp_path / "ledger.duckdb")

    def run(command, *arguments):
        environ = {"FUSEVAL_CACHE": str(tmp_path / "cache")}
        done = CliRunner(env=environ).invoke(app, [command, *map(str, arguments), "--ledger", ledger])
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


def scores(fuseval, *options):
    """Return the scores by metric, of a ledger with one model, and the rows themselves."""
    rows = json.loads(fuseval("score", "--json", *options))
    keys = {"model", "benchmark", "version", "judge", "metric", "value", "low", "high", "n", "missing", "flags"}
    assert all(set(row) == keys for row in rows)
    return {row["metric"]: row["value"] for row in rows}, rows


def test_published_ratings_give_the_published_average(fuseval, files):
    fuseval("import", "fastchat", files / "mt_bench/model_judgment/phi-3-dpo.gpt-4_single.jsonl")
    found, rows = scores(fuseval)
    assert (found["average"], found["average:fastchat"]) == (pytest.approx(8.2), pytest.approx(8.2))
    assert (found["turn_1"], found["turn_2"]) == (pytest.approx(8.3625), pytest.approx(8.0375))
    assert {(row["benchmark"], row["version"], row["judge"], row["missing"]) for row in rows} == {
        ("mt_bench", "1", "gpt-4", 0)
    }


@pytest.mark.slow
def test_published_annotations_give_the_leaderboards_row(fuseval, files):
    fuseval("import", "alpaca_eval", files / "alpaca_eval/FuseChat-Llama-3.1-8B-Instruct")
    found, rows = scores(fuseval)
    assert found == pytest.approx({
        "win_rate": 63.331583, "standard_error": 1.422507, "discrete_win_rate": 64.409938,
        "lc_win_rate": 65.386231, "lc_standard_error": 0.666888,
    }, abs=1e-6)  # fmt: skip
    assert {row["judge"] for row in rows} == {"weighted_alpaca_eval_gpt4_turbo"}


@pytest.mark.slow
def test_published_battles_give_the_published_strength_and_no_style_of_texts_that_are_not_there(fuseval, files):
    fuseval("import", "arena_hard", files / "arena_hard/v0.1/gpt-3.5-turbo-0125.battles.jsonl")
    found, _ = scores(fuseval, "--like-published")
    assert set(found) == {"win_rate", "bradley_terry", "bradley_terry:published"}
    assert found["bradley_terry"] == found["win_rate"] == pytest.approx(23.3380, abs=1e-4)
    assert found["bradley_terry:published"] == 23.34


def test_an_unreadable_game_is_missing_and_the_other_counts(fuseval, files):
    fuseval("import", "arena_hard", files / "arena_hard/v0.1/Meta-Llama-3.1-8B-Instruct.judgment.jsonl")
    found, rows = scores(fuseval)
    assert found["win_rate"] == pytest.approx(37.50, abs=0.005)
    [row] = [row for row in rows if row["metric"] == "win_rate"]
    assert row["n"] + row["missing"] == 500


def test_what_was_imported_leaves_as_it_came(fuseval, files, tmp_path):
    given = files / "mt_bench/model_judgment/phi-3-dpo.gpt-4_single.jsonl"
    fuseval("import", "fastchat", given)
    fuseval("import", "fastchat", given)
    [made] = [Path(row["file"]) for row in json.loads(fuseval("export", "fastchat", "-o", tmp_path / "out", "--json"))
              if "judgment" in row["file"]]  # fmt: skip
    before, after = ([json.loads(line) for line in path.read_text().split("\n") if line] for path in (given, made))
    assert after == before


def test_a_file_of_nothing_known_is_an_error_that_says_why(tmp_path):
    strange = tmp_path / "strange.jsonl"
    strange.write_text('{"neither": "answer"}\n')
    done = CliRunner().invoke(app, ["import", "fastchat", str(strange), "--ledger", str(tmp_path / "l.duckdb")])
    assert done.exit_code == 1
    assert "nothing was imported" in done.output
