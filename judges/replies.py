r"""A judge's reply as it came → a number, or None when it holds no verdict. The REPLIES table names the formats.

They read what the published code reads, without its crashes (PROTOCOLS: what is no verdict is missing, no number):

- "rating": FastChat@0e6d3e4 ``llm_judge/common.py``: the first ``[[n]]``, failing that the first ``[n]``. One that is
  outside 1 to 10 is no verdict.
- "pair": the same file: ``[[A]]``, else ``[[B]]``, else ``[[C]]`` (a tie), wherever it stands.
- "five_verdicts": arena-hard-auto@3071ef9 ``gen_judgment.py``: one label over the whole text, however often; several
  that differ are no verdict. Only a reply without any label is asked to go on, once.
- "five_verdicts_last": arena-hard-auto@196f6b8: the last ``[[label]]`` of the upper-cased text, failing that the last
  ``[label]``; ``<`` may stand for ``>`` turned round, as in its ``show_result.py``.
- "m_or_M": alpaca_eval 0.6.6 ``completion_parsers.logprob_parser``: P(m) / (P(m) + P(M)) of the first token.
- "preference": a preference that was published without the reply, as alpaca_eval's annotations hold it.
- "json:rating", "json:pair", …: the verdict as JSON that a schema describes (:mod:`judges.structured`).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from evals.records import JudgeRequest, Judgment, Verdict

# FastChat's \d+\.?\d*, written so that a long number is tried in one way only.
RATING = (re.compile(r"\[\[(\d+(?:\.\d*)?)\]\]"), re.compile(r"\[(\d+(?:\.\d*)?)\]"))
LABEL = (re.compile(r"\[\[([AB<>=]+)\]\]"), re.compile(r"\[([AB<>=]+)\]"))
WINNERS = {"[[A]]": 1.0, "[[B]]": 0.0, "[[C]]": 0.5}
FIVE = {"A>>B": 1.0, "A>B": 0.75, "A=B": 0.5, "B>A": 0.25, "B>>A": 0.0}
TURNED_ROUND = {"B<<A": 1.0, "B<A": 0.75, "B=A": 0.5, "A<B": 0.25, "A<<B": 0.0}
GO_ON = "continue your judgment and finish by outputting a final verdict label"  # arena-hard-auto@3071ef9


READERS = 1
"""Raise it when a reader reads differently: stored judgments are then read again."""


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """How a judge is made to answer, and how its answer is read.

    ``choices`` bounds the reply where the engine can do that, ``schema`` (a JSON schema as JSON text) holds it to
    JSON, ``top_logprobs`` asks for that many alternatives of its first token. ``read`` returns the preference in
    [0, 1] for the answer shown first, or a rating; ``span`` the part of the text that it reads (None: there is none).
    ``again`` is what the judge is told, once, as a further user turn where ``span`` finds nothing in its first reply.
    """

    read: Callable[[Judgment], float | None]
    choices: tuple[str, ...] = ()
    top_logprobs: int = 0
    again: str | None = None
    span: Callable[[Judgment], str | None] = lambda judgment: judgment.text or None
    schema: str = ""


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


def small_or_big_m(judgment: Judgment) -> float | None:
    """Return P(m) / (P(m) + P(M)) from the first token's log-probabilities; without any there is no verdict.

    Tokens count as they are (" m" is none). One that is not among the alternatives has the probability 0; with
    neither, the reply holds no verdict. (The letter alone would make another metric of it: some annotators of
    AlpacaEval ask for that.)
    """
    found = dict(judgment.top_logprobs)
    small, big = found.get("m", -math.inf), found.get("M", -math.inf)
    best = max(small, big)
    if best == -math.inf:
        return None
    small, big = math.exp(small - best), math.exp(big - best)  # of -9999 and -9999, too, one half
    return small / (small + big)


def rating(judgment: Judgment) -> float | None:
    """Return the rating from 1 to 10 that the reply gives first."""
    label = rating_label(judgment)
    value = float(label.strip("[]")) if label else math.nan
    return value if 1 <= value <= 10 else None


def rating_label(judgment: Judgment) -> str | None:
    """Return the first ``[[n]]``, failing that the first ``[n]``."""
    matches = (pattern.search(judgment.text) for pattern in RATING)
    return next((match[0] for match in matches if match), None)


def winner(judgment: Judgment) -> float | None:
    """Return 1 where the reply holds ``[[A]]``, else 0 for ``[[B]]``, else one half for ``[[C]]``."""
    label = winner_label(judgment)
    return WINNERS[label] if label else None


def winner_label(judgment: Judgment) -> str | None:
    """Return which of ``[[A]]``, ``[[B]]`` and ``[[C]]``, tried in this order, the reply holds."""
    return next((label for label in WINNERS if label in judgment.text), None)


def one_of_five(judgment: Judgment) -> float | None:
    """Return the preference of the only label in the reply: 1, .75, .5, .25 or 0 (``>>`` is 1 or 0)."""
    labels = set(LABEL[0].findall(judgment.text))
    return FIVE.get(labels.pop()) if len(labels) == 1 else None


def distinct_labels(judgment: Judgment) -> str | None:
    """Return the labels in the reply, each once, in their order; several of them are no verdict."""
    return " ".join(dict.fromkeys(match[0] for match in LABEL[0].finditer(judgment.text))) or None


def last_of_five(judgment: Judgment) -> float | None:
    """Return the preference of the last label in the reply: 1, .75, .5, .25 or 0 (``>>`` is 1 or 0)."""
    label = last_label(judgment)
    return (FIVE | TURNED_ROUND).get(label.strip("[]")) if label else None


def last_label(judgment: Judgment) -> str | None:
    """Return the last ``[[label]]``, failing that the last ``[label]``, upper-cased."""
    for pattern in LABEL:
        if matches := list(pattern.finditer(judgment.text.upper())):
            return matches[-1][0]
    return None


def published_preference(judgment: Judgment) -> float | None:
    """Return 2 minus the number in the text: alpaca_eval's preference, 1 for its first output to 2 for its second.

    Its older 0 is a tie, its -1 (a call that failed) and anything else that is no number from 1 to 2 no verdict.
    """
    try:
        value = float(judgment.text)
    except ValueError:
        return None
    value = 1.5 if value == 0 else value
    return 2.0 - value if 1 <= value <= 2 else None


REPLIES: dict[str, ReplyFormat] = {
    "a_or_b": ReplyFormat(a_or_b, choices=("A", "B"), top_logprobs=20),
    "rating": ReplyFormat(rating, span=rating_label),
    "pair": ReplyFormat(winner, span=winner_label),
    "five_verdicts": ReplyFormat(one_of_five, again=GO_ON, span=distinct_labels),
    "five_verdicts_last": ReplyFormat(last_of_five, span=last_label),
    "m_or_M": ReplyFormat(small_or_big_m, choices=("m", "M"), top_logprobs=5),
    "preference": ReplyFormat(published_preference),
}


def reply_format(name: str) -> ReplyFormat:
    """Return the format called ``name``; "alpaca_eval:ANNOTATOR" is that annotator's, as alpaca_eval configures it.

    "json:NAME" is the JSON form of the format NAME. Raises ValueError for a name that is none.
    """
    if name in REPLIES:
        return REPLIES[name]
    if name.startswith("alpaca_eval:"):
        from judges.annotators import annotator_format

        return annotator_format(name)
    from judges.structured import structured_format, structured_names

    if name in structured_names():
        return structured_format(name)
    names = [*REPLIES, *structured_names()]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"no reply format {name!r}; there are {', '.join(names)} and alpaca_eval:ANNOTATOR.{hint}")


def span(name: str, judgment: Judgment) -> str | None:
    """Return what the format called ``name`` reads in the judgment's text, for people; None where it finds nothing."""
    return reply_format(name).span(judgment)


def verdict(request: JudgeRequest, judgment: Judgment) -> Verdict:
    """Read ``judgment`` as what it says of ``request``'s model, whichever answer was shown first."""
    value = reply_format(request.reply).read(judgment)
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
        reader=READERS,
    )
