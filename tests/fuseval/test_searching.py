"""Searches propose what fits the space, the same after a kill as without one, and find what was planted."""

import math

import numpy as np
import pytest

from fuseval.searching import Past, Searcher, SearchError, all_points
from fuseval.space import ParameterSpec, fits
from fuseval.variant import read_space


def space(given, **shared):
    specs = {name: ParameterSpec.model_validate(spec) for name, spec in given.items()}
    return read_space(specs, sources=("math", "chat", "code"), **shared)


SMOOTH = space({"params.scale": {"low": 0.1, "high": 2.0}, "params.density": {"low": 0.1, "high": 1.0}}, method="ties")
MIXED = space(
    {
        "method": ["sce", "ties", "linear"],
        "params.select_topk": {"low": 0.1, "high": 1.0},
        "params.density": {"low": 0.1, "high": 0.9, "step": 0.2},
        "params.weights.chat": {"low": 0.0, "high": 1.0},
        "sources.chat": [True, False],
    }
)
SMALL = space({"method": ["sce", "linear"], "params.select_topk": [0.1, 0.5, 1.0], "sources.math": [True, False]})


def worth(point, number):
    """Return a value that depends on the point, with noise that depends on the trial alone."""
    far = sum((value - 0.4) ** 2 for value in point.values() if isinstance(value, float))
    return (-far + 0.1 * math.sin(37 * number),)


def run(searcher, trials, history=(), value=worth):
    found = list(history)
    while len(found) < trials and (point := searcher.ask(found)) is not None:
        found.append(Past(point, value(point, len(found))))
    return found


@pytest.mark.parametrize(
    ("kind", "where"), [("random", MIXED), ("tpe", MIXED), ("tpe", SMOOTH), ("cma_es", SMOOTH), ("grid", SMALL)]
)
def test_a_resumed_study_proposes_what_an_uninterrupted_one_does(kind, where):
    whole = run(Searcher(where, kind, seed=3), 18)
    resumed = run(Searcher(where, kind, seed=3), 18, history=whole[:13])
    assert resumed == whole
    assert all(fits(where, past.point) for past in whole)


def test_several_objectives_resume_alike():
    def two(point, number):
        return (point["params.scale"], -point["params.density"])

    for kind in ("nsga2", "tpe"):
        whole = run(Searcher(SMOOTH, kind, objectives=2), 22, value=two)
        assert run(Searcher(SMOOTH, kind, objectives=2), 22, history=whole[:17], value=two) == whole


def test_another_seed_proposes_other_points():
    assert Searcher(SMOOTH, "tpe", seed=1).ask([]) != Searcher(SMOOTH, "tpe", seed=2).ask([])


@pytest.mark.parametrize("kind", ["random", "tpe", "grid"])
def test_nothing_is_proposed_twice_and_a_small_space_ends(kind):
    found = run(Searcher(SMALL, kind), 99)
    assert len(found) == len(list(all_points(SMALL))) == 8
    assert len({str(sorted(past.point.items())) for past in found}) == 8
    assert Searcher(SMALL, kind).ask(found) is None


def test_no_proposal_is_a_merge_that_cannot_be():
    made = space({f"sources.{name}": [True, False] for name in ("math", "chat", "code")}, method="sce")
    found = run(Searcher(made, "random"), 99)
    assert len(found) == 4  # all three, or two of them
    assert all(sum(past.point.values()) >= 2 for past in found)


def test_a_failed_trial_is_passed_over_and_still_counted():
    history = run(Searcher(SMOOTH, "tpe"), 12)
    failed = [*history[:5], Past(history[5].point, None, failed=True), *history[6:]]
    for kind in ("tpe", "cma_es"):
        assert fits(SMOOTH, Searcher(SMOOTH, kind).ask(failed))


def test_within_a_batch_it_does_not_matter_which_trials_have_ended():
    searcher = Searcher(SMOOTH, "tpe", batch=4, startup=4)
    history = run(searcher, 14)
    running = [*history[:12], *(Past(past.point, None) for past in history[12:])]
    failed = [*history[:12], *(Past(past.point, None, failed=True) for past in history[12:])]
    assert searcher.ask(history) == searcher.ask(running) == searcher.ask(failed)


