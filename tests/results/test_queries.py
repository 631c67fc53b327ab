"""What reports read is what was stored, with names in place of hashes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from evals.records import (
    LOWER_IS_BETTER,
    Answer,
    Difference,
    Failure,
    JudgeRequest,
    Judgment,
    Message,
    Model,
    Question,
    Sampling,
    Score,
    TrainingPoint,
    Verdict,
)
from results import queries
from results.store import Ledger

SAMPLING = Sampling(temperature=0.5, seed=3)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.duckdb") as opened:
        names = {"m1": "tuned", "m2": "base", "j1": "judge"}
        opened.add(*[Model(id_, name, "checkpoint", "somewhere") for id_, name in names.items()])
        opened.add(Question("starter", "1", "q2", "maths", ("1+1?", "+1?"), None, ("2",), "number"))
        opened.add(Question("starter", "1", "q1", "prose", ("Rhyme.",)))
        yield opened


def answer(key: str, question: str = "q2", *, model: str = "m1", turn: int = 1) -> Answer:
    return Answer(key, model, "starter", "1", question, turn, "Two.", "stop", 5, 2, 0.1, 11, SAMPLING)


def request(key: str, judgment: str, *, order: str = "model_first") -> JudgeRequest:
    asked = (Message("user", "A or B?"),)
    return JudgeRequest(
        key, judgment, "j1", "starter", "1", "q2", 1, "m1", "m2", order, ("a1", "a2"), asked, SAMPLING, "letter"
    )


def score(model: str, value: float | None, *, judge: str = "j1", baseline: str | None = "m2") -> Score:
    return Score(model, "starter", "1", judge, baseline, "win_rate", value, 1.0, 99.0, 10, 1, ("a", "b"))


def test_the_leaderboard_has_names_and_the_best_first(ledger: Ledger) -> None:
    ledger.add(
        score("m2", 40.0), score("m1", 60.0), score("unknown", None), score("m1", 1.0, judge="check", baseline=None)
    )
    rows = queries.leaderboard(ledger)
    assert [(r.judge_name, r.name, r.baseline_name, r.value) for r in rows] == [
        ("check", "tuned", None, 1.0),
        ("judge", "tuned", "base", 60.0),
        ("judge", "base", "base", 40.0),
        ("judge", "unknown", "base", None),
    ]
    assert (rows[1].model, rows[1].kind, rows[1].judge, rows[1].flags) == ("m1", "checkpoint", "j1", ("a", "b"))
    assert (rows[1].low, rows[1].high, rows[1].n, rows[1].missing) == (1.0, 99.0, 10, 1)


def test_of_a_metric_of_which_less_is_better_the_least_comes_first(ledger: Ledger) -> None:
    lower = {"metric": "perplexity", "flags": (LOWER_IS_BETTER,)}
    ledger.add(*(dataclasses.replace(score(m, v), **lower) for m, v in (("m1", 9.0), ("m2", 8.0), ("m3", None))))
    found = [(row.model, row.lower_is_better) for row in queries.leaderboard(ledger)]
    assert found == [("m2", True), ("m1", True), ("m3", True)]
    assert [model for (model,) in ledger.sql("SELECT model FROM leaderboard").fetchall()] == ["m2", "m1", "m3"]
    rows = queries.leaderboard(ledger)
    assert [row.rank for row in rows] == [(False, 8.0), (False, 9.0), (True, 0.0)]


def test_a_difference_knows_of_which_metric_less_is_better(ledger: Ledger) -> None:
    ledger.add(dataclasses.replace(score("m1", 9.0), metric="perplexity", flags=(LOWER_IS_BETTER,)), score("m1", 60.0))
    for metric, values in (("perplexity", (-1.0, 2.0)), ("win_rate", (-1.0, 2.0))):
        for model, value in zip(("m1", "m3"), values, strict=True):
            ledger.add(Difference(model, "m2", "starter", "1", "j1", None, metric, value, -2.0, 3.0, 0.5, 10, 0))
    found = [(row.metric, row.value, row.lower_is_better) for row in queries.differences(ledger)]
    assert found == [
        ("perplexity", -1.0, True),
        ("perplexity", 2.0, True),
        ("win_rate", 2.0, False),
        ("win_rate", -1.0, False),
    ]


def test_the_leaderboard_can_be_narrowed_by_name_or_identity(ledger: Ledger) -> None:
    ledger.add(score("m1", 60.0), score("m2", 40.0))
    assert queries.leaderboard(ledger, model="tuned") == queries.leaderboard(ledger, model="m1", benchmark="starter")
    assert [row.model for row in queries.leaderboard(ledger, model="tuned")] == ["m1"]
    assert queries.leaderboard(ledger, benchmark="arena_hard") == []


def test_the_score_without_flagged_answers_stands_beside_the_score(ledger: Ledger) -> None:
    without = Score("m1", "starter", "1", "j1", "m2", "win_rate:unflagged", 3.0, 1.0, 5.0, 4, 6)
    ledger.add(score("m1", 60.0), score("m2", 40.0), without)
    tuned, base = queries.leaderboard(ledger)
    assert (tuned.metric, tuned.value, tuned.unflagged) == ("win_rate", 60.0, 3.0)
    assert (tuned.unflagged_low, tuned.unflagged_high, tuned.unflagged_n) == (1.0, 5.0, 4)
    assert (base.name, base.unflagged, base.unflagged_n) == ("base", None, None)


@pytest.mark.parametrize("kind", ["panel", "control", "retest"])
def test_what_is_no_candidate_is_in_no_leaderboard_and_no_difference(ledger: Ledger, kind: str) -> None:
    ledger.add(Model("x", "other", kind, "made"), score("x", 60.0), score("m2", 40.0))
    about = ("starter", "1", "j1", "m2", "win_rate", 5.0, -1.0, 11.0, 0.1, 20, 2)
    ledger.add(Difference("x", "m2", *about), Difference("m2", "x", *about))
    assert [row.name for row in queries.leaderboard(ledger)] == ["base"]
    assert queries.differences(ledger) == []


def test_differences_name_both_models(ledger: Ledger) -> None:
    ledger.add(Difference("m1", "m2", "starter", "1", "j1", "m2", "win_rate", 5.0, -1.0, 11.0, 0.1, 20, 2))
    expected = ("tuned", "base", "starter", "1", "judge", "base", "win_rate", 5.0, -1.0, 11.0, 0.1, 20, 2)
    assert queries.differences(ledger) == [queries.DifferenceRow(*expected)]


def test_differences_against_two_baselines_are_two(ledger: Ledger) -> None:
    about = ("starter", "1", "j1")
    ledger.add(Model("m3", "third", "checkpoint", "somewhere"))
    ledger.add(*[Difference("m1", "m2", *about, b, "w", 5.0, 1.0, 9.0, 0.1, 9, 0) for b in (None, "m2", "m3")])
    assert {row.baseline_name for row in queries.differences(ledger)} == {None, "base", "third"}
    assert len(queries.differences(ledger, model="base", models=["m1", "m2"])) == 3
    assert queries.differences(ledger, models=["m1", "m3"]) == queries.differences(ledger, model="third") == []


def test_models_of_one_name_are_told_apart_everywhere(ledger: Ledger) -> None:
    for id_ in ("8e5e0", "8e5e1", "77aa0"):
        ledger.add(Model(id_, "sce" if id_ != "77aa0" else "solo", "merge", "made"), score(id_, 50.0, baseline="8e5e0"))
        ledger.add(answer(f"a-{id_}", model=id_), TrainingPoint(id_, 1, 2.0, 1e-4, 9))
        ledger.add(Failure(f"f-{id_}", "answer", id_, "starter", "q1", "timeout", "took 60 s", 3))
        ledger.add(Verdict(f"a-{id_}", "check", "starter", "1", "q2", 1, id_, None, "single", 1.0))
    names = {"sce·8e5e0", "sce·8e5e1", "solo"}
    assert {queries.display_names(ledger)[id_] for id_ in ("8e5e0", "8e5e1", "77aa0")} == names
    assert {row.name for row in queries.leaderboard(ledger)} == names
    assert {row.baseline_name for row in queries.leaderboard(ledger)} == {"sce·8e5e0"}
    for query in (queries.answers_wide, queries.checks, queries.training, queries.failures):
        assert {row.model_name for row in query(ledger)} == names
    for wanted, found in (("sce", {"8e5e0", "8e5e1"}), ("sce·8e5e1", {"8e5e1"}), ("8e5e1", {"8e5e1"})):
        assert {row.model for row in queries.leaderboard(ledger, model=wanted)} == found


def test_four_digits_tell_models_apart_where_they_can(ledger: Ledger) -> None:
    ledger.add(*[Model(id_, "sce", "merge", "made") for id_ in ("8e5e" + "0" * 28, "77aa" + "0" * 28)])
    ledger.add(Model("x", "odd", "merge", "made"), Model("xy", "odd", "merge", "made"))
    assert set(queries.display_names(ledger).values()) >= {"sce·8e5e", "sce·77aa", "odd·x", "odd·xy", "base"}


def test_the_leaderboard_can_be_kept_to_some_models(ledger: Ledger) -> None:
    ledger.add(score("m1", 60.0), score("m2", 40.0))
    assert [row.model for row in queries.leaderboard(ledger, models=["m2", "unknown"])] == ["m2"]
    assert queries.leaderboard(ledger, models=set()) == []


def test_answers_stand_beside_what_was_asked_in_that_turn(ledger: Ledger) -> None:
    ledger.add(answer("a3", "q1"), answer("a2", turn=2), answer("a1"), answer("a4", "gone"))
    rows = queries.answers_wide(ledger)
    assert [(r.key, r.category, r.prompt, r.reference, r.check) for r in rows] == [
        ("a1", "maths", "1+1?", "2", "number"),
        ("a2", "maths", "+1?", None, "number"),
        ("a3", "prose", "Rhyme.", None, None),
        ("a4", "", "", None, None),
    ]
    assert (rows[0].model_name, rows[0].temperature, rows[0].seed, rows[0].text) == ("tuned", 0.5, 11, "Two.")


def test_judgments_stand_beside_what_was_read_from_them(ledger: Ledger) -> None:
    ledger.add(request("r1", "g1"), request("r2", "g2", order="baseline_first"), request("r3", "unanswered"))
    ledger.add(*[Judgment(key, "j1", "A", "stop", (("A", -0.5),), 9, 1, 0.1, "served") for key in ("g1", "g2")])
    ledger.add(Verdict("r1", "j1", "starter", "1", "q2", 1, "m1", "m2", "model_first", 0.9))
    first, second = queries.judgments_wide(ledger)
    assert first == queries.JudgmentRow(
        "judge", "starter", "1", "q2", "maths", 1, "tuned", "base", "model_first", 0.9, "A", (("A", -0.5),)
    )
    assert (second.order, second.value) == ("baseline_first", None)


def test_checks_are_the_verdicts_without_a_judge(ledger: Ledger) -> None:
    ledger.add(Verdict("a1", "check", "starter", "1", "q2", 1, "m1", None, "single", 1.0))
    ledger.add(Verdict("r1", "j1", "starter", "1", "q2", 1, "m1", None, "single", 7.0))
    assert queries.checks(ledger) == [queries.CheckRow("tuned", "starter", "1", "q2", 1, 1.0)]


def test_training_is_listed_step_by_step(ledger: Ledger) -> None:
    ledger.add(*[TrainingPoint("m1", step, 3.0 - step, 1e-4, step * 100) for step in (2, 10, 1)])
    assert [(row.model_name, row.step) for row in queries.training(ledger)] == [
        ("tuned", 1),
        ("tuned", 2),
        ("tuned", 10),
    ]


def test_a_killed_run_has_no_outcome(ledger: Ledger) -> None:
    done = ledger.start_run(command="fuseval run", experiment='{"a": 1}', versions={"torch": "2.13.0"})
    ledger.end_run(done, outcome="done")
    ledger.start_run(command="fuseval demo", experiment="{}", versions={})
    first, second = queries.runs(ledger)
    assert (first.id, first.outcome, first.versions, first.experiment) == (
        done,
        "done",
        {"torch": "2.13.0"},
        '{"a": 1}',
    )
    assert first.ended is not None
    assert first.started <= first.ended
    assert abs(first.started - datetime.now(UTC)) < timedelta(minutes=5)
    assert (second.command, second.ended, second.outcome) == ("fuseval demo", None, None)


def test_failures_name_the_model(ledger: Ledger) -> None:
    ledger.add(Failure("k", "answer", "m1", "starter", "q1", "timeout", "took 60 s", 3))
    expected = queries.FailureRow("k", "answer", "tuned", "starter", "q1", "timeout", "took 60 s", 3)
    assert queries.failures(ledger) == [expected]


def test_an_empty_ledger_has_empty_tables(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "empty.duckdb") as empty:
        for query in (
            queries.leaderboard,
            queries.differences,
            queries.answers_wide,
            queries.judgments_wide,
            queries.checks,
            queries.training,
            queries.runs,
            queries.failures,
        ):
            assert query(empty) == []
