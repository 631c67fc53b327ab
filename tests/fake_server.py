"""A real HTTP server on 127.0.0.1 that speaks the OpenAI chat API and misbehaves on request. Standard library only.

In a test: ``with FakeServer(script=[rate_limited(after="0.01")]) as server: ... server.base_url, server.bodies``;
the things it can be told to do are in tests/fake_replies.py. As a process:
``python tests/fake_server.py --port-file F [--latency S] [--model NAME] [--log F] [--errors SHARE] [--seed N]
[--lasting] [--rate N] [--burst N] [--rate-headers] [--port N]``; the port is written to F when it listens, one line of
JSON a request to the log; it ends on SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import pathlib
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # as a process

from tests.fake_replies import (
    LASTING,
    PASSING,
    Answer,
    Behaviour,
    default_text,
    error,
    mishaps,
    no_such_model,
    says,
    too_long,
    unknown,
    wrong_key,
)

__all__ = ["FakeServer", "Limit", "default_text", "too_long", "wrong_key"]

Script = Sequence[Behaviour] | Callable[[dict[str, Any], int], Behaviour | None]


class Limit:
    """A limit of ``rate`` requests a second, with a ``burst`` of so many, that refuses what is too fast.

    A refusal has a Retry-After of ``after`` when that is given; with ``headers`` every reply tells how much remains.
    """

    def __init__(self, rate: float, *, burst: float | None = None, after: str | None = None, headers: bool = False):
        self.rate, self.after, self.headers = rate, after, headers
        self.burst = rate if burst is None else burst
        self.refused = 0
        self._level, self._at = self.burst, 0.0

    def refuse(self, now: float) -> Answer | None:
        """Return a 429 when there is no request left, None after taking one."""
        self._level, self._at = min(self.burst, self._level + (now - self._at) * self.rate), now
        if self._level >= 1:
            self._level -= 1
            return None
        self.refused += 1
        wish = {"Retry-After": self.after} if self.after else {}
        body = error(429, "Rate limit reached for requests")({}).body
        return Answer(body, status=429, headers=wish | self.told())

    def told(self) -> dict[str, str]:
        """Return the headers that tell of the limit."""
        if not self.headers:
            return {}
        reset = (self.burst - self._level) / self.rate
        names = {"limit": int(self.burst), "remaining": int(self._level), "reset": f"{reset * 1000:.0f}ms"}
        return {f"x-ratelimit-{name}-requests": str(value) for name, value in names.items()}


class FakeServer:
    """The server, in a thread of its own while the ``with`` block lasts.

    ``script`` answers the first requests in order, or, as a function of (body, how often this very body came
    before), each of them (None: the default). ``reply`` makes the default text from the body. With ``key`` any
    other Authorization is a 401; ``models`` are what GET /models lists and, with ``strict``, all that is served.
    With ``fields`` a request with any other field is a 400, as OpenAI does it. ``limit`` refuses what comes too fast,
    before anything else. ``fingerprints`` take turns as system_fingerprint. Without ``keep`` bodies and headers of
    requests are only counted.
    """

    def __init__(
        self,
        *,
        reply: Callable[[dict[str, Any]], str] = default_text,
        script: Script = (),
        latency: float = 0.0,
        key: str | None = None,
        models: Sequence[str] = ("fake-model",),
        strict: bool = False,
        fields: frozenset[str] | None = None,
        log: pathlib.Path | None = None,
        limit: Limit | None = None,
        fingerprints: Sequence[str] = ("fp_fake",),
        keep: bool = True,
        port: int = 0,
    ) -> None:
        self.reply, self.script, self.latency = reply, script, latency
        self.key, self.models, self.strict, self.log = key, tuple(models), strict, log
        self.fields, self.limit, self.keep = fields, limit, keep
        self.fingerprints = itertools.cycle(fingerprints)
        self.bodies: list[dict[str, Any]] = []  # of the chat requests, in order of arrival
        self.headers: list[dict[str, str]] = []  # theirs
        self.count = 0  # how many chat requests came
        self.connections = self.in_flight = self.most_in_flight = self.cut_off = 0
        self.port = port
        self._before: dict[str, int] = {}

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
        self._open: set[_Connection] = set()
        server = await self._loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        listening()
        async with server:
            await self._stop.wait()
            for connection in self._open:
                connection.transport.abort()
        await asyncio.sleep(0)  # lets the connections see that they are gone

    def answer(self, path: str, headers: dict[str, str], content: bytes) -> Answer:
        """Return what is to be done with a request."""
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return wrong_key()({})
        if path == "/stats":  # for other processes
            refused = self.limit.refused if self.limit else 0
            told = {"count": self.count, "refused": refused, "most_in_flight": self.most_in_flight}
            return Answer(json.dumps(told).encode())
        if path == "/v1/models":
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "fake"} for name in self.models]
            return Answer(json.dumps({"object": "list", "data": listed}).encode())
        if path != "/v1/chat/completions":
            return error(404, "Not Found")({})
        body = json.loads(content)
        number, self.count = self.count, self.count + 1
        if self.keep:
            self.bodies.append(body)
            self.headers.append(headers)
        if self.log is not None:
            with self.log.open("a") as out:
                out.write(json.dumps(body) + "\n")
        if self.limit is not None and (refusal := self.limit.refuse(self._loop.time())):
            return refusal
        return self._behaviour(body, number, content)(body)

    def _behaviour(self, body: dict[str, Any], number: int, content: bytes) -> Behaviour:
        scripted: Behaviour | None
        if callable(self.script):
            before = 0
            if self.keep:
                text = content.decode()
                before = self._before.get(text, 0)
                self._before[text] = before + 1
            scripted = self.script(body, before)
        else:
            scripted = self.script[number] if number < len(self.script) else None
        if scripted is not None:
            return scripted
        if self.strict and body["model"] not in self.models:
            return no_such_model(body["model"])
        if self.fields is not None and (strange := sorted(body.keys() - self.fields)):
            return unknown(strange[0])
        return says(self.reply(body), delay=self.latency, system_fingerprint=next(self.fingerprints))


class _Connection(asyncio.Protocol):
    """One connection: requests one after the other, each answered before the next is read."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.transport: Any = None
        self._buffer = b""
        self._next: asyncio.TimerHandle | None = None  # of the answer under way
        self._waits = False  # for its first byte

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.server.connections += 1
        self.server._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server._open.discard(self)
        if self._next is not None:
            self._next.cancel()
        if self._waits:
            self.server.cut_off += 1
            self._leave()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._next is None:
            self._read()

    def _read(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        top, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = end + 4 + int(headers.get("content-length", 0))
        if len(self._buffer) < size:
            return
        content, self._buffer = self._buffer[end + 4 : size], self._buffer[size:]
        server = self.server
        server.in_flight += 1
        server.most_in_flight = max(server.most_in_flight, server.in_flight)
        self._waits = True
        answer = server.answer(top.split(" ")[1], headers, content)
        if answer.delay:
            self._next = server._loop.call_later(answer.delay, self._write, answer)
        else:
            self._write(answer)

    def _leave(self) -> None:
        self._waits = False
        self.server.in_flight -= 1

    def _write(self, answer: Answer) -> None:
        self._next = None
        self._leave()
        if answer.body is None:
            self.transport.abort()
            return
        told = self.server.limit.told() if self.server.limit else {}
        lines = {"Content-Type": "application/json", "Content-Length": str(len(answer.body)), **told, **answer.headers}
        top = f"HTTP/1.1 {answer.status} X\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        whole = top.encode() + b"\r\n" + answer.body
        if answer.missing:
            self.transport.write(whole[: -answer.missing])
            self.transport.close()
        elif answer.pieces > 1:
            size = -(-len(whole) // answer.pieces)
            self._trickle([whole[i : i + size] for i in range(0, len(whole), size)], answer.gap)
        else:
            self.transport.write(whole)
            if self._buffer:
                self._read()

    def _trickle(self, pieces: list[bytes], gap: float) -> None:
        self.transport.write(pieces[0])
        rest = pieces[1:]
        self._next = self.server._loop.call_later(gap, self._trickle, rest, gap) if rest else None


def main() -> None:
    """Run as a process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port-file", type=pathlib.Path, required=True)
    parser.add_argument("--port", type=int, default=0, help="the port, so that a server can come back at its place")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    parser.add_argument("--model", action="append", default=None)
    parser.add_argument("--log", type=pathlib.Path, default=None)
    parser.add_argument("--errors", type=float, default=0.0, help="share of the requests that go wrong")
    parser.add_argument("--lasting", action="store_true", help="some of them for good")
    parser.add_argument("--seed", type=int, default=0, help="of the errors")
    parser.add_argument("--rate", type=float, default=None, help="requests a second; more are refused")
    parser.add_argument("--burst", type=float, default=None, help="requests at once, a second's worth when left out")
    parser.add_argument("--rate-headers", action="store_true", help="every reply tells what remains of the rate")
    options = parser.parse_args()
    kinds = PASSING | (LASTING if options.lasting else {})
    server = FakeServer(
        latency=options.latency,
        models=options.model or ("fake-model",),
        log=options.log,
        script=mishaps(options.errors, seed=options.seed, kinds=kinds) if options.errors else (),
        limit=Limit(options.rate, burst=options.burst, headers=options.rate_headers) if options.rate else None,
        keep=False,
        port=options.port,
    )

    def listening() -> None:
        part = options.port_file.with_suffix(".part")
        part.write_text(str(server.port))
        part.replace(options.port_file)  # whoever sees the file sees the whole number

    asyncio.run(server.serve(listening))


if __name__ == "__main__":
    main()
