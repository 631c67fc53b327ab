"""The audit of a judge: planted faults are found with their size, and what is not there is not found."""

import json
import os
import pathlib
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from evals.benchmark import VERDICT_COLUMNS
from evals.records import Question
from judges.people import Vote, human_verdicts
from judges.trust import MEASURES, audit

ORDERS = ("model_first", "baseline_first")


def questions(count=40, turns=1):
    return [Question("bench", "1", f"q{n}", "general", ("say something",) * turns) for n in range(count)]


def frame(rows):
    """Verdicts of rows (model, judge, baseline, question, order, value)."""
    full = [(m, j, b, q, 1, o, v, True) for m, j, b, q, o, v in rows]
    return pd.DataFrame(full, columns=list(VERDICT_COLUMNS))


def texts(models, asked, *, length=lambda model, n: 50 + n, mark=lambda model, n: ""):
    rows = [(m, q.id, 1, mark(m, n) + "x" * length(m, n)) for m in models for n, q in enumerate(asked)]
    return pd.DataFrame(rows, columns=["model", "question", "turn", "text"])


NO_TEXTS = pd.DataFrame(columns=["model", "question", "turn", "text"])


def judged(value, *, judges=("j",), models=("a", "b", "c"), asked=40, orders=ORDERS):
    """What judges say where ``value(judge, model, n, order)`` is each preference."""
    return frame(
        [
            (m, j, "base", f"q{n}", o, value(j, m, n, o))
            for j in judges
            for m in models
            for n in range(asked)
            for o in orders
        ]
    )


def rated(value, *, judges=("j",), models=("a", "b", "c"), asked=40):
    return frame(
        [(m, j, None, f"q{n}", "single", value(j, m, n)) for j in judges for m in models for n in range(asked)]
    )


def measure(audits, name, *, judge="j", other=""):
    [found] = [a for a in audits if (a.judge, a.measure, a.other) == (judge, name, other)]
    return found


def votes(value, *, models=("a", "b", "c"), asked=40, people=2):
    each = [
        Vote(f"q{n}", 1, m, "base", f"expert_{p}", value(m, n, p))
        for m in models
        for n in range(asked)
        for p in range(people)
    ]
    return human_verdicts(each, {name: name for name in (*models, "base")})


def test_a_pair_by_hand():
    said = frame([
        ("a", "j", "base", "q0", "model_first", 1.0), ("a", "j", "base", "q0", "baseline_first", 1.0),
        ("a", "j", "base", "q1", "model_first", 1.0), ("a", "j", "base", "q1", "baseline_first", 0.0),
        ("a", "j", "base", "q2", "model_first", 0.5), ("a", "j", "base", "q2", "baseline_first", 0.0),
        ("a", "j", "base", "q3", "model_first", None), ("a", "j", "base", "q3", "baseline_first", 0.0),
    ])  # fmt: skip
    found = audit(said, NO_TEXTS, questions())
    # Of q0, q1 and q2 one is consistent; shown first, the answer won 1, 2 and 1.5 of two judgments.
    assert (measure(found, "order_consistency").value, measure(found, "order_consistency").n) == (
        pytest.approx(1 / 3),
        3,
    )
    assert measure(found, "first_preferred").value == pytest.approx(4.5 / 6)
    assert (measure(found, "unreadable").value, measure(found, "unreadable").n) == (0.125, 8)


def test_a_judge_that_takes_the_first_answer_every_third_time_is_seen_to():
    said = judged(lambda j, m, n, o: float(o == "model_first") if n % 3 == 0 else 1.0, asked=60)
    found = audit(said, NO_TEXTS, questions(60))
    first = measure(found, "first_preferred")
    assert (first.value, first.n) == (pytest.approx(2 / 3), 180)
    assert first.low < 2 / 3 < first.high and first.low > 0.5
    assert measure(found, "order_consistency", other="b").value == pytest.approx(2 / 3)


