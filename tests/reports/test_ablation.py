"""The page shows what a study found, claims no more than its held-out questions allow, and trusts no text."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from evals.records import Coefficient, Model, Outcome, Study, Trial
from reports.ablation import ablation, besides, winner_sentences
from reports.html import page
from results.store import Ledger
from results.study_queries import trials_wide

NAME = "<script>alert(1)</script>"
SPACE = json.dumps({"parameters": [], "sources": ["math"], "method": "ties", "params": {}})
OBJECTIVE = json.dumps({"objectives": [{"scores": [{"benchmark": "arena@1", "metric": "win_rate", "weight": 0.5}]}]})
STUDY = Study("s1", NAME, "base", ("math", "code"), SPACE, OBJECTIVE, "{}", 0)


def gap(value, *, p=0.001, n=40):
    half = abs(value) / 2 if p < 0.05 else abs(value) + 1
    told = {"name": "beside the base", "kind": "gap", "value": value, "low": value - half, "high": value + half}
    return json.dumps([told | {"p": p, "n": n, "missing": 0}])


def outcome(model, value, *, part="search", parts="[]", questions=40):
    return Outcome("s1", model, part, 1, questions, (value,), (value - 5,), (value + 5,), True, parts)


def fill(ledger, trials=6, *, study=STUDY):
    """Store a study whose worth rises with the scale, of two methods."""
    ledger.add(study, *(Model(name, name, "checkpoint", "somewhere") for name in ("base", "math", "code")))
    ledger.add(outcome("base", 50.0), outcome("math", 53.0))
    for number in range(trials):
        params = {"method": "ties" if number % 2 else "sce", "params.scale": 0.1 * (number + 1)}
        model = f"m{number}"
        ledger.add(
            Model(model, f"merge {number}", "merge", ""),
            Trial("s1", number, model, json.dumps(params), "finished", 1, 40, 1.0, 60.0, 9.0, 0.25, NAME),
            outcome(model, 50.0 + number, parts=gap(float(number))),
        )


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "ledger.duckdb") as opened:
        yield opened


def test_without_a_study_there_is_nothing(ledger):
    assert ablation(ledger) == {}
    assert "section-ablation" not in page(ledger, title="t")


def test_a_study_is_shown_with_its_trials_references_and_cost(ledger):
    fill(ledger)
    [study] = ablation(ledger)["studies"]
    assert study["objective"] == "0.5 · arena win_rate"
    assert [(each.name, each.value) for each in study["references"]] == [("base", 50.0), ("math", 53.0)]
    assert [row.number for row in study["trials"] if row.best] == [5]
    assert dict(study["cost"]) == {
        "Merging and loading": "6.0 s",
        "Answering": "6.0 min",
        "Judging and scoring": "54.0 s",
        "US dollars": "1.50",
        "Questions asked": "240 of 240 that all trials up to the last would have taken",
    }
    assert len(study["figures"]) == 2


def test_the_page_escapes_every_text_and_holds_no_script_of_it(ledger):
    fill(ledger)
    made = page(ledger, title="t")
    assert "section-ablation" in made
    assert NAME not in made
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in made
    part = re.search(r'<section id="section-ablation">.*?<h2', made.partition("<main")[2], re.DOTALL)
    assert part is None or "<script" not in part[0]
    assert " style=" not in made


def test_the_same_ledger_gives_the_same_page_section(ledger):
    fill(ledger)
    assert ablation(ledger) == ablation(ledger)


def test_a_gain_is_claimed_on_unseen_questions_only(ledger):
    fill(ledger)
    best = next(row for row in trials_wide(ledger) if row.best)
    unseen = outcome("m5", 58.0, part="holdout", parts=gap(8.0), questions=24)
    noise = replace(unseen, parts=gap(2.0, p=0.4))
    assert winner_sentences(best, None, "base", trials=6)[-1].endswith("so no gain is claimed.")
    assert winner_sentences(best, unseen, "base", trials=6)[-1] == (
        "On 24 questions that the search did not see: +8.00 [4.00, 12.00] beside base, p = 0.001. That is a gain."
    )
    assert winner_sentences(best, noise, "base", trials=6)[-1].endswith("No gain is shown.")
    assert "no winner" in winner_sentences(None, None, "base", trials=3)[0]


def test_differences_are_corrected_for_all_trials_together(ledger):
    fill(ledger, trials=2)
    ledger.add(outcome("m1", 51.0, parts=gap(1.0, p=0.03)), outcome("m0", 50.5, parts=gap(0.5, p=0.04)))
    found = {each.number: each for each in besides(trials_wide(ledger))}
    assert (found[1].p, found[1].p_holm, found[1].verdict) == (0.03, 0.06, "none")


def test_a_trial_without_an_outcome_is_missing_and_not_drawn(ledger):
    fill(ledger, trials=3)
    ledger.add(Trial("s1", 3, "lost", '{"method": "sce", "params.scale": 9.0}', "failed", 0, 0, 0, 0, 0, None, "why"))
    [study] = ablation(ledger)["studies"]
    assert (study["trials"][3].value, study["trials"][3].state) == (None, "failed")
    assert "missing" in page(ledger, title="t")


def test_the_winner_s_coefficients_are_drawn_but_for_those_that_are_the_same_everywhere(ledger):
    fill(ledger)
    for layer in range(3):
        ledger.add(Coefficient("m5", f"model.layers.{layer}.mlp.up_proj.weight", "math", "eta", layer / 3))
        ledger.add(Coefficient("m5", f"model.layers.{layer}.mlp.up_proj.weight", None, "flat", 1.0))
    [study] = ablation(ledger)["studies"]
    [drawn] = study["heats"]
    assert "eta of math in merge 5" in drawn
    assert "flat" not in drawn


def dropped(ledger, number, *, value, estimate):
    """Store a trial that was dropped after a few questions."""
    told = json.dumps([{"name": "estimate", "kind": "estimate", "value": estimate}])
    ledger.add(
        Trial("s1", number, f"m{number}", json.dumps({"method": "sce"}), "dropped", 1, 10, 1.0, 1.0, 1.0, 0.0, "why"),
        outcome(f"m{number}", value, parts=told, questions=10),
    )


def test_a_dropped_trial_stands_at_its_estimate_over_all_questions(ledger):
    fill(ledger, trials=2)
    dropped(ledger, 2, value=90.0, estimate=41.5)
    [study] = ablation(ledger)["studies"]
    row = study["trials"][2]
    assert (row.value, row.low, row.high) == (41.5, None, None)


def test_missing_values_are_counted_in_the_sentences_on_the_winner(ledger):
    fill(ledger)
    best = next(row for row in trials_wide(ledger) if row.best)
    [told] = json.loads(gap(8.0, n=22))
    lost = outcome("m5", 58.0, part="holdout", parts=json.dumps([told | {"missing": 2}]), questions=24)
    assert "(n = 22, 2 missing)" in winner_sentences(best, lost, "base", trials=6)[-1]


def test_what_mattered_is_said_with_how_often_chance_does_as_much(ledger):
    fill(ledger, trials=16)
    [study] = ablation(ledger)["studies"]
    first = study["importances"][0]
    assert first.parameter == "params.scale"
    assert first.p < 0.05
