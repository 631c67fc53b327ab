"""The length-controlled win rate: its folds, its fit, and alpaca_eval's own figures."""

import json
import os
import pathlib

import numpy as np
import pytest

from evals.assets import find
from evals.length_control import Compared, Gamed, fold_of, introsort_of_ties, predict, predict_all, read_gamed

NOT_READ = pathlib.Path("no-such-cache")
MODELS = ("FuseChat-Llama-3.1-8B-Instruct", "gemma-2b-it")


def gamed(questions=40):
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=questions)
    deltas = rng.normal(size=2 * questions)
    features = np.column_stack([np.tanh(deltas), np.tile(difficulty, 2), np.zeros(2 * questions)])
    return Gamed(features, 1 / (1 + np.exp(-deltas - np.tile(difficulty, 2))), difficulty)


def compared(questions=40, seed=1):
    rng = np.random.default_rng(seed)
    return Compared(np.arange(questions), rng.uniform(size=questions), 300 * rng.normal(size=questions))


def taken(rows, order):
    return Compared(rows.question[order], rows.preference[order], rows.delta[order])


def asset(name):
    if "FUSEVAL_ASSETS" not in os.environ:
        pytest.skip("set FUSEVAL_ASSETS to a folder with the assets under their names (`fuseval assets` lists them)")
    return find(name, cache=NOT_READ, mirror=pathlib.Path(os.environ["FUSEVAL_ASSETS"]))


def published(model):
    rows = json.loads(asset(f"published/alpaca_eval/{model}/annotations.json").read_bytes())
    deltas = [len(row["output_1"]) - len(row["output_2"]) for row in rows]
    return rows, Compared(
        np.arange(len(rows)), np.array([row["preference"] - 1 for row in rows]), np.array(deltas, float)
    )


@pytest.mark.parametrize("count", [0, 1, 5, 16, 17, 18, 33, 100, 1610, 2414, 2415])
def test_the_order_of_ties_is_the_one_of_numpys_sort_without_simd(count):
    keys = np.zeros(count, dtype=np.longdouble)  # a type that no SIMD sort is written for
    assert introsort_of_ties(count).tolist() == np.argsort(keys, kind="quicksort").tolist()


def test_up_to_sixteen_ties_stay_in_order_and_more_do_not():
    assert introsort_of_ties(16).tolist() == list(range(16))
    assert introsort_of_ties(17)[:4].tolist() == [0, 14, 13, 12]
    assert sorted(introsort_of_ties(2415)) == list(range(2415))


def test_stable_folds_are_the_ones_of_scikit_learn():
    from sklearn.model_selection import GroupKFold

    groups = np.tile(np.arange(103), 2)
    for number, (_, test) in enumerate(GroupKFold(5).split(groups, groups=groups)):
        assert set(groups[test]) == set(np.flatnonzero(fold_of(103, "stable") == number))


@pytest.mark.parametrize("folds", ["stable", "introsort"])
def test_folds_differ_in_size_by_one_at_most(folds):
    sizes = np.bincount(fold_of(2413, folds))
    assert (len(sizes), sizes.max() - sizes.min()) == (5, 1)


def test_an_unknown_rule_names_those_there_are():
    with pytest.raises(ValueError, match="no 'random' folds; there are 'stable' and 'introsort'"):
        fold_of(5, "random")


@pytest.mark.parametrize("folds", ["stable", "introsort"])
def test_the_order_of_the_rows_does_not_matter(folds):
    rows, order = compared(), np.random.default_rng(2).permutation(40)
    whole = predict(rows, gamed=gamed(), folds=folds)
    found = predict(taken(rows, order), gamed=gamed(), folds=folds)
    assert found.preference.tolist() == whole.preference[order].tolist()
    assert found.parts.tolist() == whole.parts[order].tolist()


def test_a_row_without_a_preference_is_predicted_and_teaches_nothing():
    rows = compared()
    rows.preference[7] = np.nan
    predicted = predict(rows, gamed=gamed())
    found = predicted.preference
    assert np.flatnonzero(np.isnan(predicted.parts)).tolist() == [7]
    others = np.delete(np.arange(40), 7)
    alone = Compared(rows.question, rows.preference, rows.delta * np.where(np.arange(40) == 7, np.nan, 1))
    assert not np.isnan(found).any()
    # Its lengths still tell how much lengths vary, as in alpaca_eval; without them the others' predictions remain near.
    assert found[others] == pytest.approx(predict(alone, gamed=gamed()).preference[others], abs=0.02)


