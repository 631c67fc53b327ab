"""What every model that chats looks like to the rest of the house: endpoints and checkpoints in an engine alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from evals.records import Message, Sampling


class ChatError(Exception):
    """The whole model cannot be asked (not one request of it); the message says what to do."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One reply wanted. ``sampling.seed`` is the seed of this very reply.

    ``top_logprobs`` asks for that many alternatives of the reply's first token; ``choices`` bounds the whole
    reply to one of these texts (structured output).
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    top_logprobs: int = 0
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as it came; ``top_logprobs`` are (token text, natural log) pairs of its first token, best first."""

    text: str
    finish_reason: str  # "stop" or "length"
    prompt_tokens: int
    output_tokens: int
    seconds: float
    served_model: str
    top_logprobs: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class NoReply:
    """Why one request brought nothing; ``kind`` as in :class:`evals.records.Failure`."""

    kind: str
    message: str
    attempts: int


class ChatModel(Protocol):
    """Anything that answers chat requests: an endpoint, or a checkpoint in a vLLM engine."""

    def chat(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Reply | NoReply]]:
        """Yield (index of the request, what came of it) as each arrives, in any order, each index once.

        Raises ChatError when no request can succeed (wrong key, unknown model, engine lost).
        """
        ...
