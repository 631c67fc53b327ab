"""Sends chat requests to one or several base URLs of the same model, as fast as each of them takes them.

A :class:`Dispatch` lives in one event loop and keeps no more in hand than what is in flight, waits for another
attempt, or was not taken by the caller. When a request may go where is :mod:`evals.pace`'s business.
"""

from __future__ import annotations

import asyncio
import heapq
import io
import itertools
import math
import queue
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from evals.chat import ChatError, ChatRequest, NoReply, Reply
from evals.chat_json import encode, read_reply
from evals.connections import CONNECT, Site, open_session
from evals.endpoint_errors import Trouble, one_line, read_connection, read_status
from evals.pace import LONGEST_WISH, Ticket

LONGEST_PAUSE = 60.0  # seconds between two attempts, where the server does not say
LARGE = 1 << 20  # bytes: a body above is sent in pieces

Arrival = tuple[int, Reply | NoReply]


class Arrivals:
    """Replies on their way from the loop's thread to the caller's, and how many the caller has not taken yet."""

    def __init__(self) -> None:
        self.wanted = False  # whether the loop waits for the caller to take some
        self._queue: queue.SimpleQueue[Arrival | BaseException | None] = queue.SimpleQueue()
        self._put = self._taken = 0  # each written by one thread alone

    @property
    def waiting(self) -> int:
        """How many the caller has not taken."""
        return self._put - self._taken

    def put(self, arrival: Arrival) -> None:
        """Hand one over."""
        self._put += 1
        self._queue.put(arrival)

    def end(self, error: BaseException | None) -> None:
        """Say that no more come, and why."""
        self._queue.put(error)

    def take(self) -> Arrival | None:
        """Wait for the next; None at the end. Raises what ended it."""
        arrival = self._queue.get()
        if isinstance(arrival, BaseException):
            raise arrival
        if arrival is not None:
            self._taken += 1
        return arrival


@dataclass(frozen=True, slots=True)
class Rules:
    """What a :class:`Dispatch` is told of the model it asks; ``fields`` makes a request's body but for the model."""

    model: str
    api_key_env: str | None
    key: str | None = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    fields: Callable[[ChatRequest], dict[str, object]]
    timeout: float
    max_attempts: int
    backoff: float


@dataclass(slots=True, eq=False)
class _Job:
    index: int
    request: ChatRequest
    content: bytes
    attempts: int = 0
    discarded: tuple[int, int] = (0, 0)
    last: Site | None = None
    trouble: Trouble | None = None  # of the last attempt that reached the server


