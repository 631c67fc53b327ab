"""lm-eval's tasks in an experiment, as people run it: endpoints at the far end of a wire, and a real ledger."""

import json
import re
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
import yaml

from fuseval.config import ConfigError, load_experiment
from fuseval.engines import Engines
from fuseval.models import resolve
from fuseval.pipeline import Run
from fuseval.trials import score_on
from results.store import Ledger
from tests.evals.lm_task_files import CHOICE, COLOURS, GENERATIVE, SUMS, task_file
from tests.fake_server import FakeServer
from tests.fuseval.planted import ablation_yaml, open_study, watch
from tests.fuseval.test_run import fuseval
from tests.fusion.tiny_models import model_folder

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def workplace(tmp_path):
    def experiment(base_url, **options):
        (tmp_path / "tasks").mkdir(exist_ok=True)
        task_file(tmp_path / "tasks", GENERATIVE, SUMS)
        task_file(tmp_path / "tasks", CHOICE, COLOURS)
        models = [
            {"name": name, "endpoint": {"model": f"fake-{name}", "base_url": base_url}} for name in ("base", "tuned")
        ]
        told = {"data": "tasks/sums", "fewshot_split": "test", "apply_chat_template": True, **options}
        benchmarks = [{"name": "lm_eval:tasks/sums.yaml", "limit": 8, "options": told}, {"name": "starter", "limit": 2}]
        given = {"models": models, "benchmarks": benchmarks, "report": "report.html"}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(given))
        return tmp_path

    return experiment


def says(body):
    """Add, as a model of that name does: the tuned one is always right."""
    question = body["messages"][-1]["content"]
    found = re.search(r"Question: (\d+) \+ (\d+)", question)
    if not found:
        return "no"
    right = int(found[1]) + int(found[2])
    return f"{right if body['model'] == 'fake-tuned' or right % 2 else 1}"


