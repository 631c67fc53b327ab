"""What an endpoint's error means: which kind of failure, whether to try again and when, or that all is lost."""

from __future__ import annotations

import email.utils
import json
import re
import time
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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

_CODES = ("insufficient_quota", "model_not_found")
_HEAD = 4000  # characters of an error's body that are searched: a proxy's page may be of megabytes

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
    a connection was made; ``overload`` that the endpoint has more to do than it can. ``used`` are the (prompt, output)
    tokens of a reply that is no use.
    """

    kind: str
    message: str
    retry: bool = False
    wait: float | None = None
    fatal: str | None = None
    unreachable: bool = False
    hint: str = ""
    overload: bool = False
    used: tuple[int, int] = (0, 0)


def read_status(status: int, text: str, *, headers: Mapping[str, str], sent: Iterable[str] = ()) -> Trouble:
    """Classify an HTTP error by its status, the text of its body and its headers; ``sent`` are the request's fields.

    The names of ``headers`` are in lower case, or the mapping ignores case. A redirection counts as an error.
    """
    said, code = read_error(text)
    message, text = f"HTTP {status}: {said}", text[:_HEAD]
    if status < 500 and _FILTER.search(text):
        return Trouble("content_filter", message)
    fatal = _fatal(status, code=code, text=text, location=headers.get("location", ""))
    if fatal is not None:
        return Trouble("bad_request", message, fatal=fatal)
    if status in (400, 413, 422) and _CONTEXT.search(text):
        return Trouble("context_length", message)
    if status in (408, 409, 425, 429) or status >= 500:
        kind = {408: "timeout", 429: "rate_limit"}.get(status, "server")
        wait = retry_after(headers)
        return Trouble(kind, message, retry=True, wait=wait, overload=status in (429, 503, 529))
    field = unknown_field(text, sent=sent) if status in (400, 422) else None
    hint = f"set extra_body: {{{field}: null}} for this endpoint" if field else ""
    return Trouble("bad_request", message, hint=hint)


def read_error(text: str) -> tuple[str, str]:
    """Return the message and the code of an error's body; the body itself, shortened, where it has no message."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return text[:300], ""
    if isinstance(data, list) and data:  # Gemini's
        data = data[0]
    error = data.get("error", data) if isinstance(data, dict) else data
    if not isinstance(error, dict):
        return str(error)[:300], ""
    said = error.get("message") or error.get("detail") or text[:300]
    codes = [str(error.get(name) or "") for name in ("code", "type")]
    return str(said), next((code for code in codes if code in _CODES), codes[0])


def unknown_field(text: str, *, sent: Iterable[str]) -> str | None:
    """Return the field of the request that the server's error calls unknown; None when it says nothing of the kind."""
    text = text[:_HEAD]
    if not _UNKNOWN.search(text):
        return None
    found = {field: re.search(rf"\b{re.escape(field)}\b", text) for field in sent if field != "messages"}
    places = {field: match.start() for field, match in found.items() if match}
    return min(places, key=lambda field: places[field], default=None)


def _fatal(status: int, *, code: str, text: str, location: str) -> str | None:
    if status < 400:
        where = f" to {location}".replace("{", "{{").replace("}", "}}") if location else ""
        return f"the endpoint sends elsewhere (HTTP {status}{where}): correct base_url"
    if status in (401, 403):
        return f"the key is refused (HTTP {status}): set {{env}} to one that may use this model"
    if status == 402 or code == "insufficient_quota":
        return "the account of the key in {env} has no credit left: top it up, then run again"
    if code == "model_not_found" or (status == 404 and re.search("model", text, re.IGNORECASE)):
        return "there is no model '{model}': correct `model`; GET base_url/models lists what is served"
    if status == 404:
        return "there is no /chat/completions (HTTP 404): correct base_url, which most often ends in /v1"
    return None


def read_connection(error: BaseException) -> Trouble:
    """Classify an exception of a request that got no answer; ``unreachable`` when the server was never reached."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    # By name: aiohttp's classes, and those of the openai package's transports.
    names = {each.__name__ for cause in causes for each in type(cause).__mro__}
    unreachable = bool(names & {"ConnectError", "ClientConnectorError", "ConnectionTimeoutError"})
    said = next((str(cause) for cause in reversed(causes) if str(cause)), type(error).__name__)
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
