"""When the next request may go to an endpoint: how many may be in flight, and how fast they may follow each other.

Pure bookkeeping, as in :mod:`evals.rates`; :mod:`evals.dispatch` holds one :class:`Pace` for each base URL.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from evals.rates import Bucket, LearnedRate, Told

START = 16  # requests in flight at first
RAMP = 0.03  # seconds: until the first reply, so many more are in flight after each of these as there are
STEADY = 3.0  # times the usual latency: more than that is a queue, and the window stops growing
RECENT, MEANT = 8, 3  # so many refusals (or overloads) among the last outcomes are meant; fewer may be chance
LONGEST_WISH = 300.0  # seconds: a server that asks for more (a daily quota) ends the request


class Window:
    """How many requests may be in flight: starts modest, grows while latency holds, halves under overload.

    TCP's congestion control, in requests. It doubles a round trip up to nine tenths of the size at which the endpoint
    was last overloaded, and then grows by a sixteenth a round trip. Latency is compared as the median of a round
    trip's replies with the low end (5 %) of the last 64 such medians, so that replies of many lengths do not look
    like a queue. It grows only while it is full: what is not used proves nothing.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.in_flight = 0
        self._size = float(min(START, most))
        self._known = math.inf  # the size up to which it doubles
        self._began: float | None = None  # the first request, until something came of it
        self._ramping = True
        self._cut = 0  # requests up to this one were sent before the last halving
        self._full = self._was_full = False  # in this round trip, and in the last
        self._seconds: list[float] = []
        self._round_ends = 0
        self._medians: deque[float] = deque(maxlen=64)
        self._holding = False

    def size(self, now: float) -> int:
        """Return how many may be in flight."""
        if self._ramping and self._began is not None:
            return int(min(self.most, self._size * 2 ** int((now - self._began) / RAMP)))
        return int(self._size)

    @property
    def free(self) -> float:
        """The share of it that is free, at most 1."""
        return 1.0 - self.in_flight / max(1.0, self._size)

    def wait(self, now: float) -> float:
        """Return 0 when another may be in flight, seconds until it may, or infinity when a reply must come first."""
        if self.in_flight < (size := self.size(now)):
            return 0.0
        self._full = True
        if self._ramping and self._began is not None and size < self.most:
            return RAMP - (now - self._began) % RAMP
        return math.inf

    def sent(self, now: float) -> None:
        """Note that a request goes out."""
        if self._began is None:
            self._began = now
        self.in_flight += 1

    def replied(self, number: int, *, seconds: float, now: float, sent_count: int) -> None:
        """Grow, if the latency holds and the window was in use."""
        self._end_ramp(now)
        self._seconds.append(seconds)
        if number > self._round_ends and len(self._seconds) >= 8:
            self._end_round(sent_count)
        if (self._full or self._was_full) and not self._holding and self._size < self.most:
            gain = 1.0 if self._size < self._known else max(1.0, self._size / 16) / self._size
            self._size = min(self._size + gain, float(self.most))

    def halve(self, number: int, *, now: float, sent_count: int, remember: bool) -> None:
        """Halve, once for all that were in flight together; ``remember`` the size as one that is too large."""
        self._end_ramp(now)
        if number > self._cut:
            self._known = 0.9 * self._size if remember else math.inf
            self._size = max(1.0, self._size / 2)
            self._cut = sent_count

    def _end_ramp(self, now: float) -> None:
        if self._ramping:
            self._size = float(self.size(now))
            self._ramping = False

    def _end_round(self, sent_count: int) -> None:
        median = sorted(self._seconds)[len(self._seconds) // 2]
        self._medians.append(median)
        self._holding = median > STEADY * sorted(self._medians)[(len(self._medians) - 1) // 20]
        self._seconds.clear()
        self._was_full, self._full = self._full, False
        self._round_ends = sent_count


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request in flight: its number on this endpoint, when it went out, the tokens it was taken to cost."""

    number: int
    at: float
    tokens: float
    prompt_bytes: int


class Pace:
    """When the next request may go to one base URL.

    ``most`` bounds what is in flight. ``requests_per_minute`` and ``tokens_per_minute`` (prompt and reply together)
    are limits given by hand; tokens are estimated from a request's bytes and the mean reply, and put right when a
    reply tells its usage. Each request is :meth:`sent` and then comes to exactly one of :meth:`replied`,
    :meth:`refused` (429), :meth:`overloaded` (503, a timeout) or :meth:`failed` (anything else).
    """

    def __init__(
        self,
        *,
        most: int,
        backoff: float = 0.25,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:
        self.window = Window(most)
        self.learned = LearnedRate()
        self.spent: str | None = None  # the server's words when it asks to wait for longer than anybody does
        self._told = {what: Told(what) for what in ("requests", "tokens")}
        self._by_hand = {
            what: Bucket(math.inf if limit is None else limit / 60, burst=0.0 if limit is None else limit / 60 * 0.5)
            for what, limit in (("requests", requests_per_minute), ("tokens", tokens_per_minute))
        }
        self._backoff = backoff
        self._not_before = self._on_probation = -math.inf
        self._recent: deque[str] = deque(maxlen=RECENT)
        self._dry = 0  # refusals of single probes in a row
        self._tokens_per_byte, self._output = 0.25, 256.0

    @property
    def sent_count(self) -> int:
        """How many requests went out, which is the number of the last one's ticket."""
        return self.learned.sent_count

    @property
    def free(self) -> float:
        """The share of the window that is free, at most 1."""
        return self.window.free

    def wait(self, now: float) -> float:
        """Return 0 when a request may go, the seconds until one may, or infinity when an outcome must come first."""
        if now < self._not_before:
            return self._not_before - now
        if self._dry and self.window.in_flight:
            return math.inf
        window = self.window.wait(now)
        if window:
            return window
        told, by_hand = self._told, self._by_hand
        return max(
            self.learned.wait(now),
            told["requests"].bucket.wait(now),
            told["tokens"].bucket.wait(now),
            by_hand["requests"].wait(now),
            by_hand["tokens"].wait(now),
        )

    def sent(self, now: float, *, prompt_bytes: int) -> Ticket:
        """Note that a request of so many bytes goes out."""
        tokens = prompt_bytes * self._tokens_per_byte + self._output
        for what, units in (("requests", 1.0), ("tokens", tokens)):
            self._told[what].bucket.take(units)
            self._by_hand[what].take(units)
        self.window.sent(now)
        return Ticket(self.learned.sent(now), now, tokens, prompt_bytes)

    def replied(self, ticket: Ticket, *, now: float, headers: Mapping[str, str], prompt: int, output: int) -> None:
        """Note a reply, its headers (names in lower case, or a mapping that ignores case) and the tokens it used."""
        self._recent.append("")
        self._dry = 0
        self._leave()
        self.window.replied(ticket.number, seconds=now - ticket.at, now=now, sent_count=self.sent_count)
        if prompt:
            self._by_hand["tokens"].take(prompt + output - ticket.tokens)
            self._tokens_per_byte += 0.05 * (prompt / max(1, ticket.prompt_bytes) - self._tokens_per_byte)
            self._output += 0.05 * (output - self._output)
        for told in self._told.values():
            told.read(headers, now)

    def refused(self, ticket: Ticket, *, now: float, headers: Mapping[str, str], wish: float | None, said: str) -> None:
        """Note a 429, the seconds that it asks to wait, and its words."""
        self._leave()
        self._recent.append("refused")
        empty = [reset for told in self._told.values() if (reset := told.read(headers, now)) is not None]
        known = self.learned.known
        if not known and not empty and self._recent.count("refused") < MEANT:
            return
        if wish is None and empty:
            wish = min(max(empty), LONGEST_WISH)
        bound = self.learned.bound
        news = self.learned.refused(ticket.number, sent=ticket.at, now=now)
        if news and (not known or (self.learned.measured and not bound)):  # else it was the rate
            self.window.halve(ticket.number, now=now, sent_count=self.learned.sent_count, remember=False)
        if wish is not None and wish > LONGEST_WISH:
            self.spent = said
        elif wish is not None:
            # A rate that grew a little too high is put right by going slower: the others wait too only when that
            # was not enough.
            if not known or empty or now < self._on_probation:
                self._pause(now + wish)
            if news:
                self._on_probation = now + wish
        elif self.learned.dry and now >= self._not_before:
            self._pause(now + min(0.4 * self._backoff * 2**self._dry, 15.0))
            self._dry += 1

    def overloaded(self, ticket: Ticket, *, now: float, wish: float | None = None) -> None:
        """Note a 503 or a timeout, and the seconds that it asks to wait."""
        self._leave()
        self._recent.append("overloaded")
        if self._recent.count("overloaded") >= MEANT:
            self.window.halve(ticket.number, now=now, sent_count=self.learned.sent_count, remember=True)
            if wish is not None and wish <= LONGEST_WISH:
                self._pause(now + wish)

    def failed(self) -> None:
        """Note that a request came to an end that says nothing about pace."""
        self._leave()
        self._recent.append("")

    def rest(self) -> None:
        """Forget what is in flight: nothing will come of it any more."""
        self.window.in_flight = self._dry = 0
        self.spent = None

    def _pause(self, until: float) -> None:
        self._not_before = max(self._not_before, until)
        self.learned.pause(until)

    def _leave(self) -> None:
        self.window.in_flight -= 1
