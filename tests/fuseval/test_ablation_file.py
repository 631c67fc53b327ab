"""An ablation file is an experiment with a block more, and every mistake in it is told with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fuseval.ablation_file import load_ablation
from fuseval.cli import app
from fuseval.config import ConfigError
from tests.fuseval.planted import ablation_yaml


def refused(file: Path) -> str:
    with pytest.raises(ConfigError) as error:
        load_ablation(file)
    return str(error.value)


def test_one_objective_may_stand_without_a_list(tmp_path):
    [objective] = load_ablation(ablation_yaml(tmp_path)).ablation.objective

    assert (objective.scores[0].metric, objective.scores[0].weight) == ("accuracy", 1.0)


def test_the_base_of_merges_is_the_baseline_where_none_is_named(tmp_path):
    assert load_ablation(ablation_yaml(tmp_path)).merged_onto == "base"
    assert load_ablation(ablation_yaml(tmp_path, base="one", sources=["two"], params={})).merged_onto == "one"


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ({"sources": ["one", "tow"]}, "no model is called 'tow' here; there are base, one, two. Did you mean 'two'?"),
        ({"sources": ["one", "one"]}, "'one' is there twice"),
        ({"objective": {"scores": [{"benchmark": "startr", "metric": "x"}]}}, "Did you mean 'starter'? (ablation.obje"),
        (
            {"objective": {"scores": [{"benchmark": "starter", "metric": "win_rate", "judge": "gpt"}]}},
            "no judge is called 'gpt' here; there are none (ablation.objective[0].scores[0].judge",
        ),
        ({"space": {"params.scal": [1.0]}}, "Did you mean 'scale'?"),
        ({"space": {}}, "the space is empty"),
        ({"search": {"kind": "cma_es"}}, "cma_es goes through numbers"),
        ({"points": [{"params.scale": 7.0}]}, "ablation.points[0]"),
        ({"racing": {"start": 4, "factor": 1.0}}, "ablation.racing.factor"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_the_next_step(tmp_path, block, told):
    text = refused(ablation_yaml(tmp_path, **block))

    assert told in text
    assert "ablation.yaml" in text


def test_an_endpoint_cannot_be_merged(tmp_path):
    file = ablation_yaml(tmp_path, sources=["one", "far"])
    given = yaml.safe_load(file.read_text())
    given["models"].append({"name": "far", "endpoint": {"model": "m", "base_url": "http://localhost:1/v1"}})
    file.write_text(yaml.safe_dump(given))

    assert "'far' is an endpoint: its weights are not here to be merged" in refused(file)


def test_a_race_of_several_objectives_is_refused(tmp_path):
    both = [{"scores": [{"benchmark": "starter", "metric": metric}]} for metric in ("accuracy", "win_rate")]

    assert "a race has one leader" in refused(ablation_yaml(tmp_path, objective=both, racing={"start": 4}))


def test_an_experiment_without_the_block_is_told_so(tmp_path):
    file = ablation_yaml(tmp_path)
    given: dict[str, Any] = yaml.safe_load(file.read_text())
    del given["ablation"]
    file.write_text(yaml.safe_dump(given))

    assert "'ablation' is missing" in refused(file)


def test_a_dry_run_tells_what_is_still_to_do_and_stores_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["ablate", str(ablation_yaml(tmp_path, holdout=16)), "--dry-run", "--json"])

    assert (done.exit_code, [row["number"] for row in json.loads(done.stdout)]) == (0, [3, 6, 2])
    assert not (tmp_path / "fuseval.duckdb").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--leave-one-out", "--add", "two"], "are two studies: give one"),
        (["--keep", "some"], "--keep is best, all or none, not 'some'"),
        (["--promote", ".", "--dry-run"], "only look: give one"),
        (["--leave-one-out"], "has no finished trial"),
    ],
)
def test_options_that_cannot_be_are_bad_usage(tmp_path, monkeypatch, options, told):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["ablate", str(ablation_yaml(tmp_path)), *options])

    assert done.exit_code == 2
    assert told in " ".join(done.stderr.split())


def test_a_score_of_a_task_that_is_asked_in_two_ways_is_refused(tmp_path):
    name = "lm_eval:arc_easy"
    file = ablation_yaml(tmp_path, objective={"scores": [{"benchmark": name, "metric": "acc"}]})
    given = yaml.safe_load(file.read_text())
    given["benchmarks"] = [{"name": name, "options": {"num_fewshot": shots}} for shots in (0, 5)]
    file.write_text(yaml.safe_dump(given))

    assert f"{name!r} stands in benchmarks twice, with other options" in refused(file)
