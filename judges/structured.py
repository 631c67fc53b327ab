"""Verdicts as JSON, for judges whose server holds a reply to a JSON schema: an explanation, then the verdict.

Where the schema is enforced, every reply of at most ENOUGH tokens holds a verdict, however small the judge; elsewhere
the sentence that asks for it has to do. It is another question than the benchmark's own, so its judgments and verdicts
have keys of their own, and its scores are not those of the published protocol.

vLLM lets a model write white space between the parts for ever; in the engine of this process we bound it, a server does
with ``--structured-outputs-config '{"backend": "xgrammar", "disable_any_whitespace": true}'``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from evals.benchmark import changed
from evals.records import JudgeRequest, Judgment
from judges.replies import FIVE, ReplyFormat

PREFIX = "json:"
EXPLANATION = 500  # characters
ENOUGH = 2048  # tokens: four a character, as byte-level tokenizers need at worst, and the JSON around them

_FENCE = "```"


@dataclass(frozen=True, slots=True)
class _Form:
    """The verdict of one JSON form: its key, what the judge is told of it, its schema; of words, what they mean."""

    key: str
    told: str
    schema: Mapping[str, Any]
    values: Mapping[str, float]


def _words(told: str, values: Mapping[str, float]) -> _Form:
    return _Form("verdict", told, {"type": "string", "enum": list(values)}, values)


_PAIR = _words('"A" if the first answer is better, "B" if the second is, "C" for a tie', {"A": 1.0, "B": 0.0, "C": 0.5})
_FIVE = _words(f"one of {', '.join(map(json.dumps, FIVE))}, with the meaning that was given above", FIVE)
_RATING = _Form("rating", "a whole number from 1 to 10", {"type": "integer", "enum": list(range(1, 11))}, {})

FORMS = {"rating": _RATING, "pair": _PAIR, "five_verdicts": _FIVE, "five_verdicts_last": _FIVE}
"""By the reply format that they stand in for; the others are one token each, and stay as they are."""


def structured(request: JudgeRequest) -> JudgeRequest:
    """Return the request that asks for the verdict as JSON, with keys of its own and the reply "json:…".

    A sentence at the end of the last message tells the judge. A request whose format has no JSON form is returned as it
    is. Sampling stays: with ``max_tokens`` below ENOUGH a reply may end before its verdict.
    """
    if request.reply not in FORMS:
        return request
    *before, last = request.messages
    messages = (*before, replace(last, content=f"{last.content}\n\n{_sentence(FORMS[request.reply])}"))
    return changed(request, messages=messages, reply=PREFIX + request.reply)


def structured_names() -> tuple[str, ...]:
    """Return the names of the JSON formats: "json:rating", …"""
    return tuple(PREFIX + name for name in FORMS)


@cache
def structured_format(name: str) -> ReplyFormat:
    """Return the format called ``name``, one of :func:`structured_names`; KeyError for another."""
    form = FORMS[name.removeprefix(PREFIX)]
    said = re.compile(rf'"{form.key}"\s*:\s*(?:"[^"]*"|[^\s,}}]+)')

    def read(judgment: Judgment) -> float | None:
        return _value(form, _object(judgment.text).get(form.key))

    def span(judgment: Judgment) -> str | None:
        return said.findall(judgment.text)[-1] if read(judgment) is not None else None

    return ReplyFormat(read, span=span, schema=_schema(form))


def _sentence(form: _Form) -> str:
    return (
        "Give your whole reply as one JSON object on a single line, and nothing else. It has two keys: first "
        f'"explanation", your reasons in at most {EXPLANATION} characters; then "{form.key}", {form.told}. '
        "This takes the place of any other format asked for above."
    )


def _schema(form: _Form) -> str:
    properties = {"explanation": {"type": "string", "maxLength": EXPLANATION}, form.key: form.schema}
    whole = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return json.dumps(whole)


def _object(text: str) -> dict[str, Any]:
    """Return the JSON object that is the whole text, or stands alone in a fence; {} for anything else."""
    whole = text.strip()
    if len(whole) >= 2 * len(_FENCE) and whole.startswith(_FENCE) and whole.endswith(_FENCE):
        text = whole[len(_FENCE) : -len(_FENCE)].removeprefix("json").strip()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _value(form: _Form, said: Any) -> float | None:
    if form.values:  # where nothing holds the judge to the schema, it may keep the brackets of the other format
        return form.values.get(said.strip(" []")) if isinstance(said, str) else None
    if isinstance(said, bool) or not isinstance(said, int | float):
        return None
    return float(said) if 1 <= said <= 10 else None
