"""What to try next, from what a ledger's trials have shown: predicted worth, with its uncertainty.

A Gaussian process over the space (Rasmussen & Williams 2006, ch. 2; Matérn 5/2), each trial with the noise that its
interval tells of. Suggestions are those of most expected improvement (Jones et al. 1998, doi:10.1023/A:1008306431147);
after each, the next are chosen as if it had come out as predicted (Ginsbourger et al. 2010), so that they differ.
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseval.searching import SearchError, all_points
from fuseval.space import Parameter, Point, Space, Value, continuous, is_active, rounded
from fuseval.variant import can_be

FEWEST = 4  # trials: fewer say nothing of how smooth the worth is
DRAWN = 1000  # points that suggestions are chosen among
Z = NormalDist().inv_cdf(0.975)
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Known:
    """A trial that has ended: what it was worth, with its 95 % interval where it has one."""

    point: Point
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A point not tried yet, what it is predicted to be worth with a 95 % interval, and the chance to beat the best.

    The best is the tried point that is predicted to be worth most, which is not the luckiest trial.
    """

    point: Point
    value: float
    low: float
    high: float
    chance: float


def suggest(
    space: Space, known: Sequence[Known], number: int, *, tried: Sequence[Point] = (), seed: int = 0
) -> list[Suggestion]:
    """Return up to ``number`` points to try next, the most promising first; none where nothing is left to try.

    ``tried`` are further points that are not suggested, such as those of trials that failed. Constraints are not
    predicted. Raises SearchError for fewer than :data:`FEWEST` trials.
    """
    model = _Model.of(space, known, seed)
    gone = {_key(point) for point in (*tried, *(one.point for one in known))}
    points = [point for point in _candidates(space, seed) if _key(point) not in gone]
    if not points:
        return []
    places = np.array([_coordinates(space, point) for point in points])
    best = float(model.process.predict(model.seen).max())
    means, spreads = model.process.predict(places, return_std=True)
    chosen: list[int] = []
    while len(chosen) < min(number, len(points)):
        mean, spread = model.as_if(places[chosen], means[chosen]).predict(places, return_std=True)
        gains = _improvement(mean, spread, best)
        gains[chosen] = -np.inf
        chosen.append(int(np.argmax(gains)))
    return [
        Suggestion(points[at], *model.told(means[at], spreads[at]), _chance(means[at], spreads[at], best))
        for at in chosen
    ]


def predict(
    space: Space, known: Sequence[Known], points: Sequence[Point], *, seed: int = 0
) -> list[tuple[float, float, float]]:
    """Return what each point is predicted to be worth, with a 95 % interval; raises as :func:`suggest` does."""
    model = _Model.of(space, known, seed)
    means, spreads = model.process.predict(np.array([_coordinates(space, p) for p in points]), return_std=True)
    return [model.told(mean, spread) for mean, spread in zip(means, spreads, strict=True)]


@dataclass(frozen=True, slots=True)
class _Model:
    """A fitted process of standardised values, and what it was fitted to."""

    process: Any
    seen: Matrix  # (trials, columns)
    values: Matrix
    noise: Matrix  # variances
    centre: float
    scale: float

    @classmethod
    def of(cls, space: Space, known: Sequence[Known], seed: int) -> _Model:
        if len(known) < FEWEST:
            raise SearchError(
                f"{len(known)} trials with a value say too little to predict others: let the study have {FEWEST}, or "
                "search with random"
            )
        worth = np.array([one.value for one in known])
        centre, scale = float(worth.mean()), float(worth.std()) or 1.0
        seen = np.array([_coordinates(space, one.point) for one in known])
        values, noise = (worth - centre) / scale, _noise(known, scale)
        return cls(_fitted(seen, values, noise, seed), seen, values, noise, centre, scale)

    def as_if(self, places: Matrix, values: Matrix) -> Any:
        """Return the process as it would be, had these places come out so."""
        noise = np.append(self.noise, np.full(len(values), self.noise.min()))
        points, values = np.vstack([self.seen, places]), np.append(self.values, values)
        return _fitted(points, values, noise, 0, kernel=self.process.kernel_)

    def told(self, mean: float, spread: float) -> tuple[float, float, float]:
        value, error = self.centre + self.scale * float(mean), self.scale * float(spread)
        return value, value - Z * error, value + Z * error


