"""The length-controlled win rate of AlpacaEval 2.0: what the win rate would be if both answers were equally long.

Dubois et al. 2024, arXiv:2404.04475. Follows alpaca_eval 0.6.6 ``metrics/glm_winrate.py``, ``length_controlled_v1``: a
logistic model of the preference p on x = (tanh(Δ / std Δ), difficulty of the question, 1), Δ the baseline's characters
minus the model's, without an intercept. It is fitted to the model's rows and to those of two gamed variants of the
baseline (``df_gamed.csv``, weight .2 / 2 each, third feature 0), every row once as won with weight p and once as lost
with weight 1 - p; L1, liblinear, C of a grid of ten by the log loss over five folds. The score is the mean prediction
with the first feature 0. The numbers are the reference's; only the way there is shorter (liblinear is called directly).

Differences from it:

- A question is known by its id, not by the position of its row, so that neither order nor gaps matter.
- The folds do not depend on the machine. All groups of the reference's GroupKFold are of one size, and its argsort of
  these ties was unstable before scikit-learn 1.9: ``folds="introsort"`` replays what numpy did without SIMD, on which
  most published figures rest; "stable" is the order since (and with AVX-512). They differ by 0.15 points at most.
- Where no length is known or all differences are equal, the length says nothing: Δ counts as 0.
- Predictions are no observations: two models' differ by a smooth function of the difficulty, with one sign on nearly
  every question, so that their spread says nothing of how sure the score is. ``Predicted.parts`` does: what each
  question contributes to the score, through the fit as well (the infinitesimal jackknife, Efron 1982, ch. 6; Jaeckel
  1972). Their mean is the score, and resampling them stands for refitting on resampled questions.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Folds = Literal["stable", "introsort"]
RULES: tuple[Folds, ...] = ("stable", "introsort")

GAMED_WEIGHT = 0.2 / 2  # lambda of length_controlled_v1, shared by the two gamed variants
GRID = np.logspace(-4, 4, 10)  # of C; scikit-learn's Cs=10
SPLITS, SEED = 5, 123
TOLERANCE, MAX_ITERATIONS = 1e-4, 100  # scikit-learn's defaults
L1_LOGISTIC = 6  # liblinear's L1R_LR
SMALL_QUICKSORT = 15  # numpy: PARTITIONS
ENOUGH = 16  # fits that make starting one more process worth its second


@dataclass(frozen=True, slots=True)
class Gamed:
    """The rows that steady the fit, (r,) each, and ``by_question``, the difficulty of each question, (q,)."""

    features: Floats  # (r, 3)
    preference: Floats
    by_question: Floats


@dataclass(frozen=True, slots=True)
class Compared:
    """One model's comparisons, (n,) each: ``question`` is the number of the question among all of the benchmark.

    ``preference`` for the model is in [0, 1], NaN where it is missing; ``delta`` is how many characters the baseline's
    answer is longer than the model's, NaN where one of them is missing. Only rows with both are learnt from.
    """

    question: Ints
    preference: Floats
    delta: Floats


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the model of lengths says of each question, (n,) each.

    ``preference`` is how probably the model is preferred if both answers were equally long. ``parts`` have the same
    mean, and are independent from question to question; NaN where the row was not learnt from.
    """

    preference: Floats
    parts: Floats


def read_gamed(path: Path) -> Gamed:
    """Read ``df_gamed.csv`` with pandas, as the reference does, whose parser may differ in a number's last bit."""
    import pandas as pd

    rows = pd.read_csv(path).dropna(subset=["preference", "std_delta_len", "instruction_difficulty"])
    difficulty = rows.drop_duplicates("index").set_index("index")["instruction_difficulty"].sort_index()
    features = np.column_stack(
        [np.tanh(rows["std_delta_len"]), rows["instruction_difficulty"], rows["not_gamed_baseline"].astype(float)]
    )
    return Gamed(features, rows["preference"].to_numpy(float), difficulty.to_numpy(float))


