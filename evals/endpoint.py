"""A model behind an OpenAI-compatible endpoint (OpenAI, vLLM, llama.cpp, OpenRouter, …) as a ChatModel.

Requests run in an event loop of their own thread, so that a caller may be slow, or itself inside a loop (a
notebook), without a reply timing out. Failures come back as :class:`evals.chat.NoReply`, after bounded retries;
what no request of the whole model can survive (key, model name, quota, nobody listening) raises ChatError.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import random
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evals.chat import ChatError, ChatRequest, NoReply, Reply
from evals.endpoint_errors import Trouble, one_line, read_connection, read_status

if TYPE_CHECKING:
    import openai

OPENAI = "https://api.openai.com/v1"
NO_KEY = "no-key"  # the openai package sends OPENAI_API_KEY of the environment to anyone unless it is given a key
CONNECT = 20.0  # seconds to wait for a connection
LONGEST_PAUSE = 60.0  # seconds between two attempts, where the server does not say
LONGEST_WISH = 300.0  # seconds: a server that asks for more (a daily quota) ends the request

_Arrival = tuple[int, Reply | NoReply]


class EndpointModel:
    """A chat model at ``base_url`` (None: OpenAI's own), its key in the environment variable ``api_key_env``.

    ``concurrency`` requests are in flight at most; each has ``timeout`` seconds an attempt and ``max_attempts``
    attempts, with pauses of ``backoff`` seconds doubling; ``Reply.seconds`` is the last attempt's. ``extra_body``
    goes into every request's JSON and wins over what stands there; a None in it leaves a field out, as
    ``{"max_tokens": None, "max_completion_tokens": 4096}`` for models that refuse max_tokens, or
    ``{"structured_outputs": None}`` for servers that refuse this field of vLLM's (OpenAI is never sent it). A vLLM
    server fills in fields that a request leaves out from the model's generation_config.json;
    ``{"top_k": -1, "repetition_penalty": 1.0}`` switches that off.
    """

    def __init__(
        self,
        *,
        base_url: str | None,
        model: str,
        api_key_env: str | None,
        concurrency: int = 16,
        timeout: float = 120.0,
        max_attempts: int = 5,
        extra_body: Mapping[str, object] | None = None,
        backoff: float = 1.0,
    ) -> None:
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise ChatError(f"base_url {base_url!r} of model {model!r} is no URL: write http://host:port/v1")
        for name, value in (("concurrency", concurrency), ("max_attempts", max_attempts), ("timeout", timeout)):
            if value <= 0:
                raise ValueError(f"{name} of model {model!r} is {value}: give a number above 0")
        self.base_url = base_url
        self.model = model
        self.api_key_env = api_key_env
        self.concurrency = concurrency
        self.timeout = timeout
        self.max_attempts = max_attempts
        self.extra_body = dict(extra_body or {})
        self.backoff = backoff

    def chat(self, requests: Sequence[ChatRequest]) -> Generator[tuple[int, Reply | NoReply], None, None]:
        """Yield (index, reply or failure) as each arrives; closing the generator cancels what is in flight.

        One client, with its pool of connections, serves one call: hand over many requests at once.
        """
        if not requests:
            return
        call = _Call(self, requests, key=self._read_key())
        thread = threading.Thread(target=call.run, name=f"chat {self.model}", daemon=True)
        thread.start()
        try:
            while (arrival := call.arrivals.get()) is not None:
                if isinstance(arrival, BaseException):
                    raise arrival
                yield arrival
                call.make_room()
        finally:
            call.cancel()
            thread.join()

    def _read_key(self) -> str:
        if self.api_key_env is None:
            return NO_KEY
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ChatError(
                f"the environment variable {self.api_key_env} (api_key_env of model {self.model!r} at "
                f"{self.base_url or OPENAI}) is not set: export it with the key, or leave api_key_env out for a "
                f"server that wants none"
            )
        return key


@dataclass(eq=False)
class _Call:
    """One call of ``chat``: the thread that runs the loop, and what passes between it and the caller."""

    model: EndpointModel
    requests: Sequence[ChatRequest]
    key: str = field(repr=False)
    arrivals: queue.SimpleQueue[_Arrival | BaseException | None] = field(default_factory=queue.SimpleQueue)
    _ready: threading.Event = field(default_factory=threading.Event)
    _main: asyncio.Task[Any] | None = None
    _last_contact: float = 0.0

    def run(self) -> None:
        """Ask everything, in this thread; the end, or the exception that ended it, is the last arrival."""
        end: BaseException | None = None
        try:
            with asyncio.Runner() as runner:
                self._loop = runner.get_loop()
                runner.run(self._ask_all())
        except asyncio.CancelledError:
            pass
        except BaseExceptionGroup as group:
            end = group.exceptions[0]
        except BaseException as error:  # the caller's thread raises it
            end = error
        finally:
            self._ready.set()
            self.arrivals.put(end)

    def make_room(self) -> None:
        """Tell the loop that the caller took an arrival."""
        self._threadsafe(self._room.release)

    def cancel(self) -> None:
        """Cancel what is in flight, if anything is."""
        self._ready.wait()
        self._threadsafe(lambda: self._main and self._main.cancel())

    def _threadsafe(self, callback: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is in flight
            self._loop.call_soon_threadsafe(callback)

    async def _ask_all(self) -> None:
        self._main = asyncio.current_task()
        # Arrivals that the caller has not taken yet: a slow caller slows the asking, memory stays flat.
        self._room = asyncio.Semaphore(self.model.concurrency)
        self._ready.set()
        pending = iter(enumerate(self.requests))
        async with _client(self.model, self.key) as client, asyncio.TaskGroup() as group:
            for _ in range(min(self.model.concurrency, len(self.requests))):
                group.create_task(self._work(client, pending))

    async def _work(self, client: openai.AsyncOpenAI, pending: Iterator[tuple[int, ChatRequest]]) -> None:
        for index, request in pending:
            self.arrivals.put((index, await self._ask(client, request)))
            await self._room.acquire()

    async def _ask(self, client: openai.AsyncOpenAI, request: ChatRequest) -> Reply | NoReply:
        began = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            outcome = await self._attempt(client, request)
            if isinstance(outcome, Reply) or not outcome.unreachable:
                self._last_contact = time.monotonic()
            if isinstance(outcome, Reply):
                return outcome
            wait = self._pause(attempt) if outcome.wait is None else outcome.wait
            if not outcome.retry or attempt == self.model.max_attempts or wait > LONGEST_WISH:
                break
            await asyncio.sleep(wait)
        message = self._clean(outcome.message)
        if outcome.hint:
            message = f"{message}: {outcome.hint}"
        if outcome.unreachable and self._last_contact < began:  # nor did any other request get through meanwhile
            raise ChatError(
                f"nothing answers at {self._place()} for model {self.model.model!r} (attempt {attempt}, "
                f"{time.monotonic() - began:.1f} s): start the server or correct base_url. {message}"
            )
        return NoReply(kind=outcome.kind, message=message, attempts=attempt)

    async def _attempt(self, client: openai.AsyncOpenAI, request: ChatRequest) -> Reply | Trouble:
        import openai

        began = time.monotonic()
        body = request_body(request, extra=self.model.extra_body, for_openai=self.model.base_url is None)
        try:
            # The whole attempt is bounded here, because a transport's own timeouts bound each read alone. The
            # messages are part of extra_body: as an argument the package walks through them, a fifth of its CPU time.
            async with asyncio.timeout(self.model.timeout):
                raw = await client.chat.completions.with_raw_response.create(
                    model=self.model.model, messages=[], extra_body=body
                )
        except TimeoutError:
            return Trouble("timeout", f"no reply within {self.model.timeout:g} s", retry=True)
        except openai.APIStatusError as error:
            trouble = read_status(error, sent=body)
            if trouble.fatal is not None:
                advice = trouble.fatal.format(env=self.model.api_key_env or "api_key_env", model=self.model.model)
                message = f"model {self.model.model!r} at {self._place()}: {advice} ({self._clean(trouble.message)})"
                raise ChatError(message) from None  # the request that `error` holds carries the key
            return trouble
        except openai.APIConnectionError as error:
            return read_connection(error)
        return read_reply(raw.content, seconds=time.monotonic() - began)

    def _pause(self, attempt: int) -> float:
        longest = min(self.model.backoff * 2.0 ** (attempt - 1), LONGEST_PAUSE)
        return longest * random.SystemRandom().uniform(0.5, 1.0)

    def _place(self) -> str:
        scheme, _, rest = (self.model.base_url or OPENAI).partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"

    def _clean(self, message: str) -> str:
        """Return the message as one short line without the key, which some servers echo."""
        return one_line(message if self.key == NO_KEY else message.replace(self.key, "[key]"))


def _client(model: EndpointModel, key: str) -> openai.AsyncOpenAI:
    import openai

    http: Any
    try:
        http = openai.DefaultAioHttpClient()  # about two thirds of the default transport's CPU a request
    except RuntimeError:  # aiohttp is not installed
        http = openai.DefaultAsyncHttpxClient()
    timeout = openai.Timeout(None, connect=CONNECT)  # the rest is bounded an attempt
    client = openai.AsyncOpenAI(
        api_key=key, base_url=model.base_url or OPENAI, max_retries=0, timeout=timeout, http_client=http
    )
    if model.base_url is not None:
        client.organization = client.project = None  # OpenAI's, from the environment: nobody else's business
    return client


def request_body(request: ChatRequest, *, extra: Mapping[str, object], for_openai: bool) -> dict[str, object]:
    """Return the JSON body of a request but for its model; fields of ``extra`` win, None leaves a field out.

    ``for_openai`` leaves out structured_outputs, which is vLLM's: OpenAI refuses fields that it does not know.
    """
    sampling = request.sampling
    body: dict[str, object] = {
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "top_k": sampling.top_k or None,  # not in OpenAI's API, which refuses what it does not know
        "repetition_penalty": sampling.repetition_penalty if sampling.repetition_penalty != 1.0 else None,
        "logprobs": True if request.top_logprobs else None,
        "top_logprobs": request.top_logprobs or None,
        "structured_outputs": {"choice": list(request.choices)} if request.choices and not for_openai else None,
    }
    return {name: value for name, value in {**body, **extra}.items() if value is not None}


def read_reply(content: bytes, *, seconds: float) -> Reply | Trouble:
    """Read the body of a 200: a Reply, or what is wrong with it."""
    try:
        data = json.loads(content)
        choice = data["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
        usage = data.get("usage") or {}
        if finish == "content_filter" or (text is None and refusal):
            return Trouble("content_filter", f"the endpoint withheld the reply: {refusal or finish}")
        if finish in ("error", "abort"):
            return Trouble("server", f"the endpoint broke the reply off (finish_reason {finish!r})", retry=True)
        if text is None and finish == "length":
            return Trouble("bad_reply", "max_tokens was spent before the reply began (a reasoning model?): raise it")
        if not isinstance(text, str):
            return Trouble("bad_reply", f"no text in the reply: {message!r}", retry=True)
        return Reply(
            # Lone surrogates cannot be stored; as they come, the next turn would be another question after a resume.
            text=text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
            finish_reason="length" if finish == "length" else "stop",
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            output_tokens=int(usage.get("completion_tokens") or 0),
            seconds=seconds,
            served_model=str(data.get("model") or ""),
            top_logprobs=_first_token(choice.get("logprobs")),
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        shown = content[:200].decode("utf-8", "replace")
        return Trouble("bad_reply", f"not a chat completion: {shown!r}", retry=True)


def _first_token(logprobs: Any) -> tuple[tuple[str, float], ...]:
    content = (logprobs or {}).get("content") or []
    pairs = [(str(each["token"]), float(each["logprob"])) for each in content[0]["top_logprobs"]] if content else []
    return tuple(sorted(pairs, key=lambda pair: -pair[1]))