def _chance(mean: float, spread: float, best: float) -> float:
    return NormalDist().cdf((float(mean) - best) / max(float(spread), 1e-12))


def _fitted(points: Matrix, values: Matrix, noise: Matrix, seed: int, *, kernel: Any = None) -> Any:
    """Return the process given these values; with a kernel, its lengths stay as they are."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    fixed = kernel is not None
    if kernel is None:
        # However flat the trials are, nothing is known of the far end of a range: lengths stay below twice of it.
        lengths = np.full(points.shape[1], 0.5)
        kernel = ConstantKernel(1.0, (0.3, 10.0)) * Matern(lengths, (0.1, 2.0), nu=2.5)
    process = GaussianProcessRegressor(
        kernel, alpha=noise, optimizer=None if fixed else "fmin_l_bfgs_b", n_restarts_optimizer=0 if fixed else 2,
        random_state=seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound: a parameter that does not matter
        process.fit(points, values)
    return process


def _noise(known: Sequence[Known], scale: float) -> Matrix:
    """Return the trials' variances, in the unit of the standardised values; the median's where one has no interval."""
    errors = [(one.high - one.low) / (2 * Z) / scale for one in known if one.low is not None and one.high is not None]
    usual = float(np.median(errors)) if errors else 0.3
    found = [usual if one.low is None or one.high is None else (one.high - one.low) / (2 * Z) / scale for one in known]
    variances: Matrix = np.maximum(np.square(np.array(found)), 1e-4)
    return variances


def _improvement(mean: Matrix, spread: Matrix, best: float) -> Matrix:
    from scipy.special import ndtr

    spread = np.maximum(spread, 1e-12)
    z = (mean - best) / spread
    gained: Matrix = spread * (z * ndtr(z) + np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi))
    return gained


def _candidates(space: Space, seed: int) -> list[Point]:
    """Return points to choose among: of a small space all, else random ones."""
    if not continuous(space):
        found = list(itertools.islice(all_points(space), DRAWN + 1))
        if len(found) <= DRAWN:
            return found
    rng = np.random.default_rng((seed, len(space.parameters)))
    drawn = {_key(point): point for point in (_random(space, rng) for _ in range(DRAWN))}
    return [point for point in drawn.values() if can_be(space, point)]


def _random(space: Space, rng: np.random.Generator) -> Point:
    point: dict[str, Value] = {}
    for parameter in space.parameters:
        if is_active(parameter, point):
            point[parameter.name] = _from_share(parameter, float(rng.random()))
    return point


def _from_share(parameter: Parameter, share: float) -> Value:
    if parameter.kind == "choice":
        return parameter.values[int(share * len(parameter.values))]
    low, high = parameter.low, parameter.high
    return rounded(parameter, low * (high / low) ** share if parameter.log else low + share * (high - low))


def _coordinates(space: Space, point: Point) -> list[float]:
    """Return the point as numbers in [0, 1]: a column a number, one a value of a choice, one where it may be inactive.

    An inactive number lies in the middle, so that it is as far from all others.
    """
    found: list[float] = []
    for parameter in space.parameters:
        value = point.get(parameter.name)
        numbers = [v for v in parameter.values if not isinstance(v, str | bool)]
        if parameter.kind == "choice" and (len(numbers) != len(parameter.values) or len(numbers) < 3):
            found += [float(value is not None and str(value) == str(each)) for each in parameter.values]
            continue
        low, high = (min(numbers), max(numbers)) if numbers else (parameter.low, parameter.high)
        if value is None:
            found.append(0.5)
        elif parameter.log:
            found.append(math.log(float(value) / low) / math.log(high / low))
        else:
            found.append((float(value) - low) / (high - low))
        if parameter.when:
            found.append(float(value is not None))
    return found


def _key(point: Point) -> str:
    return json.dumps(dict(point), sort_keys=True)
