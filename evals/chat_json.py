"""The JSON of OpenAI's chat completions: the body of a request, and what a reply of status 200 says."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from evals.chat import ChatRequest, Reply
from evals.endpoint_errors import Trouble, read_status

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def request_body(
    request: ChatRequest, *, extra: Mapping[str, object], for_openai: bool, in_full: bool = False
) -> dict[str, object]:
    """Return the JSON body of a request but for its model; fields of ``extra`` win, None leaves a field out.

    ``in_full`` says what is not wanted too (vLLM and SGLang fill it in from the model's generation_config.json).

    ``for_openai`` leaves out structured_outputs, which is vLLM's: OpenAI refuses fields that it does not know. A
    schema goes out as response_format, which both take (OpenAI without "maxLength", which its strict mode refuses);
    ``{"response_format": None}`` in ``extra`` leaves it out.
    """
    sampling = request.sampling
    body: dict[str, object] = {
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "top_k": sampling.top_k or (-1 if in_full else None),  # not OpenAI's, which refuses it
        "repetition_penalty": sampling.repetition_penalty if sampling.repetition_penalty != 1.0 or in_full else None,
        "logprobs": True if request.top_logprobs else None,
        "top_logprobs": request.top_logprobs or None,
        "structured_outputs": {"choice": list(request.choices)} if request.choices and not for_openai else None,
        "response_format": _json_schema(request.schema, for_openai=for_openai) if request.schema else None,
    }
    return {name: value for name, value in {**body, **extra}.items() if value is not None}


def _json_schema(schema: str, *, for_openai: bool) -> dict[str, object]:
    rules = json.loads(schema)
    named = {"name": "reply", "schema": _without_lengths(rules) if for_openai else rules, "strict": True}
    return {"type": "json_schema", "json_schema": named}


def _without_lengths(rules: Any) -> Any:
    if isinstance(rules, list):
        return [_without_lengths(each) for each in rules]
    if not isinstance(rules, dict):
        return rules
    # A property may be called maxLength, too: its value is a schema, no number. What enum and const hold is data.
    return {
        name: value if name in ("enum", "const") and not isinstance(value, dict) else _without_lengths(value)
        for name, value in rules.items()
        if name != "maxLength" or isinstance(value, dict | bool)
    }


def encode(body: Mapping[str, object]) -> bytes:
    """Return the body as UTF-8 JSON; lone surrogates, which UTF-8 cannot hold, as escapes."""
    try:
        return _JSON.encode(body).encode()
    except UnicodeEncodeError:
        return json.dumps(body).encode()


def read_reply(content: bytes, *, seconds: float) -> Reply | Trouble:
    """Read the body of a 200: a Reply, or what is wrong with it; ``Trouble.used`` are the tokens it cost all the same.

    Kinds: "refusal" (the model's own words in place of a reply), "content_filter", "truncated" (max_tokens was spent
    on thinking), "server" (broken off by the endpoint) and "bad_reply" (no chat completion).
    """
    used = (0, 0)
    try:
        data = json.loads(content)
        if (failed := _error_inside(data, content)) is not None:
            return failed
        usage = data.get("usage") or {}
        used = (_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))
        choice = data["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        thinking = message.get("reasoning_content") or message.get("reasoning") or ""
        thinking = _storable(thinking) if isinstance(thinking, str) else ""
        thought = _count((usage.get("completion_tokens_details") or {}).get("reasoning_tokens"))
        text = message.get("content")
        trouble = _unusable(text, message=message, finish=finish, thought=bool(thinking or thought), used=used)
        if trouble is not None:
            return trouble
        return Reply(
            # As they come, lone surrogates would make the next turn another question after a resume.
            text=_storable(text),
            finish_reason="length" if finish == "length" else "stop",
            prompt_tokens=used[0],
            output_tokens=used[1],
            seconds=seconds,
            served_model=_storable(str(data.get("model") or "")),
            top_logprobs=_first_token(choice.get("logprobs")),
            fingerprint=_storable(str(data.get("system_fingerprint") or "")),
            thinking=thinking,
            thinking_tokens=thought,
            cached_tokens=_count((usage.get("prompt_tokens_details") or {}).get("cached_tokens")),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        shown = content[:200].decode("utf-8", "replace")
        return Trouble("bad_reply", f"not a chat completion: {shown!r}", retry=True, used=used)


def _error_inside(data: Any, content: bytes) -> Trouble | None:
    """Return the error that a gateway passes on with status 200 (OpenRouter's), its own status as ``code``."""
    error = data.get("error") if "choices" not in data else None
    status = error.get("code") if isinstance(error, dict) else None
    if isinstance(status, int) and 400 <= status < 600:
        return read_status(status, content.decode("utf-8", "replace"), headers={})
    return None


def _unusable(
    text: Any, *, message: Mapping[str, Any], finish: object, thought: bool, used: tuple[int, int]
) -> Trouble | None:
    refusal = message.get("refusal")
    if finish == "content_filter":
        return Trouble("content_filter", f"the endpoint withheld the reply: {refusal or finish}", used=used)
    if refusal and not text:
        return Trouble("refusal", f"the model refused: {refusal}", used=used)
    if finish in ("error", "abort"):
        said = f"the endpoint broke the reply off (finish_reason {finish!r})"
        return Trouble("server", said, retry=True, used=used)
    if finish == "length" and (text is None or (text == "" and thought)):
        said = "max_tokens was spent before the reply began (a reasoning model?): raise it"
        return Trouble("truncated", said, used=used)
    if not isinstance(text, str):
        return Trouble("bad_reply", f"no text in the reply: {message!r}", retry=True, used=used)
    return None


def _storable(text: str) -> str:
    """Return the text with lone surrogates, which no file can hold, replaced."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _count(value: object) -> int:
    """Return a number of tokens; 0 for anything else, and for one that no ledger and no float would hold."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53 else 0


def _first_token(logprobs: Any) -> tuple[tuple[str, float], ...]:
    """Return the alternatives of the first token, best first, without those that are no log-probability."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    top = first.get("top_logprobs") if isinstance(first, dict) else None
    pairs = []
    for each in top if isinstance(top, list) else ():
        token, value = (each.get("token"), each.get("logprob")) if isinstance(each, dict) else (None, None)
        if not isinstance(token, str) or not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        # Compared as it came: float() of a huge int would raise. Rounding makes a certain token's a little above 0.
        if -sys.float_info.max <= value <= 1e-4:
            pairs.append((_storable(token), min(float(value), 0.0)))
    return tuple(sorted(pairs, key=lambda pair: -pair[1]))
