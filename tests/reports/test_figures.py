import dataclasses
import re
from xml.etree import ElementTree

import pytest

from reports import figures
from reports.claims import statement
from reports.figure_svg import svg
from results.queries import DifferenceRow, LeaderboardRow, TrainingRow

SCORE = LeaderboardRow("5f", "sce", "merge", "starter", "1", "check", "check", None, "accuracy", 40, 20, 60, 12, 0, ())
DIFFERENCE = DifferenceRow("sce", "base", "starter", "1", "check", None, "accuracy", 20.0, 5.0, 35.0, 0.01, 12, 0)
LOSSES = [TrainingRow(name, step, 3 - step / 10, 1e-4, step * 100) for name in ("a", "b") for step in range(9)]


def leaderboard_figure(rows, **options):
    return svg(figures.leaderboard_figure(rows, **options))


def differences_figure(statements):
    return svg(figures.differences_figure(statements))


def training_figure(rows):
    return svg(figures.training_figure(rows))


def text(drawn):
    return " ".join(ElementTree.fromstring(drawn).itertext())


@pytest.mark.slow
def test_the_same_rows_give_the_same_bytes():
    missing = dataclasses.replace(SCORE, name="linear", value=None, low=None, high=None)
    assert leaderboard_figure([SCORE, missing]) == leaderboard_figure([SCORE, missing])
    assert differences_figure([statement(DIFFERENCE)]) == differences_figure([statement(DIFFERENCE)])
    assert training_figure(LOSSES) == training_figure(LOSSES)


def test_figures_of_one_page_share_no_id():
    svgs = [leaderboard_figure([SCORE], name=name) for name in ("one", "two")] + [training_figure(LOSSES)]
    ids = [identity for svg in svgs for identity in re.findall(r' id="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    targets = [target for svg in svgs for target in re.findall(r'(?:href="|url\()#([^")]+)', svg)]
    assert targets
    assert set(targets) <= set(ids)


def test_a_figure_holds_nothing_that_a_strict_page_forbids():
    for drawn in (leaderboard_figure([SCORE]), differences_figure([statement(DIFFERENCE)]), training_figure(LOSSES)):
        assert not re.search(r"<style|<script|style=|<!DOCTYPE|xlink|https?://(?!www\.w3\.org/2000/svg)", drawn)
        assert "currentColor" in drawn


def test_a_long_name_keeps_the_end_that_tells_it_apart():
    names = [f"rewriting-and-planning-merged·{digits}" for digits in ("8e5e", "77aa")]
    drawn = text(leaderboard_figure([dataclasses.replace(SCORE, name=name) for name in names]))
    assert "·8e5e" in drawn
    assert "·77aa" in drawn


def test_every_baseline_has_its_panel():
    against = [dataclasses.replace(SCORE, metric="win_rate", baseline_name=name) for name in ("o1", "o2")]
    drawn = text(leaderboard_figure(against))
    assert "against o1" in drawn
    assert "against o2" in drawn
    differences = [dataclasses.replace(DIFFERENCE, metric="win_rate", baseline_name=name) for name in ("o1", "base")]
    assert text(differences_figure([statement(each) for each in differences])).count("both against") == 1


def test_a_missing_score_is_drawn_as_the_word():
    assert "missing" in text(leaderboard_figure([dataclasses.replace(SCORE, value=None, low=None, high=None)]))


def test_a_hostile_name_is_only_text():
    name = 'x" style="a"><script>\x00\u202e$\\frac'
    drawn = leaderboard_figure([dataclasses.replace(SCORE, name=name)])
    assert 'x" style="a"><script>$' in text(drawn)
    assert "script" not in {element.tag for element in ElementTree.fromstring(drawn).iter()}


def test_letters_that_the_font_lacks_are_left_to_the_reader():
    assert "融合" in text(leaderboard_figure([dataclasses.replace(SCORE, name="融合")]))


def test_figures_of_nothing_are_empty_but_valid():
    for drawn in (leaderboard_figure([]), differences_figure([]), training_figure([])):
        assert ElementTree.fromstring(drawn).get("role") == "img"
