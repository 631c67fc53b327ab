import csv
import dataclasses
import io
import json

import pytest

from reports.compare import grids, interval, number, p_text, statement, to_csv, to_json, to_latex, to_markdown
from results.queries import DifferenceRow, LeaderboardRow

KEYS = ["model", "benchmark", "version", "judge", "metric", "value", "low", "high", "n", "missing", "flags"]


def score(**changes):
    row = LeaderboardRow(
        model="5f1d",
        name="sce",
        kind="merge",
        benchmark="starter",
        version="1",
        judge="check",
        judge_name="check",
        baseline_name=None,
        metric="accuracy",
        value=41.666,
        low=25.0,
        high=58.333,
        n=12,
        missing=0,
        flags=(),
    )
    return dataclasses.replace(row, **changes)


def difference(value, low, high, p=0.004, **changes):
    row = DifferenceRow(
        "rewriting-sft", "smollm2-135m", "starter", "1", "check", None, "accuracy:rewriting", value, low, high, p, 12, 0
    )
    return dataclasses.replace(row, **changes)


def test_a_difference_that_is_shown_is_claimed_with_its_interval():
    said = statement(difference(41.66, 25.0, 58.33))
    assert said.verdict == "better"
    assert said.sentence == (
        "rewriting-sft beats smollm2-135m on starter accuracy:rewriting by 41.7 [25.0, 58.3] points "
        "(p = 0.004, n = 12)."
    )


def test_a_loss_is_claimed_the_other_way_round():
    said = statement(difference(-41.66, -58.33, -25.0, p=0.0002))
    assert said.verdict == "worse"
    assert "rewriting-sft loses to smollm2-135m" in said.sentence
    assert "by 41.7 [25.0, 58.3] points (p < 0.001, n = 12)." in said.sentence


def test_nothing_is_claimed_where_the_interval_holds_zero():
    said = statement(difference(8.3, -8.3, 25.0, p=0.4))
    assert said.verdict == "none"
    assert said.sentence == (
        "no difference shown between rewriting-sft and smollm2-135m on starter accuracy:rewriting: "
        "+8.3 [−8.3, 25.0] points (p = 0.400, n = 12)."
    )


def test_nothing_is_claimed_where_interval_and_p_disagree_or_one_is_missing():
    assert statement(difference(8.3, 0.1, 25.0, p=0.06)).verdict == "none"
    assert statement(difference(8.3, -0.1, 25.0, p=0.01)).verdict == "none"
    assert statement(difference(8.3, 0.1, 25.0, p=None)).verdict == "none"
    assert "p missing" in statement(difference(8.3, 0.1, 25.0, p=None)).sentence


def test_a_missing_difference_is_said_to_be_missing():
    said = statement(difference(None, None, None, None, n=0, missing=12, judge_name="gpt", metric="win_rate"))
    assert said.verdict == "missing"
    assert said.sentence == (
        "nothing can be said of rewriting-sft and smollm2-135m on starter win_rate as judged by gpt: "
        "no question has both scores (n = 0, 12 missing)."
    )


def test_a_third_models_answers_that_both_were_judged_against_are_named():
    judged = {"metric": "win_rate", "judge_name": "gpt"}
    assert " on starter win_rate (both against o1) as judged by gpt: " in (
        statement(difference(1.0, -2.0, 3.0, baseline_name="o1", **judged)).sentence
    )
    claim = statement(difference(9.0, 1.0, 20.0, baseline_name="o1", **judged)).sentence
    assert " on starter win_rate (both against o1) by 9.0 [1.0, 20.0] points as judged by gpt (" in claim
    for one in ("rewriting-sft", "smollm2-135m"):
        assert "both" not in statement(difference(9.0, 1.0, 20.0, baseline_name=one, **judged)).sentence


def test_missing_questions_are_named_beside_a_claim():
    assert statement(difference(9.0, 1.0, 20.0, n=10, missing=2)).sentence.endswith("(p = 0.004, n = 10, 2 missing).")


def test_a_missing_value_is_never_a_number():
    assert number(None, "accuracy") == "missing"
    assert interval(None, None, "accuracy") == "[missing]"
    assert p_text(None) == "p missing"


def test_per_cents_have_one_place_and_ratings_two():
    assert number(50.04, "win_rate") == "50.0"
    assert number(7.906, "average") == "7.91"
    assert number(-0.01, "win_rate", sign=True) == "0.0"


def test_json_holds_the_promised_keys_and_names():
    [row] = json.loads(to_json([score(judge="9c", judge_name="gpt", flags=("short",))]))
    assert list(row) == KEYS
    assert (row["model"], row["judge"], row["value"], row["flags"]) == ("sce", "gpt", 41.666, ["short"])


