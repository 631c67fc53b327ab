"""Which parameters of a search mattered, and whether more than chance makes them seem to.

PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255; for conditional parameters Ito et al. 2026, arXiv:2601.20800), as
Optuna computes it: how unlike all trials the best ones are in a parameter. Its shares add up to 1 even where nothing
matters; so the same is computed with the values shuffled among the trials, which says how often chance does as much.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

FEWEST = 8  # trials: of fewer, the best are one or two
SHUFFLES = 99
BEST = 5  # trials that are called the best, where these are between a tenth and a half of all


@dataclass(frozen=True, slots=True)
class Importance:
    """How much a parameter mattered: its share of all that did, and how often shuffled values do as much (p)."""

    parameter: str
    share: float
    p: float


def importances(
    points: Sequence[Mapping[str, Any]], values: Sequence[float], *, seed: int = 0, shuffles: int = SHUFFLES
) -> list[Importance]:
    """Return how much each parameter mattered for reaching the best values (the larger, the better), most first.

    ``points`` are the trials' parameters; one that some trials lack is conditional. Parameters that never varied, too
    few trials, values that are all the same, or an environment without Optuna bring nothing.
    """
    if len(points) < FEWEST or len(set(values)) < 2 or importlib.util.find_spec("optuna") is None:
        return []
    names = sorted({name for point in points for name in point})
    spaces = {name: space for name in names if (space := _space([p[name] for p in points if name in p])) is not None}
    if not spaces:
        return []
    study = _study([{name: _told(p[name], spaces[name]) for name in spaces if name in p} for p in points], spaces)
    found = _of(study, values)
    rng = np.random.default_rng(seed)
    reached = dict.fromkeys(spaces, 0)
    for _ in range(shuffles):
        by_chance = _of(study, rng.permutation(np.array(values, dtype=np.float64)).tolist())
        for name in spaces:
            reached[name] += by_chance.get(name, 0.0) >= found.get(name, 0.0) - 1e-12
    total = sum(found.values()) or 1.0
    made = [Importance(name, found.get(name, 0.0) / total, (reached[name] + 1) / (shuffles + 1)) for name in spaces]
    return sorted(made, key=lambda each: (-each.share, each.parameter))


def _space(values: Sequence[Any]) -> BaseDistribution | None:
    """Return the values' range, or their choice where they are no numbers; None where they are all the same."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if len(set(map(str, values))) < 2:
        return None
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return FloatDistribution(float(min(values)), float(max(values)))
    return CategoricalDistribution(sorted(set(map(str, values))))


def _told(value: Any, space: BaseDistribution) -> Any:
    from optuna.distributions import FloatDistribution

    return float(value) if isinstance(space, FloatDistribution) else str(value)


def _study(points: Sequence[Mapping[str, Any]], spaces: Mapping[str, BaseDistribution]) -> Study:
    """Return the trials as Optuna has them, without their values."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    study.add_trials(
        [
            optuna.trial.create_trial(value=0.0, params=dict(p), distributions={name: spaces[name] for name in p})
            for p in points
        ]
    )
    return study


def _of(study: Study, values: Sequence[float]) -> dict[str, float]:
    import optuna

    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, BEST / len(values))))
    with warnings.catch_warnings():
        # That shares are not made to sum to 1, and that the lower target is taken for the better one, as it is here.
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda trial: -values[trial.number], normalize=False
        )
    return {name: float(value) for name, value in found.items()}
