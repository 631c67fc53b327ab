import json
import os
import pathlib
import re

import numpy as np
import pytest

from evals.arena_hard import read_answers
from evals.assets import find
from evals.style import V0_1, V2_0, density, fit, relative, style_counts


def pool(models=3, questions=60, seed=0, pull=1.5):
    """Counts (M, Q, 4) of models and (Q, 4) of a baseline, and games that length wins: won and weight, (M, Q)."""
    rng = np.random.default_rng(seed)
    ours = rng.integers(1, [400, 6, 12, 9], size=(models, questions, 4)).astype(float)
    theirs = rng.integers(1, [400, 6, 12, 9], size=(questions, 4)).astype(float)
    odds = np.linspace(-1, 1, models)[:, None] + pull * relative(ours, theirs)[..., 0]
    weight = rng.choice([2.0, 4.0, 6.0], size=(models, questions))
    return ours, theirs, rng.binomial(weight.astype(int), 1 / (1 + np.exp(-odds))).astype(float), weight


def scikit_learns(won, weight, features, control):
    """The published objective, written out and minimised by scikit-learn: rates of each model."""
    from sklearn.linear_model import LogisticRegression

    models, questions = won.shape
    x = np.concatenate([features[m] for m in range(models)])
    w = weight.ravel()
    mean = np.average(x, axis=0, weights=w)
    deviation = np.sqrt(((x - mean) ** 2 * w[:, None]).sum(axis=0) / (w.sum() - control.ddof))
    columns = np.zeros((models * questions, models + 1))
    columns[np.arange(models * questions), np.repeat(np.arange(models), questions)] = control.scale
    columns[:, models] = -control.scale
    rows = np.hstack([columns, (x - mean) / deviation])
    told = np.concatenate([np.ones(len(rows)), np.zeros(len(rows))])
    weights = control.copies * np.concatenate([won.ravel(), (weight - won).ravel()])
    model = LogisticRegression(fit_intercept=False, C=1 / control.penalty, tol=1e-10, max_iter=10_000)
    model.fit(np.vstack([rows, rows]), told, sample_weight=weights)
    found = model.coef_[0]
    return 1 / (1 + np.exp(-control.scale * (found[:models] - found[models])))


def test_markdown_is_counted_outside_fenced_code():
    text = "# One\n\n- a\n* b\n1. c\n**bold** and __too__\n```\n# not\n- this\n```\n####### seven\n"
    assert style_counts([text]).tolist() == [[len(text), 1, 3, 2]]


def test_what_stands_in_a_fence_is_taken_out_wherever_it_recurs():
    assert style_counts(["**x** ```**x**``` **y**"])[0, 3] == 1


def test_length_is_counted_in_bytes():
    assert style_counts(["é", "", "日本"])[:, 0].tolist() == [2, 0, 6]


def test_headers_and_list_items_are_counted_as_the_published_patterns_do():
    published = re.compile(r"^#{1,6}\s", re.MULTILINE), re.compile(r"^\s*(?:\d+\.|[-*+])\s", re.MULTILINE)
    rng = np.random.default_rng(0)
    parts = np.array(["\n", "\n\n", " ", "\t", "\r", "\u2028", "\x85", "-", "*", "+", "#", "##", "1.", "23.", "a"])
    texts = ["".join(rng.choice(parts, size=size)) for size in rng.integers(0, 16, size=3000)]
    expected = [[len(pattern.findall(text)) for pattern in published] for text in texts]
    assert style_counts(texts)[:, 1:3].tolist() == expected


def test_no_texts_have_no_counts():
    assert style_counts([]).shape == (0, 4)


def test_differences_by_hand():
    model, baseline = np.array([30.0, 1, 0, 3]), np.array([10.0, 0, 0, 1])
    assert relative(model, baseline) == pytest.approx([20 / 41, 1 / 2, 0, 2 / 5])
    assert density(model, baseline) == pytest.approx(
        [0.5, (1 / 31) / (1 / 31 + 1), 0, (3 / 31 - 1 / 11) / (3 / 31 + 1 / 11 + 1)]
    )