def test_a_missing_value_is_null_in_json_and_empty_in_csv():
    missing = score(value=None, low=None, high=None, n=0, missing=12)
    assert json.loads(to_json([missing]))[0]["value"] is None
    [row] = csv.DictReader(to_csv([missing]).splitlines())
    assert list(row) == KEYS
    assert (row["value"], row["low"], row["n"], row["missing"]) == ("", "", "0", "12")


@pytest.mark.parametrize("name", ["=1+2", "+1", "-x", "@SUM(A1)", "\t=1"])
def test_a_spreadsheet_takes_no_name_in_csv_for_a_formula_and_numbers_stay_numbers(name):
    row = score(name=name, judge_name=name, metric=name, value=-1.5, low=-2.0, high=-1.0)
    [read] = csv.DictReader(io.StringIO(to_csv([row]), newline=""))
    assert {read[column] for column in ("model", "judge", "metric")} == {f"'{name}"}
    assert (read["value"], read["low"], read["high"]) == ("-1.5", "-2.0", "-1.0")


def test_a_name_cannot_break_a_markdown_table():
    lines = to_markdown([score(name="a|b\n<i>"), score(value=None)]).splitlines()
    assert lines[2].startswith("| a\\|b \\<i\\> | starter 1 | check | accuracy | 41.7 | \\[25.0, 58.3\\] | 12 | 0 |")
    assert "| missing |" in lines[3]
    assert len(lines) == 4


def test_latex_is_escaped_and_ruled():
    table = to_latex([score(name=r"50%_a&b\{$#^~}"), score(value=None, low=None, high=None)])
    assert r"50\%\_a\&b\textbackslash{}\{\$\#\textasciicircum{}\textasciitilde{}\}" in table
    assert "missing & {}[missing]" in table
    assert [table.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\\" + "\n")] == [1, 1, 1, 3]


def test_a_grid_has_a_row_a_model_and_a_column_a_metric_and_leaves_out_nothing_missing():
    rows = [
        score(name="a", metric="accuracy:x", value=50.0, low=40.0, high=60.0, missing=2),
        score(name="b", metric="accuracy:x", value=None, low=None, high=None, n=0, missing=9),
        score(name="a", metric="win_rate", judge_name="j", value=61.0, low=51.0, high=70.0, missing=0),
    ]
    [table] = grids(rows).values()
    assert table == [
        {"model": "a", "accuracy:\nx": "50.0\n[40.0, 60.0]\n2 missing", "win_rate\nby j": "61.0\n[51.0, 70.0]"},
        {"model": "b", "accuracy:\nx": "missing", "win_rate\nby j": ""},
    ]


def test_many_metrics_of_few_models_stand_below_each_other():
    rows = [score(name=name, metric=f"category:{n}", value=n) for n in range(7) for name in ("a", "b")]
    [table] = grids(rows).values()
    assert [row["metric"] for row in table] == [f"category:{n}" for n in range(7)]
    assert set(table[0]) == {"metric", "a", "b"}


def test_many_metrics_of_many_models_make_several_tables():
    rows = [score(name=str(m), metric=f"category:{n}", value=n) for n in range(7) for m in range(7)]
    first, second = grids(rows).items()
    assert (first[0][-8:], second[0][-8:]) == ("(1 of 2)", "(2 of 2)")
    assert (len(first[1]), len(first[1][0]), len(second[1][0])) == (7, 7, 2)


def test_scores_against_two_baselines_stand_side_by_side():
    judged = {"metric": "win_rate", "judge_name": "j", "low": None, "high": None}
    rows = [score(value=value, baseline_name=name, **judged) for value, name in ((61.0, "o1"), (30.0, "o2"))]
    [[row]] = grids(rows).values()
    assert {column: cell.split("\n")[0] for column, cell in row.items()} == {
        "model": "sce",
        "win_rate\nby j\nagainst o1": "61.0",
        "win_rate\nby j\nagainst o2": "30.0",
    }
    assert "| win_rate against o2 | 30.0 |" in to_markdown(rows)
    assert "win\\_rate against o2 & 30.0 &" in to_latex(rows)
    [[row]] = grids(rows[:1]).values()
    assert set(row) == {"model", "win_rate\nby j"}


def test_where_nothing_is_shown_the_sentence_says_what_would_have_been():
    row = DifferenceRow("a", "b", "starter", "1", "check", None, "accuracy", 5.0, -5.0, 15.0, 0.3, 50, 0, 0.9, 10.0)
    # Half of what is detectable takes four times the questions.
    assert "one of 10.0 would be found four times in five, one as large as this with 200 questions" in (
        statement(row).sentence
    )
