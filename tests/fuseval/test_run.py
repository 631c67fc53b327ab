"""`fuseval run` as people call it: a real ledger, and endpoints at the far end of a wire."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
import yaml
from typer.testing import CliRunner

from fuseval.cli import app
from tests.fake_server import FakeServer, default_text, too_long, wrong_key

KEYS = {"model", "benchmark", "version", "judge", "metric", "value", "low", "high", "n", "missing", "flags"}


@pytest.fixture
def workplace(tmp_path):
    def experiment(base_url, **changes):
        models = [
            {"name": name, "endpoint": {"model": f"fake-{name}", "base_url": base_url, "concurrency": 2}}
            for name in ("base", "tuned", "judge")
        ]
        models[2]["evaluate"] = False
        given = {"models": models, "benchmarks": [{"name": "starter", "limit": 12}], "judges": [{"model": "judge"}]}
        given["report"] = None  # drawing it takes longer than the rest
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({**given, **changes}))
        return tmp_path

    return experiment


def fuseval(folder, *arguments):
    """Run the command line in this process; return its exit code, standard output and standard error."""
    with contextlib.chdir(folder):
        done = CliRunner(env={"FUSEVAL_CACHE": str(folder / "cache")}).invoke(app, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


# A job in the background inherits that interrupts are ignored; this one must hear them wherever the tests run.
MAIN = """
import signal
from fuseval.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


def start(folder, *arguments):
    """Start the command line in a process of its own."""
    environ = {**os.environ, "FUSEVAL_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", MAIN, *arguments]
    return subprocess.Popen(command, cwd=folder, env=environ, stderr=subprocess.PIPE, text=True, encoding="utf-8")