def rows(folder, query):
    with duckdb.connect(str(folder / "fuseval.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


@pytest.mark.slow
def test_a_task_is_asked_measured_compared_and_reported_beside_other_benchmarks(workplace):
    with FakeServer(reply=says) as server:
        folder = workplace(server.base_url)
        code, out, err = fuseval(folder, "run", "run.yaml", "--json")
        assert code == 0, err
        asked = server.count
        found = {(r["model"], r["metric"]): r["value"] for r in json.loads(out) if r["benchmark"] == "lm_eval:sums"}
        assert found["tuned", "exact_match,last"] == 1.0 > found["base", "exact_match,last"]
        differences = rows(folder, "SELECT value, n FROM differences WHERE metric = 'exact_match,last'")
        assert differences == [(pytest.approx(1.0 - found["base", "exact_match,last"]), 8)]
        [(value, stderr, n)] = rows(
            folder,
            "SELECT value, stderr, n FROM aggregates JOIN models ON id = model "
            "WHERE name = 'base' AND metric = 'exact_match,last'",
        )
        assert (value, n) == (found["base", "exact_match,last"], 8) and stderr > 0
        assert fuseval(folder, "run", "run.yaml", "--json")[1] == out
        assert server.count == asked  # nothing is asked twice
    assert "lm_eval:sums" in (folder / "report.html").read_text(encoding="utf-8")
    code, out, _ = fuseval(folder, "score", "--ledger", "fuseval.duckdb", "--like-published", "--json")
    assert "exact_match,last:lm_eval" in {row["metric"] for row in json.loads(out)}


@pytest.mark.slow
def test_a_larger_limit_asks_only_what_is_new_and_a_question_can_be_named(workplace):
    with FakeServer(reply=says) as server:
        folder = workplace(server.base_url)
        fuseval(folder, "answer", "run.yaml", "--limit", "3")
        before = server.count
        fuseval(folder, "answer", "run.yaml", "--questions", "lm_eval:sums:7")
        assert server.count - before == 2  # one of each model
        fuseval(folder, "answer", "run.yaml")
    assert rows(folder, "SELECT count(*), count(DISTINCT key) FROM answers WHERE benchmark = 'lm_eval:sums'") == [
        (16, 16)
    ]


def test_an_endpoint_is_refused_what_it_cannot_be_asked_before_anything_is_asked(workplace):
    with FakeServer(reply=says) as server:
        folder = workplace(server.base_url, apply_chat_template=False)
        code, _, err = fuseval(folder, "run", "run.yaml")
        assert code == 2 and "apply_chat_template: true" in err
        given = yaml.safe_load((folder / "run.yaml").read_text())
        given["benchmarks"] = [{"name": "lm_eval:tasks/colours.yaml", "options": {"data": "tasks/colours"}}]
        (folder / "run.yaml").write_text(yaml.safe_dump(given))
        code, _, err = fuseval(folder, "run", "run.yaml")
        assert code == 2 and "needs log-likelihoods" in err
        assert server.count == 0


def test_what_a_model_cannot_be_told_of_drawing_is_refused_before_anything_is_asked(workplace):
    with FakeServer(reply=says) as server:
        folder = workplace(server.base_url, gen_kwargs={"num_beams": 4})
        code, _, err = fuseval(folder, "run", "run.yaml")
        assert code == 2 and "draws replies by num_beams: 4, which endpoints are not told" in " ".join(err.split())
        folder = workplace(server.base_url, gen_kwargs={"num_beams": 1})  # which says nothing
        assert fuseval(folder, "answer", "run.yaml")[0] == 0
        given = yaml.safe_load((folder / "run.yaml").read_text())
        given["models"] = [{"name": "tiny", "path": str(model_folder(folder / "tiny"))}]
        given["benchmarks"][0]["options"]["gen_kwargs"] = {"num_beams": 4, "max_gen_toks": 999}
        given["engine"] = {"max_model_len": 999}
        (folder / "run.yaml").write_text(yaml.safe_dump(given))
        code, _, err = fuseval(folder, "run", "run.yaml")
        said = " ".join(err.split())
        assert code == 2 and "num_beams: 4, which the engine is not told: say gen_kwargs: {num_beams: null}" in said
        assert "replies of up to 999 tokens, and engine.max_model_len is 999" in said


def test_a_dry_run_counts_the_examples_before_each_question(workplace):
    with FakeServer(reply=says) as server:
        folder = workplace(server.base_url)
        code, out, err = fuseval(folder, "run", "run.yaml", "--dry-run", "--json")
        assert code == 0, err
    [row] = [row for row in json.loads(out) if row["of"] == "lm_eval:sums" and row["model"] == "base"]
    assert row["missing"] == 8
    assert server.count == 0


def test_a_study_refuses_a_task_that_reads_a_checkpoint_from_its_folder(tmp_path):
    (tmp_path / "tasks").mkdir()
    task_file(tmp_path / "tasks", GENERATIVE, SUMS)
    objective = {"scores": [{"benchmark": "lm_eval:tasks/sums.yaml", "metric": "exact_match,last"}]}
    file = ablation_yaml(tmp_path, objective=objective)
    task = {"name": "lm_eval:tasks/sums.yaml", "options": {"data": "tasks/sums", "fewshot_split": "test"}}
    given = yaml.safe_load(file.read_text())
    for options in ({}, {"backend": "hf"}):
        task["options"] |= options
        file.write_text(yaml.safe_dump(given | {"benchmarks": [task]}))
        with Ledger.open(tmp_path / "ledger.duckdb") as ledger:
            if not options:
                assert open_study(file, ledger).plan.search
                continue
            with pytest.raises(ConfigError, match="sums has backend hf, which reads a checkpoint from its folder"):
                open_study(file, ledger)


def test_a_study_of_fewer_questions_leaves_a_models_own_figures_over_all_of_them(workplace):
    with FakeServer(reply=says) as server:
        folder = workplace(server.base_url)
        assert fuseval(folder, "run", "run.yaml")[0] == 0
        read = load_experiment(folder / "run.yaml")
        models = resolve(read, beside=folder, cache=folder / "cache")
        with Ledger.open(folder / "fuseval.duckdb") as ledger:
            engines = Engines(read.engine.settings(), watch, {}, ledger)
            run = Run(read, models, ledger, engines, watch, Path)
            score_on(run, run.base, [replace(run.asked[0], questions=run.asked[0].questions[:3])])
            told = {(a.metric, a.n) for a in ledger.aggregates(benchmark="lm_eval:sums") if a.model == run.base.id}
    assert ("exact_match,last", 8) in told
