"""The ledger keeps what it is given, once, and whatever happens to the process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import duckdb
import pandas
import pytest

from evals.records import (
    Answer,
    Coefficient,
    Difference,
    Failure,
    Imported,
    ItemScore,
    JudgeRequest,
    Judgment,
    Message,
    Model,
    Question,
    Sampling,
    Score,
    Selection,
    TrainingPoint,
    Verdict,
)
from results.errors import LedgerBusy, LedgerError
from results.evidence import spent, unreadable
from results.store import Ledger

QUESTION = Question("starter", "1", "q1", "maths", ("1+1?", "and +1?"), "Be brief.", ("2", "3"), "number")
MODEL = Model("m" * 32, "base", "checkpoint", "hub/base", "p" * 32, '{"method": "sce"}')
SAMPLING = Sampling(temperature=0.7, top_p=0.9, top_k=5, stop=("\n\n", "</s>"), seed=7)
ANSWER = Answer("a1", MODEL.id, "starter", "1", "q1", 2, "três ✓", "stop", 12, 3, 0.25, 2**63 - 1, SAMPLING)
REQUEST = JudgeRequest(
    key="r1",
    judgment="g1",
    judge="j" * 32,
    benchmark="starter",
    version="1",
    question="q1",
    turn=2,
    model=MODEL.id,
    baseline=None,
    order="single",
    answers=("a1",),
    messages=(Message("system", "Judge."), Message("user", 'Say "A"\nor B 日本')),
    sampling=SAMPLING,
    reply="rating",
)
JUDGMENT = Judgment("g1", "j" * 32, "A", "stop", (("A", -0.1), ("B", -2.5)), 99, 1, 0.5, "served")
VERDICT = Verdict("r1", "j" * 32, "starter", "1", "q1", 2, MODEL.id, None, "single", 0.75)
ITEM = ItemScore(MODEL.id, "starter", "1", "check", None, "accuracy", "q1", None, 2.0)
SCORE = Score(MODEL.id, "starter", "1", "check", None, "accuracy", 50.0, 40.0, 60.0, 10, 2, ("few questions",))
DIFFERENCE = Difference(
    MODEL.id, "other", "starter", "1", "check", None, "accuracy", 1.0, -2.0, 3.0, 0.5, 10, 0, 0.9, 2.5
)
SELECTION = Selection(MODEL.id, "starter", "1", ("q1", "q2"), ("a1",), "other", ("j" * 32,))
FAILURE = Failure("a9", "answer", MODEL.id, "starter", "q9", "timeout", "took 60 s", 3)
COEFFICIENT = Coefficient(MODEL.id, "model.norm.weight", None, "conflict", 0.25)
IMPORTED = Imported("a1", "fastchat answers", 0, '{"tstamp": 1.5}')
POINT = TrainingPoint(MODEL.id, 10, 2.5, 1e-4, 4096, (("grad_norm", 1.5),))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "ledger.duckdb"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.open(path) as opened:
        yield opened


def verdict(number: int, value: float | None = 1.0) -> Verdict:
    return replace(VERDICT, request=f"r{number}", value=value)


def everything(ledger: Ledger) -> list[list[object]]:
    return [
        list(records)
        for records in (
            ledger.questions("starter", "1"),
            ledger.models(),
            ledger.answers(),
            ledger.judge_requests(),
            ledger.judgments(),
            ledger.verdicts(),
            ledger.scores(),
            ledger.differences(),
            ledger.selections(),
            ledger.failures(),
            ledger.training(),
            ledger.coefficients(),
            ledger.imported(),
        )
    ]


RECORDS = (
    QUESTION,
    MODEL,
    ANSWER,
    REQUEST,
    JUDGMENT,
    VERDICT,
    SCORE,
    DIFFERENCE,
    SELECTION,
    FAILURE,
    POINT,
    COEFFICIENT,
    IMPORTED,
)


def test_every_record_comes_back_as_it_was(ledger: Ledger, path: Path) -> None:
    ledger.add(*RECORDS)
    assert everything(ledger) == [[record] for record in RECORDS]
    ledger.close()
    with Ledger.open(path, read_only=True) as again:
        assert everything(again) == [[record] for record in RECORDS]


def test_adding_twice_changes_nothing(ledger: Ledger) -> None:
    for _ in range(2):
        ledger.add(*RECORDS, *RECORDS)
        ledger.flush()
    assert everything(ledger) == [[record] for record in RECORDS]


@pytest.mark.parametrize("flush", [True, False])
def test_the_first_answer_stays_and_the_last_verdict_counts(ledger: Ledger, flush: bool) -> None:
    ledger.add(ANSWER, VERDICT)
    if flush:
        ledger.flush()
    ledger.add(replace(ANSWER, text="another"), replace(VERDICT, value=None))
    assert [a.text for a in ledger.answers()] == [ANSWER.text]
    assert [v.value for v in ledger.verdicts()] == [None]


@pytest.mark.parametrize("flush", [True, False])
def test_an_answer_or_judgment_ends_its_failure(ledger: Ledger, flush: bool) -> None:
    ledger.add(FAILURE, replace(FAILURE, key="a1"), replace(FAILURE, key="g1", stage="judge"))
    if flush:
        ledger.flush()
    ledger.add(ANSWER, JUDGMENT)
    assert ledger.failures() == [FAILURE]
    ledger.add(replace(FAILURE, key="a1"))
    assert ledger.failures() == [FAILURE]


@pytest.mark.parametrize("flush", [True, False])
def test_what_failures_cost_stays_spent(ledger: Ledger, flush: bool) -> None:
    failed = replace(FAILURE, key="g1", stage="judge", cost=5.0)
    for record in (failed, replace(failed, cost=4.0), replace(failed, cost=None), replace(JUDGMENT, cost=1.0)):
        ledger.add(record)
        if flush:
            ledger.flush()
    assert ledger.failures() == []
    assert ledger.judgments() == [replace(JUDGMENT, cost=10.0)]
    assert spent(ledger) == 10.0


def test_a_later_judgment_takes_the_place_of_an_earlier_one_and_is_read_anew(ledger: Ledger) -> None:
    ledger.add(ANSWER, JUDGMENT, REQUEST, VERDICT)
    later = replace(JUDGMENT, text="B", asked=3, cost=0.5)
    ledger.put_again(later)
    assert ledger.judgments() == [later]
    assert ledger.verdicts() == []
    ledger.add(replace(VERDICT, value=None))
    found = unreadable(ledger, benchmark="starter", version="1", judge=JUDGMENT.judge, asked_below=4)
    assert found == ["g1"]
    assert not unreadable(ledger, benchmark="starter", version="1", judge=JUDGMENT.judge, asked_below=3)


def test_have_tells_what_is_stored(ledger: Ledger) -> None:
    ledger.add(ANSWER, JUDGMENT, REQUEST, VERDICT)
    many = {f"unknown {number}" for number in range(20_000)}
    assert ledger.have("answers", {"a1"} | many) == {"a1"}
    assert ledger.have("judgments", iter(["g1", "g1"])) == {"g1"}
    assert ledger.have("judge_requests", ["r1"]) == ledger.have("verdicts", ["r1", "r2"]) == {"r1"}
    assert ledger.have("answers", []) == set()


def test_reads_can_be_narrowed(ledger: Ledger) -> None:
    other = replace(ANSWER, key="a2", model="x", benchmark="arena")
    ledger.add(
        ANSWER, other, JUDGMENT, replace(JUDGMENT, key="g2"), VERDICT, replace(VERDICT, request="a1", judge="check")
    )
    assert ledger.answers(models=["x"]) == ledger.answers(benchmark="arena") == ledger.answers(keys=["a2"]) == [other]
    assert ledger.answers(keys=[]) == ledger.answers(benchmark="arena", models=[MODEL.id]) == []
    assert [g.key for g in ledger.judgments(keys=["g2", "g3"])] == ["g2"]
    assert [v.request for v in ledger.verdicts(judge="check", version="1")] == ["a1"]


def test_the_last_selection_counts(ledger: Ledger) -> None:
    last = replace(SELECTION, questions=("q1",), baseline=None)
    other = replace(SELECTION, benchmark="arena")
    ledger.add(SELECTION, other)
    ledger.flush()
    ledger.add(last)
    assert ledger.selections() == [other, last]
    assert ledger.selections(benchmark="starter", version="1") == [last]
    assert ledger.selections(version="2") == []


def test_a_difference_is_kept_for_each_baseline(ledger: Ledger) -> None:
    kept = [replace(DIFFERENCE, baseline=baseline) for baseline in (None, "b1", "b2")]
    ledger.add(*kept, *kept)
    assert ledger.differences() == kept


def test_questions_keep_the_order_of_the_benchmark(ledger: Ledger) -> None:
    ids = ["q10", "q2", "zz", "a"]
    for id_ in ids:
        ledger.add(replace(QUESTION, id=id_))
    ledger.add(*[replace(QUESTION, id=id_) for id_ in reversed(ids)])
    assert [q.id for q in ledger.questions("starter", "1")] == ids
    assert ledger.benchmarks() == [("starter", "1")]


def test_hostile_text_is_kept_as_far_as_utf8_can(ledger: Ledger) -> None:
    hostile = "\x00nul \ud800 lone \ud83d\ude00 pair '; DROP TABLE answers; -- \u202e"
    kept = "\x00nul \ufffd lone 😀 pair '; DROP TABLE answers; -- \u202e"
    ledger.add(replace(ANSWER, text=hostile), replace(JUDGMENT, text=hostile, top_logprobs=((hostile, -1.0),)))
    ledger.add(replace(REQUEST, messages=(Message("user", hostile),)), replace(FAILURE, message=hostile))
    assert ledger.answers()[0].text == ledger.judgments()[0].text == ledger.failures()[0].message == kept
    assert ledger.judgments()[0].top_logprobs == ((kept, -1.0),)
    assert ledger.judge_requests()[0].messages[0].content == kept


def test_a_value_that_fits_no_column_is_refused_at_once_and_stops_nothing(ledger: Ledger) -> None:
    with pytest.raises(TypeError, match=r"Answer\.text = None does not fit the ledger's column text"):
        ledger.add(replace(ANSWER, text=None))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="64-bit"):
        ledger.add(replace(ANSWER, seed=2**64))
    with pytest.raises(TypeError, match="stores no str"):
        ledger.add("answer")  # type: ignore[arg-type]
    ledger.add(ANSWER)
    assert ledger.answers() == [ANSWER]


def test_scores_carry_their_provenance(ledger: Ledger) -> None:
    scores = [SCORE, replace(SCORE, metric="other")]
    ledger.put_scores(scores, **PLACE, provenance={"scored_with": {"numpy": "2.4"}})
    rows = ledger.sql("SELECT provenance ->> '$.scored_with.numpy', scored_at <= now() FROM scores").fetchall()
    assert rows == [("2.4", True)] * 2


PLACE = {"benchmark": "starter", "version": "1"}


def item_frame() -> pandas.DataFrame:
    return pandas.DataFrame([asdict(ITEM)]).drop(columns=["benchmark", "version"])


def test_item_scores_come_as_a_frame_and_leave_as_records(ledger: Ledger) -> None:
    ledger.put_scores([SCORE], **PLACE, provenance={}, items=item_frame(), differences=[DIFFERENCE])
    assert (ledger.scores(), ledger.item_scores(), ledger.differences()) == ([SCORE], [ITEM], [DIFFERENCE])


def test_scores_of_a_benchmark_are_replaced_and_no_others(ledger: Ledger) -> None:
    other = replace(SCORE, version="2")
    ledger.add(other)
    ledger.put_scores([SCORE], **PLACE, provenance={}, items=item_frame(), differences=[DIFFERENCE])
    again = replace(SCORE, model="x")
    ledger.put_scores([again], **PLACE, provenance={})
    assert (ledger.scores(), ledger.item_scores(), ledger.differences()) == ([other, again], [], [])


def test_scores_that_cannot_be_replaced_stay(ledger: Ledger) -> None:
    ledger.put_scores([SCORE], **PLACE, provenance={}, items=item_frame())
    with pytest.raises(LedgerError):
        ledger.put_scores([], **PLACE, provenance={}, items=item_frame().drop(columns="metric"))
    assert (ledger.scores(), ledger.item_scores()) == ([SCORE], [ITEM])


def test_rows_name_the_run_that_stored_them(ledger: Ledger) -> None:
    ledger.add(verdict(0))
    run = ledger.start_run(command="fuseval demo", experiment="{}", versions={"torch": "2.13.0"})
    ledger.add(verdict(1))
    ledger.end_run(run, outcome="done")
    ledger.add(verdict(2))
    assert ledger.sql("SELECT run FROM verdicts ORDER BY request").fetchall() == [(None,), (run,), (None,)]
    assert ledger.sql("SELECT id, outcome, ended >= started FROM runs").fetchall() == [(run, "done", True)]


@pytest.mark.slow
def test_a_hundred_thousand_verdicts_are_stored_and_read(ledger: Ledger) -> None:
    verdicts = [verdict(number) for number in range(100_000)]
    ledger.add(*verdicts)
    assert len(ledger.have("verdicts", (v.request for v in verdicts))) == 100_000
    assert sorted(v.request for v in ledger.verdicts()) == sorted(v.request for v in verdicts)


def test_many_rows_at_once_are_stored_as_few_are(ledger: Ledger) -> None:
    count = 2_500  # large enough for Arrow
    judgments = [replace(JUDGMENT, key=f"g{number:05}") for number in range(count)]
    scores = [replace(SCORE, metric=f"m{number:05}") for number in range(count)]
    points = [replace(POINT, step=number) for number in range(count)]
    questions = [replace(QUESTION, id=f"q{number * 7919 % count}") for number in range(count)]
    answers = [replace(ANSWER, key=f"a{number:05}") for number in range(count)]
    ledger.add(*judgments, *scores, *points, *questions, *answers)
    assert (ledger.judgments(), ledger.scores(), ledger.training()) == (judgments, scores, points)
    assert (ledger.questions("starter", "1"), ledger.answers()) == (questions, answers)


@pytest.mark.slow
def test_a_record_is_on_disk_within_a_second_though_nothing_follows_and_the_process_is_killed(path: Path) -> None:
    code = """
