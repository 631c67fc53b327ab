"""What the fake server can be told to do with a request: replies and mishaps, as they are met in the wild."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What the server does with one request; ``body`` None closes the connection without a word.

    The body goes out in ``pieces`` parts with ``gap`` seconds between them; with ``missing`` the connection is closed
    before its last so many bytes.
    """

    body: bytes | None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    pieces: int = 1
    gap: float = 0.0
    missing: int = 0


# What OpenAI's chat completions take, as far as anyone here sends it; any other field is a 400 there.
OPENAI_FIELDS = frozenset(
    {
        *("messages", "model", "temperature", "top_p", "max_tokens", "max_completion_tokens"),
        *("seed", "stop", "logprobs", "top_logprobs", "response_format"),
    }
)

Behaviour = Callable[[dict[str, Any]], Answer]


def error(status: int, message: str, *, code: object = None, headers: Mapping[str, str] | None = None) -> Behaviour:
    body = json.dumps({"error": {"message": message, "type": "error", "param": None, "code": code}}).encode()
    return lambda _: Answer(body, status=status, headers=headers or {})


def rate_limited(after: str | None = None, after_ms: str | None = None) -> Behaviour:
    wishes = {"Retry-After": after, "retry-after-ms": after_ms}
    return error(429, "Rate limit reached", headers={name: value for name, value in wishes.items() if value})


def broken(status: int = 500) -> Behaviour:
    return error(status, "internal error")


def dropped() -> Behaviour:
    return lambda _: Answer(None)


def malformed(text: str = '{"choices": [') -> Behaviour:
    return lambda _: Answer(text.encode())


def wrong_key(echo: str = "") -> Behaviour:
    return error(401, f"Incorrect API key provided: {echo}", code="invalid_api_key")


def no_such_model(name: str) -> Behaviour:
    return error(404, f"The model `{name}` does not exist.", code=404)


def too_long(wording: str = "vllm") -> Behaviour:
    if wording == "openai":
        said = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens."
        return error(400, said, code="context_length_exceeded")
    if wording == "vllm engine":
        said = "The decoder prompt (length 3000) is longer than the maximum model length of 2048. Make sure that …"
        return error(400, said, code=400)
    if wording == "vllm max_tokens":
        said = "max_tokens=5000 cannot be greater than max_model_len=512. Please request fewer output tokens."
        return error(400, said, code=400)
    said = (
        "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 input tokens, "
        "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
    )
    return error(400, said, code=400)


