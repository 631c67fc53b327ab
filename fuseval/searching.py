"""What to try next: grid, random, TPE, CMA-ES and NSGA-II over a search space, through Optuna's ask-and-tell.

Nothing is kept between two proposals: a study lives in the ledger alone. Each proposal replays the trials so far into
a sampler in memory whose draws depend on the seed and the trial's number, so that a killed and resumed study proposes
what an uninterrupted one does, to the last digit.

TPE: Bergstra et al. 2011 (NeurIPS), for several objectives Ozaki et al. 2020 (GECCO). CMA-ES: Hansen 2016,
arXiv:1604.00772, warm-started as Nomura et al. 2021 (AAAI). NSGA-II: Deb et al. 2002, doi:10.1109/4235.996017.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fuseval.space import (
    Parameter,
    Point,
    Space,
    Value,
    continuous,
    fits,
    from_json,
    is_active,
    points,
    rounded,
    to_json,
    values_of,
)
from fuseval.variant import can_be

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

KINDS = ("grid", "random", "tpe", "cma_es", "nsga2")
AHEAD = ("grid", "random")  # what is proposed does not depend on what was worth how much
STATEFUL = ("cma_es", "nsga2")  # samplers that leave notes on the trials they proposed
ATTEMPTS = 32  # draws until one is new and can be merged, before a space is gone through for what is left
POPULATION = 8  # of NSGA-II: a merge costs minutes, and studies have dozens of trials
WORST = 1e12  # what CMA-ES, which sees ranks alone, is told of a broken constraint, beyond how much it is broken


@dataclass(frozen=True, slots=True)
class Past:
    """A trial that was proposed before: its point and what it is worth, an objective each, larger being better.

    ``values`` is None where it failed, or has not ended yet. What was dropped in a race counts with its estimate over
    all questions (:func:`evals.racing.race`). ``violations`` are above 0 for a constraint that is broken.
    """

    point: Point
    values: tuple[float, ...] | None
    violations: tuple[float, ...] = ()
    failed: bool = False


class SearchError(ValueError):
    """This search cannot go through this space; the message says what can."""


@dataclass(frozen=True, slots=True)
class Searcher:
    """A way to go through a space.

    ``earlier`` are finished trials of other studies over the same space, the same ones at every proposal. Trials are
    proposed ``batch`` at a time: the results of a batch count only when all of it was proposed, so that it does not
    matter which of its trials end first. ``startup`` trials are random before TPE takes over, earlier ones included.
    """

    space: Space
    kind: str = "tpe"
    seed: int = 0
    objectives: int = 1
    batch: int = 1
    startup: int = 10
    earlier: tuple[Past, ...] = ()

    def __post_init__(self) -> None:
        check_search(self.space, self.kind, objectives=self.objectives)

    def ask(self, history: Sequence[Past]) -> Point | None:
        """Return the point of trial number ``len(history)``; None where the space has no other left.

        ``history`` holds the trials before it by number. Raises SearchError for one that does not fit the space.
        """
        for number, past in enumerate(history):
            if not fits(self.space, past.point):
                raise SearchError(f"trial {number} has {dict(past.point)!r}, which is no point of this space")
            waits = past.values is None and not past.failed and self.kind not in AHEAD
            if waits and number < len(history) // self.batch * self.batch:
                raise SearchError(f"trial {number} has not ended; end it before trial {len(history)} is proposed")
        if self.kind == "grid":
            return next(iter(_grid(to_json(self.space))[len(history) :]), None)
        seen = {_key(past.point) for past in history}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", _experimental())
            study = self._study(history)
            for attempt in range(ATTEMPTS):
                study.sampler = self._sampler(len(history), attempt)
                point = _suggested(study.ask(), self.space)
                if _key(point) not in seen and can_be(self.space, point):
                    return point
        return self._another(seen, len(history))

    def _study(self, history: Sequence[Past]) -> Study:
        """Return a study in memory that knows what the next proposal may know."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)  # it announces every study on standard error
        study = optuna.create_study(directions=["maximize"] * self.objectives, sampler=self._sampler(0, 0))
        study.add_trials([self._frozen(past) for past in self.earlier if past.values is not None])
        for begin in range(0, len(history), self.batch):
            several = history[begin : begin + self.batch]
            whole = len(several) == self.batch
            if self.kind not in STATEFUL:
                study.add_trials(
                    [self._frozen(past if whole else replace(past, values=None, failed=False)) for past in several]
                )
                continue
            asked = [self._replayed(study, past, begin + place) for place, past in enumerate(several)]
            for trial, past in zip(asked if whole else (), several, strict=False):
                self._tell(study, trial, past)
        return study

    def _replayed(self, study: Study, past: Past, number: int) -> Trial:
        """Have the sampler propose a trial of the past again: it leaves its notes on the trial."""
        study.enqueue_trial(dict(past.point))
        study.sampler = self._sampler(number, 0)
        trial = study.ask()
        _ = trial.relative_params  # what is in the queue is proposed only where somebody looks
        _suggested(trial, self.space)
        return trial

    def _tell(self, study: Study, trial: Trial, past: Past) -> None:
        from optuna.trial import TrialState

        if past.values is None:
            study.tell(trial, state=TrialState.FAIL)
            return
        if self.kind != "cma_es":
            for place, violation in enumerate(past.violations):
                trial.set_constraint(str(place), violation)
        study.tell(trial, self._worth(past.values, past.violations))

    def _worth(self, values: tuple[float, ...], violations: tuple[float, ...]) -> list[float]:
        """Return what the sampler is told; CMA-ES, which knows no constraints, puts what breaks one below the rest."""
        broken = sum(max(0.0, violation) for violation in violations)
        return [-WORST * (1.0 + broken)] if self.kind == "cma_es" and broken else list(values)

    def _frozen(self, past: Past) -> FrozenTrial:
        """Return a trial as the past has it; one of another study is of NSGA-II's first generation."""
        from optuna.samplers import NSGAIISampler
        from optuna.trial import TrialState, create_trial

        active = [parameter for parameter in self.space.parameters if is_active(parameter, past.point)]
        unfinished = TrialState.FAIL if past.failed else TrialState.RUNNING
        return create_trial(
            state=unfinished if past.values is None else TrialState.COMPLETE,
            values=None if past.values is None else self._worth(past.values, past.violations),
            params=dict(past.point),
            distributions={parameter.name: _distribution(parameter) for parameter in active},
            system_attrs={NSGAIISampler._get_generation_key(): 0},
            constraints={str(place): violation for place, violation in enumerate(past.violations)},
        )

    def _sampler(self, number: int, attempt: int) -> BaseSampler:
        from optuna import samplers

        seed = int(np.random.SeedSequence((self.seed, number, attempt)).generate_state(1)[0])
        if self.kind == "cma_es":
            known = [self._frozen(past) for past in self.earlier if past.values is not None]
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False, source_trials=known or None)
        if self.kind == "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
        if self.kind == "random":
            return samplers.RandomSampler(seed=seed)
        grouped = self.objectives == 1 and any(parameter.when for parameter in self.space.parameters)
        return samplers.TPESampler(seed=seed, n_startup_trials=self.startup, group=grouped)

    def _another(self, seen: set[str], number: int) -> Point | None:
        """Return a point at random that was not tried yet: the sampler proposes nothing new any more."""
        if continuous(self.space):
            return None
        left = [point for point in _grid(to_json(self.space)) if _key(point) not in seen]
        rng = np.random.default_rng((self.seed, number, ATTEMPTS))
        return left[rng.integers(len(left))] if left else None