def predict_all(jobs: Sequence[tuple[Compared, Folds]], *, gamed: Gamed, workers: int | None = None) -> list[Predicted]:
    """Return :func:`predict` of each; many of them over ``workers`` processes (default: as many as there are cores).

    Processes, since liblinear shuffles with one generator for all threads; plain ones, since multiprocessing would
    run the caller's script again.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = max(1, min(workers or cores, len(jobs) // ENOUGH))
    with ThreadPoolExecutor(count) as waiting:
        others = [waiting.submit(_elsewhere, list(jobs[first::count]), gamed) for first in range(1, count)]
        shares = [_here(jobs[::count], gamed)] + [other.result() for other in others]
    found = [Predicted(np.empty(0), np.empty(0))] * len(jobs)
    for first, share in enumerate(shares):
        found[first::count] = share
    return found


def predict(compared: Compared, *, gamed: Gamed, folds: Folds = "stable") -> Predicted:
    """Return how probably the model is preferred on each question if both answers were equally long.

    Rows without a preference are predicted as well; without any preference all are NaN.
    """
    order = np.argsort(compared.question, kind="stable")
    question, preference, delta = compared.question[order], compared.preference[order], compared.delta[order]
    difficulty = gamed.by_question[question]
    known = ~(np.isnan(preference) | np.isnan(delta))
    if not known.any():
        return Predicted(*np.full((2, len(question)), np.nan))
    ones = np.ones(int(known.sum()))
    features = np.vstack([gamed.features, np.column_stack([np.tanh(_scaled(delta))[known], difficulty[known], ones])])
    p = np.concatenate([gamed.preference, preference[known]])
    weights = np.concatenate([np.full(len(gamed.preference), GAMED_WEIGHT), ones])
    coefficients = _fit(features, p, weights, fold_of(len(p), folds))
    level = np.column_stack([np.zeros(len(question)), difficulty, np.ones(len(question))])  # no difference of lengths
    found = _logistic(level @ coefficients)
    parts = np.full(len(question), np.nan)
    moved = _moved(coefficients, features, p, weights, slope=_slope(found, level))[len(gamed.preference) :]
    influence = found[known] / len(found) + moved
    parts[known] = found.mean() + len(moved) * (influence - influence.mean())
    predicted = np.empty((2, len(question)))
    predicted[:, order] = found, parts
    return Predicted(*predicted)


def _slope(found: Floats, level: Floats) -> Floats:
    """Return how the mean prediction moves with the coefficients, (3,)."""
    slope: Floats = ((found * (1 - found))[:, None] * level).mean(axis=0)
    return slope


def _moved(coefficients: Floats, features: Floats, p: Floats, weights: Floats, *, slope: Floats) -> Floats:
    """Return how the mean prediction moves with the weight of each row that was learnt from, through the fit, (rows,).

    It is gᵀ H⁻¹ sᵢ with the ``slope`` g, the loss's second derivative H and the row's first, sᵢ. A coefficient that the
    L1 penalty holds at 0 stays there.
    """
    active = coefficients != 0
    x = features[:, active]
    q = _logistic(features @ coefficients)
    hessian = (x * (weights * q * (1 - q))[:, None]).T @ x
    moved: Floats = x @ np.linalg.lstsq(hessian, slope[active], rcond=None)[0] * (p - q)
    return moved


def fold_of(count: int, folds: Folds) -> Ints:
    """Return the fold, (count,), of each of ``count`` groups of one size, as scikit-learn's GroupKFold(5) fills them.

    It sorts the groups by size, turns that round, and gives each to the lightest fold: here, to each in turn.
    """
    if folds not in ("stable", "introsort"):
        raise ValueError(f"there are no {folds!r} folds; there are 'stable' and 'introsort'")
    order = np.arange(count) if folds == "stable" else introsort_of_ties(count)
    found = np.empty(count, dtype=np.intp)
    found[order[::-1]] = np.arange(count) % SPLITS
    return found


@cache
def introsort_of_ties(count: int) -> Ints:
    """Return what ``numpy.argsort(numpy.zeros(count), kind="quicksort")`` is without SIMD: not the identity.

    numpy@2.3 ``npysort/quicksort.cpp``, ``aquicksort_``: where no key is less than another, a partition swaps its
    middle with its last but one, reverses what lies between the ends, and puts that pivot in the middle. The halves are
    equally long, so that the limit of depth (and with it heapsort) is never met; parts of 16 or fewer stay as they are.
    """
    order = np.arange(count)
    parts = [(0, count - 1)]
    while parts:
        left, right = parts.pop()
        if right - left <= SMALL_QUICKSORT:
            continue
        middle = left + (right - left) // 2
        order[[middle, right - 1]] = order[[right - 1, middle]]
        order[left + 1 : right - 1] = order[left + 1 : right - 1][::-1].copy()
        pivot = left + 1 + (right - left - 2) // 2
        order[[pivot, right - 1]] = order[[right - 1, pivot]]
        parts += [(left, pivot - 1), (pivot + 1, right)]
    order.flags.writeable = False  # it is remembered
    return order


def _fit(features: Floats, p: Floats, weights: Floats, fold: Ints) -> Floats:
    """Return the coefficients, (3,), at the C with the best weighted log loss over the folds."""
    scores = np.zeros(len(GRID))
    for number in range(SPLITS):
        train, test = fold != number, fold == number
        path = _path(features[train], p[train], weights[train], GRID)  # (C, 3)
        q = np.clip(_logistic(features[test] @ path.T), 1e-15, 1 - 1e-15)  # (test, C)
        loss = p[test, None] * np.log(q) + (1 - p[test, None]) * np.log(1 - q)
        scores += (loss * weights[test, None]).mean(axis=0)
    best = GRID[int(np.argmax(scores))]
    found: Floats = _path(features, p, weights, np.array([best]))[0]
    return found


def _path(features: Floats, p: Floats, weights: Floats, grid: Floats, *, tolerance: float = TOLERANCE) -> Floats:
    """Return liblinear's coefficients at each C, (C, 3): of every row once as won, then once as lost."""
    # LogisticRegression itself checks its input for longer than liblinear works; that it finds the same is tested.
    from sklearn.svm import _liblinear

    _liblinear.set_verbosity_wrap(0)
    twice = np.ascontiguousarray(np.vstack([features, features]))
    won = np.repeat([1.0, 0.0], len(p))
    weight = np.concatenate([p * weights, (1 - p) * weights])
    seeds = np.random.RandomState(SEED)
    found = np.empty((len(grid), features.shape[1]))
    for row, c in zip(found, grid, strict=True):
        seed = seeds.randint(np.iinfo("i").max)
        row[:] = _liblinear.train_wrap(
            twice, won, False, L1_LOGISTIC, tolerance, -1.0, c, np.ones(2), MAX_ITERATIONS, seed, 0.1, weight
        )[0][0]
    return found


