"""Suggestions come with a prediction that can be held against the truth, and go where there is something to gain."""

import numpy as np
import pytest

from fuseval.searching import SearchError
from fuseval.space import ParameterSpec, fits, points
from fuseval.suggesting import FEWEST, Known, _candidates, predict, suggest
from fuseval.variant import read_space

NOISE = 2.0  # points, the standard error of a trial


def space(given, **shared):
    specs = {name: ParameterSpec.model_validate(spec) for name, spec in given.items()}
    return read_space(specs, sources=("math", "chat"), **shared)


SMOOTH = space({"params.scale": {"low": 0.1, "high": 2.0}, "params.density": {"low": 0.1, "high": 1.0}}, method="ties")
MIXED = space({"method": ["sce", "linear"], "params.select_topk": [0.1, 0.3, 0.6, 1.0], "params.weights": [0.5, 1.0]})


def truth(point):
    return 50 - 20 * (point["params.scale"] - 1.2) ** 2 - 30 * (point["params.density"] - 0.4) ** 2


def trials(n, seed):
    rng = np.random.default_rng(seed)
    some = _candidates(SMOOTH, seed)[:n]
    values = [truth(point) + rng.normal(0, NOISE) for point in some]
    return [Known(p, v, v - 1.96 * NOISE, v + 1.96 * NOISE) for p, v in zip(some, values, strict=True)]


def test_suggestions_are_better_than_what_was_tried_on_average():
    known = trials(20, seed=1)
    found = suggest(SMOOTH, known, 5)
    assert np.mean([truth(each.point) for each in found]) > np.mean([truth(each.point) for each in known]) + 5
    assert max(truth(each.point) for each in found) > 48


def test_predicted_intervals_hold_the_truth():
    inside = []
    for seed in range(4):
        where = _candidates(SMOOTH, seed + 50)[:40]
        told = predict(SMOOTH, trials(16, seed), where)
        inside += [low <= truth(point) <= high for point, (_, low, high) in zip(where, told, strict=True)]
    assert np.mean(inside) >= 0.85


def test_suggestions_are_new_points_of_the_space_and_differ():
    known = trials(12, seed=2)
    found = suggest(SMOOTH, known, 6)
    assert all(fits(SMOOTH, each.point) for each in found)
    assert len({str(each.point) for each in found} | {str(one.point) for one in known}) == 6 + 12


def test_a_small_space_runs_out():
    every = list(points(MIXED))
    known = [Known(point, float(i)) for i, point in enumerate(every[:5])]
    assert len(suggest(MIXED, known, 10)) == 1
    failed = next(point for point in every if point not in [one.point for one in known])
    assert suggest(MIXED, known, 10, tried=[failed]) == []  # nothing else is left
    assert suggest(MIXED, [Known(point, float(i)) for i, point in enumerate(every)], 3) == []


def test_the_same_ledger_gives_the_same_suggestions():
    assert suggest(SMOOTH, trials(12, seed=3), 3) == suggest(SMOOTH, trials(12, seed=3), 3)


def test_what_is_far_from_all_trials_is_less_certain():
    scales = densities = (0.2, 0.3, 0.4)
    near = [
        Known(point, truth(point), truth(point) - 1, truth(point) + 1)
        for point in ({"params.scale": s, "params.density": d} for s in scales for d in densities)
    ]
    places = [{"params.scale": s, "params.density": d} for s, d in ((0.3, 0.3), (1.9, 0.9))]
    (_, low, high), (_, lower, higher) = predict(SMOOTH, near, places)
    assert higher - lower > 2 * (high - low)


def test_too_few_trials_are_said_to_be_too_few():
    with pytest.raises(SearchError, match="3 trials with a value say too little"):
        suggest(SMOOTH, trials(FEWEST - 1, seed=4), 1)