def check_search(space: Space, kind: str, *, objectives: int = 1) -> None:
    """Raise SearchError where this kind of search cannot go through the space, or for so many objectives."""
    if kind not in KINDS:
        raise SearchError(f"there is no search {kind!r}; there are {', '.join(KINDS)}")
    if not space.parameters:
        raise SearchError("the space is empty; give it a parameter, such as params.select_topk: {low: 0.1, high: 1}")
    if objectives < 1:
        raise SearchError("a search needs an objective; give one")
    packages = () if kind == "grid" else ("optuna", "cmaes") if kind == "cma_es" else ("optuna",)
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise SearchError(f"{kind} needs {', '.join(missing)}, not installed here: pip install 'fuseval[ablate]'")
    if kind == "grid":
        try:
            next(points(space), None)
        except ValueError as error:
            raise SearchError(str(error)) from None
    if kind == "nsga2" and objectives == 1:
        raise SearchError("nsga2 weighs objectives against each other, and there is one; search with tpe")
    if kind == "cma_es":
        if objectives > 1:
            raise SearchError(f"cma_es knows one objective, and there are {objectives}; search with nsga2 or tpe")
        choices = [parameter.name for parameter in space.parameters if parameter.kind == "choice"]
        if choices:
            raise SearchError(f"cma_es goes through numbers, and {', '.join(choices)} are choices; search with tpe")


def all_points(space: Space) -> Iterator[Point]:
    """Yield every point of a space without continuous parameters that makes a merge, in the grid's order."""
    return (point for point in points(space) if can_be(space, point))


@lru_cache(maxsize=2)  # a study asks for the same grid at every trial
def _grid(text: str) -> tuple[Point, ...]:
    return tuple(all_points(from_json(text)))


def _suggested(trial: Trial, space: Space) -> Point:
    """Have the trial's sampler give every active parameter a value."""
    point: dict[str, Any] = {}
    for parameter in space.parameters:
        if is_active(parameter, point):
            point[parameter.name] = rounded(parameter, _drawn(trial, parameter))
    return point


def _drawn(trial: Trial, parameter: Parameter) -> Value:
    if parameter.kind == "choice":
        return cast("Value", trial.suggest_categorical(parameter.name, parameter.values))
    low, high = parameter.low, _highest(parameter)
    if parameter.kind == "int":
        step = 1 if parameter.log else round(parameter.step or 1)
        return trial.suggest_int(parameter.name, round(low), round(high), step=step, log=parameter.log)
    return trial.suggest_float(parameter.name, low, high, step=parameter.step, log=parameter.log)


def _distribution(parameter: Parameter) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.kind == "choice":
        return CategoricalDistribution(parameter.values)
    low, high = parameter.low, _highest(parameter)
    if parameter.kind == "int":
        step = 1 if parameter.log else round(parameter.step or 1)
        return IntDistribution(round(low), round(high), step=step, log=parameter.log)
    return FloatDistribution(low, high, step=parameter.step, log=parameter.log)


def _highest(parameter: Parameter) -> float:
    """Return the highest value that the steps from ``low`` reach."""
    values = values_of(parameter)
    return parameter.high if values is None else float(values[-1])


def _experimental() -> type[Warning]:
    """Return the warning that Optuna gives about warm starts, and about grouping conditional parameters."""
    from optuna.exceptions import ExperimentalWarning

    return ExperimentalWarning


def _key(point: Point) -> str:
    return json.dumps(dict(point), sort_keys=True)
