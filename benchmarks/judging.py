"""The judge client against a local HTTP server: seconds beside the ideal, CPU, memory, and other ways, as Markdown.

.venv/bin/python benchmarks/judging.py [--only speed ways rate memory share] [--requests 1600] [--repeat 3] [--quick]

The server (tests/fake_server.py) runs on core 0 and each measurement in a fresh process on core 1, one thing at a time.
Prompts have 4 kB. Ideal is what the latency alone takes, so many requests at a time: whole rounds of it.

- speed: 64 and 256 at a time with 200 ms, 512 with 3 s, and 64 with 2 % errors of all kinds that pass.
- ways: ours beside aiohttp without any bookkeeping, the openai client in 64 threads (FastChat's way), and a new openai
  client for each call in 64 threads (arena-hard's and alpaca_eval's way), each asked as much as suits it.
- rate: servers that take 50 requests a second and refuse more, without a word or with rate headers: share of the rate
  reached over all and after the first ten seconds, and the share of requests refused.
- memory: peak of the process while so many requests are drawn from a generator.
- share: CPU of the client at 300 replies a second.

Of several repeats the medians are shown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from evals.chat import ChatRequest, Reply  # noqa: E402
from evals.endpoint import EndpointModel  # noqa: E402
from evals.records import Message, Sampling  # noqa: E402

PROMPT = "Which of the two answers is better, and why? " * 90
SERVER_CORE, CLIENT_CORE = 0, 1


def main() -> None:
    """Run the sections and print their tables; or, as a child process, one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = {"speed": speed, "ways": ways, "rate": rate, "memory": memory, "share": share}
    parser.add_argument("--only", nargs="+", choices=sections, default=list(sections))
    parser.add_argument("--requests", type=int, default=1600)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a minute in all: fewer requests, once")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(measure(**json.loads(chosen.measure))))
        return
    if chosen.quick:
        chosen.repeat, chosen.requests = 1, min(chosen.requests, 800)
    for name in chosen.only:
        for line in sections[name](chosen):
            print(line, flush=True)
        print(flush=True)


