"""MT-Bench with every model beside every other: win rates of pairs, and one strength for each model."""

import math

import pandas
import pytest

from evals.benchmark import VERDICT_COLUMNS, Evidence, Wanted
from evals.mt_bench_score import score_all_pairs
from evals.records import Question

QUESTIONS = tuple(Question("mt_bench", "1-all-pairs", str(n), "writing", ("one", "two")) for n in range(40))
IDS = frozenset(q.id for q in QUESTIONS)


def games(model, other, share):
    """``model`` wins so large a share of the turns against ``other`` in both orders, and loses the rest."""
    return [
        (model, "j", other, q.id, turn, order, float(n % 20 < share * 20), True)
        for n, q in enumerate(QUESTIONS)
        for turn in (1, 2)
        for order in ("model_first", "baseline_first")
    ]


def scored(rows):
    frame = pandas.DataFrame(rows, columns=list(VERDICT_COLUMNS))
    met = dict.fromkeys((model, other) for model, _, other, *_ in rows)
    return score_all_pairs(Evidence(QUESTIONS, [Wanted(m, "j", o, IDS) for m, o in met], frame, pandas.DataFrame()))


def test_strengths_that_fit_all_pairs_are_found_with_the_base_at_1000():
    # Odds of 3 and 3 · 3: two is to one as one is to base.
    found = {
        s.model: s
        for s in scored(games("one", "base", 0.75) + games("two", "base", 0.9) + games("two", "one", 0.75)).scores
    }
    step = 400 * math.log10(3)
    assert found["base"].value == 1000.0
    assert found["one"].value == pytest.approx(1000 + step)
    assert found["two"].value == pytest.approx(1000 + 2 * step)
    assert found["one"].low < found["one"].value < found["one"].high
    assert (found["one"].n, found["one"].missing) == (40, 0)


def test_a_model_that_wins_everything_has_no_finite_strength_and_that_is_said():
    found = scored(games("one", "base", 1.0) + games("two", "base", 1.0) + games("two", "one", 0.5)).scores
    assert {s.value for s in found} == {None}
    assert {s.flags for s in found} == {("no_finite_strength",)}


def test_every_pair_has_its_win_rate():
    items = scored(games("one", "base", 0.75) + games("two", "base", 0.9) + games("two", "one", 0.5)).items
    rates = items.groupby(["model", "baseline"], observed=True)["value"].mean()
    assert dict(rates) == {("one", "base"): 75.0, ("two", "base"): 90.0, ("two", "one"): 50.0}


def test_two_models_alone_need_no_strength():
    assert scored(games("one", "base", 0.75)).scores == []


def test_a_turn_that_is_missing_beside_one_that_is_there_is_said():
    rows = [row for row in games("one", "base", 0.75) if row[3:6] != ("7", 2, "model_first")]
    found = scored(rows)
    assert found.flags == {("one", "j", "base", "win_rate"): ("1 of 80 turns missing",)}
    assert not found.items["value"].isna().any()