class Dispatch:
    """Asks everything of ``requests``, which is drawn on only when a request can be sent."""

    def __init__(
        self, requests: Iterator[ChatRequest], *, sites: Sequence[Site], rules: Rules, arrivals: Arrivals
    ) -> None:
        self._requests = enumerate(requests)
        self._sites, self._rules, self._arrivals = sites, rules, arrivals
        self._room = sum(site.pace.window.most for site in sites)
        self._again: list[tuple[float, int, _Job]] = []  # a heap by the time of the next attempt
        self._order = itertools.count()
        self._in_flight = 0
        self._exhausted = False
        self._broken: Exception | None = None  # what the iterable of requests raised
        self._lost: dict[Site, str] = {}  # sites at which no request can succeed, and why
        self._stopped: ChatError | None = None  # nothing more is sent, what is in flight is waited for
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Ask until everything has arrived.

        Raises ChatError when no request can succeed at any site, once what is in flight has arrived: it is paid for.
        """
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        try:
            session = open_session(self._sites, headers=self._rules.headers)
            async with session as self._session, asyncio.TaskGroup() as self._tasks:
                self.pump()
                await self._done
        finally:
            if self._timer is not None:
                self._timer.cancel()
        if error := self._stopped or self._broken:
            raise error

    def pump(self) -> None:
        """Send whatever may be sent now, and see to being called again when more may."""
        if self._done.done():
            return
        try:
            self._pump()
        except Exception as error:  # ends everything
            self._done.set_exception(error)

    def _pump(self) -> None:
        self._arrivals.wanted = False
        now = self._loop.time()
        wait = 0.0
        while not wait:
            wait = self._send_one(now)
        if not self._in_flight and not self._again and self._exhausted:
            self._done.set_result(None)
        elif wait < math.inf:
            self._wake(now + wait)

    def _send_one(self, now: float) -> float:
        """Send a request and return 0; or return the seconds until one may go, infinity when something must arrive."""
        if not self._has_room():
            return math.inf
        due = self._again[0] if self._again else None
        first = due is not None and due[0] <= now
        if not first and (self._exhausted or len(self._again) >= 2 * self._room):
            return due[0] - now if due else math.inf
        site, wait = self._choose(now, avoid=due[2].last if first and due else None)
        if site is None:
            return wait
        job = heapq.heappop(self._again)[2] if first else self._next()
        if job is not None:
            self._send(job, site, now)
        return 0.0

    def _has_room(self) -> bool:
        """Whether a reply more would find its place: a slow caller slows the asking, memory stays flat."""
        if self._in_flight + self._arrivals.waiting < 2 * self._room:
            return True
        self._arrivals.wanted = True
        return self._in_flight + self._arrivals.waiting < 2 * self._room  # it may just have taken one

    def _choose(self, now: float, *, avoid: Site | None) -> tuple[Site | None, float]:
        """Return the site with the most room, if need be the one to avoid; or None and the seconds until there is."""
        best: Site | None = None
        soonest = math.inf
        for site in self._sites:
            if site in self._lost:
                continue
            wait = max(site.down_until - now, site.pace.wait(now))
            if wait > 0:
                soonest = min(soonest, wait)
            elif best is None or (site is not avoid, site.pace.free) > (best is not avoid, best.pace.free):
                best = site
        return best, soonest

    def _next(self) -> _Job | None:
        try:
            index, request = next(self._requests)
            body = {"model": self._rules.model, **self._rules.fields(request)}
        except StopIteration:
            self._exhausted = True
            return None
        except Exception as error:  # the caller's: it gets it once what is in flight has arrived
            self._exhausted, self._broken = True, error
            return None
        return _Job(index, request, encode(body))

    def _send(self, job: _Job, site: Site, now: float) -> None:
        job.attempts += 1
        job.last = site
        if site.misses:
            site.down_until = now + CONNECT  # one request finds out whether it is back
        self._in_flight += 1
        self._tasks.create_task(self._ask(job, site, site.pace.sent(now, prompt_bytes=len(job.content))))

    async def _ask(self, job: _Job, site: Site, ticket: Ticket) -> None:
        try:
            outcome, headers = await self._attempt(job, site)
            self._in_flight -= 1
            self._settle(job, site, ticket, outcome, headers)
            self.pump()
        except Exception as error:  # a fault of ours, which ends everything
            if not self._done.done():
                self._done.set_exception(error)

    async def _attempt(self, job: _Job, site: Site) -> tuple[Reply | Trouble, Mapping[str, str]]:
        import aiohttp

        began = self._loop.time()
        data = job.content if len(job.content) < LARGE else io.BytesIO(job.content)
        try:
            # The whole attempt is bounded here, because aiohttp's own total is rounded up to whole seconds.
            async with (
                asyncio.timeout(self._rules.timeout),
                self._session.post(site.url, data=data, proxy=site.proxy, allow_redirects=False) as response,
            ):
                content = await response.read()
        except TimeoutError as error:
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                return read_connection(error), {}
            said = f"no reply within {self._rules.timeout:g} s"
            return Trouble("timeout", said, retry=True, overload=True), {}
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: a header that is none
            return read_connection(error), {}
        headers = response.headers
        if response.status == 200:
            return read_reply(content, seconds=self._loop.time() - began), headers
        text = content.decode("utf-8", "replace")
        return read_status(response.status, text, headers=headers, sent=self._rules.fields(job.request)), headers

    def _settle(
        self, job: _Job, site: Site, ticket: Ticket, outcome: Reply | Trouble, headers: Mapping[str, str]
    ) -> None:
        now = self._loop.time()
        if isinstance(outcome, Trouble) and outcome.unreachable and site.contact < ticket.at:
            self._missed(job, site, ticket, outcome, now)
            return
        self._note(site, ticket, outcome, headers, now)
        if not (isinstance(outcome, Trouble) and outcome.unreachable):
            site.contact, site.misses, site.down_until = now, 0, -math.inf
        if isinstance(outcome, Reply):
            reply = outcome if job.discarded == (0, 0) else replace(outcome, discarded=job.discarded)
            self._arrivals.put((job.index, reply))
            return
        if outcome.fatal is not None:
            advice = outcome.fatal.format(env=self._rules.api_key_env or "api_key_env", model=self._rules.model)
            self._lose(site, f"model {self._rules.model!r} at {site.place}: {advice} ({self._clean(outcome.message)})")
            self._ask_elsewhere(job, now)
            return
        job.discarded = (job.discarded[0] + outcome.used[0], job.discarded[1] + outcome.used[1])
        job.trouble = outcome
        self._retry(job, outcome, now)

    def _note(
        self, site: Site, ticket: Ticket, outcome: Reply | Trouble, headers: Mapping[str, str], now: float
    ) -> None:
        pace = site.pace
        if isinstance(outcome, Reply):
            prompt, output = outcome.prompt_tokens, outcome.output_tokens
            pace.replied(ticket, now=now, headers=headers, prompt=prompt, output=output)
        elif outcome.kind == "rate_limit":
            pace.refused(ticket, now=now, headers=headers, wish=outcome.wait, said=outcome.message)
            if all(each.pace.spent or each in self._lost for each in self._sites):
                self._stop(
                    f"model {self._rules.model!r} at {site.place}: the quota is used up for the next "
                    f"{outcome.wait or 0:.0f} s: run again then ({self._clean(outcome.message)})"
                )
        elif outcome.overload:
            pace.overloaded(ticket, now=now, wish=outcome.wait)
        else:
            pace.failed()

    def _retry(self, job: _Job, trouble: Trouble, now: float) -> None:
        wait = trouble.wait
        if wait is None:
            elsewhere = trouble.kind == "connection" and len(self._sites) > 1
            wait = 0.0 if elsewhere else self._pause(job.attempts)
        if trouble.retry and self._stopped:
            self._drop(job)
            return
        if trouble.retry and job.attempts < self._rules.max_attempts and wait <= LONGEST_WISH and not self._broken:
            heapq.heappush(self._again, (now + wait, next(self._order), job))
            return
        self._fail(job, trouble)

    def _fail(self, job: _Job, trouble: Trouble) -> None:
        message = self._clean(trouble.message)
        if trouble.hint:
            message = f"{message}: {trouble.hint}"
        self._arrivals.put((job.index, NoReply(trouble.kind, message, job.attempts, job.discarded)))

    def _missed(self, job: _Job, site: Site, ticket: Ticket, trouble: Trouble, now: float) -> None:
        """Set a site aside that cannot be reached, and give its request to another, or to itself later."""
        site.pace.failed()
        if ticket.number > site.missed:  # all that were in flight together are one miss
            site.misses += 1
            site.missed = site.pace.sent_count
            site.down_until = now + self._pause(site.misses)
        left = [each for each in self._sites if each not in self._lost]
        if all(each.misses >= self._rules.max_attempts for each in left):
            self._stop(
                f"nothing answers at {', '.join(each.place for each in left)} for model {self._rules.model!r} "
                f"(attempt {site.misses}): start the server or correct base_url. {self._clean(trouble.message)}"
            )
        self._ask_elsewhere(job, now)

    def _ask_elsewhere(self, job: _Job, now: float) -> None:
        """Let a request be sent again at once, to any site that is left: it was not asked."""
        if self._stopped:
            self._drop(job)
            return
        job.attempts -= 1
        heapq.heappush(self._again, (now, next(self._order), job))

    def _lose(self, site: Site, why: str) -> None:
        """Send nothing more to a site at which no request can succeed; when it was the last, stop."""
        self._lost.setdefault(site, why)
        if len(self._lost) == len(self._sites):
            self._stop("")

    def _stop(self, why: str) -> None:
        """Send nothing more anywhere, and wait for what is in flight."""
        if self._stopped is None:
            self._stopped = ChatError("; ".join(filter(None, (why, *self._lost.values()))))
            self._exhausted = True
            waiting, self._again = self._again, []
            for _, _, job in waiting:
                self._drop(job)

    def _drop(self, job: _Job) -> None:
        """Let a request go as one that was never sent, unless earlier attempts at it have to be paid for."""
        if job.discarded != (0, 0) and job.trouble is not None:
            self._fail(job, job.trouble)

    def _pause(self, attempt: int) -> float:
        longest = min(self._rules.backoff * 4.0 ** (attempt - 1), LONGEST_PAUSE)
        return longest * random.SystemRandom().uniform(0.5, 1.0)

    def _clean(self, message: str) -> str:
        """Return the message as one short line without the key, which some servers echo."""
        key = self._rules.key
        return one_line(message.replace(key, "[key]") if key else message)

    def _wake(self, when: float) -> None:
        if self._timer is not None and not self._timer.cancelled():
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self.pump()