def unknown(name: str, wording: str = "openai") -> Behaviour:
    if wording == "pydantic":  # Mistral's, for one
        detail = {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted", "input": 7}
        return lambda _: Answer(json.dumps({"detail": [detail]}).encode(), status=422)
    said = {
        "openai": f"Unknown parameter: '{name}'.",
        "azure": f"Unrecognized request argument supplied: {name}",
        "groq": f"property '{name}' is unsupported",
        "gemini": f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.',
        "anthropic": f"{name}: Extra inputs are not permitted",
    }
    return error(400, said[wording])


def filtered() -> Behaviour:
    return error(400, "The response was filtered due to the prompt", code="content_filter")


def says(text: str | None, *, finish: str | None = "stop", delay: float = 0.0, **changes: Any) -> Behaviour:
    """Reply with this text; ``changes`` replace fields of the body."""

    def answer(body: dict[str, Any]) -> Answer:
        return Answer(json.dumps(completion(body, text, finish=finish) | changes).encode(), delay=delay)

    return answer


def changed(text: str | None, *, finish: str | None = "stop", change: Callable[[dict[str, Any]], object]) -> Behaviour:
    """Reply with this text; ``change`` does what it likes to the body."""

    def answer(body: dict[str, Any]) -> Answer:
        reply = completion(body, text, finish=finish)
        change(reply)
        return Answer(json.dumps(reply).encode())

    return answer


def thinks(text: str | None, thinking: str, *, finish: str = "stop", field: str = "reasoning_content") -> Behaviour:
    """Reply after thinking: a token a word of it, counted among the reply's."""
    tokens = len(thinking.split())

    def change(reply: dict[str, Any]) -> None:
        reply["choices"][0]["message"][field] = thinking
        reply["usage"]["completion_tokens"] += tokens
        reply["usage"]["completion_tokens_details"] = {"reasoning_tokens": tokens}
        reply["usage"]["prompt_tokens_details"] = {"cached_tokens": 1}

    return changed(text, finish=finish, change=change)


def refuses(text: str = "I cannot help with that.") -> Behaviour:
    return changed(None, change=lambda reply: reply["choices"][0]["message"].update(refusal=text))


def slowly(text: str = "slow", *, pieces: int = 5, gap: float = 0.01) -> Behaviour:
    """Reply piece by piece."""
    return lambda body: replace(says(text)(body), pieces=pieces, gap=gap)


def cut_short(text: str = "never whole", *, missing: int = 20) -> Behaviour:
    """Announce more than is sent, then close the connection."""
    return lambda body: replace(says(text)(body), missing=missing)


def with_logprobs(logprobs: object) -> Behaviour:
    """Reply with this in the place of the log-probabilities."""
    return changed("A", change=lambda reply: reply["choices"][0].update(logprobs=logprobs))


PASSING: dict[str, Behaviour] = {
    "429": rate_limited(),
    "429 with a wish": rate_limited(after_ms="100"),
    "500": broken(),
    "502": broken(502),
    "503": broken(503),
    "dropped": dropped(),
    "malformed": malformed(),
    "no choices": says("x", choices=[]),
    "no text": says(None),
    "broken off": says("half", finish="error"),
    "cut short": cut_short(),
    "trickling": slowly(),
    "wrong logprobs": with_logprobs({"content": [{"top_logprobs": [{"token": "A", "logprob": "NaN"}]}]}),
}
"""What goes wrong and comes right when asked again (the last two are replies all the same)."""

LASTING: dict[str, Behaviour] = {
    "filtered": filtered(),
    "refused": refuses(),
    "too long": too_long(),
    "truncated": says(None, finish="length"),
}
"""What goes wrong for good for the request, not for the others."""


def mishaps(rate: float, *, seed: int = 0, kinds: Mapping[str, Behaviour] = PASSING) -> Callable[..., Behaviour | None]:
    """Return a script that does one of ``kinds`` to that share of the requests, drawn with this seed."""
    drawn = random.Random(seed)
    names = list(kinds)

    def script(_body: dict[str, Any], _number: int) -> Behaviour | None:
        return kinds[drawn.choice(names)] if drawn.random() < rate else None

    return script


def default_text(body: Mapping[str, Any]) -> str:
    """Return words made from a hash of the last user message, or the likeliest choice where choices are given."""
    choices = _choices(body)
    if choices:
        weights = choice_logprobs(body)
        return max(choices, key=lambda choice: weights[choice])
    digest = hashlib.sha256(_last_user(body).encode("utf-8", "replace")).hexdigest()
    return "reply " + " ".join(digest[i : i + 6] for i in range(0, 36, 6))


def choice_logprobs(body: Mapping[str, Any]) -> dict[str, float]:
    """Return a normalised log-probability of each choice, made from a hash of the last user message."""
    raw = {
        c: hashlib.sha256(f"{c}\0{_last_user(body)}".encode("utf-8", "replace")).digest()[0] / 32
        for c in _choices(body)
    }
    total = math.log(sum(math.exp(value) for value in raw.values()))
    return {choice: value - total for choice, value in raw.items()}


def completion(body: Mapping[str, Any], text: str | None, *, finish: str | None = "stop") -> dict[str, Any]:
    """Return a chat completion of OpenAI's shape with this text."""
    prompt = sum(len(message["content"].split()) for message in body["messages"])
    words = len((text or "").split())
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if body.get("logprobs"):
        choice["logprobs"] = {"content": [_first_token(body, text or "")]}
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "system_fingerprint": "fp_fake",
        "choices": [choice],
        "usage": {"prompt_tokens": prompt, "completion_tokens": words, "total_tokens": prompt + words},
    }


def _first_token(body: Mapping[str, Any], text: str) -> dict[str, Any]:
    words = choice_logprobs(body) if _choices(body) else {text.partition(" ")[0]: -0.1, "The": -2.5, "A": -4.0}
    best = sorted(words.items(), key=lambda pair: -pair[1])[: body.get("top_logprobs", 0)]
    top = [{"token": token, "logprob": value, "bytes": None} for token, value in best]
    return (top[0] if top else {"token": text, "logprob": -0.1, "bytes": None}) | {"top_logprobs": top}


def _choices(body: Mapping[str, Any]) -> list[str]:
    return list((body.get("structured_outputs") or {}).get("choice") or [])


def _last_user(body: Mapping[str, Any]) -> str:
    return next((m["content"] for m in reversed(body["messages"]) if m["role"] == "user"), "")