def table(folder, query):
    with duckdb.connect(str(folder / "fuseval.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


def contents(folder):
    """Return what a run leaves, but for when it was and how long it took."""
    return {
        "answers": table(folder, "SELECT key, text FROM answers ORDER BY ALL"),
        "judgments": table(folder, "SELECT key, text, top_logprobs FROM judgments ORDER BY ALL"),
        "scores": table(folder, "SELECT model, judge, metric, value, low, high, n, missing FROM scores ORDER BY ALL"),
    }


@pytest.mark.slow
def test_a_run_answers_judges_scores_and_reports_and_a_second_one_asks_nothing(workplace):
    with FakeServer() as server:
        folder = workplace(server.base_url, report="report.html")
        code, out, err = fuseval(folder, "run", "run.yaml", "--json")
        assert code == 0, err
        asked, first = server.count, contents(folder)
        page = (folder / "report.html").read_text(encoding="utf-8")
        code, again, err = fuseval(folder, "run", "run.yaml", "--json")
        assert (code, server.count) == (0, asked), err
        assert contents(folder) == first
        assert again == out
    rows = json.loads(out)
    assert {row["metric"] for row in rows} >= {"accuracy", "win_rate"}
    assert set(rows[0]) == KEYS
    assert "tuned" in page


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", [4, 16])
def test_a_run_killed_while_answering_or_judging_goes_on_and_ends_as_an_uninterrupted_one(workplace, killed_after):
    with FakeServer(latency=0.2) as server:
        whole = workplace(server.base_url)
        fuseval(whole, "run", "run.yaml")
        expected, total = contents(whole), server.count
        (whole / "fuseval.duckdb").unlink()
        process = start(whole, "run", "run.yaml")
        while server.count < total + killed_after:
            time.sleep(0.01)
        time.sleep(1.2)  # what was answered by now is promised to be stored within one second
        assert process.poll() is None  # still at it
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept = len(table(whole, "SELECT key FROM answers UNION ALL SELECT key FROM judgments"))
        assert kept >= killed_after
        before = server.count
        code, _, err = fuseval(whole, "run", "run.yaml")
        assert code == 0, err
        assert server.count - before == total - kept
        assert contents(whole) == expected


@pytest.mark.slow
def test_a_ledger_that_another_process_holds_is_named_with_its_pid(workplace):
    with FakeServer(latency=2.0) as server:
        folder = workplace(server.base_url)
        process = start(folder, "run", "run.yaml")
        while server.count < 1:
            time.sleep(0.02)
        code, _, err = fuseval(folder, "score", "--ledger", "fuseval.duckdb")
        process.send_signal(signal.SIGINT)
        _, interrupted = process.communicate(timeout=60)
    assert code == 1
    assert str(process.pid) in err
    assert process.returncode == 130
    assert "everything that arrived is stored" in interrupted


def test_a_server_that_refuses_the_key_stops_the_run_at_once_and_says_what_to_do(workplace):
    with FakeServer(script=[wrong_key()] * 20) as server:
        folder = workplace(server.base_url)
        code, _, err = fuseval(folder, "run", "run.yaml")
        assert code == 1
        assert server.count <= 4
        assert "api_key_env" in err


@pytest.mark.slow
def test_too_little_coverage_ends_with_code_3_and_says_what_is_missing(workplace):
    with FakeServer(script=[too_long()] * 2) as server:
        folder = workplace(server.base_url)
        code, _, err = fuseval(folder, "run", "run.yaml")
        assert code == 3, err
        assert "22 of 24 questions answered" in err
        assert {row[0] for row in table(folder, "SELECT kind FROM failures")} == {"context_length"}
        assert "--retry-failed" in err
        code, _, err = fuseval(folder, "run", "run.yaml", "--retry-failed")
        assert code == 0, err
        assert table(folder, "SELECT * FROM failures") == []


def test_a_dry_run_counts_what_is_missing_and_asks_nothing(workplace):
    def own_words(body):
        return default_text(body) if body.get("structured_outputs") else f"{body['model']}: {default_text(body)}"

    with FakeServer(reply=own_words) as server:
        folder = workplace(server.base_url)
        code, out, err = fuseval(folder, "run", "run.yaml", "--dry-run", "--json")
        assert (code, server.count) == (0, 0), err
        assert not (folder / "fuseval.duckdb").exists()
        planned = sum(row["missing"] for row in json.loads(out) if row["stage"] != "all")
        fuseval(folder, "run", "run.yaml")
        assert server.count == planned


def test_a_mistake_in_the_file_ends_with_code_2_before_anything_is_made(workplace):
    folder = workplace("http://127.0.0.1:9", benchmarks=["startr"])
    code, _, err = fuseval(folder, "run", "run.yaml")
    assert code == 2
    assert "Did you mean 'starter'?" in err
    assert sorted(path.name for path in folder.iterdir()) == ["run.yaml"]


def test_the_key_is_taken_from_the_named_variable_and_is_nowhere_in_ledger_report_or_output(workplace, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with FakeServer() as server:
        endpoint = {"model": "fake", "base_url": server.base_url, "api_key_env": "MY_KEY"}
        models = [{"name": "base", "endpoint": endpoint}]
        folder = workplace("", models=models, judges=[], report="report.html")
        code, out, err = fuseval(folder, "run", "run.yaml")
        assert code == 0, err
    for text in (out, err, *(p.read_bytes().decode("latin-1") for p in folder.rglob("*") if p.is_file())):
        assert "sk-very-secret" not in text
    assert Path(folder / "report.html").exists()


@pytest.mark.slow
def test_scoring_again_gives_the_last_runs_scores_also_where_another_sampling_lies_beside_them(workplace):
    def score(folder):
        return fuseval(folder, "score", "--json")[1]

    with FakeServer() as server:
        folder = workplace(server.base_url)
        _, cold, _ = fuseval(folder, "run", "run.yaml", "--json")
        workplace(server.base_url, sampling={"temperature": 0.5})
        fuseval(folder, "run", "run.yaml")
        workplace(server.base_url)
        _, again, _ = fuseval(folder, "run", "run.yaml", "--json")
    assert again == cold == score(folder)


@pytest.mark.slow
def test_a_model_whose_every_call_fails_is_there_with_everything_missing_and_nothing_from_before(workplace):
    def fails_when_warm(body, _):
        return too_long() if body["model"] == "fake-tuned" and body.get("temperature") == 0.5 else None

    with FakeServer(script=fails_when_warm) as server:
        folder = workplace(server.base_url)
        fuseval(folder, "run", "run.yaml")
        workplace(server.base_url, sampling={"temperature": 0.5})
        code, out, _ = fuseval(folder, "run", "run.yaml", "--json")
    rows = {row["metric"]: row for row in json.loads(out) if row["model"] == "tuned"}
    assert code == 3
    assert {row["value"] for row in rows.values()} == {None}
    assert (rows["accuracy"]["missing"], rows["win_rate"]["missing"]) == (4, 8)


def test_one_model_under_two_names_is_refused(workplace):
    endpoint = {"model": "m", "base_url": "http://127.0.0.1:9"}
    folder = workplace("", models=[{"name": "a", "endpoint": endpoint}, {"name": "b", "endpoint": endpoint}], judges=[])
    code, _, err = fuseval(folder, "run", "run.yaml")
    assert (code, "'b' and 'a' are the very same model" in err) == (2, True)


def test_a_ledger_with_another_text_of_a_question_is_refused_before_anything_is_asked(workplace):
    with FakeServer() as server:
        folder = workplace(server.base_url)
        fuseval(folder, "run", "run.yaml")
        with duckdb.connect(str(folder / "fuseval.duckdb")) as connection:
            connection.execute("UPDATE questions SET category = 'other' WHERE id = 'writing-01'")
        asked = server.count
        code, _, err = fuseval(folder, "run", "run.yaml")
        assert (code, server.count, "another text of question 'writing-01'" in err) == (2, asked, True)


def test_a_key_that_is_not_set_is_said_before_anything_is_asked(workplace):
    with FakeServer() as server:
        base = {"name": "base", "endpoint": {"model": "m", "base_url": server.base_url}}
        judge = {"name": "judge", "evaluate": False, "endpoint": {"model": "j", "api_key_env": "FUSEVAL_TEST_NO_KEY"}}
        folder = workplace("", models=[base, judge])
        code, _, err = fuseval(folder, "run", "run.yaml")
        assert (code, server.count, "FUSEVAL_TEST_NO_KEY" in err) == (2, 0, True)


@pytest.mark.slow
def test_a_changed_baseline_never_mixes_rates_against_different_opponents(workplace):
    def own_words(body):
        return default_text(body) if body.get("structured_outputs") else f"{body['model']}: {default_text(body)}"

    query = (
        "SELECT value FROM differences d JOIN models m ON m.id = d.model WHERE m.name = 'tuned' AND metric = 'win_rate'"
    )
    with FakeServer(reply=own_words) as server:
        folder = workplace(server.base_url)
        fuseval(folder, "run", "run.yaml")
        [before] = table(folder, query)
        workplace(server.base_url, baseline="tuned")
        fuseval(folder, "run", "run.yaml")
        workplace(server.base_url)
        fuseval(folder, "run", "run.yaml")
        assert before in table(folder, query)
