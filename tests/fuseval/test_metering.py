"""What a trial takes is kept while it goes on, and counts for the caps; what nobody knows is not taken for 0."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from evals.budget import Budget
from evals.records import Trial
from fuseval.ablation_file import CapsSpec
from fuseval.config import ConfigError
from fuseval.metering import CapReached, Meter, check_caps

TRIAL = Trial("study", 3, "m3", "{}", "running", 0, 0, 1.0, 2.0, 4.0, 0.5)


def metered(trial: Trial = TRIAL, budget: Budget | None = None) -> tuple[Meter, list[Trial]]:
    kept: list[Trial] = []
    found = budget or Budget()
    return Meter(trial, kept.append, lambda: found.spent, every=0.01), kept


def test_seconds_and_dollars_are_added_to_what_a_trial_had_taken():
    budget = Budget(spent=7.0)
    meter, kept = metered(budget=budget)
    with meter.during("answering"):
        budget.settle(0.0, 0.25)
        time.sleep(0.05)
    assert (meter.trial.making, meter.trial.judging, meter.trial.dollars) == (1.0, 4.0, 0.75)
    assert 2.05 <= meter.trial.answering < 4
    assert kept[-1] == meter.trial


def test_what_was_taken_so_far_is_kept_before_the_end():
    meter, kept = metered()
    with meter.during("making"):
        time.sleep(0.2)
        assert kept and kept[-1].making > 1.0  # a kill would leave this


def test_what_ends_with_an_error_counts_too():
    meter, kept = metered()
    with pytest.raises(KeyboardInterrupt), meter.during("judging"):
        raise KeyboardInterrupt
    assert kept[-1].judging > 4.0


def test_an_unknown_price_stays_unknown():
    meter, _ = metered(replace(TRIAL, dollars=None))
    with meter.during("judging"):
        pass
    assert meter.trial.dollars is None


def test_a_cap_is_reached_by_what_all_trials_took_together():
    two = [TRIAL, replace(TRIAL, number=4)]
    check_caps(CapsSpec(dollars=1.5, hours=1.0), two)
    with pytest.raises(CapReached, match=r"2 trials \(2 of them not ended\) cost 1\.00 USD.*caps\.dollars is 1"):
        check_caps(CapsSpec(dollars=1.0), two)
    with pytest.raises(CapReached, match=r"caps\.hours is 0\.001"):
        check_caps(CapsSpec(hours=0.001), two)


def test_a_cap_on_dollars_is_refused_where_nobody_knows_what_a_trial_cost():
    with pytest.raises(ConfigError, match="what trial 3 cost is not known"):
        check_caps(CapsSpec(dollars=1.0), [replace(TRIAL, dollars=None)])
    check_caps(CapsSpec(hours=1.0), [replace(TRIAL, dollars=None)])
