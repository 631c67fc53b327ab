"""How fast an endpoint may be asked: rates given by hand, told in its headers, or learned from its refusals.

Pure bookkeeping: every function is given the time (seconds of one monotonic clock) and waits for nothing.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping

SLACK = 0.02  # seconds' worth of a rate that may be made up for after a timer came late
LONGEST_RESET = 300.0  # seconds: a quota that renews later (a day's) is used up, not spread over the day
KEEP = 0.98  # of a measured rate is used, and grown from there
FAST, SLOW = 0.5, 0.01  # share by which a learned rate grows in a second: bounds
SLOWEST = 0.1  # requests a second: a learned rate does not fall below

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Bucket:
    """Lets ``rate`` units a second through (infinity: all), and ``burst`` more at once after a rest."""

    __slots__ = ("_at", "_level", "burst", "lost", "rate")

    def __init__(self, rate: float = math.inf, *, burst: float = 0.0) -> None:
        self.rate, self.burst = rate, burst
        self.lost = 0.0  # units that were not used while the bucket was full
        self._level, self._at = burst, -math.inf

    def wait(self, now: float) -> float:
        """Return the seconds until the next unit may go, 0 when it may go now."""
        if self.rate == math.inf:
            return 0.0
        self._settle(now)
        return 0.0 if self._level >= -1e-9 else -self._level / self.rate

    def take(self, units: float) -> None:
        """Take units out, if need be more than there are; negative ones are put back."""
        self._level -= units

    def set(self, rate: float, *, burst: float, now: float) -> None:
        """Go on at another rate from now."""
        if self.rate == math.inf:
            self._level, self._at = min(0.0, burst), now
        self._settle(now)
        self.rate, self.burst = rate, burst

    def pause(self, until: float) -> None:
        """Gain nothing until then."""
        self._level, self._at = min(self._level, 0.0), max(self._at, until)

    def _settle(self, now: float) -> None:
        if now > self._at:
            gained = (now - self._at) * self.rate if self._at > -math.inf else math.inf
            level = self._level + gained
            self._level, self._at = min(self.burst, level), now
            self.lost += level - self._level


class LearnedRate:
    """The request rate of a server that refuses what is too fast and does not say how fast it may be.

    A server that has just refused a request had nothing left to give, so between two refusals it gave exactly what
    it has to give: the rate is the number of requests it took between them over the seconds between them, whatever
    burst it allows. The rate used is a little less and then grows, faster the fewer requests it was read off.
    """

    def __init__(self) -> None:
        self.bucket = Bucket()
        self.sent_count = 0
        self.bound = False  # whether the next request had to wait for this rate
        self.measured = False  # whether the rate was read off a count, not guessed
        self._gain = 0.0  # share of the rate by which it grows in a second
        self._mark = (0, 0.0)  # (number, time) of the request at which the present count began
        self._refused = 0  # since the mark
        self._was_empty = False  # whether the server had nothing left at the mark
        self._cut = 0  # requests up to this one were sent before the last refusal was known
        self._read_off = (0, 0, 0.0)  # the present rate is that of so many requests taken, after this one, in seconds
        self._best = 0.0  # the highest rate counted of late
        self._paused = False  # whether the server was left alone since the mark, and may have lost what it gained
        self._quiet_since = -math.inf

    @property
    def known(self) -> bool:
        """Whether a rate was learned."""
        return self.bucket.rate < math.inf

    @property
    def dry(self) -> bool:
        """Whether the server refused everything since the mark."""
        return 0 < self._refused >= self.sent_count - self._mark[0]

    def wait(self, now: float) -> float:
        """Return the seconds until the next request may go."""
        wait = self.bucket.wait(now)
        self.bound = self.bound or wait > 0
        return wait

    def pause(self, until: float) -> None:
        """Let nothing through until then."""
        self._paused = True
        self.bucket.pause(until)

    def sent(self, now: float) -> int:
        """Note that a request goes out; return its number, from 1."""
        if self.sent_count == 0:
            self._mark = (0, now)
        self.sent_count += 1
        if self.known:
            self.bucket.take(1.0)
            if self.bound:  # a rate that holds nothing up says nothing by not being refused
                self._set(self.bucket.rate + self._gain * 2 ** min(4.0, (now - self._quiet_since) // 10), now)
                self.bound = False
        return self.sent_count

    def refused(self, number: int, *, sent: float, now: float) -> bool:
        """Learn from a refusal of the request of this number; return whether it tells of a new rate.

        What was sent before the last refusal was known is one event with it, and only corrects the count.
        """
        if number <= self._cut:
            self._correct(number, now)
            return False
        taken = number - 1 - self._mark[0] - self._refused
        seconds = max(sent - self._mark[1], 1e-3)
        if not self._was_empty:
            # The count began with a burst of unknown size: an upper bound, the looser the shorter it is.
            seconds = max(now - self._mark[1], 0.05)
            rate = max(taken, 1) / seconds * (0.5 if seconds < 5 else 0.9)
            self._begin(number, sent, gain=FAST)
        else:
            rate = self._recount(number, sent, taken=taken, seconds=seconds)
        self._cut = self.sent_count
        self._quiet_since = now
        self._set(max(rate, SLOWEST), now)
        self.bucket.take(1.0)
        return True

    def _recount(self, number: int, sent: float, *, taken: int, seconds: float) -> float:
        was = self.bucket.rate
        if taken < 8 and (not taken or seconds < 5):  # too few to count: the count goes on
            self._refused += 1
            if self.measured:
                self._gain = max(SLOW, 0.7 * self._gain)
                return was * 0.95
            self._gain = FAST
            return min(max((taken + 1) / seconds, was / 4), was * 0.7)
        self._remember_best()
        rate = KEEP * taken / seconds
        rested = self.bucket.lost > 0.1 * taken
        if rested:  # it might have given more
            rate = max(rate, was * (0.95 if self.measured else 0.7))
        elif self.measured:  # a server that refuses at random would bring it down and down
            rate = max(rate, was * 0.8, self._best * 0.8)
        self.measured = self.measured or not rested
        counted = 0.0 if rested or self._paused or taken < 16 else seconds
        gain = min(FAST, max(SLOW if not self._paused else 0.03, 2 / taken / max(1.0, seconds)))
        self._begin(number, sent, gain=gain)
        self._read_off = (taken, number - taken, counted)
        return rate

    def _remember_best(self) -> None:
        """Take the last count, which late refusals have put right by now, into the best of late."""
        taken, _, seconds = self._read_off
        self._best = max(0.99 * self._best, taken / seconds if seconds else 0.0)

    def _begin(self, number: int, sent: float, *, gain: float) -> None:
        self._mark, self._refused, self._was_empty = (number, sent), 0, True
        self.bucket.lost = 0.0
        self._gain, self._read_off, self._paused = gain, (0, 0, 0.0), False

    def _correct(self, number: int, now: float) -> None:
        taken, after, seconds = self._read_off
        if number > self._mark[0]:
            self._refused += 1
        elif number > after and taken > 1:
            self._read_off = (taken - 1, after, seconds)
            self._set(max(self.bucket.rate * (taken - 1) / taken, SLOWEST), now)

    def _set(self, rate: float, now: float) -> None:
        self.bucket.set(rate, burst=max(0.25, rate * SLACK), now=now)


class Told:
    """The rate that an endpoint's ``x-ratelimit-{limit,remaining,reset}-{what}`` headers leave, ``what`` a unit.

    What remains is spread over the seconds until it is renewed, once less than half of it is left. A server that
    renews it steadily (OpenAI's) is then asked at just the rate of renewal with half of it left, one that renews it
    all at a time at a rate that lasts until then.
    """

    def __init__(self, what: str) -> None:
        self.bucket = Bucket()
        self._limit, self._remaining, self._reset = (f"x-ratelimit-{n}-{what}" for n in ("limit", "remaining", "reset"))

    def read(self, headers: Mapping[str, str], now: float) -> float | None:
        """Take over what the headers say; return the seconds until renewal when nothing remains, else None."""
        remaining = _number(headers.get(self._remaining))
        reset = read_duration(headers.get(self._reset, ""))
        if remaining is None or reset is None:
            return None
        limit = _number(headers.get(self._limit)) or 2 * remaining + 1
        if reset > LONGEST_RESET or remaining >= limit / 2 or reset <= 0:
            self.bucket.rate = math.inf
        else:
            # Never slower than an eighth of what a limit a minute is: others may share it, and a steady renewal
            # goes on when nothing remains.
            rate = max(remaining / reset, limit / 60 / 8)
            self.bucket.set(rate, burst=max(0.25, rate * SLACK), now=now)
        return reset if remaining < 1 else None


def read_duration(text: str) -> float | None:
    """Return the seconds of "6m0s", "20ms", "1.5", or until an epoch time in seconds or milliseconds; None: no time."""
    number = _number(text)
    if number is not None:
        if number > 1e9:
            return max(0.0, (number / 1000 if number > 1e11 else number) - time.time())
        return max(0.0, number)
    if not text or _DURATION.sub("", text.strip()):
        return None
    return sum(float(amount) * _SECONDS[unit] for amount, unit in _DURATION.findall(text))


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
