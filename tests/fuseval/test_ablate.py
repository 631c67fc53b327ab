"""A study tries merges, keeps what it learns, goes on where it was stopped, and claims no more than it knows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import yaml

from fuseval.ablate import ablate, past, winner_gain
from fuseval.config import ConfigError
from fuseval.findings import rows, sentences, table
from fuseval.metering import CapReached
from fuseval.promotion import kept, promoted
from fuseval.rungs import ask_rung
from fuseval.source_studies import add_source, leave_one_out
from fuseval.study import count, plan_study
from fuseval.studying import Wanted, study
from fuseval.trials import Ablation, score_on
from fuseval.variant import variant
from fusion.errors import FusionError
from results.store import Ledger
from tests.fuseval.planted import OBJECTIVE, PlantedEngines, ablation_yaml, done, open_study

pytestmark = pytest.mark.slow

SECONDS = ("making", "answering", "judging")
WORTH = {(0.0, 0.5): 62.5, (0.0, 1.0): 75.0, (1.0, 0.5): 100.0, (1.0, 1.0): 50.0, (3.0, 0.5): 25.0, (3.0, 1.0): 0.0}
"""Of each point (weight of two, scale) the share of right answers: the weight is scale · (1 + 3 · weight of two)."""


@pytest.fixture
def ledger(tmp_path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.duckdb") as opened:
        yield opened


@pytest.fixture(scope="module")
def studied(tmp_path_factory) -> Iterator[Ablation]:
    """A grid of six points that is done, with questions held out."""
    folder = tmp_path_factory.mktemp("studied")
    with Ledger.open(folder / "ledger.duckdb") as opened:
        yield done(ablation_yaml(folder, holdout=32), opened)


def without_seconds(found: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in SECONDS} for row in found]


def test_every_point_of_a_grid_is_tried_and_worth_what_its_answers_are(studied):
    found = {(r["params.weights.two"], r["params.scale"]): r["value"] for r in rows(studied)}

    assert found == pytest.approx(WORTH, abs=15)  # of the 24 questions that are left
    assert max(found, key=found.get) == (1.0, 0.5)
    assert {trial.state for trial in studied.trials} == {"finished"}


def test_the_base_and_the_sources_have_outcomes_to_compare_with(studied):
    names = {studied.run.models[n].id: n for n in ("base", "one", "two")}
    worth = {names[m]: o.amounts[0] for m, o in studied.outcomes().items() if m in names}

    assert worth == pytest.approx({"base": 50.0, "one": 75.0, "two": 75.0}, abs=15)


def test_no_merge_is_written_and_all_its_coefficients_are_known(tmp_path, ledger):
    study = done(ablation_yaml(tmp_path, method="sce", params={}, space={"params.select_topk": [0.5, 1.0]}), ledger)

    assert not (tmp_path / "made").exists()
    assert {c.model for c in ledger.coefficients()} == {trial.model for trial in study.trials}


def test_what_a_trial_gains_over_the_base_is_told_for_the_report(studied):
    told = {part["kind"]: part for part in json.loads(studied.outcomes()[studied.best.model].parts)}

    assert told["gap"]["value"] == pytest.approx(50, abs=15)
    assert told["gap"]["p"] < 0.05


def test_a_study_that_is_done_asks_nothing_more(studied):
    first = rows(studied)
    PlantedEngines.loads = 0

    assert rows(ablate(studied.plan)) == first
    assert PlantedEngines.loads == 0


def test_a_merge_that_another_study_made_is_not_asked_again(studied, tmp_path):
    again = ablation_yaml(tmp_path, holdout=32, space={"params.scale": [0.5, 1.0]})
    PlantedEngines.loads = 0

    study = done(again, studied.run.ledger)

    assert len(study.trials) == 2
    assert PlantedEngines.loads == 0


@pytest.mark.parametrize("kind", ["tpe", "random"])  # raced one after the other, and rung by rung
def test_a_study_killed_twice_ends_with_the_table_of_one_that_was_not(tmp_path, kind):
    racing = {"racing": {"start": 24}, "holdout": 12, "search": {"kind": kind, "trials": 8}}
    file = ablation_yaml(tmp_path, space={"params.weights.two": {"low": 0.0, "high": 3.0}}, **racing)
    command = [sys.executable, "-m", "tests.fuseval.planted", str(file)]
    for stop_after in (150, 120):
        killed = subprocess.run([*command, str(tmp_path / "killed.duckdb"), str(stop_after)], check=False)
        assert killed.returncode == -9

    with Ledger.open(tmp_path / "killed.duckdb") as one, Ledger.open(tmp_path / "whole.duckdb") as other:
        assert 0 < len(open_study(file, one).trials) < 8
        resumed, whole = done(file, one), done(file, other)
        assert without_seconds(rows(resumed)) == without_seconds(rows(whole))
        assert [o.amounts for o in one.outcomes()] == [o.amounts for o in other.outcomes()]


def test_racing_drops_what_cannot_win_and_still_finds_the_best(tmp_path, ledger):
    order = {"params.weights.two": [1.0, 3.0, 0.0], "params.scale": [0.5, 1.0]}
    study = done(ablation_yaml(tmp_path, space=order, racing={"start": 24}), ledger)

    asked = {t.number: t.questions for t in study.trials}
    dropped = [t for t in study.trials if t.state == "dropped"]

    assert json.loads(study.best.params) == {"params.weights.two": 1.0, "params.scale": 0.5}
    assert dropped
    assert all(asked[t.number] < count(study.plan.search) and "beside trial 0" in t.note for t in dropped)


def test_a_dropped_trial_counts_in_the_search_with_its_estimate_over_all_questions(tmp_path, ledger):
    order = {"params.weights.two": [1.0, 3.0], "params.scale": [0.5]}
    study = done(ablation_yaml(tmp_path, space=order, racing={"start": 24}), ledger)

    best, dropped = past(study)

    assert dropped.values[0] == pytest.approx(25.0, abs=12)
    assert best.values[0] > 95


def test_the_winner_is_scored_on_questions_that_the_search_did_not_see(studied):
    seen = {q.id for one in studied.plan.search for q in one.questions}
    unseen = {q.id for one in studied.plan.holdout for q in one.questions}
    found = winner_gain(studied)

    assert (len(unseen), seen & unseen) == (32, set())
    assert found.unseen.value == pytest.approx(50, abs=25)
    assert found.verdict == "gain"
    assert any("did not see" in line and "A gain." in line for line in sentences(studied))


def test_a_constraint_that_is_broken_leaves_a_better_trial_out(tmp_path, ledger):
    worse = {"scores": [{"benchmark": "starter", "metric": "accuracy", "weight": -1.0}]}
    constraints = [{"benchmark": "starter", "metric": "accuracy"}]
    free = done(ablation_yaml(tmp_path, objective=worse), ledger)
    kept_in = done(ablation_yaml(tmp_path, objective=worse, constraints=constraints), ledger)

    assert json.loads(free.best.params) == {"params.weights.two": 3.0, "params.scale": 1.0}
    assert json.loads(kept_in.best.params) == {"params.weights.two": 1.0, "params.scale": 1.0}
    assert [p.violations[0] > 0 for p in past(kept_in)] == [False, False, False, False, True, True]


def test_a_judges_win_rate_counts_and_the_base_is_even_with_itself(tmp_path, ledger):
    both = {"scores": [{"benchmark": "starter", "metric": m} for m in ("accuracy", "win_rate")]}
    study = done(ablation_yaml(tmp_path, judged=True, objective=both, space={"params.scale": [0.5]}), ledger)

    worth = study.outcomes()

    assert worth[study.plan.base.id].amounts[0] == pytest.approx(50 + 50, abs=2.1)
    assert worth[study.best.model].amounts[0] == pytest.approx(100 + 50, abs=2.1)


def test_longer_answers_than_the_bases_cost_points(tmp_path, ledger):
    plain = done(ablation_yaml(tmp_path), ledger)
    brief = done(ablation_yaml(tmp_path, name="brief", objective={**OBJECTIVE, "length_penalty": 50.0}), ledger)

    gaps = [a.amounts[0] - brief.outcomes()[m].amounts[0] for m, a in plain.outcomes().items()]

    assert min(gaps) == 0
    assert max(gaps) > 0


def test_a_length_penalty_without_held_out_questions_leaves_a_study_that_can_be_told(tmp_path, ledger):
    brief = done(ablation_yaml(tmp_path, holdout=0, objective={**OBJECTIVE, "length_penalty": 50.0}), ledger)
    assert any("That is the search's luck too" in sentence for sentence in sentences(brief))


def test_a_merge_that_cannot_be_made_fails_its_trial_and_not_the_study(tmp_path, ledger):
    study = done(ablation_yaml(tmp_path, dtype="float16", space={"params.scale": [1e30, 0.5]}), ledger)

    broken, good = study.trials

    assert (broken.state, good.state) == ("failed", "finished")
    assert "float16" in broken.note


def test_a_trial_that_was_merged_once_does_not_fail_for_what_is_wrong_later(tmp_path, ledger):
    file = ablation_yaml(tmp_path, dtype="float16", space={"params.scale": [1e30]}, racing={"start": 12})
    study = open_study(file, ledger)
    ablate(study.plan)
    [failed] = study.trials
    begun = replace(failed, state="running", rung=1, note="")

    with pytest.raises(FusionError, match="float16"):
        ask_rung(study, begun, rung=2)
    assert study.trials[0].state == "running"


def test_who_judged_one_benchmark_before_is_not_wanted_as_the_judge_of_the_next(tmp_path, ledger):
    study = done(ablation_yaml(tmp_path, space={"params.scale": [0.5]}), ledger)
    [trial] = study.trials
    [old] = [s for s in ledger.selections(benchmark="starter") if s.model == trial.model]
    ledger.add(replace(old, judges=("of-an-earlier-run",)))
    [one] = study.plan.search
    other = replace(one, benchmark=replace(one.benchmark, version="next"))

    score_on(study.run, study.candidate(trial), [one, other])

    judges = {s.version: s.judges for s in ledger.selections(benchmark="starter") if s.model == trial.model}
    assert judges == {one.benchmark.version: ("of-an-earlier-run",), "next": ()}


def test_caps_stop_a_study_which_goes_on_with_larger_ones(tmp_path, ledger):
    space = {"params.scale": [0.5, 1.0]}
    assert len(done(ablation_yaml(tmp_path, space=space, caps={"trials": 1}), ledger).trials) == 1
    with pytest.raises(CapReached, match=r"caps\.hours"):
        done(ablation_yaml(tmp_path, space=space, caps={"hours": 1e-9}), ledger)
    assert len(done(ablation_yaml(tmp_path, space=space), ledger).trials) == 2


def test_a_cap_on_dollars_is_refused_where_a_judge_has_no_price(tmp_path, ledger):
    file = ablation_yaml(tmp_path, judged=True, caps={"dollars": 1.0})
    given = yaml.safe_load(file.read_text())
    judge = {"name": "gpt", "evaluate": False, "endpoint": {"model": "mine", "base_url": "http://localhost:9/v1"}}
    given |= {"models": [*given["models"], judge], "judges": [{"model": "gpt"}]}
    file.write_text(yaml.safe_dump(given))
    with pytest.raises(ConfigError, match=r"caps\.dollars cannot hold: model 'gpt' needs a price"):
        open_study(file, ledger)


def test_several_objectives_have_a_value_each_and_no_single_winner(tmp_path, ledger):
    metrics = ("accuracy:arithmetic", "accuracy:rewriting")
    objectives = [{"scores": [{"benchmark": "starter", "metric": m}]} for m in metrics]
    study = done(ablation_yaml(tmp_path, objective=objectives, search={"kind": "nsga2", "trials": 3}), ledger)

    assert [len(row["values"]) for row in rows(study)] == [2, 2, 2]
    assert study.best is None
    assert study.front
    assert any("no single winner" in line for line in sentences(study))


def test_the_best_is_promoted_with_recipe_scores_and_card(studied, tmp_path):
    said = promoted(studied, tmp_path / "best")
    scores = json.loads((tmp_path / "best" / "scores.json").read_text())

    assert said.endswith("best")
    assert scores["params"] == {"params.weights.two": 1.0, "params.scale": 0.5}
    assert scores["gain"]["verdict"] == "gain"
    assert json.loads((tmp_path / "best" / "recipe.json").read_text())["id"] == studied.best.model
    assert "| over the base, questions held out |" in (tmp_path / "best" / "README.md").read_text()


def test_what_is_kept_is_written_once(tmp_path, ledger):
    study = done(ablation_yaml(tmp_path, keep="best", space={"params.scale": [0.5]}), ledger)

    assert kept(study) == kept(study)
    assert [folder.name.rpartition("-")[2] for folder in (tmp_path / "made").iterdir()] == [study.best.model[:8]]


def test_leaving_each_source_out_tries_the_best_recipe_and_it_without_each(studied):
    other = done_file(leave_one_out(studied), studied)

    assert {tuple(json.loads(t.params).values()): variant_worth(other, t) for t in other.trials} == pytest.approx(
        {(True, True): 100.0, (False, True): 87.5, (True, False): 62.5}, abs=15
    )


def test_adding_a_source_tries_the_best_recipe_without_and_with_it(tmp_path, ledger):
    study = done(
        ablation_yaml(tmp_path, sources=["two"], params={"weights": [1.0]}, space={"params.scale": [0.5]}), ledger
    )

    other = done_file(add_source(study, "one"), study)

    assert [variant_worth(other, t) for t in other.trials] == pytest.approx([87.5, 100.0], abs=2.1)


def test_only_what_is_given_per_source_is_parted_among_sources_under_globs_too(tmp_path, ledger):
    params = {"weights": {"*norm*": [1.0, 0.5], "*": 0.0}, "scale": [0.4, 1.0]}  # the latter is a gradient over depth
    study = done(ablation_yaml(tmp_path, method="ties", params=params, space={"params.density": [0.5]}), ledger)

    without = leave_one_out(study)
    found = [variant(without.space, point).params for point in without.ablation.points]
    assert found[0]["weights"] == {"*norm*": [1.0, 0.5], "*": 0.0}
    assert found[1]["weights"] == [{"*norm*": 0.5, "*": 0.0}]
    assert [each["scale"] for each in found] == [[0.4, 1.0]] * 3

    models = {**study.run.models, "more": study.run.models["base"]}
    wider = add_source(Ablation(replace(study.plan, run=replace(study.run, models=models))), "more")
    assert wider.ablation.params["weights"] == {"*norm*": [1.0, 0.5, 0.75], "*": 0.0}
    assert wider.ablation.params["scale"] == [0.4, 1.0]


def done_file(file, study: Ablation) -> Ablation:
    return ablate(plan_study(file, study.run))


def variant_worth(study: Ablation, trial) -> float:
    return study.outcomes()[trial.model].amounts[0]


def test_the_table_names_each_recipe_in_a_column_and_the_best_first(studied):
    first = table(studied)[0]

    assert (first["recipe"], first["state"]) == ("weights.two=1.0, scale=0.5", "finished")
    assert first["trial"].endswith("(best)")
    assert first["value"].startswith("100.00 [")


def test_a_holdout_that_leaves_nothing_to_search_with_is_refused(tmp_path, ledger):
    with pytest.raises(ConfigError, match="leaves no question of starter"):
        open_study(ablation_yaml(tmp_path, holdout=64), ledger)


def test_a_metric_that_a_benchmark_does_not_give_is_refused_with_those_that_it_gives(tmp_path, ledger):
    typo = {"scores": [{"benchmark": "starter", "metric": "accurracy"}]}
    with pytest.raises(ConfigError, match="accuracy, accuracy:arithmetic"):
        done(ablation_yaml(tmp_path, objective=typo), ledger)


def test_what_to_try_next_is_told_with_what_it_is_predicted_to_be_worth(tmp_path, ledger):
    some = done(ablation_yaml(tmp_path, caps={"trials": 4}), ledger)
    PlantedEngines.loads = 0

    told = study(some.run, Wanted(suggest=2))

    tried = [json.loads(trial.params) for trial in some.trials]
    assert len(told.rows) == 2
    assert all({name: row[name] for name in tried[0]} not in tried for row in told.rows)
    assert all(row["low"] <= row["predicted"] <= row["high"] for row in told.rows)
    assert (PlantedEngines.loads, len(some.trials)) == (0, 4)