def test_without_any_preference_nothing_is_predicted():
    rows = compared()
    rows.preference[:] = np.nan
    assert np.isnan(predict(rows, gamed=gamed()).preference).all()


def test_equal_lengths_say_nothing_and_break_nothing():
    rows = compared()
    found = predict(Compared(rows.question, rows.preference, np.full(40, 12.0)), gamed=gamed()).preference
    assert ((found > 0) & (found < 1)).all()


def test_the_unit_of_length_does_not_matter():
    rows = compared()
    longer = Compared(rows.question, rows.preference, 4 * rows.delta)
    assert predict(longer, gamed=gamed()).preference.tolist() == predict(rows, gamed=gamed()).preference.tolist()


def test_the_parts_have_the_predictions_mean():
    found = predict(compared(), gamed=gamed())
    assert found.parts.mean() == pytest.approx(found.preference.mean(), abs=1e-12)


def test_a_questions_part_is_how_the_mean_moves_with_its_weight():
    rows, steady = compared(seed=5), gamed()
    from evals.length_control import GAMED_WEIGHT, _moved, _path, _slope

    x = np.vstack([steady.features, np.column_stack([np.tanh(rows.delta / 900), np.linspace(-1, 1, 40), np.ones(40)])])
    p = np.concatenate([steady.preference, rows.preference])
    weights = np.concatenate([np.full(len(steady.preference), GAMED_WEIGHT), np.ones(40)])
    level = np.column_stack([np.zeros(40), x[-40:, 1], np.ones(40)])

    def mean(weights):
        coefficients = _path(x, p, weights, np.array([1e4]), tolerance=1e-10)[0]
        return coefficients, 1 / (1 + np.exp(-level @ coefficients))

    coefficients, found = mean(weights)
    moved = _moved(coefficients, x, p, weights, slope=_slope(found, level))
    for row in (-1, -17):
        more = weights.copy()
        more[row] += 1e-3
        assert (mean(more)[1].mean() - found.mean()) / 1e-3 == pytest.approx(moved[row], rel=0.05, abs=1e-5)


def test_the_fit_is_the_one_of_scikit_learns_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    from evals.length_control import GRID, _path

    steady = gamed()
    features, p, weights = steady.features, steady.preference, np.full(80, 0.7)
    model = LogisticRegression(C=GRID[6], l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=123)
    twice, weight = np.vstack([features, features]), np.concatenate([p * weights, (1 - p) * weights])
    model.fit(twice, np.repeat([1, 0], 80), sample_weight=weight)
    assert _path(features, p, weights, GRID[6:7]).tolist() == model.coef_.tolist()


@pytest.mark.slow
def test_several_processes_find_what_one_finds():
    jobs = [(compared(seed=seed), folds) for seed in range(16) for folds in ("stable", "introsort")]
    alone = predict_all(jobs, gamed=gamed(), workers=1)
    for here, there in zip(alone, predict_all(jobs, gamed=gamed(), workers=2), strict=True):
        assert (there.preference.tolist(), there.parts.tolist()) == (here.preference.tolist(), here.parts.tolist())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of alpaca_eval's own
@pytest.mark.parametrize("model", MODELS)
def test_the_predictions_are_alpaca_evals(model, monkeypatch):
    import pandas as pd
    import sklearn

    with sklearn.config_context():  # which alpaca_eval changes for good
        from alpaca_eval.metrics import glm_winrate

        csv = asset("alpaca_eval/df_gamed.csv")
        rows, ours = published(model)
        monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **_: str(csv))
        table = pd.DataFrame(rows)
        found = glm_winrate.get_length_controlled_winrate(table, save_weights_dir=None)
    predicted = 100 * predict(ours, gamed=read_gamed(csv), folds="stable").preference
    assert predicted == pytest.approx(100 * table["glm_preference"].to_numpy(), abs=1e-9)
    assert predicted.mean() == pytest.approx(found["length_controlled_winrate"], abs=1e-9)
    assert predicted.std(ddof=1) / 805**0.5 == pytest.approx(found["lc_standard_error"], abs=1e-9)
