"""What an endpoint's error means: which kind of failure, whether to try again and when, or that all is lost."""

from __future__ import annotations

import email.utils
import re
import time
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openai

# OpenAI and vLLM: "maximum context length", vLLM's engine: "maximum model length"; llama.cpp: "context size";
# TGI: "`inputs` tokens + `max_new_tokens` must be"; Anthropic: "prompt is too long"; Gemini: "input token count".
_CONTEXT = re.compile(
    r"context_length_exceeded|maximum (?:context|model) *length|context (?:size|window|length)|prompt is too long"
    r"|max_model_len|tokens \+ `?max_new_tokens|input token count",
    re.IGNORECASE,
)
_FILTER = re.compile(
    r"content[_ ]filter|content management policy|content[_ ]policy|ResponsibleAIPolicy|input was flagged",
    re.IGNORECASE,
)

# OpenAI: "Unknown parameter: 'x'", "Unrecognized request argument supplied: x"; pydantic (Mistral, Anthropic): "Extra
# inputs are not permitted"; Groq: "property 'x' is unsupported"; Gemini: 'Unknown name "x"'.
_UNKNOWN = re.compile(
    r"(?:unknown|unrecogni[sz]ed|unexpected|extra|additional)[_ ](?:\w+ )?"
    r"(?:parameter|argument|field|input|name|key|propert|forbidden)|propert\w+ \S+ is (?:unsupported|not allowed)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why an attempt brought no reply; ``wait`` is the server's wish in seconds before the next one.

    ``hint`` is what to do about it, where that is known.
    ``fatal`` is what to do where no request can succeed (may name {env} and {model}); ``unreachable`` that not even
    a connection was made.
    """

    kind: str
    message: str
    retry: bool = False
    wait: float | None = None
    fatal: str | None = None
    unreachable: bool = False
    hint: str = ""


def read_status(error: openai.APIStatusError, *, sent: Iterable[str] = ()) -> Trouble:
    """Classify an HTTP error status by its number and its body; ``sent`` are the fields of the request."""
    status, text = error.status_code, error.response.text
    bare = f"Error code: {status}"  # the openai package found no message in the body
    message = f"{bare} - {text[:300]}" if error.message == bare and text else error.message
    if status < 500 and _FILTER.search(text):
        return Trouble("content_filter", message)
    fatal = _fatal(status, code=error.code or "", text=text)
    if fatal is not None:
        return Trouble("bad_request", message, fatal=fatal)
    if status in (400, 413, 422) and _CONTEXT.search(text):
        return Trouble("context_length", message)
    if status in (408, 409, 425, 429) or status >= 500:
        kind = {408: "timeout", 429: "rate_limit"}.get(status, "server")
        return Trouble(kind, message, retry=True, wait=retry_after(error.response.headers))
    field = unknown_field(text, sent=sent) if status in (400, 422) else None
    hint = f"set extra_body: {{{field}: null}} for this endpoint" if field else ""
    return Trouble("bad_request", message, hint=hint)


def unknown_field(text: str, *, sent: Iterable[str]) -> str | None:
    """Return the field of the request that the server's error calls unknown; None when it says nothing of the kind."""
    if not _UNKNOWN.search(text):
        return None
    found = {field: re.search(rf"\b{re.escape(field)}\b", text) for field in sent if field != "messages"}
    places = {field: match.start() for field, match in found.items() if match}
    return min(places, key=lambda field: places[field], default=None)


def _fatal(status: int, *, code: str, text: str) -> str | None:
    if status in (401, 403):
        return f"the key is refused (HTTP {status}): set {{env}} to one that may use this model"
    if status == 402 or code == "insufficient_quota":
        return "the account of the key in {env} has no credit left: top it up, then run again"
    if code == "model_not_found" or (status == 404 and re.search("model", text, re.IGNORECASE)):
        return "there is no model '{model}': correct `model`; GET base_url/models lists what is served"
    if status == 404:
        return "there is no /chat/completions (HTTP 404): correct base_url, which most often ends in /v1"
    return None


def read_connection(error: openai.APIConnectionError) -> Trouble:
    """Classify a request that got no answer; ``unreachable`` when the server was never reached."""
    causes: list[BaseException] = []
    cause = error.__cause__
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__
    # By name: the default transport's class, and those of aiohttp, which need not be installed.
    names = {each.__name__ for cause in causes for each in type(cause).__mro__}
    unreachable = bool(names & {"ConnectError", "ClientConnectorError", "ConnectionTimeoutError"})
    said = next((str(cause) for cause in causes if str(cause)), error.message)
    message = f"{'no connection' if unreachable else 'connection lost'}: {said}"
    return Trouble("connection", message, retry=True, unreachable=unreachable)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that retry-after-ms or Retry-After (seconds or a date) asks for; None without them."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) * scale)
        except ValueError:
            pass
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            continue
    return None


def one_line(message: str, *, width: int = 500) -> str:
    """Return the message on one line of at most ``width`` characters, none of which a terminal would obey.

    Control and format characters go, and lone surrogates, which cannot be written as UTF-8.
    """
    line = "".join(c for c in " ".join(message.split()) if unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    return line if len(line) <= width else line[: width - 1] + "…"
