"""Style control: how often a model would win if its answers were as long, and as marked up, as others' are.

Li et al. 2024, arXiv:2406.11939, and "Does style matter?" (LMSYS, 2024-08-28): a Bradley-Terry model with four more
terms, the differences of two answers in length, headers, list items and bold spans. Two forms are published, both in
lmarena/arena-hard-auto: v0.1's (@3071ef9) and v2.0's (@196f6b8); see :data:`V0_1` and :data:`V2_0`.

What differs here:

- Length is counted in UTF-8 bytes. The references count tokens (tiktoken), whose vocabulary is a download. Both sides
  of a difference are counted alike and only ratios enter; over the 750 published v2.0 baseline answers the logarithms
  of bytes and tokens correlate by 0.973 (of characters by 0.918). Headers, lists and bold are counted as published.
- The fit is Newton's and ends at the optimum; v2.0's reference stops at 50 steps of LBFGS, before it.
- Intervals are those of the cluster-robust (sandwich) covariance, questions being the clusters: Liang & Zeger 1986,
  doi:10.1093/biomet/73.1.13. The centre and scale of the features are taken as given.

As published, features are centred over all battles of the fit. A model's figure therefore holds at the mean style of
all models fitted with it and moves with their choice; of one model alone it is nearly its plain win rate.
``StyleFit.same`` is the same fit read where model and baseline do not differ in style.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FEATURES = ("length", "headers", "lists", "bold")
Z = 1.959963984540054  # of a two-sided 95 % interval
STEPS = 200

_FENCED = re.compile(r"```([^`]*)```")
# Published as ^#{1,6}\s and ^\s*(?:\d+\.|[-*+])\s, in every line. These count the same after a line's end, which is
# searched for much faster.
_HEADER = re.compile(r"\n#{1,6}(?=\s)")
_ITEM = re.compile(r"\n[^\S\n]*(?:\d+\.|[-*+])(?=\s)")
_STARS, _UNDERSCORES = re.compile(r"\*\*[^*\n]+\*\*"), re.compile(r"__[^_\n]+__")


def relative(model: Array, baseline: Array) -> Array:
    """Return (a - b) / (a + b + 1) of all four counts, as v0.1 compares them; shapes (..., 4)."""
    return (model - baseline) / (model + baseline + 1.0)


def density(model: Array, baseline: Array) -> Array:
    """Return v2.0's comparison: lengths by (a - b) / (a + b), of the others their number per unit of length.

    Those densities, count / (length + 1), are compared by (a - b) / (a + b + 1). Two empty answers are equally long.
    """
    length = (model[..., :1] - baseline[..., :1]) / np.maximum(model[..., :1] + baseline[..., :1], 1.0)
    mine, theirs = model[..., 1:] / (model[..., :1] + 1.0), baseline[..., 1:] / (baseline[..., :1] + 1.0)
    return np.concatenate([length, relative(mine, theirs)], axis=-1)


@dataclass(frozen=True, slots=True)
class Control:
    """A published form: of the features, of the Bradley-Terry columns, and of the penalty."""

    differences: Callable[[Array, Array], Array]  # of the counts of two answers, (..., 4) each
    scale: float  # of the Bradley-Terry columns
    penalty: float  # λ of λ/2 · |all coefficients|², added to the sum of log-losses
    copies: int  # of each battle in that sum
    ddof: int  # of the features' standard deviation


V0_1 = Control(differences=relative, scale=math.log(10), penalty=1.0, copies=2, ddof=0)
"""v0.1's: scikit-learn's LogisticRegression with C = 1 over battles written twice, a tie as a win and a loss."""

V2_0 = Control(differences=density, scale=1.0, penalty=1e-6, copies=1, ddof=1)
"""v2.0's: no penalty. The millionth here only gives a model that lost every game a finite coefficient."""


@dataclass(frozen=True, slots=True)
class StyleFit:
    """Win rates in [0, 1] of M models with their 95 % intervals, all (M,); NaN where a model had no row.

    ``rate`` is at the mean style of the fit, as published, and ``same`` where model and baseline have the same style;
    ``coefficients`` (4,) are those of the standardised features, ``used`` (M, Q) the rows that the fit rests on.
    """

    rate: Array
    low: Array
    high: Array
    same: Array
    same_low: Array
    same_high: Array
    coefficients: Array
    used: NDArray[np.bool_]


def style_counts(texts: Iterable[str]) -> Array:
    """Return FEATURES of each text, shape (texts, 4): bytes, headers, list items, bold spans.

    What stands in fenced code is counted as length alone; as in the reference, it is taken out wherever it recurs.
    """
    return np.array([_counts(text) for text in texts], dtype=np.float64).reshape(-1, len(FEATURES))