def test_two_empty_answers_do_not_differ():
    assert density(np.zeros(4), np.zeros(4)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("differences", [relative, density])
def test_swapping_the_answers_negates_the_differences(differences):
    ours, theirs, _, _ = pool()
    assert differences(ours, theirs) == pytest.approx(-differences(theirs, ours))


@pytest.mark.parametrize("control", [V0_1, V2_0], ids=["v0.1", "v2.0"])
def test_the_fit_is_scikit_learns(control):
    ours, theirs, won, weight = pool()
    features = control.differences(ours, theirs)
    assert fit(won, weight, features, control).rate == pytest.approx(
        scikit_learns(won, weight, features, control), abs=1e-5
    )


def test_where_style_has_no_say_the_rate_is_the_plain_one():
    ours, theirs, won, weight = pool()
    ours[:] = theirs
    found = fit(won, weight, V2_0.differences(ours, theirs), V2_0)
    assert found.rate == pytest.approx(won.sum(axis=1) / weight.sum(axis=1), abs=1e-6)
    assert found.coefficients.tolist() == [0, 0, 0, 0]


def test_a_model_that_wins_by_length_alone_falls_to_even_at_the_same_style():
    ours, theirs, _, weight = pool(models=1, questions=4000)
    ours[..., 0] = 3 * theirs[:, 0] * np.random.default_rng(1).uniform(0.2, 2.0, size=4000)
    features = relative(ours, theirs)
    won = weight / (1 + np.exp(-3 * features[..., 0]))
    found = fit(won, weight, features, V0_1)
    assert won.sum() / weight.sum() > 0.65
    assert found.same == pytest.approx([0.5], abs=0.01)
    assert found.rate == pytest.approx(won.sum() / weight.sum(), abs=0.05)  # centred on its own style


def test_a_model_alone_keeps_nearly_its_win_rate_as_published():
    ours, theirs, won, weight = pool(models=1, questions=500)
    found = fit(won, weight, relative(ours, theirs), V0_1)
    assert found.rate == pytest.approx(won.sum() / weight.sum(), abs=0.05)


def test_a_model_without_games_has_no_rate_and_changes_nothing():
    ours, theirs, won, weight = pool()
    alone = fit(won[:2], weight[:2], relative(ours[:2], theirs), V0_1)
    weight[2] = 0
    found = fit(won, weight, relative(ours, theirs), V0_1)
    assert np.isnan([found.rate[2], found.low[2], found.same[2]]).all()
    assert found.rate[:2] == pytest.approx(alone.rate)


def test_questions_without_texts_are_left_out():
    ours, theirs, won, weight = pool()
    ours[0, :30] = np.nan
    found = fit(won, weight, relative(ours, theirs), V0_1)
    assert found.used.sum(axis=1).tolist() == [30, 60, 60]


def test_nothing_known_gives_no_figure():
    ours, theirs, won, weight = pool()
    found = fit(won, weight, relative(ours, theirs) * np.nan, V0_1)
    assert np.isnan(found.rate).all()
    assert not found.used.any()


@pytest.mark.parametrize("control", [V0_1, V2_0], ids=["v0.1", "v2.0"])
def test_a_model_that_loses_every_game_is_near_zero(control):
    ours, theirs, won, weight = pool()
    won[0] = 0
    found = fit(won, weight, control.differences(ours, theirs), control)
    assert 0 <= found.rate[0] < 0.02
    assert np.isfinite(found.rate).all()


def test_the_order_of_models_and_questions_does_not_matter():
    ours, theirs, won, weight = pool()
    found = fit(won, weight, relative(ours, theirs), V0_1)
    turned = fit(won[::-1, ::-1], weight[::-1, ::-1], relative(ours[::-1, ::-1], theirs[::-1]), V0_1)
    assert turned.rate[::-1] == pytest.approx(found.rate, abs=1e-9)
    assert turned.low[::-1] == pytest.approx(found.low, abs=1e-9)


def test_the_interval_agrees_with_resampling_questions():
    ours, theirs, won, weight = pool(questions=300)
    features = relative(ours, theirs)
    rng = np.random.default_rng(4)
    rounds = []
    for _ in range(200):
        times = np.bincount(rng.integers(0, 300, size=300), minlength=300)
        rounds.append(fit(won * times, weight * times, features, V0_1))
    found = fit(won, weight, features, V0_1)
    assert found.low == pytest.approx(np.percentile([f.rate for f in rounds], 2.5, axis=0), abs=0.015)
    assert found.same_low == pytest.approx(np.percentile([f.same for f in rounds], 2.5, axis=0), abs=0.015)


def test_judging_twice_alike_does_not_narrow_the_interval():
    ours, theirs, won, weight = pool()
    features = density(ours, theirs)
    once, twice = fit(won, weight, features, V2_0), fit(2 * won, 2 * weight, features, V2_0)
    assert twice.high - twice.low == pytest.approx(once.high - once.low, rel=0.01)


def test_markdown_counts_are_the_published_ones_and_bytes_go_with_tokens():
    if "FUSEVAL_ASSETS" not in os.environ:
        pytest.skip("set FUSEVAL_ASSETS to a folder with the assets under their names (`fuseval assets` lists them)")
    mirror = pathlib.Path(os.environ["FUSEVAL_ASSETS"])
    path = find("arena_hard/v2.0/model_answer/o3-mini-2025-01-31.jsonl", cache=pathlib.Path("none"), mirror=mirror)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    kinds = ("header_count", "list_count", "bold_count")
    published = np.array([[sum(row["metadata"][kind].values()) for kind in kinds] for row in rows])
    texts = read_answers(path)
    counts = style_counts(texts[row["uid"]][-1] for row in rows)
    assert (counts[:, 1:] == published).all()
    tokens = np.array([row["metadata"]["token_len"] for row in rows])
    assert np.corrcoef(np.log(counts[:, 0]), np.log(tokens))[0, 1] > 0.97
