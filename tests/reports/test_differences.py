import csv
import json

from reports.claims import statement
from reports.differences import COLUMNS, to_csv, to_json, to_latex, to_markdown
from results.queries import DifferenceRow

SHOWN = DifferenceRow("sce", "base", "starter", "1", "gpt", "o1", "win_rate", 9.0, 1.0, 17.0, 0.004, 12, 1, 0.02, 11.0)
MISSING = DifferenceRow("=ties", "base", "starter", "1", "check", None, "accuracy", *[None] * 4, 0, 12)
BOTH = [statement(SHOWN), statement(MISSING)]


def test_machines_get_the_numbers_the_verdict_and_the_sentence():
    first, second = json.loads(to_json(BOTH))
    assert tuple(first) == COLUMNS
    assert (first["value"], first["p_holm"], first["verdict"]) == (9.0, 0.02, "better")
    assert first["sentence"].startswith("sce beats base on starter win_rate (both against o1)")
    assert (second["value"], second["p"], second["verdict"]) == (None, None, "missing")


def test_csv_leaves_the_missing_empty_and_no_spreadsheet_runs_a_name():
    _, row = csv.DictReader(to_csv(BOTH).splitlines())
    assert (row["model"], row["value"], row["n"], row["missing"]) == ("'=ties", "", "0", "12")


def test_people_get_signs_corrected_p_values_and_what_is_shown():
    lines = to_markdown(BOTH).splitlines()
    assert lines[2] == (
        "| sce | base | starter 1 | gpt | win_rate against o1 | +9.0 | \\[1.0, 17.0\\] | 0.004 | 0.020 | 12 | 1 "
        "| better |"
    )
    assert lines[3].endswith("| missing | \\[missing\\] | missing |  | 0 | 12 | missing |")


def test_latex_has_a_row_a_difference_and_marks_what_is_marked():
    table = to_latex(BOTH, marked={"sce"})
    assert r"sce $^{\dagger}$ & base & starter 1 &" in table
    assert table.count("\\\\\n") == 3
    assert "answers look like attacks on the judge" in table
