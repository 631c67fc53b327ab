"""A study parts its questions before its first trial, and is another study where its figures could be others."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import pytest

from evals import starter
from fuseval.config import ConfigError
from fuseval.study import Plan, count, proportional
from fuseval.studying import Wanted, study
from results.store import Ledger
from tests.fuseval.planted import SPACE, ablation_yaml, open_study


@pytest.fixture
def ledger(tmp_path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.duckdb") as opened:
        yield opened


def plan(tmp_path, ledger, **block) -> Plan:
    return open_study(ablation_yaml(tmp_path, **block), ledger).plan


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_a_few_questions_are_of_each_category_its_share_and_among_those_of_more(seed):
    every = starter.questions()
    shares = [proportional(every, size, seed=seed) for size in range(len(every) + 1)]

    assert [len(share) for share in shares] == list(range(len(every) + 1))
    assert all(set(a) < set(b) for a, b in itertools.pairwise(shares))
    half = Counter(q.category for q in shares[32])
    assert (half["arithmetic"], half["rewriting"]) == (12, 12)


def test_a_race_asks_more_in_every_rung_and_in_the_last_everything(tmp_path, ledger):
    rungs = plan(tmp_path, ledger, racing={"start": 10}, holdout=4).rungs

    assert [count(rung) for rung in rungs] == [10, 20, 40, 60]
    ids = [{q.id for one in rung for q in one.questions} for rung in rungs]
    assert all(a < b for a, b in itertools.pairwise(ids))


def test_without_a_race_there_is_one_rung(tmp_path, ledger):
    assert [count(rung) for rung in plan(tmp_path, ledger).rungs] == [64]


def test_more_trials_and_other_caps_go_on_with_the_same_study(tmp_path, ledger):
    first = plan(tmp_path, ledger, search={"kind": "random", "trials": 3}).record
    more = plan(tmp_path, ledger, search={"kind": "random", "trials": 9}, caps={"hours": 2.0}, keep="best").record

    assert more == first


@pytest.mark.parametrize(
    "changed",
    [
        {"holdout": 8},
        {"space": {**SPACE, "params.scale": [0.5]}},
        {"search": {"kind": "random", "seed": 1}},
        {"racing": {"start": 10}},
        {"objective": {"scores": [{"benchmark": "starter", "metric": "accuracy", "weight": 2.0}]}},
        {"seed": 3},
    ],
)
def test_whatever_changes_a_figure_or_a_proposal_makes_another_study(tmp_path, ledger, changed):
    first = plan(tmp_path, ledger, search={"kind": "random"}).record

    assert plan(tmp_path, ledger, **{"search": {"kind": "random"}, **changed}).record.id != first.id


def test_a_benchmark_of_the_objective_is_held_out_with_two_questions_at_least(tmp_path, ledger):
    with pytest.raises(ConfigError, match="leaves 1 of starter to hold out"):
        plan(tmp_path, ledger, holdout=1)


def test_points_of_a_space_without_steps_are_counted_whatever_the_search_is_called(tmp_path, ledger):
    space = {"params.scale": {"low": 0.5, "high": 1.0}}
    file = ablation_yaml(tmp_path, space=space, points=[{"params.scale": 0.7}, {"params.scale": 0.9}])

    told = study(open_study(file, ledger).run, Wanted(dry_run=True))

    assert {row["what"]: row["number"] for row in told.rows}["trials"] == 2
