"""What scores rest on: judgments that are still to be read, verdicts in their order, and digests of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from evals.records import Answer, JudgeRequest, Judgment, Question, Sampling, Selection, Verdict
from results import evidence
from results.store import Ledger

PLACE = {"benchmark": "starter", "version": "1"}
READER = 3


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.duckdb") as opened:
        opened.add(Question("starter", "1", "q1", "prose", ("Rhyme.",)))
        yield opened


def asked(key: str) -> tuple[JudgeRequest, Judgment]:
    request = JudgeRequest(
        key, f"g{key}", "j", "starter", "1", "q1", 1, "m", "b", "model_first", (), (), Sampling(), "five_verdicts"
    )
    return request, Judgment(f"g{key}", "j", "[[A>B]]", "stop", (), 0, 0, 0.0, "j")


def verdict(key: str, value: float | None = 1.0, *, baseline: str | None = "b") -> Verdict:
    return Verdict(key, "j", "starter", "1", "q1", 1, "m", baseline, "model_first", value, READER)


def unread(ledger: Ledger) -> list[str]:
    batches = evidence.unread(ledger, **PLACE, reader=READER)
    return [request.key for batch in batches for request, _ in batch]


def test_judgments_are_unread_until_these_readers_have_read_them(ledger: Ledger) -> None:
    ledger.add(*asked("r1"), *asked("r2"))
    assert unread(ledger) == ["r1", "r2"]
    ledger.add(verdict("r1"), replace(verdict("r2"), reader=READER - 1))
    assert unread(ledger) == ["r2"]
    ledger.add(verdict("r2", None))
    assert unread(ledger) == []


def test_as_many_verdicts_on_other_requests_do_not_make_a_judgment_read(ledger: Ledger) -> None:
    ledger.add(*asked("r1"), verdict("elsewhere"))
    assert unread(ledger) == ["r1"]


def test_a_request_without_a_judgment_is_not_to_be_read(ledger: Ledger) -> None:
    ledger.add(asked("r1")[0])
    assert unread(ledger) == []


def test_verdicts_come_in_the_order_in_which_they_were_stored(ledger: Ledger) -> None:
    ledger.add(verdict("z", 0.0), verdict("a", 0.25, baseline=None))
    ledger.flush()
    ledger.add(verdict("k", None))
    found = evidence.judged(ledger, **PLACE, beside_too=True)
    assert found["value"].fillna(-1).tolist() == [0.0, 0.25, -1]
    assert found["baseline"].notna().tolist() == [True, False, True]
    assert found["counts"].all()


def test_verdicts_of_older_ledgers_come_first_by_when_they_were_stored(ledger: Ledger) -> None:
    ledger.add(verdict("z", 0.0), verdict("a", 0.25), verdict("k", 0.5))
    ledger.flush()
    with ledger._writing() as connection:
        connection.execute(
            "UPDATE verdicts SET position = NULL, recorded_at = recorded_at - to_days(CAST(ord(request[1]) AS INT)) "
            "WHERE request <> 'k'"
        )
    assert evidence.judged(ledger, **PLACE, beside_too=True)["value"].tolist() == [0.0, 0.25, 0.5]


def test_digests_are_equal_where_the_same_judgments_and_verdicts_are(ledger: Ledger) -> None:
    nothing = evidence.digests(ledger, **PLACE)
    ledger.add(verdict("r1"), verdict("r2"))
    both = evidence.digests(ledger, **PLACE)
    assert nothing["judgments"] != both["judgments"]
    assert nothing["verdicts"] != both["verdicts"]
    ledger.add(verdict("r1"))
    assert evidence.digests(ledger, **PLACE) == both
    ledger.add(verdict("r1", 0.5))  # read differently: the same judgment
    changed = evidence.digests(ledger, **PLACE)
    assert changed["judgments"] == both["judgments"]
    assert changed["verdicts"] != both["verdicts"]
    ledger.add(replace(verdict("r3"), judge="check"))
    assert evidence.digests(ledger, **PLACE)["judgments"] == both["judgments"]
    ledger.add(verdict("r4"))
    assert evidence.digests(ledger, **PLACE)["judgments"] != both["judgments"]


def answer(key: str, *, model: str = "m", question: str = "q1", turn: int = 1) -> Answer:
    return Answer(key, model, "starter", "1", question, turn, key, "stop", 0, 0, 0.0, 0, Sampling())


def about(ledger: Ledger, shown: str, *, judge: str = "j", question: str = "q1", beside: str | None = None) -> None:
    """Have ``judge`` judge an answer, alone or beside another."""
    keys = (shown,) if beside is None else (shown, beside)
    name = f"{judge} {shown} {beside}"
    request = JudgeRequest(
        name, f"g {name}", judge, "starter", "1", question, 1, "m", "b" if beside else None, "single", keys, (),
        Sampling(), "rating",
    )  # fmt: skip
    ledger.add(request, Judgment(f"g {name}", judge, "[[5]]", "stop", (), 0, 0, 0.0, judge))
    ledger.add(Verdict(name, judge, "starter", "1", question, 1, "m", request.baseline, "single", 5.0, READER))
    ledger.flush()


def counting(ledger: Ledger) -> dict[str, list[bool]]:
    found = evidence.judged(ledger, **PLACE, beside_too=True)
    return {judge: list(rows["counts"]) for judge, rows in found.groupby("judge", observed=True)}


def selection(model: str, questions: tuple[str, ...], answers: tuple[str, ...]) -> Selection:
    return Selection(model, "starter", "1", questions, answers, None, ("j",))


def test_of_an_imported_model_each_judges_last_judged_answer_counts(ledger: Ledger) -> None:
    for key in ("old", "new"):
        ledger.add(answer(key))
        ledger.flush()
    about(ledger, "old", judge="late")
    about(ledger, "old", judge="early")
    about(ledger, "new", judge="early")
    assert counting(ledger) == {"late": [True], "early": [False, True]}


def test_of_a_model_that_was_run_only_the_selected_answers_count(ledger: Ledger) -> None:
    ledger.add(answer("old"), answer("new"), selection("m", ("q1",), ("new",)))
    about(ledger, "old")
    about(ledger, "new")
    assert counting(ledger) == {"j": [False, True]}


def test_a_later_smaller_run_of_the_base_takes_nothing_from_an_earlier_ones_questions(ledger: Ledger) -> None:
    ledger.add(Question("starter", "1", "q2", "prose", ("Rhyme again.",)))
    ledger.add(answer("mine 1"), answer("mine 2", question="q2"))
    ledger.add(answer("base 1", model="b"), answer("base 2", model="b", question="q2"))
    ledger.add(selection("m", ("q1", "q2"), ("mine 1", "mine 2")), selection("b", ("q1",), ("base 1",)))
    about(ledger, "mine 1", beside="base 1")
    about(ledger, "mine 2", beside="base 2", question="q2")
    assert counting(ledger) == {"j": [True, True]}


def test_an_answer_beyond_a_questions_turns_takes_nothing_away(ledger: Ledger) -> None:
    ledger.add(answer("first"), answer("third", turn=3))
    assert evidence.current_keys(ledger, **PLACE) == ["first"]
