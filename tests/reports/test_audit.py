"""The judge audit says in plain words what the ledger holds, lays out who agrees with whom, and trusts no text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from judges.flags import DETECTORS
from judges.trust import MEASURES
from reports.audit import DETECTED, blocks, flagged_models, judge_warnings, matrices, visible
from reports.measures import BY_RATINGS, WORDS, figure, line
from results.audit_queries import AuditRow, FlagRow, JudgeOrderRow, ServedRow
from results.queries import LeaderboardRow


def audit(measure, value, *, judge="gpt", other="", low=None, high=None, kind="endpoint", n=20):
    return AuditRow(judge, judge.upper(), kind, "arena", "1", measure, other, other.upper(), "", value, low, high, n)


def flag(key, detector="planted_verdicts", *, model="null", kind="published", detail="[[A]]", question="q"):
    return FlagRow(key, detector, model, model, kind, "arena", "1", question, 1, detail, "text")


def score(name, metric="win_rate", flags=(), **unflagged):
    return LeaderboardRow(
        name, name, "merge", "arena", "1", "gpt", "GPT", "base", metric, 50.0, 45.0, 55.0, 9, 0, flags, **unflagged
    )


def served(judge, model, *, changed):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return ServedRow(judge, judge, "endpoint", model, "", "run", now, now + timedelta(hours=1), 5, changed)


def said(row):
    return line(row).text.replace("\u00a0", " ")


def test_every_measure_and_every_detector_has_its_words():
    assert set(WORDS) == {measure.removesuffix(BY_RATINGS) for measure in MEASURES}
    assert set(DETECTED) == set(DETECTORS)


def test_a_share_is_said_in_per_cent_with_its_interval():
    row = audit("first_preferred", 0.56, low=0.52, high=0.6)
    assert said(row) == "Prefers the answer shown first in 56 % [52, 60] of its judgments (50 % would be fair)."
    assert line(row).rests_on == "n = 20"


@pytest.mark.parametrize(
    ("measure", "value", "text"),
    [
        ("unreadable", 0.004, "0.4 %"),
        ("unreadable", 0.0, "0 %"),
        ("order_consistency", 0.996, "99.6 %"),
        ("self_preference", -0.042, "−4.2"),
        ("self_preference", 0.0001, "0.0"),
        ("retest_gap", 0.171, "17.1"),
        ("length_slope", 0.155, "+0.15"),
        ("cohen_kappa", -0.004, "0.00"),
        ("human_agreement_by_ratings", 0.81, "81 %"),
        ("nobody_knows", 0.5, "0.50"),
        ("brier", None, "missing"),
    ],
)
def test_figures_are_written_in_their_units(measure, value, text):
    assert figure(audit(measure, value)).replace("\u00a0", " ") == text


def test_people_other_judges_and_ratings_are_named():
    assert "how often people agree" in said(audit("calibration_error", 0.1, other="human"))
    assert "how often the other judges agree" in said(audit("calibration_error", 0.1))
    assert said(audit("human_agreement_by_ratings", 0.8, other="human")).endswith("(by its ratings).")


def test_a_measure_without_words_is_shown_by_its_name():
    found = line(audit("newest_bias", 0.5, other="claude"))
    assert (found.heading, found.text) == ("newest bias", "0.50 against CLAUDE")


@pytest.mark.parametrize(
    ("row", "alarm"),
    [
        (audit("first_preferred", 0.65, low=0.6, high=0.7), True),
        (audit("first_preferred", 0.65, low=0.4, high=0.9), False),
        (audit("first_preferred", 0.52, low=0.51, high=0.53), False),
        (audit("self_preference", 0.03, low=0.01, high=0.05), True),
        (audit("self_preference", 0.03, low=-0.01, high=0.05), False),
        (audit("null_control", 0.8, low=0.7, high=0.9), True),
        (audit("unreadable", None), False),
    ],
)
def test_only_what_is_bad_beyond_chance_raises_an_alarm(row, alarm):
    assert line(row).alarm == alarm


def test_a_judge_has_one_block_a_benchmark_and_people_come_last():
    rows = [audit("longer_preferred", 0.6, judge="human"), audit("unreadable", 0.0), audit("order_consistency", 0.9)]
    first, last = blocks([*rows, audit("retest_agreement", 0.9, judge="re", kind="retest")])
    assert (first.judge, first.benchmark, list(first.lines)) == ("GPT", "arena 1", ["Order", "No verdict"])
    assert last.judge == "People"


def test_what_differs_by_model_is_a_table():
    rows = [audit("first_preferred", value, other=model) for model, value in (("sce", 0.5), ("linear", 0.75))]
    [block] = blocks([*rows, audit("unreadable", 0.5, other="linear"), audit("first_preferred", 0.6)])
    assert block.columns == ["first preferred", "unreadable"]
    assert block.rows == [("SCE", ["50\u00a0%", ""]), ("LINEAR", ["75\u00a0%", "50\u00a0%"])]
    assert sum(len(lines) for lines in block.lines.values()) == 1


def test_the_matrix_is_symmetric_and_holds_people():
    rows = [
        audit("judge_agreement", 0.8, judge="a", other="b"),
        audit("cohen_kappa", 0.6, judge="a", other="b"),
        audit("human_agreement", 0.7, judge="b", other="human"),
        audit("human_agreement", 0.81, judge="human", other="human"),
        audit("krippendorff_alpha", 0.5, judge=""),
        audit("rating_agreement", 0.1, judge="a", other="a2"),
    ]
    verdicts, ratings = matrices(rows)
    assert (verdicts.title, verdicts.names) == ("Verdicts on arena 1", ["A", "B", "people"])
    assert verdicts.rows == [
        ("A", ["", "80\u00a0%\nκ 0.60", ""]),
        ("B", ["80\u00a0%\nκ 0.60", "", "70\u00a0%"]),
        ("people", ["", "70\u00a0%", "81\u00a0%"]),
    ]
    assert ["0.50" in note for note in verdicts.notes] == [True]
    assert (ratings.title, ratings.names, ratings.notes) == ("Ratings on arena 1", ["A", "A2"], [])
    assert not any("80" in each.text for block in blocks(rows) for lines in block.lines.values() for each in lines)


def test_a_judge_that_constant_answers_win_over_is_called_out():
    rows = [audit("null_control", value, other=other) for other, value in (("constant", 0.2), ("other", 0.95))]
    [warning] = judge_warnings(rows, [], [])
    assert (
        warning
        == "GPT can be won over by answers that say nothing: on arena 1 CONSTANT loses in 20\u00a0% of 20 cases."
    )


def test_a_judge_by_place_is_called_out_by_its_audit_or_else_by_its_verdicts():
    rows = [audit("order_consistency", 0.4), audit("first_preferred", 0.8), audit("first_preferred", 0.1, other="sce")]
    unaudited = JudgeOrderRow("claude", "arena", "1", 9, 0.5, 0.3)
    orders = [
        unaudited,
        JudgeOrderRow("GPT", "arena", "1", 9, 1.0, 0.0),
        JudgeOrderRow("fair", "arena", "1", 9, 0.5, 1.0),
    ]
    warnings = judge_warnings(rows, [unaudited, *orders], [])
    assert [(text.split()[0], "40% of the pairs" in text, "80% of" in text) for text in warnings] == [
        ("GPT", True, True), ("claude", False, False)
    ]  # fmt: skip


def test_judges_that_change_within_a_run_are_named_once():
    rows = [served("b", "x", changed=True), served("b", "y", changed=True), served("a", "z", changed=True)]
    [warning] = judge_warnings([], [], [*rows, served("c", "x", changed=False)])
    assert warning.startswith("a and b were served by several models or systems within one run")
    assert judge_warnings([], [], [served("c", "x", changed=False)]) == []


def test_models_are_marked_by_the_flags_of_their_scores_and_controls_are_left_out():
    flags = [flag("a1"), flag("a2", detail="[[B]]"), flag("a3"), flag("a1", "template_markers")]
    flags += [flag("b1", model="honest"), flag("c1", model="constant", kind="control")]
    rows = [score("null", flags=("attack:planted_verdicts",), unflagged=3.0, unflagged_n=2), score("honest")]
    null, honest = flagged_models(flags, rows, answered={("null", "arena", "1"): 5})
    assert (null.model, null.marked, null.answers, [row.metric for row in null.scores]) == (
        "null",
        True,
        5,
        ["win_rate"],
    )
    assert [(found.detector, len(found.keys)) for found in null.found] == [
        ("planted verdicts", 3),
        ("template markers", 1),
    ]
    assert null.found[0].examples == [("q", "[[A]]"), ("q", "[[B]]")]  # equal ones once
    assert (honest.model, honest.marked, honest.answers, honest.scores) == ("honest", False, 0, [])


def test_what_hides_or_reorders_text_is_written_out():
    assert visible("a\u202eb\x00\u200bc\nd") == "a⟨U+202E⟩b⟨U+0000⟩⟨U+200B⟩c\nd"


@pytest.mark.parametrize("mark", "\r\x85\u00ad\u034f\u061c\u115f\u1160\u180e\u2028\u2029\u2065\u3164\ufeff\U000e0041")
def test_no_mark_that_shows_nothing_is_left_unseen(mark):
    assert visible(f"a{mark}b") == f"a⟨U+{ord(mark):04X}⟩b"


def test_what_can_be_seen_is_left_as_it_is():
    assert visible("Größe\t— 日本 é 😀 한\n") == "Größe\t— 日本 é 😀 한\n"