def test_a_judge_asked_in_one_order_shows_no_bias_where_the_model_is_only_strong():
    # The strong model was shown first twice as often as the weak one; within either, the place makes no difference.
    def rows(model, share, wins):
        return [(model, "j", "base", f"q{n}", ORDERS[n % share != 0], float(n // 6 % 2 < wins)) for n in range(60)]

    said = frame(rows("strong", 2, 2) + rows("weak", 3, 0))
    assert measure(audit(said, NO_TEXTS, questions(60)), "first_preferred").value == pytest.approx(0.5)


def test_length_and_markdown_preferences_are_shares_of_pairs_that_differ():
    asked = questions(4)
    said = frame([("a", "j", "base", f"q{n}", "model_first", value) for n, value in enumerate((1.0, 0.0, 0.5, 1.0))])
    lengths = {"a": (20, 10, 20, 10), "base": (10, 20, 10, 10)}
    found = audit(said, texts(("a", "base"), asked, length=lambda m, n: lengths[m][n]), asked)
    assert (measure(found, "longer_preferred").value, measure(found, "longer_preferred").n) == (
        pytest.approx(2.5 / 3),
        3,
    )
    assert not [a for a in found if a.measure == "markdown_preferred"]


def test_the_effect_of_length_is_that_which_was_planted_whatever_the_models_strength():
    rng = np.random.default_rng(0)
    lengths = {(m, n): int(rng.integers(50, 400)) for m in ("a", "b", "c", "base") for n in range(400)}
    marked = {key: rng.integers(2) for key in lengths}

    def value(j, m, n, o):
        doublings = np.log2((lengths[m, n] + 6 * marked[m, n] + 1) / (lengths["base", n] + 6 * marked["base", n] + 1))
        odds = {"a": -1.0, "b": 0.0, "c": 2.0}[m] + np.log(0.6 / 0.4) * doublings
        return float(rng.random() < 1 / (1 + np.exp(-odds)))

    said = judged(value, asked=400)
    answers = texts(
        ("a", "b", "c", "base"),
        questions(400),
        length=lambda m, n: lengths[m, n],
        mark=lambda m, n: "**b** " * marked[m, n],
    )
    found = audit(said, answers, questions(400))
    length, markdown = measure(found, "length_effect"), measure(found, "markdown_effect")
    assert length.low < 0.6 < length.high and length.value == pytest.approx(0.6, abs=0.04)
    assert markdown.low < 0.5 < markdown.high


def test_self_preference_is_what_exceeds_the_other_judges_and_is_not_said_of_everybody():
    def value(j, m, n, o):
        fair = {"own": 0.7, "b": 0.4, "c": 0.5}[m] + (n % 5 - 2) / 20
        return fair + {"j": 0.05 + 0.2 * (m == "own"), "k": 0.0, "l": -0.02}[j]

    said = judged(value, judges=("j", "k", "l"), models=("own", "b", "c"))
    found = audit(said, NO_TEXTS, questions(), families={"j": "F", "own": "F", "k": "G"})
    assert measure(found, "self_preference").value == pytest.approx(0.2)
    assert measure(found, "self_preference", other="own").n == 40
    assert {a.judge for a in found if a.measure == "self_preference"} == {"j"}


def test_where_the_baseline_is_the_judges_own_its_side_is_counted():
    said = judged(lambda j, m, n, o: 0.5 - 0.1 * (j == "j"), judges=("j", "k"))
    found = audit(said, NO_TEXTS, questions(), families={"j": "F", "base": "F"})
    assert measure(found, "self_preference").value == pytest.approx(0.1)


def test_a_lenient_judge_is_no_selfish_one():
    said = rated(lambda j, m, n: 5.0 + (j == "j") * 2 + (m == "own") + n % 2, judges=("j", "k"), models=("own", "b"))
    found = audit(said, NO_TEXTS, questions(), families={"j": "F", "own": "F"})
    assert measure(found, "rating_self_preference").value == pytest.approx(0.0)
    alone = audit(said[said["model"] == "own"], NO_TEXTS, questions(), families={"j": "F", "own": "F"})
    assert not [a for a in alone if a.measure == "rating_self_preference"]


def test_what_is_said_on_the_second_asking_is_held_against_the_first():
    def value(j, m, n, o):
        return 0.8 if j == "j" or n % 4 else 0.4

    found = audit(judged(value, judges=("j", "j-again")), NO_TEXTS, questions(), retests={"j": "j-again"})
    assert measure(found, "retest_agreement", other="j-again").value == pytest.approx(0.75)
    assert measure(found, "retest_mean_change", other="j-again").value == pytest.approx(-0.1)
    assert measure(found, "retest_gap", other="j-again").value == pytest.approx(0.1)
    assert {a.judge for a in found} == {"j"}  # the repeated judge is no judge of its own


def test_controls_must_lose_and_have_no_part_in_anything_else():
    def value(j, m, n, o):
        return {"null": 0.9 if n < 10 else 0.1}.get(m, 0.6)

    plain = audit(judged(value, models=("a", "b")), NO_TEXTS, questions())
    found = audit(judged(value, models=("a", "b", "null")), NO_TEXTS, questions(), controls={"null"})
    assert measure(found, "null_control", other="null").value == pytest.approx(0.75)
    assert measure(found, "null_preference", other="null").value == pytest.approx(0.3)
    assert [a for a in found if not a.measure.startswith("null_")] == plain


def test_a_rated_control_must_stay_below_the_others():
    real = rated(lambda j, m, n: 7.0 + (m == "a"))
    control = rated(lambda j, m, n: 9.0 if n == 0 else 2.0, models=("null",))
    found = audit(pd.concat([real, control]), NO_TEXTS, questions(), controls={"null"})
    assert measure(found, "null_rating_control", other="null").value == pytest.approx(39 / 40)
    assert measure(found, "null_rating", other="null").value == pytest.approx((9 + 39 * 2) / 40)


def test_a_calibrated_judge_has_no_error_and_a_boastful_one_has():
    # People agree with it in 7 of 10, and it says 0.7; the other says 1.
    said = judged(lambda j, m, n, o: 0.7 if j == "j" else 1.0, judges=("j", "boaster"), orders=ORDERS[:1])
    found = audit(said, NO_TEXTS, questions(), people=votes(lambda m, n, p: float(n % 10 < 7)))
    assert measure(found, "calibration_error", other="human").value == pytest.approx(0.0, abs=1e-9)
    assert measure(found, "brier", other="human").value == pytest.approx(0.21)
    assert measure(found, "calibration_error", judge="boaster", other="human").value == pytest.approx(0.3)


def test_without_people_calibration_is_against_what_most_other_judges_say():
    said = judged(lambda j, m, n, o: 0.9 if j == "j" else float(n % 10 < 9), judges=("j", "k", "l"))
    found = audit(said, NO_TEXTS, questions())
    assert measure(found, "calibration_error").value == pytest.approx(0.0, abs=1e-9)
    two = audit(said[said["judge"] != "l"], NO_TEXTS, questions())
    assert not [a for a in two if a.measure == "calibration_error"]


def everything():
    """Verdicts, answers and options from which every measure can be had."""
    rng = np.random.default_rng(1)
    models, asked = ("own", "b", "c", "d", "null"), questions(30)
    strength = {"own": 0.7, "b": 0.6, "c": 0.5, "d": 0.4, "null": 0.1, "base": 0.5}
    said = pd.concat([
        judged(lambda j, m, n, o: round(float(np.clip(rng.normal(strength[m], 0.2), 0, 1)), 2),
               judges=("j", "k", "l", "j-again"), models=models, asked=30),
        rated(lambda j, m, n: float(np.clip(round(10 * strength[m] + rng.normal()), 1, 10)),
              judges=("j", "k", "l", "j-again"), models=(*models, "base"), asked=30),
    ], ignore_index=True)  # fmt: skip
    said.loc[3, "value"] = np.nan
    answers = texts(
        (*models, "base"),
        asked,
        length=lambda m, n: int(rng.integers(10, 300)),
        mark=lambda m, n: "# t\n" * (n % 3 + (m == "b")),
    )
    people = votes(lambda m, n, p: float(rng.choice([0, 0.5, 1])), models=models[:4], asked=30)
    options = {
        "people": people, "retests": {"j": "j-again"}, "controls": {"null"}, "families": {"j": "F", "own": "F"},
    }  # fmt: skip
    return said, answers, asked, options


def test_every_measure_is_told_of_and_every_one_can_be_had():
    said, answers, asked, options = everything()
    found = audit(said, answers, asked, rounds=200, **options)
    assert {a.measure for a in found} == set(MEASURES)
    assert max(Counter((a.judge, a.measure, a.other) for a in found).values()) == 1
    for a in found:
        assert a.n > 0 and a.value is not None and (a.benchmark, a.version) == ("bench", "1")
        assert (a.low <= a.value + 1e-9 and a.value <= a.high + 0.02) or a.measure in (
            "calibration_error",
            "score_spread",
        ), a


def test_neither_the_order_of_rows_nor_their_kind_matters():
    said, answers, asked, options = everything()
    expected = audit(said, answers, asked, rounds=100, **options)
    mixed = said.sample(frac=1.0, random_state=0)
    assert audit(mixed, answers.sample(frac=1.0, random_state=1), asked, rounds=100, **options) == expected
    for column in ("model", "judge", "baseline", "question", "order"):
        mixed[column] = mixed[column].astype("category")
    assert audit(mixed, answers, asked, rounds=100, **options) == expected


def test_asking_everything_twice_narrows_no_interval():
    said, answers, asked, options = everything()
    expected = audit(said, answers, asked, rounds=100, **options)
    assert audit(pd.concat([said, said]), answers, asked, rounds=100, **options) == expected


def test_what_was_replaced_is_about_another_question_or_was_checked_does_not_count():
    said = judged(lambda j, m, n, o: 0.7)
    old = said.assign(value=0.0, counts=False)
    elsewhere = said.assign(value=0.0, question="elsewhere")
    checked = said.assign(value=0.0, judge="check")
    more = pd.concat([said, old, elsewhere, checked])
    assert audit(more, NO_TEXTS, questions()) == audit(said, NO_TEXTS, questions())


def test_the_last_readable_verdict_counts():
    said = frame([("a", "j", "base", "q0", "model_first", value) for value in (0.0, 1.0, None)])
    found = audit(said, NO_TEXTS, questions())
    assert measure(found, "unreadable").value == 0.0


def test_nothing_said_gives_nothing_and_no_questions_are_an_error():
    said = judged(lambda j, m, n, o: 0.7)
    assert audit(said.iloc[:0], NO_TEXTS, questions()) == []
    with pytest.raises(ValueError, match="there are none"):
        audit(said, NO_TEXTS, [])


def test_one_question_gives_no_interval():
    [found] = [
        a
        for a in audit(judged(lambda j, m, n, o: 0.7, asked=1), NO_TEXTS, questions())
        if a.measure == "order_consistency" and not a.other
    ]
    assert (found.value, found.low, found.high) == (1.0, None, None)


def test_published_pairs_have_the_order_consistency_that_their_file_says():
    if "FUSEVAL_ASSETS" not in os.environ:
        pytest.skip("set FUSEVAL_ASSETS to a folder with the assets under their names (`fuseval assets` lists them)")
    path = (
        pathlib.Path(os.environ["FUSEVAL_ASSETS"])
        / "published/mt_bench/model_judgment/phi-3_vs_phi-3-dpo.gpt-4_pair.jsonl"
    )
    games = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    says = {"model_1": 1.0, "model_2": 0.0, "tie": 0.5}
    rows = [
        ("phi-3", "gpt-4", "phi-3-dpo", str(g["question_id"]), g["turn"], o, says.get(g[w]), True)
        for g in games
        for o, w in zip(ORDERS, ("g1_winner", "g2_winner"), strict=True)
    ]
    said = pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))
    asked = [Question("mt_bench", "1", str(q), "c", ("one", "two")) for q in range(81, 161)]
    found = measure(audit(said, NO_TEXTS, asked), "order_consistency", judge="gpt-4")
    whole = [g for g in games if g["g1_winner"] in says and g["g2_winner"] in says]
    assert (found.n, found.value) == (
        len(whole),
        pytest.approx(sum(g["g1_winner"] == g["g2_winner"] for g in whole) / len(whole)),
    )
    assert found.value == pytest.approx(0.630, abs=5e-4)
