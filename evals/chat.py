"""What every model that chats looks like to the rest of the house: endpoints and checkpoints in an engine alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from evals.records import Message, Sampling

FAILURES = {
    "rate_limit": True,
    "timeout": True,
    "connection": True,
    "server": True,
    "bad_reply": True,
    "expired": True,
    "truncated": False,
    "refusal": False,
    "content_filter": False,
    "context_length": False,
    "bad_request": False,
}
"""The kinds of failure of one request, and whether a later run may have better luck with the very same request."""


class ChatError(Exception):
    """The whole model cannot be asked (not one request of it); the message says what to do."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One reply wanted. ``sampling.seed`` is the seed of this very reply.

    ``top_logprobs`` asks for that many alternatives of the reply's first token; ``choices`` bounds the whole
    reply to one of these texts, ``schema`` to JSON that a JSON schema (as JSON text) allows (structured output).
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    top_logprobs: int = 0
    choices: tuple[str, ...] = ()
    schema: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as it came; ``top_logprobs`` are (token text, natural log) pairs of its first token, best first.

    ``cached_tokens`` are those of ``prompt_tokens`` that the endpoint had at hand, ``thinking_tokens`` those of
    ``output_tokens`` that went into ``thinking``. ``discarded`` are (prompt, output) tokens of earlier attempts, which
    brought replies that were no use and are paid for.
    """

    text: str
    finish_reason: str  # "stop" or "length"
    prompt_tokens: int
    output_tokens: int
    seconds: float
    served_model: str
    top_logprobs: tuple[tuple[str, float], ...] = ()
    fingerprint: str = ""
    thinking: str = ""
    thinking_tokens: int = 0
    cached_tokens: int = 0
    discarded: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class NoReply:
    """Why one request brought nothing; ``kind`` is a key of FAILURES, ``discarded`` as in :class:`Reply`."""

    kind: str
    message: str
    attempts: int
    discarded: tuple[int, int] = (0, 0)


class ChatModel(Protocol):
    """Anything that answers chat requests: an endpoint, or a checkpoint in a vLLM engine."""

    def chat(self, requests: Iterable[ChatRequest]) -> Iterator[tuple[int, Reply | NoReply]]:
        """Yield (index of the request, what came of it) as each arrives, in any order, each index once.

        An endpoint takes a request only when it can be sent, perhaps in another thread; an engine takes all at once.
        Raises ChatError when no request can succeed (wrong key, unknown model, engine lost).
        """
        ...
