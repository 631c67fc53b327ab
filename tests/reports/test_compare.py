import csv
import dataclasses
import io
import json

import pytest

from evals.records import Difference, Model, Score
from reports.compare import comparison, grids, to_csv, to_json, to_latex, to_markdown
from results.queries import LeaderboardRow
from results.store import Ledger

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


ATTACK = {"name": "null_1", "flags": ("attack:template_markers", "half missing", "attack:common_answer")}


def test_a_flagged_model_is_marked_in_every_table():
    rows = [score(**ATTACK), score(name="honest"), score(name="null_1", benchmark="mt_bench")]
    tables = grids(rows)
    assert [row["model"] for row in tables["starter 1"]] == ["null_1 †", "honest"]
    assert [row["model"] for row in tables["mt_bench 1"]] == ["null_1"]
    assert tables["starter 1"][0]["accuracy"].split("\n") == ["41.7", "[25.0, 58.3]", "half missing"]
    markdown = to_markdown(rows)
    assert "| null_1 † | starter 1 |" in markdown
    assert markdown.endswith(
        "\n\n† null_1: answers to starter 1 look like attacks on the judge (common answer, template markers).\n"
    )
    latex = to_latex(rows)
    assert r"null\_1 $^{\dagger}$ & starter 1 &" in latex
    assert latex.endswith("(common answer, template markers).}\n")
    assert latex.index(r"\end{tabular}") < latex.index(r"{\footnotesize $^{\dagger}$ null\_1: answers")


def test_machines_read_the_detectors_and_the_plain_name():
    [row] = json.loads(to_json([score(**ATTACK)]))
    assert (row["model"], row["flags"]) == ("null_1", list(ATTACK["flags"]))
    [row] = csv.DictReader(io.StringIO(to_csv([score(**ATTACK)])))
    assert (row["model"], row["flags"].split()[0]) == ("null_1", "attack:template_markers")


def test_the_score_without_flagged_answers_stands_beside_the_score():
    unflagged = {"unflagged": 3.25, "unflagged_low": 1.0, "unflagged_high": 5.0, "unflagged_n": 4}
    rows = [score(**ATTACK, **unflagged), score(name="all", unflagged_n=0), score(name="honest")]
    [row, _, honest] = json.loads(to_json(rows))
    assert {name: row[name] for name in unflagged} == unflagged
    assert honest["unflagged"] is None
    assert [line["unflagged_n"] for line in csv.DictReader(io.StringIO(to_csv(rows)))] == ["4", "0", ""]
    [table] = grids(rows).values()
    assert [cells["accuracy"].split("\n")[2:3] for cells in table] == [
        ["without flagged: 3.2"], ["without flagged: none left"], []
    ]  # fmt: skip
    header, _, first, second, third, *_ = to_markdown(rows).splitlines()
    assert header.split(" | ")[6] == "without flagged"
    assert [line.split(" | ")[6] for line in (first, second, third)] == [r"3.2 \[1.0, 5.0\]", "none left", ""]


def test_marks_in_claims_are_those_of_both_models_whichever_is_asked_for(tmp_path):
    about = ("starter", "1", "j", None, "rating")
    with Ledger.open(tmp_path / "ledger.duckdb") as ledger:
        ledger.add(*(Model(name, name, "merge", "made") for name in ("null", "sce")))
        ledger.add(Score("null", *about, 9.0, 8.0, 9.5, 9, 0, ("attack:common_answer",)))
        ledger.add(
            Score("sce", *about, 8.0, 7.0, 8.5, 9, 0),
            Score("null", *about[:4], "rating:unflagged", 1.0, 1.0, 1.0, 3, 0),
        )
        ledger.add(Difference("sce", "null", *about, -1.0, -2.0, -0.5, 0.001, 9, 0))
        found = comparison(ledger, model="sce")
        every = comparison(ledger)
    assert [(row.name, row.unflagged) for row in every.rows] == [("null", 1.0), ("sce", None)]
    assert [row.name for row in found.rows] == ["sce"]
    assert "sce loses to null † on" in found.statements[0].sentence