@contextmanager
def served(*options: object) -> Iterator[str]:
    """Run the server on its core; yield its address."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "port"
        command = [sys.executable, str(ROOT / "tests/fake_server.py"), "--port-file", str(file), *map(str, options)]
        process = subprocess.Popen(command)
        on_core(SERVER_CORE, process.pid)
        try:
            while not file.exists():
                time.sleep(0.02)
            yield f"http://127.0.0.1:{file.read_text()}"
        finally:
            process.terminate()
            process.wait()


def on_core(core: int, process: int) -> None:
    """Pin a process to a core, where there is that one."""
    if hasattr(os, "sched_setaffinity") and core in os.sched_getaffinity(0):
        os.sched_setaffinity(process, {core})


def child(repeat: int, server: tuple[object, ...], **settings: Any) -> dict[str, float]:
    """Return the medians of several measurements, each in a fresh process against a fresh server."""
    found: list[dict[str, float]] = []
    for _ in range(repeat):
        with served(*server) as address:
            command = [sys.executable, __file__, "--measure", json.dumps({"address": address, **settings})]
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            on_core(CLIENT_CORE, process.pid)
            said, _ = process.communicate()
            stats = json.load(urllib.request.urlopen(f"{address}/stats"))
        found.append(json.loads(said) | {name: float(value) for name, value in stats.items()})
        print(f"# {settings.get('way', 'ours')} {server}: {found[-1]}", file=sys.stderr, flush=True)
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def measure(
    *, address: str, way: str = "ours", requests: int, at_once: int = 64, warm: bool = True
) -> dict[str, float]:
    """Ask for so many replies in this process; return what it took."""
    asked: Callable[[str, int, int], list[float]] = WAYS[way]
    if warm:
        asked(f"{address}/v1", 8, 8)
    began, spent = time.perf_counter(), time.process_time()
    came = asked(f"{address}/v1", requests, at_once)
    late = [at for at in came if at > began + 10]
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - spent,
        "replies": len(came),
        "late_rate": (len(late) - 1) / (late[-1] - late[0]) if len(late) > 1 else math.nan,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def ours(url: str, requests: int, at_once: int) -> list[float]:
    """Our client; returns when each reply came."""
    model = EndpointModel(base_url=url, model="fake-model", api_key_env=None, concurrency=at_once)
    drawn = (
        ChatRequest((Message("user", f"{i} {PROMPT}"),), Sampling(max_tokens=512, seed=i)) for i in range(requests)
    )
    return [time.perf_counter() for _, reply in model.chat(drawn) if isinstance(reply, Reply)]


def bare(url: str, requests: int, at_once: int) -> list[float]:
    """One aiohttp session and nothing else: what any client over aiohttp takes at least."""
    import aiohttp

    came: list[float] = []

    async def work(session: aiohttp.ClientSession, numbers: Iterator[int]) -> None:
        for i in numbers:
            async with session.post(f"{url}/chat/completions", data=json.dumps(body(i)).encode()) as response:
                json.loads(await response.read())
            came.append(time.perf_counter())

    async def everything() -> None:
        numbers = iter(range(requests))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(work(session, numbers) for _ in range(at_once)))

    asyncio.run(everything())
    return came


def body(i: int) -> dict[str, Any]:
    """Return the JSON of a request."""
    return {"model": "fake-model", "messages": [{"role": "user", "content": f"{i} {PROMPT}"}], "max_tokens": 512}


def threads(url: str, requests: int, at_once: int, *, new: bool = False) -> list[float]:
    """The openai client in threads; ``new``: a client for each call."""
    import openai

    client = openai.OpenAI(base_url=url, api_key="none")

    def one(i: int) -> float:
        used = openai.OpenAI(base_url=url, api_key="none") if new else client
        used.chat.completions.create(**body(i))
        return time.perf_counter()

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, range(requests)))


WAYS: dict[str, Callable[[str, int, int], list[float]]] = {
    "ours": ours,
    "aiohttp, bare": bare,
    "openai client, threads": threads,
    "a new openai client a call, threads": lambda url, n, at_once: threads(url, n, at_once, new=True),
}


def rounds(requests: int, at_once: int, latency: float) -> float:
    """Return the seconds that the latency alone takes."""
    return math.ceil(requests / at_once) * latency


def speed(chosen: argparse.Namespace) -> Iterator[str]:
    """Yield the table of seconds beside the ideal."""
    yield f"Speed, {chosen.requests} requests\n"
    yield "| at a time | latency | errors | ideal s | s | share of ideal | of n·latency/at a time | CPU ms a call |"
    yield "|---|---|---|---|---|---|---|---|"
    for at_once, latency, errors in ((64, 0.2, 0.0), (256, 0.2, 0.0), (512, 3.0, 0.0), (64, 0.2, 0.02)):
        server = ("--latency", latency, "--errors", errors)
        found = child(chosen.repeat, server, requests=chosen.requests, at_once=at_once)
        took, ideal = found["seconds"], rounds(chosen.requests, at_once, latency)
        even = chosen.requests * latency / at_once
        yield (
            f"| {at_once} | {latency * 1000:.0f} ms | {errors:.0%} | {ideal:.2f} | {took:.2f} | {ideal / took:.2f} "
            f"| {even / took:.2f} | {found['cpu'] / chosen.requests * 1000:.2f} |"
        )


def ways(chosen: argparse.Namespace) -> Iterator[str]:
    """Yield the table of other clients."""
    yield "Ways to ask, 64 at a time, 200 ms\n"
    yield "| way | requests | share of ideal | CPU ms a call | CPU, times ours |"
    yield "|---|---|---|---|---|"
    first = 0.0
    for way, share_of in zip(WAYS, (1, 1, 2, 8), strict=True):
        requests = chosen.requests // share_of
        found = child(chosen.repeat, ("--latency", 0.2), way=way, requests=requests)
        cpu = found["cpu"] / requests * 1000
        first = first or cpu
        ideal = rounds(requests, 64, 0.2) / found["seconds"]
        yield f"| {way} | {requests} | {ideal:.2f} | {cpu:.2f} | {cpu / first:.1f} |"


def rate(chosen: argparse.Namespace) -> Iterator[str]:
    """Yield the table of servers with a limit."""
    requests = 1000 if chosen.quick else 2000
    yield f"A server that takes 50 requests a second, {requests} requests, 64 at a time, 200 ms\n"
    yield "| burst | it tells | share of the rate | after 10 s | refused |"
    yield "|---|---|---|---|---|"
    for burst, told in ((50, False), (5, False), (50, True)):
        server = ("--latency", 0.2, "--rate", 50, "--burst", burst, *(("--rate-headers",) if told else ()))
        found = child(1 if chosen.quick else min(chosen.repeat, 2), server, requests=requests, warm=False)
        reached = (requests - burst) / found["seconds"] / 50
        refused = found["refused"] / found["count"]
        words = "headers" if told else "nothing"
        yield f"| {burst} | {words} | {reached:.3f} | {found['late_rate'] / 50:.3f} | {refused:.1%} |"


def memory(chosen: argparse.Namespace) -> Iterator[str]:
    """Yield the table of memory."""
    yield "Memory over queued requests, 64 at a time\n"
    yield "| requests | peak MB | CPU ms a call |"
    yield "|---|---|---|"
    for requests in (1_000, 5_000, 10_000) if chosen.quick else (1_000, 50_000, 100_000):
        found = child(1, ("--latency", 0.02), requests=requests)
        yield f"| {requests:,} | {found['peak_mb']:.0f} | {found['cpu'] / requests * 1000:.2f} |"


def share(chosen: argparse.Namespace) -> Iterator[str]:
    """Yield the CPU of the client at 300 replies a second."""
    found = child(chosen.repeat, ("--latency", 0.2), requests=chosen.requests, at_once=60)
    replies = found["replies"] / found["seconds"]
    yield f"At {replies:.0f} replies a second the client takes {found['cpu'] / found['seconds']:.0%} of a core"
    yield f"({found['cpu'] / found['replies'] * 300:.0%} at 300)."


if __name__ == "__main__":
    main()