def fit(won: Array, weight: Array, features: Array, control: Control) -> StyleFit:
    """Fit M models against one baseline on Q questions.

    ``weight`` (M, Q) is the weight of a question's games together, 0 where there is none, ``won`` (M, Q) what of it
    the model won, and ``features`` (M, Q, 4) ``control.differences`` of the counts, NaN where a text is not known.
    Games of one question share their features, so that a question is one row of the fit.
    """
    used = (weight > 0) & np.isfinite(features).all(axis=-1)
    if not used.any():
        none = np.full(len(won), np.nan)
        return StyleFit(none, none, none, none, none, none, np.full(features.shape[-1], np.nan), used)
    rows = _rows(used, won, weight, features, control)
    theta, hessian = _optimum(rows, len(won), control)
    covariance = _sandwich(rows, theta, hessian, used.shape, control)
    contrast = np.zeros((len(won), len(theta)))  # (M, M + 1 + k): the log-odds of a model are contrast @ theta
    contrast[:, : len(won)] = control.scale * np.eye(len(won))
    contrast[:, len(won)] = -control.scale
    level = contrast.copy()
    level[:, len(won) + 1 :] = rows.level
    known = np.where(used.any(axis=1), 1.0, np.nan)
    rate, low, high = _interval(contrast, theta, covariance, known)
    same, same_low, same_high = _interval(level, theta, covariance, known)
    return StyleFit(rate, low, high, same, same_low, same_high, theta[len(won) + 1 :], used)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the fit sees, one row a (model, question)."""

    model: NDArray[np.intp]  # (R,)
    question: NDArray[np.intp]  # (R,)
    z: Array  # (R, k), standardised
    share: Array  # (R,), won of the weight
    weight: Array  # (R,), copies included
    level: Array  # (k,), where no feature differs


def _rows(used: NDArray[np.bool_], won: Array, weight: Array, features: Array, control: Control) -> _Rows:
    model, question = np.nonzero(used)
    w, x = weight[used], features[used]  # (R,), (R, k)
    total = max(w.sum(), 1.0)
    mean = (w @ x) / total
    spread = np.sqrt(w @ (x - mean) ** 2 / max(total - control.ddof, 1.0))
    spread[spread < 1e-12] = np.inf  # a feature that never differs has no say
    return _Rows(model, question, (x - mean) / spread, won[used] / w, w * control.copies, -mean / spread)


def _optimum(rows: _Rows, models: int, control: Control) -> tuple[Array, Array]:
    """Return the coefficients (of the models, the baseline, the features) and the Hessian there, by Newton's method."""
    theta = np.zeros(models + 1 + rows.z.shape[1])
    loss = _loss(rows, theta, models, control)
    for _ in range(STEPS):
        gradient, hessian = _derivatives(rows, theta, models, control)
        step = np.linalg.solve(hessian, gradient)
        if np.abs(step).max() < 1e-10:
            return theta, hessian
        for halving in range(40):
            proposed = theta - step / 2**halving
            if (lower := _loss(rows, proposed, models, control)) <= loss * (1 + 1e-14):
                break
        theta, loss = proposed, lower
    raise ArithmeticError(f"style control of {models} models did not converge in {STEPS} Newton steps")


def _logits(rows: _Rows, theta: Array, models: int, control: Control) -> Array:
    odds: Array = control.scale * (theta[rows.model] - theta[models]) + rows.z @ theta[models + 1 :]
    return odds


def _loss(rows: _Rows, theta: Array, models: int, control: Control) -> float:
    odds = _logits(rows, theta, models, control)
    return float(rows.weight @ (np.logaddexp(0.0, odds) - rows.share * odds) + control.penalty / 2 * theta @ theta)


def _derivatives(rows: _Rows, theta: Array, models: int, control: Control) -> tuple[Array, Array]:
    p = _sigmoid(_logits(rows, theta, models, control))
    short, v = rows.weight * (p - rows.share), rows.weight * p * (1 - p)  # (R,)
    a, m, size = control.scale, models, len(theta)
    gradient, hessian = np.empty(size), np.zeros((size, size))
    gradient[:m] = a * np.bincount(rows.model, short, minlength=m)
    gradient[m], gradient[m + 1 :] = -gradient[:m].sum(), short @ rows.z
    own = a * a * np.bincount(rows.model, v, minlength=m)  # (M,)
    hessian[np.arange(m), np.arange(m)] = own
    hessian[:m, m] = hessian[m, :m] = -own
    hessian[m, m] = own.sum()
    mixed = a * np.stack([np.bincount(rows.model, v * column, minlength=m) for column in rows.z.T], axis=1)  # (M, k)
    hessian[:m, m + 1 :], hessian[m + 1 :, :m] = mixed, mixed.T
    hessian[m, m + 1 :] = hessian[m + 1 :, m] = -mixed.sum(axis=0)
    hessian[m + 1 :, m + 1 :] = rows.z.T @ (v[:, None] * rows.z)
    return gradient + control.penalty * theta, hessian + control.penalty * np.eye(size)


def _sandwich(rows: _Rows, theta: Array, hessian: Array, shape: tuple[int, ...], control: Control) -> Array:
    models, questions = shape
    short = rows.weight * (_sigmoid(_logits(rows, theta, models, control)) - rows.share)
    score = np.zeros((questions, len(theta)))  # the gradient, question by question
    score[rows.question, rows.model] = control.scale * short  # a (model, question) has one row
    score[:, models] = -score[:, :models].sum(axis=1)
    for place, column in enumerate(rows.z.T, start=models + 1):
        score[:, place] = np.bincount(rows.question, short * column, minlength=questions)
    clusters = len(np.unique(rows.question))
    half = np.linalg.solve(hessian, score.T)
    covariance: Array = half @ half.T * clusters / max(clusters - 1, 1)
    return covariance


def _interval(contrast: Array, theta: Array, covariance: Array, known: Array) -> tuple[Array, Array, Array]:
    odds = contrast @ theta * known
    reach = Z * np.sqrt(((contrast @ covariance) * contrast).sum(axis=1))
    return _sigmoid(odds), _sigmoid(odds - reach), _sigmoid(odds + reach)


def _sigmoid(odds: Array) -> Array:
    p: Array = 0.5 * (1.0 + np.tanh(odds / 2.0))
    return p


def _counts(text: str) -> tuple[int, int, int, int]:
    length = len(text.encode("utf-8", errors="surrogatepass"))
    if "```" in text:
        for block in _FENCED.findall(text):
            text = text.replace(block, "")
    lines = "\n" + text
    headers = len(_HEADER.findall(lines)) if "#" in text else 0
    bold = len(_STARS.findall(text)) if "**" in text else 0
    bold += len(_UNDERSCORES.findall(text)) if "__" in text else 0
    return length, headers, len(_ITEM.findall(lines)), bold
