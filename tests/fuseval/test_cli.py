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


@pytest.fixture
def kitchen(tmp_path):
    """Three checkpoints of two layers, and a way to write a recipe file."""
    for name, value in (("base", 0.0), ("one", 1.0), ("two", 3.0)):
        checkpoint(tmp_path / name, value)
        tensors = {f"model.layers.{i}.w": torch.full((2, 2), value + i) for i in range(2)}
        save_file(tensors, tmp_path / name / "model.safetensors")

    def write(file, **recipe):
        (tmp_path / file).write_text(yaml.safe_dump(recipe, sort_keys=False))
        return tmp_path

    return write


def stored(folder):
    with duckdb.connect(str(folder / "fuseval.duckdb"), read_only=True) as connection:
        query = "SELECT model_name, layer, source_name, name, round(value, 6) FROM coefficients_wide"
        return connection.execute(query).fetchall()


ETAS = [("sce", layer, source, "eta", value) for layer in (0, 1) for source, value in (("one", 0.1), ("two", 0.9))]


def test_a_merge_stores_what_it_used_in_the_ledger_that_is_named(kitchen):
    folder = kitchen("r.yaml", method="sce", base="base", sources=["one", "two"], params={"select_topk": 0.5})
    code, out, err = fuseval(folder, "merge", "r.yaml", "-o", "sce", "--ledger", "fuseval.duckdb", "--json")
    assert code == 0, err
    assert [row for row in stored(folder) if row[3] == "eta"] == ETAS
    assert [row for row in stored(folder) if row[2] is None] == [("sce", i, None, "selected", 0.5) for i in (0, 1)]
    assert {"merge": "sce", "coefficient": "eta", "source": "two", "mean": 0.9} in json.loads(out)
    code, _, err = fuseval(folder, "merge", "r.yaml", "-o", "again", "--ledger", "fuseval.duckdb")
    assert (code, len(stored(folder))) == (0, 6), err  # the very same model


def test_the_fuse_stage_makes_an_experiments_merges_and_stores_what_they_used(kitchen):
    models = [{"name": name, "path": name} for name in ("base", "one", "two")]
    merge = {"name": "sce", "method": "sce", "base": "base", "sources": ["one", "two"], "params": {"select_topk": 0.5}}
    folder = kitchen("run.yaml", models=models, fusion={"merges": [merge]}, benchmarks=["starter"])
    for _ in range(2):
        code, _, err = fuseval(folder, "fuse", "run.yaml")
        assert code == 0, err
        assert [row for row in stored(folder) if row[3] == "eta"] == ETAS


def test_a_grid_writes_a_folder_a_value_and_prints_what_each_used(kitchen):
    folder = kitchen("r.yaml", method="sce", base="base", sources=["one", "two"], grid={"select_topk": [0.25, 1]})
    code, out, err = fuseval(folder, "merge", "r.yaml", "-o", "grid")
    assert code == 0, err
    assert sorted(path.name for path in (folder / "grid").iterdir()) == ["select_topk-0.25", "select_topk-1"]
    few, whole = (load_file(folder / "grid" / f"select_topk-{value}" / "model.safetensors") for value in ("0.25", "1"))
    assert (few["model.layers.0.w"] != 0).sum() == 1
    assert (whole["model.layers.0.w"] != 0).all()
    for cell in ("select_topk-0.25", "selected", "all together", "0.9"):
        assert cell in out


def test_mergekits_yaml_runs_as_it_is_and_says_which_sce_it_is(kitchen):
    models = [{"model": name} for name in ("base", "one", "two")]
    recipe = {"merge_method": "sce", "base_model": "base", "parameters": {"select_topk": 0.5}, "dtype": "bfloat16"}
    folder = kitchen("mergekit.yaml", models=models, **recipe)
    code, _, err = fuseval(folder, "merge", "mergekit.yaml", "-o", "merged")
    assert code == 0, err
    assert "read as sce_mergekit" in err
    assert "write merge_method: sce_fusechat" in err
    told = json.loads((folder / "merged" / "recipe.json").read_text())
    assert (told["method"], told["params"], told["dtype"]) == ("sce_mergekit", {"select_topk": 0.5}, "bfloat16")


def test_mergekits_slices_stack_layers_and_the_config_counts_them(kitchen):
    slices = [
        {"sources": [{"model": name, "layer_range": layers}]} for name, layers in (("one", [0, 2]), ("two", [1, 2]))
    ]
    folder = kitchen("mergekit.yaml", slices=slices, merge_method="passthrough")
    code, _, err = fuseval(folder, "merge", "mergekit.yaml", "-o", "merged")
    assert code == 0, err
    tensors = load_file(folder / "merged" / "model.safetensors")
    assert {name: tensor[0, 0].item() for name, tensor in tensors.items()} == {
        f"model.layers.{i}.w": value for i, value in enumerate((1, 2, 4))
    }
    assert json.loads((folder / "merged" / "config.json").read_text())["num_hidden_layers"] == 3


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


@pytest.mark.slow
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
