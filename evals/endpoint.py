"""A model behind an OpenAI-compatible endpoint (OpenAI, vLLM, llama.cpp, OpenRouter, …) as a ChatModel.

Requests run in an event loop of their own thread, so that a caller may be slow, or itself inside a loop (a
notebook), without a reply timing out. Failures come back as :class:`evals.chat.NoReply`, after bounded retries;
what no request of the whole model can survive (key, model name, quota, nobody listening) raises ChatError.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from evals.chat import ChatError, ChatRequest, NoReply, Reply
from evals.chat_json import read_reply, request_body
from evals.connections import Site, read_site
from evals.dispatch import Arrivals, Dispatch, Rules
from evals.pace import Pace

__all__ = ["NO_KEY", "OPENAI", "EndpointModel", "read_reply", "request_body"]

NO_KEY = "no-key"  # the openai package sends OPENAI_API_KEY of the environment to anyone unless it is given a key
OPENAI = "https://api.openai.com/v1"


class EndpointModel:
    """A chat model at ``base_url`` (None: OpenAI's own), its key in the environment variable ``api_key_env``.

    ``replicas`` are base URLs of further servers of the same model, with the same key: work goes to whoever has room;
    one that cannot be reached is set aside and tried again later, while its requests go to the others.

    At most ``concurrency`` requests are in flight at each base URL. It starts with 16, takes more while latency holds,
    and half as many when the server is overloaded (HTTP 429, 503, timeouts). Retry-After and x-ratelimit headers are
    honoured; where a server limits the rate and does not say to what, it is learned. ``requests_per_minute`` and
    ``tokens_per_minute`` (prompt and reply) are limits for each base URL, for those who know theirs.

    Each request has ``timeout`` seconds an attempt and ``max_attempts`` attempts, with pauses of ``backoff`` seconds,
    four times as long each time; ``Reply.seconds`` is the last attempt's. ``extra_body`` goes into every request's
    JSON and wins over what stands there; a None in it leaves a field out, as
    ``{"max_tokens": None, "max_completion_tokens": 4096}`` for models that refuse max_tokens, or
    ``{"structured_outputs": None}`` and ``{"response_format": None}`` for servers that refuse these fields (OpenAI is
    never sent the first, which is vLLM's). A vLLM server fills in fields that a request leaves out from the model's
    generation_config.json; ``{"top_k": -1, "repetition_penalty": 1.0}`` switches that off, and so does ``in_full``,
    which leaves what is asked for as it is.
    """

    def __init__(
        self,
        *,
        base_url: str | None,
        model: str,
        api_key_env: str | None,
        concurrency: int = 64,
        timeout: float = 120.0,
        max_attempts: int = 5,
        extra_body: Mapping[str, object] | None = None,
        backoff: float = 0.25,
        replicas: Sequence[str] = (),
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        in_full: bool = False,
    ) -> None:
        for url in (base_url, *replicas):
            if url is not None and not url.startswith(("http://", "https://")):
                raise ChatError(f"base_url {url!r} of model {model!r} is no URL: write http://host:port/v1")
        numbers = {"concurrency": concurrency, "max_attempts": max_attempts, "timeout": timeout}
        limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
        for name, value in {**numbers, **limits}.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name} of model {model!r} is {value}: give a number above 0")
        self.base_url = base_url
        self.model = model
        self.api_key_env = api_key_env
        self.concurrency = concurrency
        self.timeout = timeout
        self.max_attempts = max_attempts
        self.extra_body = dict(extra_body or {})
        self.backoff = backoff
        self.replicas = tuple(replicas)
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self.in_full = in_full
        self._idle: list[list[Site]] = []  # what calls that ended found out about pace, for the next ones

    def chat(self, requests: Iterable[ChatRequest]) -> Generator[tuple[int, Reply | NoReply], None, None]:
        """Yield (index, reply or failure) as each arrives; closing the generator cancels what is in flight.

        ``requests`` is drawn on in another thread (but for the first), one request whenever one can be sent; what it
        raises is raised here, after what was in flight by then. One session, with its pool of connections, serves one
        call: hand over many requests at once. What was found out about pace is kept for the next call.
        """
        drawn = iter(requests)
        try:
            first = next(drawn)
        except StopIteration:
            return
        key = self._read_key()
        try:
            sites = self._idle.pop()
        except IndexError:  # the first call, or one beside another
            sites = self._make_sites()
        call = _Call(chain([first], drawn), self._rules(key), sites)
        thread = threading.Thread(target=call.run, name=f"chat {self.model}", daemon=True)
        thread.start()
        try:
            while (arrival := call.arrivals.take()) is not None:
                yield arrival
                if call.arrivals.wanted:
                    call.pump()
        finally:
            call.cancel()
            thread.join()
            for site in sites:
                site.rest()
            self._idle.append(sites)

    def _read_key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ChatError(
                f"the environment variable {self.api_key_env} (api_key_env of model {self.model!r} at "
                f"{self.base_url or OPENAI}) is not set: export it with the key, or leave api_key_env out for a "
                f"server that wants none"
            )
        return key

    def _rules(self, key: str | None) -> Rules:
        for_openai = self.base_url is None
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if for_openai:  # nobody else's business
            names = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
            headers |= {name: value for name, variable in names.items() if (value := os.environ.get(variable))}
        return Rules(
            model=self.model,
            api_key_env=self.api_key_env,
            key=key,
            headers=headers,
            fields=lambda request: request_body(
                request, extra=self.extra_body, for_openai=for_openai, in_full=self.in_full
            ),
            timeout=self.timeout,
            max_attempts=self.max_attempts,
            backoff=self.backoff,
        )

    def _make_sites(self) -> list[Site]:
        found = []
        for base_url in (self.base_url or OPENAI, *self.replicas):
            pace = Pace(
                most=self.concurrency,
                backoff=self.backoff,
                requests_per_minute=self.requests_per_minute,
                tokens_per_minute=self.tokens_per_minute,
            )
            try:
                found.append(read_site(base_url, has_key=self.api_key_env is not None, pace=pace))
            except ValueError as error:
                raise ChatError(f"base_url of model {self.model!r}: {error}: write http://host:port/v1") from None
        return found


@dataclass(eq=False)
class _Call:
    """One call of ``chat``: the thread that runs the loop, and what passes between it and the caller."""

    requests: Iterator[ChatRequest]
    rules: Rules
    sites: list[Site]
    arrivals: Arrivals = field(default_factory=Arrivals)
    _ready: threading.Event = field(default_factory=threading.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _main: asyncio.Task[None] | None = None

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
            end.__cause__ = end.__context__ = None  # the request that an error holds carries the key
        except BaseException as error:  # the caller's thread raises it
            end = error
        finally:
            self._ready.set()
            self.arrivals.end(end)

    def pump(self) -> None:
        """Tell the loop that the caller took an arrival."""
        self._threadsafe(self._dispatch.pump)

    def cancel(self) -> None:
        """Cancel what is in flight, if anything is."""
        self._ready.wait()
        self._threadsafe(lambda: self._main and self._main.cancel())

    def _threadsafe(self, callback: Callable[[], object]) -> None:
        if self._loop is None:  # it could not be made
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is in flight
            self._loop.call_soon_threadsafe(callback)

    async def _ask_all(self) -> None:
        self._main = asyncio.current_task()
        self._dispatch = Dispatch(self.requests, sites=self.sites, rules=self.rules, arrivals=self.arrivals)
        self._ready.set()
        await self._dispatch.run()
