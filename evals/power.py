"""What a comparison can find: the smallest difference for so many questions, the questions for a difference.

Both are the normal approximation for a paired comparison, as in Miller 2024, *Adding Error Bars to Evals*
(arXiv:2411.00640), on power analysis:  n = (z₁₋α/₂ + z_power)² · s² / δ²,  s the standard deviation of the
per-question gaps between two models and δ the true difference of their means.
"""

from __future__ import annotations

import math
from statistics import NormalDist

ALPHA = 0.05
POWER = 0.8


def detectable_difference(gap_sd: float, questions: int, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """Return the smallest true difference that ``questions`` questions find, in the unit of ``gap_sd``.

    ``gap_sd`` is the standard deviation, over questions, of one model's value less the other's. "Find" is a two-sided
    test at ``alpha`` that comes out significant with probability ``power``. Raises ValueError for impossible arguments.
    """
    if questions < 1:
        raise ValueError(f"a comparison over {questions} questions finds nothing; give at least 1")
    return _distance(gap_sd, alpha, power) * gap_sd / math.sqrt(questions)


def questions_needed(gap_sd: float, difference: float, *, alpha: float = ALPHA, power: float = POWER) -> int:
    """Return how many questions find a true ``difference``: the smallest n with so small a detectable difference.

    ``gap_sd`` and ``difference`` are in the metric's unit; see :func:`detectable_difference`. The normal approximation
    flatters fewer than some 30 questions.
    """
    if not (difference > 0 and math.isfinite(difference)):
        raise ValueError(f"no number of questions finds a difference of {difference}; give a size above 0")
    wanted = (_distance(gap_sd, alpha, power) * gap_sd / difference) ** 2
    return max(1, math.ceil(wanted * (1 - 1e-12)))  # so that 100 questions are not 101 by a rounding


def _distance(gap_sd: float, alpha: float, power: float) -> float:
    if not (gap_sd >= 0 and math.isfinite(gap_sd)):
        raise ValueError(f"{gap_sd} is no standard deviation; give a finite number of at least 0")
    if not 0 < alpha < 1:
        raise ValueError(f"a test at a level of {alpha} decides nothing; give alpha between 0 and 1, such as 0.05")
    if not alpha < power < 1:
        raise ValueError(
            f"a power of {power} cannot be had at alpha {alpha}; give one between alpha and 1, such as 0.8"
        )
    return NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)
