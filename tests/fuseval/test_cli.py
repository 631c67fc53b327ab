import contextlib
import json

import duckdb
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from evals.records import Answer, Model, Sampling
from fuseval.cli import app
from results.store import Ledger


def fuseval(folder, *arguments, **environ):
    with contextlib.chdir(folder):
        done = CliRunner(env={"FUSEVAL_CACHE": str(folder / "cache"), **environ}).invoke(app, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def checkpoint(folder, value):
    folder.mkdir()
    save_file({"w": torch.full((2, 2), value)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "float32"}))
    return folder


@pytest.fixture
def ledger(tmp_path):
    """A ledger with one model's answers to two verifiable questions of the starter set, one right, one wrong."""
    from evals.starter import questions

    asked = [q for q in questions() if q.check == "final_number"][:2]
    with Ledger.open(tmp_path / "fuseval.duckdb") as opened:
        opened.add(Model("id", "tuned", "checkpoint", "somewhere"), *asked)
        for number, q in enumerate(asked):
            text = f"Answer: {q.reference[-1]}" if number else "I cannot say."
            opened.add(Answer(q.id, "id", "starter", "1", q.id, 1, text, "stop", 1, 1, 0.0, 0, Sampling()))
    return tmp_path


def test_help_names_every_stage(tmp_path):
    code, out, _ = fuseval(tmp_path, "--help")
    assert code == 0
    for command in "demo run fuse merge answer judge score report assets doctor".split():  # noqa: SIM905
        assert f"  {command} " in out


def test_a_merge_recipe_becomes_a_checkpoint_with_its_recipe(tmp_path):
    for name, value in (("base", 0.0), ("one", 1.0), ("two", 3.0)):
        checkpoint(tmp_path / name, value)
    recipe = {"method": "linear", "base": "base", "sources": ["one", "two"], "params": {"weights": [3, 1]}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, _, err = fuseval(tmp_path, "merge", "recipe.yaml", "-o", "merged")
    assert code == 0, err
    assert torch.equal(load_file(tmp_path / "merged" / "model.safetensors")["w"], torch.full((2, 2), 1.5))
    assert json.loads((tmp_path / "merged" / "recipe.json").read_text())["params"] == {"weights": [3, 1]}
    code, _, err = fuseval(tmp_path, "merge", "recipe.yaml", "-o", "merged")
    assert (code, "is there already" in err) == (2, True)


def test_scoring_a_ledger_again_asks_no_model_and_prints_the_contract(ledger):
    code, out, err = fuseval(ledger, "score", "--json")
    assert code == 0, err
    [whole] = [row for row in json.loads(out) if row["metric"] == "accuracy"]
    assert (whole["model"], whole["judge"], whole["value"], whole["n"]) == ("tuned", "check", 50.0, 2)
    code, again, _ = fuseval(ledger, "score", "--json")
    assert again == out


def test_of_two_answers_to_a_question_the_last_stored_counts(ledger):
    with duckdb.connect(str(ledger / "fuseval.duckdb")) as connection:
        old = connection.execute("SELECT key, question FROM answers WHERE text LIKE 'I cannot%'").fetchone()
        [right] = connection.execute("SELECT reference[1] FROM questions WHERE id = ?", [old[1]]).fetchone()
    with Ledger.open(ledger / "fuseval.duckdb") as opened:
        sampling = Sampling(temperature=0.7)
        opened.add(Answer("new", "id", "starter", "1", old[1], 1, f"Answer: {right}", "stop", 1, 1, 0.0, 0, sampling))
    _, out, _ = fuseval(ledger, "score", "--json")
    assert {row["value"] for row in json.loads(out) if row["metric"] == "accuracy"} == {100.0}


@pytest.mark.parametrize(
    ("flag", "start"), [("--csv", "model,"), ("--markdown", "| model"), ("--latex", "\\begin{tab")]
)
def test_a_report_prints_in_the_formats_people_paste(ledger, flag, start):
    fuseval(ledger, "score", "--json")
    code, out, err = fuseval(ledger, "report", flag)
    assert (code, out.startswith(start)) == (0, True), err
    assert not (ledger / "report.html").exists()


def test_a_report_page_is_written_where_it_is_wanted(ledger):
    code, _, err = fuseval(ledger, "report", "-o", "pages/page.html")
    assert code == 0, err
    assert "tuned" in (ledger / "pages" / "page.html").read_text(encoding="utf-8")


def test_report_formats_exclude_each_other(ledger):
    assert fuseval(ledger, "report", "--csv", "--latex")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["score", "--ledger", "no.duckdb"], 2, "there is no ledger no.duckdb"),
        (["report", "--ledger", "text.duckdb"], 1, "text.duckdb"),
        (["run", "no.yaml"], 2, "there is no experiment file no.yaml"),
        (["score", "--benchmark", "startr"], 2, "Did you mean 'starter'"),
        (["assets", "mt_bench/questoin.jsonl"], 1, "Did you mean 'mt_bench/question.jsonl'"),
        (["merge", "no.yaml", "-o", "x"], 2, "there is no merge recipe no.yaml"),
        (["run"], 2, "Missing argument"),
    ],
)
def test_a_wrong_call_ends_with_its_code_and_says_what_is_wrong(ledger, arguments, code, message):
    (ledger / "text.duckdb").write_text("not a database, but long enough to look like a file of some kind")
    found, _, err = fuseval(ledger, *arguments)
    assert (found, message in err) == (code, True), err


def test_assets_are_listed_with_their_state(tmp_path):
    code, out, err = fuseval(tmp_path, "assets", "--json", FUSEVAL_ASSETS=str(tmp_path))
    assert code == 0, err
    assert {row["state"] for row in json.loads(out)} == {"missing"}
