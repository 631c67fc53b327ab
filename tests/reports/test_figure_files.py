"""Figures beyond scores and differences, and what their files hold."""

import csv
import dataclasses
import re
from xml.etree import ElementTree

import pytest

from evals.records import Difference, Model, Score
from reports.category_figures import MODELS, categories_figure, radar_figure
from reports.figure_files import write_drawing, write_figures
from reports.figure_svg import svg
from reports.heatmaps import agreement_figure, coefficients_figure, meetings_figure
from reports.length_figure import length_figure
from results.audit_queries import AuditRow
from results.figure_queries import CoefficientMean, LengthRow, Meetings
from results.queries import LeaderboardRow
from results.store import Ledger

CATEGORIES = ("math", "coding", "writing")


def ratings(*models, categories=CATEGORIES):
    return [
        LeaderboardRow(m, m, "merge", "mt_bench", "1", "g", "gpt", None, f"category:{c}", 5.0, 4.0, 6.0, 10, 0, ())
        for m in models
        for c in categories
    ]


def met(name, other, wins, losses, baseline=None):
    return Meetings(name, other, "starter", "1", "gpt", baseline, "win_rate", wins, 1, losses)


def text(drawn):
    return " ".join(ElementTree.fromstring(svg(drawn)).itertext())


LENGTHS = [
    LengthRow("sce", "alpaca_eval", "2.0", "gpt", "gpt4", metric, value, value - 3, value + 3, 1500.0, 2000.0)
    for metric, value in (("win_rate", 60.0), ("lc_win_rate", 55.0))
]
COEFFICIENTS = [CoefficientMean("sce", "eta", "chat", layer, "mlp", 0.1 * layer, 3) for layer in range(3)]
AGREED = [AuditRow("a", "a", "", "mt_bench", "1", "judge_agreement", "b", "b", "", 0.8, 0.7, 0.9, 50)]


def test_a_radar_has_a_spoke_a_category_and_tells_how_many_models_it_leaves_out():
    drawn = text(radar_figure(ratings(*(f"m{n}" for n in range(MODELS + 2)))))
    assert all(category in drawn for category in CATEGORIES)
    assert f"best {MODELS} of {MODELS + 2} models" in drawn.replace("\n", " ")


def test_two_categories_make_no_radar_but_lines_with_intervals():
    rows = ratings("sce", categories=("math", "coding"))
    assert radar_figure(rows).rows == ()
    assert [row["category"] for row in categories_figure(rows).rows] == ["math", "coding"]


def test_a_category_without_a_score_is_left_open_and_stays_in_the_numbers():
    rows = [dataclasses.replace(row, value=None, low=None, high=None) for row in ratings("sce")]
    assert [row["value"] for row in radar_figure(rows).rows] == [None, None, None]


def test_who_was_judged_beside_the_other_is_not_compared_by_way_of_a_third():
    direct, by_third = met("sce", "base", 7, 2, baseline="base"), met("sce", "base", 1, 8, baseline="o1")
    drawn = text(meetings_figure([direct, by_third]))
    assert "7/1/2" in drawn
    assert "2/1/7" in drawn  # told from one side only, shown from both
    assert "1/1/8" not in drawn


def test_agreement_is_shown_both_ways_round_in_per_cent():
    assert text(agreement_figure(AGREED)).count("80") >= 2
    assert agreement_figure([dataclasses.replace(AGREED[0], value=None)]).rows == ()


def test_layers_and_modules_are_named():
    drawn = text(coefficients_figure(COEFFICIENTS))
    assert all(word in drawn for word in ("mlp", "layer", "eta of chat in sce"))


@pytest.mark.parametrize(
    "draw", [lambda: length_figure(LENGTHS), lambda: coefficients_figure(COEFFICIENTS), lambda: radar_figure([])]
)
def test_these_figures_too_hold_nothing_that_a_strict_page_forbids(draw):
    drawn = svg(draw())
    assert not re.search(r"<style|<script|<image|style=|<!DOCTYPE|xlink|https?://(?!www\.w3\.org/2000/svg)", drawn)


def test_a_drawings_files_hold_its_numbers_and_the_same_bytes_every_time(tmp_path):
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        paths = write_drawing(length_figure(LENGTHS), folder)
    assert [path.name for path in paths] == [f"length.{kind}" for kind in ("svg", "png", "pdf", "csv")]
    assert all(path.read_bytes() == (tmp_path / "one" / path.name).read_bytes() for path in paths)
    first, _ = csv.DictReader((tmp_path / "one" / "length.csv").read_text().splitlines())
    assert (first["name"], first["value"], first["characters"]) == ("sce", "60.0", "1500.0")


def test_a_ledger_gives_the_figures_that_it_has_numbers_for(tmp_path):
    about = ("starter", "1", "check", None, "accuracy")
    with Ledger.open(tmp_path / "ledger.duckdb") as ledger:
        ledger.add(*(Model(name, name, "merge", "made") for name in ("base", "../x")))
        ledger.add(Score("base", *about, 40.0, 30.0, 50.0, 9, 0), Score("../x", *about, 60.0, 50.0, 70.0, 9, 0))
        ledger.add(Difference("../x", "base", *about, 20.0, 10.0, 30.0, 0.001, 9, 0))
        paths = write_figures(ledger, tmp_path / "figures")
    assert sorted({path.stem for path in paths}) == ["differences-starter-1", "leaderboard-starter-1"]
    assert {path.parent for path in paths} == {tmp_path / "figures"}