import sys, time
from evals.records import Failure
from results.store import Ledger
ledger = Ledger.open(sys.argv[1])
ledger.add(Failure("k1", "answer", "m", "b", "q", "timeout", "slow", 1))
ledger.add(Failure("k2", "answer", "m", "b", "q", "timeout", "slow", 1))
print("added", flush=True)
time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "added\n"
    time.sleep(1.0)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    with Ledger.open(path) as ledger:
        assert [failure.key for failure in ledger.failures()] == ["k1", "k2"]


def test_what_a_program_that_forgets_to_close_added_is_there(path: Path) -> None:
    code = """
import sys
from evals.records import Failure
from results.store import Ledger
Ledger.open(sys.argv[1]).add(Failure("k1", "answer", "m", "b", "q", "timeout", "slow", 1))
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    with Ledger.open(path, read_only=True) as ledger:
        assert [failure.key for failure in ledger.failures()] == ["k1"]


def test_an_error_of_the_background_is_raised_and_nothing_is_lost(ledger: Ledger) -> None:
    ledger.sql("ALTER TABLE verdicts RENAME TO hidden")
    ledger.add(verdict(1))
    for _ in range(100):
        time.sleep(0.05)
        if ledger._error:
            break
    with pytest.raises(LedgerError, match=r"could not be written .*verdicts"):
        ledger.add(verdict(2))
    ledger._connection.execute("ALTER TABLE hidden RENAME TO verdicts")
    for _ in range(2):
        try:
            assert [v.request for v in ledger.verdicts()] == ["r1", "r2"]
        except LedgerError:  # the thread had met the hidden table once more
            continue
        break
    else:
        pytest.fail("the ledger did not recover")


def test_a_closed_or_read_only_ledger_says_so(path: Path) -> None:
    ledger = Ledger.open(path)
    ledger.close()
    ledger.close()
    for action in (ledger.flush, ledger.models, lambda: ledger.add(MODEL)):
        with pytest.raises(LedgerError, match="is closed"):
            action()
    with Ledger.open(path, read_only=True) as reader, pytest.raises(LedgerError, match="read-only"):
        reader.add(MODEL)


def test_one_process_has_one_writer(ledger: Ledger, path: Path) -> None:
    for read_only in (False, True):
        with pytest.raises(LedgerBusy, match="in this very process"):
            Ledger.open(path, read_only=read_only)
    ledger.close()
    Ledger.open(path).close()


def test_the_file_is_plain_duckdb(ledger: Ledger, path: Path) -> None:
    ledger.add(*RECORDS)
    ledger.close()
    with duckdb.connect(str(path), read_only=True) as plain:
        row = plain.execute("SELECT prompt, reference, temperature, model_name FROM answers_wide").fetchone()
    assert row == ("and +1?", "3", 0.7, "base")