def test_a_batch_ends_before_the_next_is_proposed():
    searcher = Searcher(SMOOTH, "tpe", batch=2)
    point = searcher.ask([])
    with pytest.raises(SearchError, match="trial 0 has not ended; end it before trial 2 is proposed"):
        searcher.ask([Past(point, None), Past({"params.scale": 1.0, "params.density": 0.5}, (1.0,))])


@pytest.mark.parametrize("kind", ["tpe", "cma_es"])
def test_broken_constraints_turn_a_search_away(kind):
    def forbidden(*, told):
        searcher, history = Searcher(SMOOTH, kind, seed=5), []
        while len(history) < 30:  # more is better, and above 1 forbidden
            point = searcher.ask(history)
            scale = point["params.scale"]
            history.append(Past(point, (scale,), (scale - 1.0,) if told else ()))
        return sum(past.point["params.scale"] > 1.0 for past in history[-10:])

    assert forbidden(told=True) <= forbidden(told=False) - 3


@pytest.mark.parametrize("kind", ["tpe", "cma_es"])
def test_earlier_trials_over_the_same_space_save_the_search_its_beginning(kind):
    earlier = tuple(run(Searcher(SMOOTH, "random", seed=9), 30))
    cold = run(Searcher(SMOOTH, kind, seed=1), 4)
    warm = run(Searcher(SMOOTH, kind, seed=1, earlier=earlier), 4)
    assert sum(worth(p.point, 0)[0] for p in warm) > sum(worth(p.point, 0)[0] for p in cold)


@pytest.mark.parametrize(
    ("where", "kind", "objectives", "text"),
    [
        (SMOOTH, "gird", 1, "there is no search 'gird'; there are grid, random, tpe, cma_es, nsga2"),
        (SMOOTH, "grid", 1, "a grid needs every value of 'params.scale', 'params.density'"),
        (MIXED, "cma_es", 1, "cma_es goes through numbers, and method, sources.chat are choices; search with tpe"),
        (SMOOTH, "cma_es", 2, "cma_es knows one objective"),
        (SMOOTH, "nsga2", 1, "nsga2 weighs objectives against each other"),
    ],
)
def test_a_search_that_cannot_go_through_the_space_is_refused(where, kind, objectives, text):
    with pytest.raises(SearchError, match=text):
        Searcher(where, kind, objectives=objectives)


def test_a_trial_that_is_no_point_of_the_space_is_named():
    with pytest.raises(SearchError, match=r"trial 0 has .*no point of this space"):
        Searcher(SMOOTH, "tpe").ask([Past({"params.scale": 9.0, "params.density": 0.5}, (1.0,))])


COEFFICIENTS = {
    "params.scale": {"low": 0.1, "high": 2.0},
    "params.density": {"low": 0.1, "high": 1.0},
    "params.weights.chat": {"low": 0.0, "high": 1.0},
}
NOISE = 5.0  # points: the standard error of a win rate near one half over 100 questions


def planted(kind, trials, seed):
    """Return how far below the optimum the chosen point truly is, and the last ten proposals are on average."""
    where = space(COEFFICIENTS, method="ties")
    peak = dict(zip(COEFFICIENTS, np.random.default_rng((seed, 7)).uniform(0.25, 0.75, 3), strict=True))

    def below(point):
        spans = ((name, bounds["low"], bounds["high"]) for name, bounds in COEFFICIENTS.items())
        return 70 * sum(((point[name] - low) / (high - low) - peak[name]) ** 2 for name, low, high in spans)

    def noisy(point, number):
        return (55 - below(point) + np.random.default_rng((seed, number)).normal(0, NOISE),)

    found = run(Searcher(where, kind, seed=seed), trials, value=noisy)
    best = max(found, key=lambda past: past.values)
    return below(best.point), np.mean([below(past.point) for past in found[-10:]])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tpe", "cma_es"])
def test_a_planted_optimum_is_found_within_its_interval_in_fewer_trials_than_a_grid(kind):
    grid = {name: {**bounds, "step": (bounds["high"] - bounds["low"]) / 4} for name, bounds in COEFFICIENTS.items()}
    trials = 48
    assert trials < len(list(all_points(space(grid, method="ties")))) == 125  # five values each
    for seed in range(3):
        chosen, late = planted(kind, trials, seed)
        assert chosen < 1.96 * NOISE
        assert late < planted("random", trials, seed)[1] / 2  # it knows where the optimum is
