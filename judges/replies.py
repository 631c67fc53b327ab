"""A judge's reply as it came → a number, or None when it holds no verdict. The REPLIES table names the formats."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from evals.records import JudgeRequest, Judgment, Verdict


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """How a judge is made to answer, and how its answer is read.

    ``choices`` bounds the reply where the engine can do that, ``top_logprobs`` asks for that many alternatives of
    its first token. ``read`` returns the preference in [0, 1] for the answer shown first, or a rating.
    """

    read: Callable[[Judgment], float | None]
    choices: tuple[str, ...] = ()
    top_logprobs: int = 0


def a_or_b(judgment: Judgment) -> float | None:
    """Return P(A) / (P(A) + P(B)) from the first token's log-probabilities; without any, the letter decides.

    That letter must be the whole reply ("A comparison shows" is no verdict). A letter that is not among the
    alternatives counts as 0; with neither, the reply holds no verdict.
    """
    found = {"A": 0.0, "B": 0.0}
    for token, logprob in judgment.top_logprobs:
        if token.strip() in found:
            found[token.strip()] += math.exp(logprob)
    total = found["A"] + found["B"]
    if total > 0:
        return found["A"] / total
    letter = re.fullmatch(r"\s*([AB])[.)]?\s*", judgment.text) if not judgment.top_logprobs else None
    return {"A": 1.0, "B": 0.0}[letter[1]] if letter else None


REPLIES: dict[str, ReplyFormat] = {
    "a_or_b": ReplyFormat(read=a_or_b, choices=("A", "B"), top_logprobs=20),
}


def verdict(request: JudgeRequest, judgment: Judgment) -> Verdict:
    """Read ``judgment`` as what it says of ``request``'s model, whichever answer was shown first."""
    value = REPLIES[request.reply].read(judgment)
    if value is not None and request.order == "baseline_first":
        value = 1.0 - value
    return Verdict(
        request=request.key,
        judge=request.judge,
        benchmark=request.benchmark,
        version=request.version,
        question=request.question,
        turn=request.turn,
        model=request.model,
        baseline=request.baseline,
        order=request.order,
        value=value,
    )
