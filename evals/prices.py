"""What a reply costs: US dollars per million tokens, and the sum of what an endpoint says it read and wrote."""

from __future__ import annotations

from dataclasses import dataclass

from evals.chat import NoReply, Reply

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """A model's price in US dollars per million tokens.

    Output covers thinking too. ``cached_input`` is for prompt tokens that the endpoint had at hand (None: they cost as
    much as others); ``batch`` is the factor on all of it for requests of a batch. ``as_of`` is the day, as an ISO date,
    when ``source`` said so ("" where nobody says when).
    """

    input: float
    output: float
    cached_input: float | None = None
    batch: float = 0.5  # OpenAI, Anthropic and Google alike
    as_of: str = ""
    source: str = ""


def cost(price: Price, reply: Reply | NoReply, *, batch: bool = False) -> float | None:
    """Return what a reply cost in US dollars, with the replies to earlier attempts that were thrown away.

    Tokens are those that the endpoint reported; of a reply without usage nobody knows what it cost: None.
    """
    read, written = reply.discarded
    dollars = token_cost(price, read, written, batch=batch)
    if isinstance(reply, Reply):
        if not (reply.prompt_tokens or reply.output_tokens):
            return None
        cached = min(reply.cached_tokens, reply.prompt_tokens)
        dollars += token_cost(price, reply.prompt_tokens, reply.output_tokens, cached=cached, batch=batch)
    return dollars


def token_cost(price: Price, prompt: float, output: float, *, cached: float = 0, batch: bool = False) -> float:
    """Return the US dollars for so many prompt tokens (``cached`` of them at hand already) and output tokens."""
    at_hand = price.input if price.cached_input is None else price.cached_input
    full = (prompt - cached) * price.input + cached * at_hand + output * price.output
    return full / MILLION * (price.batch if batch else 1.0)
