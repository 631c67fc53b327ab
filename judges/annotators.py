"""How the judges that alpaca_eval configures answer: its completion parsers, for the annotators that can be used.

Follows alpaca_eval 0.6.6 ``completion_parsers.py``. What its parsers fail on, or call NaN, is no verdict here. A tie
("0", or two equal scores) is one half; there, switched with the answers, it becomes a 3 that the package then refuses.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from evals.alpaca_annotators import annotator
from evals.records import Judgment
from judges.replies import ReplyFormat

PREFIX = "alpaca_eval:"
Read = Callable[[Judgment], float | None]


@cache
def annotator_format(name: str) -> ReplyFormat:
    """Return the format of "alpaca_eval:ANNOTATOR" (or of ANNOTATOR); ValueError for one that cannot be used."""
    found = annotator(name.removeprefix(PREFIX))
    choices = _tokens(found.arguments) if found.parser == "logprob_parser" and found.sampling.max_tokens == 1 else ()
    return ReplyFormat(PARSERS[found.parser](found.arguments), choices=choices, top_logprobs=found.top_logprobs)


def by_regex(arguments: Mapping[str, Any]) -> Read:
    """Return a reader of ``outputs_to_match``, {1: pattern, 2: pattern}: exactly one match is a verdict."""
    patterns = {float(key): re.compile(pattern) for key, pattern in arguments["outputs_to_match"].items()}

    def read(judgment: Judgment) -> float | None:
        said: list[float] = []
        text = judgment.text
        while True:
            matches = [
                (match.start(), key, match.end()) for key, each in patterns.items() if (match := each.search(text))
            ]
            if not matches:
                return _preference(said[0]) if len(said) == 1 else None
            _, key, end = min(matches, key=lambda match: match[0])
            said.append(key)
            text = text[end:] if end else ""

    return read


def by_ranking(arguments: Mapping[str, Any]) -> Read:
    """Return a reader of a Python list of {"model": …, "rank": …}; ``model_1_name`` is the first answer's."""
    first = arguments.get("model_1_name", "model_1")

    def read(judgment: Judgment) -> float | None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # of what a judge writes in its strings
                said = ast.literal_eval(judgment.text)
            [rank, *_] = [each["rank"] for each in said if each["model"] == first]
        except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError):
            return None
        return {1.0: 1.0, 2.0: 0.0}.get(rank) if isinstance(rank, int | float) else None

    return read


def by_two_scores(_arguments: Mapping[str, Any]) -> Read:
    """Return a reader of the two scores, set apart by a space or a comma, in the reply's first line."""

    def read(judgment: Judgment) -> float | None:
        words = judgment.text.split("\n")[0].replace(",", " ").split(" ")
        try:
            first, second = map(float, words)
        except ValueError:
            return None
        return None if math.isnan(first + second) else 0.5 * (1 + (first > second) - (first < second))

    return read


def by_logprob(arguments: Mapping[str, Any]) -> Read:
    """Return a reader of P(numerator) / P(denominators) among the first token's alternatives, rounded if binary.

    Tokens count as they are (" m" is not "m"). One that is not among them has probability 0; with none of them there
    is no verdict. Without any alternatives the reply must be one of the tokens.
    """
    numerator, denominators = arguments["numerator_token"], tuple(arguments["denominator_tokens"])

    def read(judgment: Judgment) -> float | None:
        alternatives = judgment.top_logprobs or ((judgment.text, 0.0),)
        found = {token: logprob for token, logprob in alternatives if token in (numerator, *denominators)}
        if not found:
            return None
        above = found.get(numerator, -math.inf)
        if arguments.get("is_binarize", True):
            others = [found.get(token, -math.inf) for token in denominators if token != numerator]
            return float(all(above > other for other in others))
        highest = max(found.values())
        below = sum(math.exp(found[token] - highest) for token in denominators if token in found)
        return math.exp(above - highest) / below if below > 0 else None

    return read


PARSERS: dict[str, Callable[[Mapping[str, Any]], Read]] = {
    "regex_parser": by_regex,
    "ranking_parser": by_ranking,
    "lmsys_parser": by_two_scores,
    "logprob_parser": by_logprob,
}


def _preference(said: float) -> float | None:
    """Return alpaca_eval's 1 (the first answer) to 2 (the second), or 0 (neither), as a preference for the first."""
    said = 1.5 if said == 0 else said
    return 2.0 - said if 1 <= said <= 2 else None


def _tokens(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((arguments["numerator_token"], *arguments["denominator_tokens"])))
