"""A real HTTP server on 127.0.0.1 that speaks the OpenAI chat API and misbehaves on request. Standard library only.

In a test: ``with FakeServer(script=[rate_limited(after="0.01")]) as server: ... server.base_url, server.bodies``.
As a process: ``python tests/fake_server.py --port-file F [--latency S] [--model NAME] [--log F]``; the port is
written to F when it listens, one line of JSON a request to the log; it ends on SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What the server does with one request; ``body`` None closes the connection without a word."""

    body: bytes | None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0


# What OpenAI's chat completions take, as far as anyone here sends it; any other field is a 400 there.
OPENAI_FIELDS = frozenset(
    {
        *("messages", "model", "temperature", "top_p", "max_tokens", "max_completion_tokens"),
        *("seed", "stop", "logprobs", "top_logprobs"),
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


def default_text(body: Mapping[str, Any]) -> str:
    """Return words made from a hash of the last user message, or the likeliest choice where choices are given."""
    choices = _choices(body)
    if choices:
        weights = choice_logprobs(body)
        return max(choices, key=lambda choice: weights[choice])
    digest = hashlib.sha256(_last_user(body).encode()).hexdigest()
    return "reply " + " ".join(digest[i : i + 6] for i in range(0, 36, 6))


def choice_logprobs(body: Mapping[str, Any]) -> dict[str, float]:
    """Return a normalised log-probability of each choice, made from a hash of the last user message."""
    raw = {c: hashlib.sha256(f"{c}\0{_last_user(body)}".encode()).digest()[0] / 32 for c in _choices(body)}
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


class FakeServer:
    """The server, in a thread of its own while the ``with`` block lasts.

    ``script`` answers the first requests in order, or, as a function of (body, how often this very body came
    before), each of them (None: the default). ``reply`` makes the default text from the body. With ``key`` any
    other Authorization is a 401; ``models`` are what GET /models lists and, with ``strict``, all that is served.
    With ``fields`` a request with any other field is a 400, as OpenAI does it.
    """

    def __init__(
        self,
        *,
        reply: Callable[[dict[str, Any]], str] = default_text,
        script: Sequence[Behaviour] | Callable[[dict[str, Any], int], Behaviour | None] = (),
        latency: float = 0.0,
        key: str | None = None,
        models: Sequence[str] = ("fake-model",),
        strict: bool = False,
        fields: frozenset[str] | None = None,
        log: pathlib.Path | None = None,
    ) -> None:
        self.reply, self.script, self.latency = reply, script, latency
        self.key, self.models, self.strict, self.log = key, tuple(models), strict, log
        self.fields = fields
        self.bodies: list[dict[str, Any]] = []  # of the chat requests, in order of arrival
        self.headers: list[dict[str, str]] = []  # theirs
        self.connections = self.in_flight = self.most_in_flight = self.cut_off = 0
        self.port = 0

    @property
    def count(self) -> int:
        """How many chat requests came."""
        return len(self.bodies)

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as base_url."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FakeServer:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve(started.set)), daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def serve(self, listening: Callable[[], object]) -> None:
        """Serve until stopped; ``listening`` is called once the port is known."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=1 << 24, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        listening()
        async with server:
            await self._stop.wait()
            for writer in self._writers:
                writer.transport.abort()
        await asyncio.sleep(0)  # lets the handlers see that their connections are gone

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while await self._one(reader, writer):
                    pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            answer = self._answer(head[0].split(" ")[1], headers, content)
            if answer.delay and await self._left(reader, answer.delay):
                self.cut_off += 1
                return False
        finally:
            self.in_flight -= 1
        if answer.body is None:
            return False
        lines = {"Content-Type": "application/json", "Content-Length": str(len(answer.body)), **answer.headers}
        top = f"HTTP/1.1 {answer.status} X\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        writer.write(top.encode() + b"\r\n" + answer.body)
        await writer.drain()
        return True

    async def _left(self, reader: asyncio.StreamReader, delay: float) -> bool:
        """Wait; True when the client hung up meanwhile."""
        try:
            async with asyncio.timeout(delay):
                return await reader.read(1) == b""
        except TimeoutError:
            return False

    def _answer(self, path: str, headers: dict[str, str], content: bytes) -> Answer:
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return wrong_key()({})
        if path == "/v1/models":
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "fake"} for name in self.models]
            return Answer(json.dumps({"object": "list", "data": listed}).encode())
        if path != "/v1/chat/completions":
            return error(404, "Not Found")({})
        body = json.loads(content)
        before = self.bodies.count(body) if callable(self.script) else 0
        number = len(self.bodies)
        self.bodies.append(body)
        self.headers.append(headers)
        if self.log is not None:
            with self.log.open("a") as out:
                out.write(json.dumps(body) + "\n")
        return self._behaviour(body, number, before)(body)

    def _behaviour(self, body: dict[str, Any], number: int, before: int) -> Behaviour:
        scripted: Behaviour | None
        if callable(self.script):
            scripted = self.script(body, before)
        else:
            scripted = self.script[number] if number < len(self.script) else None
        if scripted is not None:
            return scripted
        if self.strict and body["model"] not in self.models:
            return no_such_model(body["model"])
        if self.fields is not None and (strange := sorted(body.keys() - self.fields)):
            return unknown(strange[0])
        return says(self.reply(body), delay=self.latency)


def main() -> None:
    """Run as a process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port-file", type=pathlib.Path, required=True)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--model", action="append", default=None)
    parser.add_argument("--log", type=pathlib.Path, default=None)
    options = parser.parse_args()
    server = FakeServer(latency=options.latency, models=options.model or ("fake-model",), log=options.log)

    def listening() -> None:
        part = options.port_file.with_suffix(".part")
        part.write_text(str(server.port))
        part.replace(options.port_file)  # whoever sees the file sees the whole number

    asyncio.run(server.serve(listening))


if __name__ == "__main__":
    main()
