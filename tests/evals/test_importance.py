"""What mattered in a search is told from what chance alone makes seem to matter."""

import numpy as np

from evals.importance import FEWEST, importances


def trials(n=40, seed=0):
    rng = np.random.default_rng(seed)
    return [{"scale": float(rng.uniform(0, 2)), "density": float(rng.uniform(0, 1))} for _ in range(n)]


def test_the_parameter_that_decides_is_the_most_important_and_beyond_chance():
    points = trials()
    first, second = importances(points, [-((p["scale"] - 1) ** 2) for p in points])
    assert first.parameter == "scale"
    assert first.share > 0.7
    assert first.p < 0.05 < second.p


def test_of_pure_noise_nothing_is_beyond_chance():
    p_values = []
    for seed in range(12):
        noise = np.random.default_rng(seed).normal(size=20).tolist()
        p_values += [each.p for each in importances(trials(20, seed), noise, shuffles=39)]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.15


def test_shares_add_up_to_one():
    points = trials()
    assert abs(sum(each.share for each in importances(points, [p["scale"] + p["density"] for p in points])) - 1) < 1e-9


def test_choices_and_conditional_parameters_count_too():
    points = [
        {"method": "sce", "topk": t} if i % 2 else {"method": "ties"} for i, t in enumerate(np.linspace(0, 1, 24))
    ]
    found = importances(points, [float(p["method"] == "ties") + p.get("topk", 0) / 9 for p in points])
    assert {each.parameter for each in found} == {"method", "topk"}
    assert found[0].parameter == "method"


def test_nothing_is_said_of_few_trials_or_of_equal_values():
    assert importances(trials(FEWEST - 1), list(range(FEWEST - 1))) == []
    assert importances(trials(), [1.0] * 40) == []
    assert importances([{"scale": 1.0}] * 20, list(range(20))) == []
