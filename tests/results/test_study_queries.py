"""Studies, their trials and what those are worth come back as they were stored, and joined."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from evals.records import Model, Outcome, Study, Trial
from results.schema import current_schema
from results.store import Ledger
from results.study_queries import trials_wide

STUDY = Study("s1", "weights", "base", ("math", "code"), '{"params.scale": [0.5, 1]}', "{}", '{"kind": "grid"}', 7)
TRIAL = Trial("s1", 0, "m0", '{"params.scale": 0.5}', "finished", 2, 24, 1.5, 4.0, 0.25, None)
OUTCOME = Outcome("s1", "m0", "search", 2, 24, (60.0,), (40.0,), (80.0,), True, "[]")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.duckdb") as opened:
        opened.add(Model("m0", "half", "merge", "nowhere"), STUDY, TRIAL, OUTCOME)
        yield opened


def test_studies_trials_and_outcomes_come_back_as_they_were_stored(ledger):
    unknown = replace(OUTCOME, model="m1", amounts=(None, 1.0), lows=(None, 0.5), highs=(None, 1.5), feasible=False)
    ledger.add(unknown)

    assert ledger.studies(base="base") == [STUDY]
    assert ledger.trials("s1") == [TRIAL]
    assert ledger.outcomes("s1", part="search") == [OUTCOME, unknown]


def test_a_trial_that_goes_on_replaces_what_was_known_of_it(ledger):
    ledger.add(replace(TRIAL, state="dropped", note="below the leader"))

    assert [trial.state for trial in ledger.trials("s1")] == ["dropped"]


def test_a_trial_is_shown_with_the_outcome_of_its_last_rung(ledger):
    ledger.add(replace(OUTCOME, rung=1, questions=8, amounts=(90.0,)))

    [row] = trials_wide(ledger, study="s1")

    assert (row.model_name, row.value, row.low, row.high, row.rung) == ("half", 60.0, 40.0, 80.0, 2)
    assert row.params == json.loads(TRIAL.params)


def test_the_best_is_the_finished_feasible_trial_of_the_highest_value(ledger):
    others = {"m1": (70.0, "finished", True), "m2": (95.0, "dropped", True), "m3": (99.0, "finished", False)}
    for number, (model, (value, state, feasible)) in enumerate(others.items(), start=1):
        ledger.add(replace(TRIAL, number=number, model=model, state=state))
        ledger.add(replace(OUTCOME, model=model, amounts=(value,), feasible=feasible))

    assert [row.model for row in trials_wide(ledger) if row.best] == ["m1"]


def test_a_trial_without_an_outcome_is_there_and_not_the_best(ledger):
    ledger.add(replace(TRIAL, study="s2", model="m9", state="running"))

    [row] = trials_wide(ledger, study="s2")

    assert (row.value, row.best, row.holdout, row.parts) == (None, False, None, ())


def test_what_was_held_out_stands_beside_what_was_searched(ledger):
    ledger.add(replace(OUTCOME, part="holdout", rung=1, amounts=(52.0,)))

    [row] = trials_wide(ledger, study="s1")

    assert (row.value, row.holdout) == (60.0, 52.0)


def test_a_ledger_of_version_5_is_migrated(tmp_path):
    path = tmp_path / "old.duckdb"
    with duckdb.connect(str(path)) as plain:
        for number in range(1, 6):
            plain.execute(current_schema().sections[number])
            plain.execute("INSERT INTO meta (version, fuseval) VALUES (?, '0')", [number])

    with Ledger.open(path) as opened:
        opened.add(STUDY)
        assert opened.studies() == [STUDY]
