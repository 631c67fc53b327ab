"""lm-eval's requests over endpoints: texts by chats, log-likelihoods by the completions of an OpenAI-compatible server.

Chats go through the experiment's own client, with its pace, its budget and its typed failures, and ask what lm-eval's
``local-chat-completions`` asks: the task's messages, at most four stop sequences, ``max_gen_toks`` as max_tokens. The
text is also cut at the stop sequences that did not fit in. Log-likelihoods need a server that echoes the prompt with
log-probabilities (vLLM does, OpenAI does not) and the model's tokenizer; lm-eval's ``local-completions`` asks for them.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from evals.chat import ChatError, ChatModel, ChatRequest, NoReply
from evals.lm_model import Response, Wish, in_batches
from evals.lm_options import ENDPOINT_DRAWS, MAX_GEN_TOKS, drawing
from evals.records import Message, Sampling

STOPS = 4  # stop sequences that OpenAI's API takes
_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class Completions:
    """Where an endpoint's completions are asked: its base URL, what it calls the model, its key, and the tokenizer."""

    base_url: str
    model: str
    key: str
    tokenizer: str  # a folder
    concurrency: int = 16
    timeout: float = 120.0  # seconds
    max_attempts: int = 5
    max_length: int = 4096  # tokens that the server holds


class EndpointLM:
    """An endpoint as lm-eval asks it."""

    def __init__(self, chat: ChatModel, *, completions: Completions | None = None) -> None:
        self._chat = chat
        self._completions = completions

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:  # noqa: ARG002
        """Return the conversation as JSON: the server writes it as its model reads it."""
        return json.dumps(chat_history, ensure_ascii=False)

    def respond(self, wishes: Sequence[Wish]) -> Iterator[tuple[int, Response | NoReply]]:
        """Yield what came of each request."""
        texts = [n for n, wish in enumerate(wishes) if wish.instance.request_type == "generate_until"]
        others = [n for n in range(len(wishes)) if n not in set(texts)]
        if texts:
            for place, response in self._texts([wishes[n] for n in texts]):
                yield texts[place], response
        if others:
            for place, response in self._scores([wishes[n] for n in others]):
                yield others[place], response

    def _texts(self, wishes: Sequence[Wish]) -> Iterator[tuple[int, Response | NoReply]]:
        requests = [_request(wish) for wish in wishes]
        for at, reply in self._chat.chat(requests):
            if isinstance(reply, NoReply):
                yield at, reply
                continue
            until = wishes[at].instance.args[1].get("until")
            text = postprocess_generated_text(reply.text, until, None)
            yield at, Response(text, reply.finish_reason, reply.prompt_tokens, reply.output_tokens, reply.thinking)

    def _scores(self, wishes: Sequence[Wish]) -> Iterator[tuple[int, Response | NoReply]]:
        if self._completions is None:
            raise ChatError(
                "log-likelihoods of an endpoint need its base_url and its tokenizer (a folder): OpenAI's own API gives "
                "none; take a task that generates, or a checkpoint"
            )
        api = _completions(self._completions)
        written = [_written(wish, api) for wish in wishes]
        at_once = 4 * self._completions.concurrency
        try:
            yield from in_batches(api, written, at_once=at_once, scored_at_once=at_once)
        except OSError as error:
            raise ChatError(
                f"{self._completions.base_url}/completions gave no log-likelihoods in {self._completions.max_attempts} "
                f"attempts: {str(error) or type(error).__name__}. What it gave before is stored: run again when it "
                "answers, or give the endpoint more max_attempts or a longer timeout"
            ) from None


def _written(wish: Wish, api: Any) -> Wish:
    """Return the request with its conversation as the tokenizer's chat template writes it; others as they are."""
    context, *rest = wish.instance.args
    try:
        turns = json.loads(context)
    except ValueError:
        return wish
    if not (rest and isinstance(turns, list) and turns and all(isinstance(t, dict) and "role" in t for t in turns)):
        return wish
    made = copy.copy(wish.instance)
    made.arguments = (api.apply_chat_template(turns, add_generation_prompt=turns[-1]["role"] != "assistant"), *rest)
    return Wish(made, wish.seed)


def _request(wish: Wish) -> ChatRequest:
    context, gen_kwargs = wish.instance.args
    try:
        turns = json.loads(context)
    except ValueError:
        turns = None
    if not isinstance(turns, list):
        raise ChatError("an endpoint chats: say apply_chat_template: true in the task's options")
    told: Mapping[str, Any] = dict(normalize_gen_kwargs(drawing(gen_kwargs), default_max_gen_toks=MAX_GEN_TOKS))
    if unknown := sorted(set(told) - ENDPOINT_DRAWS):
        raise ChatError(f"the task draws by {', '.join(unknown)}, which an endpoint is not told: see gen_kwargs")
    drawn = {name: told[name] for name in _SAMPLING if told.get(name) is not None}
    stop = tuple(stop for stop in told["until"] if stop)[:STOPS]
    sampling = Sampling(max_tokens=told["max_gen_toks"], stop=stop, seed=wish.seed, **drawn)
    return ChatRequest(tuple(Message(turn["role"], turn["content"]) for turn in turns), sampling)


def _completions(told: Completions) -> Any:
    if find_spec("tenacity") is None:
        raise ChatError("log-likelihoods of an endpoint need lm-eval's client: pip install tenacity")
    import aiohttp
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    class Quiet(LocalCompletionsAPI):  # type: ignore[misc]
        """lm-eval's client, whose errors show every header of a request, and so the key, without these."""

        async def amodel_call(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return await super().amodel_call(*args, **kwargs)
            except aiohttp.ClientError as error:
                raise ConnectionError(str(error) or type(error).__name__) from None

    logging.getLogger("lm_eval.models.api_models").setLevel(logging.CRITICAL)  # which writes them down, too
    return Quiet(
        base_url=f"{told.base_url.rstrip('/')}/completions",
        model=told.model,
        tokenizer=told.tokenizer,
        tokenizer_backend="huggingface",
        header={"Authorization": f"Bearer {told.key}"} if told.key else {"Content-Type": "application/json"},
        num_concurrent=told.concurrency,
        timeout=int(told.timeout),
        max_retries=told.max_attempts,
        max_length=told.max_length,
    )
