"""What failed in a study is asked again by the next command, and what fails for good is counted and left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fuseval.ablate import ablate
from fuseval.rungs import lacks
from fuseval.studying import coverage
from fuseval.trials import HOLDOUT, Ablation
from results.store import Ledger
from tests.fuseval.planted import PlantedEngines, ablation_yaml, done, open_study


@pytest.fixture
def ledger(tmp_path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.duckdb") as opened:
        yield opened


def lacking(study: Ablation) -> list[bool]:
    found = study.outcomes()
    return [lacks(found[trial.model]) for trial in study.trials]


@pytest.mark.slow
def test_what_failed_in_a_finished_study_is_asked_again_and_nothing_else_is(tmp_path, ledger):
    file = ablation_yaml(tmp_path, space={"params.scale": [0.5]}, holdout=24)
    failed = done(file, ledger, failing="server")
    assert lacking(failed) == [True]
    assert lacks(failed.outcomes(HOLDOUT)[failed.best.model])
    assert coverage(failed) < 1.0
    known = {a.key for a in ledger.answers()}

    mended = done(file, ledger)

    assert lacking(mended) == [False]
    assert not lacks(mended.outcomes(HOLDOUT)[mended.best.model])
    assert coverage(mended) == 1.0
    assert known < {a.key for a in ledger.answers()}


@pytest.mark.slow
def test_what_fails_for_good_is_left_until_somebody_wants_it_asked(tmp_path, ledger):
    file = ablation_yaml(tmp_path, space={"params.scale": [0.5]})
    done(file, ledger, failing="content_filter")
    PlantedEngines.loads = 0

    left = done(file, ledger)
    assert (lacking(left), PlantedEngines.loads) == ([True], 0)

    asked = ablate(open_study(file, ledger, retry_failed=True).plan)
    assert (lacking(asked), PlantedEngines.loads) == ([False], 1)