def _scaled(delta: Floats) -> Floats:
    known = delta[~np.isnan(delta)]
    std = known.std(ddof=1) if len(known) > 1 else 0.0
    return delta / std if std > 0 else delta * 0.0


def _logistic(x: Floats) -> Floats:
    found: Floats = np.exp(-np.logaddexp(0.0, -x))
    return found


def _here(jobs: Sequence[tuple[Compared, Folds]], gamed: Gamed) -> list[Predicted]:
    return [predict(compared, gamed=gamed, folds=folds) for compared, folds in jobs]


def _elsewhere(jobs: Sequence[tuple[Compared, Folds]], gamed: Gamed) -> list[Predicted]:
    code = "import evals.length_control as here; here._serve()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    told = _packed(
        gamed=[gamed.features.ravel(), gamed.preference, gamed.by_question],
        jobs=[array for c, _ in jobs for array in (c.question, c.preference, c.delta)],
        folds=[np.array([RULES.index(folds) for _, folds in jobs])],
    )
    done = subprocess.run([sys.executable, "-c", code], input=told, stdout=subprocess.PIPE, env=environment, check=True)
    return [Predicted(*pair) for pair in _grouped(_unpacked(done.stdout)["found"], 2)]


def _serve() -> None:
    """Answer, in a process of its own, what :func:`_elsewhere` asks."""
    told = _unpacked(sys.stdin.buffer.read())
    features, preference, by_question = told["gamed"]
    gamed = Gamed(features.reshape(len(preference), -1), preference, by_question)
    jobs = [Compared(q.astype(np.intp), p, d) for q, p, d in _grouped(told["jobs"], 3)]
    rules = [RULES[int(rule)] for rule in told["folds"][0]]
    found = _here(list(zip(jobs, rules, strict=True)), gamed)
    sys.stdout.buffer.write(_packed(found=[array for each in found for array in (each.preference, each.parts)]))


def _packed(**lists: Sequence[npt.NDArray[Any]]) -> bytes:
    """Return named lists of flat arrays as bytes: numpy's own format, which runs no code when it is read."""
    arrays = {f"{name} {place}": array for name, given in lists.items() for place, array in enumerate(given)}
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _unpacked(data: bytes) -> dict[str, list[npt.NDArray[Any]]]:
    found: dict[str, list[npt.NDArray[Any]]] = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        for key in arrays.files:  # in the order of writing
            found.setdefault(key.split(" ")[0], []).append(arrays[key])
    return found


def _grouped(flat: Sequence[npt.NDArray[Any]], size: int) -> list[Sequence[npt.NDArray[Any]]]:
    return [flat[begun : begun + size] for begun in range(0, len(flat), size)]
