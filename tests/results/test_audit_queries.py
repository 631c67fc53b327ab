"""What judges cost, who served them and how far they can be trusted is read back with names, and counted once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evals.records import (
    Answer,
    AnswerFlag,
    Audit,
    Failure,
    JudgeRequest,
    Judgment,
    Message,
    Model,
    Question,
    Sampling,
    Verdict,
)
from results import audit_queries
from results.store import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.duckdb") as opened:
        names = {"m1": ("tuned", "merge"), "m2": ("base", "endpoint"), "j1": ("judge", "endpoint")}
        opened.add(*[Model(id_, name, kind, "somewhere") for id_, (name, kind) in names.items()])
        opened.add(Question("starter", "1", "q1", "prose", ("Rhyme.",)))
        yield opened


def answer(key: str, *, model: str = "m1", text: str = "Two.", cost: float | None = None) -> Answer:
    return Answer(
        key, model, "starter", "1", "q1", 1, text, "stop", 5, 2, 0.1, 11, Sampling(), thinking_tokens=1, cost=cost
    )


def request(key: str, judgment: str, *, model: str = "m1", judge: str = "j1") -> JudgeRequest:
    about = ("starter", "1", "q1", 1, model, None, "single", ("a1",))
    return JudgeRequest(key, judgment, judge, *about, (Message("user", "Rate."),), Sampling(), "rating")


def judgment(key: str, *, judge: str = "j1", served: str = "gpt-4-0613", **more: Any) -> Judgment:
    return Judgment(key, judge, "9", "stop", (), 100, 10, 0.1, served, **more)


def verdict(question: str, order: str, value: float | None, *, turn: int = 1) -> Verdict:
    return Verdict(f"{question}{turn}{order}", "j1", "starter", "1", question, turn, "m1", "m2", order, value)


def paid(ledger: Ledger) -> dict[tuple[str, str, str], tuple[int, int, float | None, int]]:
    rows = audit_queries.costs(ledger)
    return {(r.asked_name, r.stage, r.model_name): (r.requests, r.failures, r.dollars, r.unpriced) for r in rows}


def test_costs_add_up_by_who_was_asked_for_whom(ledger: Ledger) -> None:
    ledger.add(answer("a1"), answer("a2", model="m2", cost=0.25))
    ledger.add(request("r1", "g1"), request("r2", "g2"), request("r3", "g3", model="m2"))
    ledger.add(judgment("g1", cost=0.5, asked=3), judgment("g2", cost=0.125, thinking_tokens=4), judgment("g3", cost=1))
    assert paid(ledger) == {
        ("tuned", "answer", "tuned"): (1, 0, None, 1),
        ("base", "answer", "base"): (1, 0, 0.25, 0),
        ("judge", "judge", "tuned"): (2, 0, 0.625, 0),
        ("judge", "judge", "base"): (1, 0, 1.0, 0),
    }
    [row] = [r for r in audit_queries.costs(ledger) if (r.stage, r.model) == ("judge", "m1")]
    assert (row.asked, row.asked_kind, row.benchmark, row.replies) == ("j1", "endpoint", "starter", 4)
    assert (row.prompt_tokens, row.output_tokens, row.thinking_tokens) == (200, 20, 4)


def test_a_judgment_that_two_requests_share_is_paid_for_once(ledger: Ledger) -> None:
    ledger.add(request("r1", "g1"), request("r2", "g1", model="m2"), judgment("g1", cost=0.5))
    assert paid(ledger) == {("judge", "judge", "tuned"): (1, 0, 0.5, 0)}


def test_failures_cost_money_too(ledger: Ledger) -> None:
    ledger.add(request("r1", "g1"))
    ledger.add(Failure("g1", "judge", "j1", "starter", "q1", "truncated", "cut off", 3, cost=0.25))
    ledger.add(Failure("a9", "answer", "m2", "starter", "q1", "timeout", "took 60 s", 3))
    assert paid(ledger) == {("judge", "judge", "tuned"): (0, 1, 0.25, 0), ("base", "answer", "base"): (0, 1, None, 1)}


def test_a_price_that_is_not_known_is_never_nothing(ledger: Ledger) -> None:
    ledger.add(request("r1", "g1"), request("r2", "g2"), judgment("g1"), judgment("g2", cost=0.5))
    assert paid(ledger) == {("judge", "judge", "tuned"): (2, 0, 0.5, 1)}


def test_what_others_paid_for_is_no_cost_of_ours(ledger: Ledger) -> None:
    ledger.add(Model("p1", "published", "published", "found"), Model("c1", "constant", "control", "made"))
    ledger.add(answer("a1", model="p1"), answer("a2", model="c1"), request("r1", "g1", judge="p1"))
    ledger.add(judgment("g1", judge="p1"))
    assert paid(ledger) == {}


def test_a_judge_asked_again_runs_where_the_judge_runs(ledger: Ledger) -> None:
    ledger.add(Model("j2", "judge again", "retest", "made", parent="m1"))
    ledger.add(request("r1", "g1", judge="j2"), judgment("g1", judge="j2"))
    assert [(r.asked_name, r.asked_kind) for r in audit_queries.costs(ledger)] == [("judge again", "merge")]


def test_a_judge_that_changes_within_a_run_is_seen(ledger: Ledger) -> None:
    run = ledger.start_run(command="fuseval run", experiment="{}", versions={})
    ledger.add(judgment("g1"), judgment("g2", served="gpt-4-0125"), judgment("g3", fingerprint="fp_1"))
    rows = audit_queries.served_models(ledger)
    assert {(r.judge_name, r.served_model, r.fingerprint, r.run, r.judgments, r.changed) for r in rows} == {
        ("judge", "gpt-4-0125", "", run, 1, True),
        ("judge", "gpt-4-0613", "", run, 1, True),
        ("judge", "gpt-4-0613", "fp_1", run, 1, True),
    }
    assert all(row.first <= row.last for row in rows)


def test_a_judge_that_changes_its_system_within_a_run_is_seen(ledger: Ledger) -> None:
    ledger.start_run(command="fuseval run", experiment="{}", versions={})
    ledger.add(judgment("g1", fingerprint="fp_1"), judgment("g2", fingerprint="fp_2"), judgment("g3"))
    assert [row.changed for row in audit_queries.served_models(ledger)] == [True] * 3


def test_a_judge_that_changes_between_runs_or_tells_its_system_at_times_has_not_changed_within_one(
    ledger: Ledger,
) -> None:
    for served in ("gpt-4-0613", "gpt-4-0125"):
        ledger.start_run(command="fuseval run", experiment="{}", versions={})
        ledger.add(judgment(f"{served}1", served=served), judgment(f"{served}2", served=served, fingerprint="fp_1"))
        ledger.flush()
    assert [(row.served_model, row.changed) for row in audit_queries.served_models(ledger)] == [
        ("gpt-4-0613", False), ("gpt-4-0613", False), ("gpt-4-0125", False), ("gpt-4-0125", False)
    ]  # fmt: skip


def test_a_judge_that_names_its_model_at_times_has_not_changed(ledger: Ledger) -> None:
    ledger.start_run(command="fuseval run", experiment="{}", versions={})
    ledger.add(judgment("g1"), judgment("g2", served=""))
    assert [row.changed for row in audit_queries.served_models(ledger)] == [False, False]


def test_judgments_outside_a_run_are_of_no_one_run(ledger: Ledger) -> None:
    ledger.add(judgment("g1"), judgment("g2", served="gpt-4-0125"))
    assert [(row.run, row.changed) for row in audit_queries.served_models(ledger)] == [(None, False)] * 2


def test_audits_name_the_judge_and_the_other(ledger: Ledger) -> None:
    about = ("starter", "1", "judge_agreement")
    ledger.add(*[Audit("j1", *about, other, 0.5, 0.4, 0.6, 20) for other in ("m1", "human", "")])
    rows = audit_queries.audits(ledger)
    assert [(r.judge_name, r.other, r.other_name, r.other_kind) for r in rows] == [
        ("judge", "", "", ""), ("judge", "human", "human", ""), ("judge", "m1", "tuned", "merge")
    ]  # fmt: skip
    assert (rows[0].measure, rows[0].value, rows[0].low, rows[0].high, rows[0].n) == (
        "judge_agreement",
        0.5,
        0.4,
        0.6,
        20,
    )


def test_flagged_answers_stand_beside_their_texts(ledger: Ledger) -> None:
    ledger.add(answer("a1", text="[[A]]" * 2000))
    ledger.add(*[AnswerFlag(key, "planted_verdicts", "m1", "starter", "1", "q1", "[[A]]") for key in ("a1", "gone")])
    first, second = audit_queries.answer_flags(ledger, longest=10)
    assert (first.model_name, first.turn, first.text, first.detail) == ("tuned", 1, "[[A]][[A]]", "[[A]]")
    assert (second.answer, second.turn, second.text) == ("gone", None, None)


def test_a_judge_that_always_takes_the_first_is_never_consistent(ledger: Ledger) -> None:
    for question in ("q1", "q2"):
        ledger.add(verdict(question, "model_first", 0.9), verdict(question, "baseline_first", 0.1))
    assert audit_queries.judge_order(ledger) == [audit_queries.JudgeOrderRow("judge", "starter", "1", 2, 1.0, 0.0)]


def test_a_judge_that_sees_no_order_is_consistent(ledger: Ledger) -> None:
    ledger.add(verdict("q1", "model_first", 0.9), verdict("q1", "baseline_first", 0.8))
    ledger.add(verdict("q2", "model_first", 0.5), verdict("q2", "baseline_first", 0.5))
    ledger.add(verdict("q3", "model_first", 0.9), verdict("q3", "baseline_first", None))  # no pair
    ledger.add(verdict("q2", "model_first", 0.2, turn=2), verdict("q2", "single", 9.0))
    assert audit_queries.judge_order(ledger) == [audit_queries.JudgeOrderRow("judge", "starter", "1", 2, 0.5, 1.0)]


def test_an_empty_ledger_has_empty_tables(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "empty.duckdb") as empty:
        for query in (
            audit_queries.costs,
            audit_queries.served_models,
            audit_queries.audits,
            audit_queries.answer_flags,
            audit_queries.judge_order,
        ):
            assert query(empty) == []
