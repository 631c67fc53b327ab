"""Pacing against a simulated server, in simulated time: deterministic, and a minute takes milliseconds."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field

import pytest

from evals.pace import RAMP, START, Pace, Ticket, Window
from evals.rates import Bucket, Told, read_duration


@dataclass
class Simulated:
    """A server that replies after ``latency`` seconds and refuses, after ``net``, more than ``rate`` a second."""

    rate: float = math.inf
    burst: float = math.inf
    latency: float = 0.2
    net: float = 0.001
    wish: float | None = None
    chance: float = 0.0  # of a refusal for no reason
    period: float = 0.0  # seconds: the rate is counted over windows of so many, not steadily
    told: bool = False  # by headers
    places: float = math.inf  # requests worked on at a time; the others queue
    refused: int = 0
    sent: int = 0
    done: list[float] = field(default_factory=list)

    def run(self, pace: Pace, requests: int, *, prompt: int = 250, output: int = 50) -> float:
        """Ask for everything; return how long it took."""
        now, todo, number, rng = 0.0, requests, 0, random.Random(1)
        events: list[tuple[float, int, Ticket, bool]] = []
        again: list[float] = []
        self.level, self.at = self.burst, 0.0
        free = [0.0] * int(min(self.places, 1000))
        while len(self.done) < requests:
            while (todo or (again and again[0] <= now)) and not pace.wait(now):
                if again and again[0] <= now:
                    heapq.heappop(again)
                else:
                    todo -= 1
                number += 1
                taken = self.take(now) and rng.random() >= self.chance
                starts = max(now, heapq.heappop(free)) if taken else now
                ends = starts + self.latency if taken else now + self.net
                if taken:
                    heapq.heappush(free, ends)
                heapq.heappush(events, (ends, number, pace.sent(now, prompt_bytes=1000), taken))
            wait = pace.wait(now) if todo or again else math.inf
            soon = [events[0][0]] if events else []
            soon += [now + wait + 5e-4] if 0 < wait < math.inf else []  # timers are late
            soon += [max(again[0], now + wait)] if again and wait < math.inf else []
            now = max(now, min(soon))
            while events and events[0][0] <= now:
                _, _, ticket, taken = heapq.heappop(events)
                if taken:
                    self.done.append(now)
                    pace.replied(ticket, now=now, headers=self.headers(), prompt=prompt, output=output)
                else:
                    self.refused += 1
                    pace.refused(ticket, now=now, headers=self.headers(), wish=self.wish, said="no")
                    heapq.heappush(again, now + (rng.uniform(0.1, 0.25) if self.wish is None else self.wish))
        self.sent = number
        return now

    def take(self, now: float) -> bool:
        """Whether there is a request left to give."""
        if self.rate == math.inf:
            return True
        if self.period and now // self.period != self.at // self.period:
            self.level, self.at = self.burst, now
        elif not self.period:
            self.level, self.at = min(self.burst, self.level + (now - self.at) * self.rate), now
        if self.level < 1:
            return False
        self.level -= 1
        return True

    def headers(self) -> dict[str, str]:
        """Return what OpenAI's servers tell of a rate."""
        if not self.told:
            return {}
        reset = f"{(self.burst - self.level) / self.rate * 1000:.0f}ms"
        told = {"limit": f"{self.burst:.0f}", "remaining": f"{int(self.level)}", "reset": reset}
        return {f"x-ratelimit-{name}-requests": value for name, value in told.items()}


def filled(window: Window, now: float = 0.0) -> int:
    """Send as much as may be in flight; return how much is."""
    while not window.wait(now):
        window.sent(now)
    return window.in_flight


def round_trip(window: Window, number: int, *, seconds: float, now: float) -> int:
    """Let everything in flight come back and send again; return the number of the last request."""
    flying, last = window.in_flight, number + window.in_flight
    for each in range(flying):
        window.in_flight -= 1
        window.replied(number + each + 1, seconds=seconds, now=now, sent_count=last)
    filled(window, now)
    return last


def test_the_window_starts_modest_and_doubles_while_nothing_comes_back() -> None:
    window = Window(100)
    assert [filled(window, now) for now in (0.0, 0.9 * RAMP, 1.1 * RAMP, 2.1 * RAMP, 3.1 * RAMP, 9.0)] == [
        START,
        START,
        32,
        64,
        100,
        100,
    ]
    small = Window(3)
    assert filled(small) == 3


def test_the_window_doubles_a_round_trip_while_latency_holds() -> None:
    window = Window(500)
    filled(window)
    last = round_trip(window, 0, seconds=0.02, now=0.02)
    assert window.in_flight == 32
    round_trip(window, last, seconds=0.02, now=0.04)
    assert window.in_flight == 64


def test_latency_that_clearly_grows_stops_the_growth_and_nothing_else_does() -> None:
    def after(*medians: float) -> int:
        window, last = Window(10_000), 0
        filled(window)
        for i, seconds in enumerate(medians):
            last = round_trip(window, last, seconds=seconds, now=0.02 * (i + 1))
        return window.in_flight

    assert after(1.0, 1.0, 1.0, 1.0) == after(1.0, 2.0, 2.5, 2.9)
    assert after(1.0, 1.0, 4.0, 4.0) < after(1.0, 1.0, 1.0, 1.0)


def test_replies_of_many_lengths_do_not_look_like_a_queue() -> None:
    rng, pace, server = random.Random(0), Pace(most=256), Simulated()
    replied = pace.window.replied
    lengths = lambda *args, **kwargs: replied(*args, **(kwargs | {"seconds": rng.lognormvariate(1.0, 1.0)}))  # noqa: E731
    pace.window.replied = lengths  # type: ignore[method-assign]
    server.run(pace, 3000)
    assert pace.window.size(1e9) == 256


def test_an_unused_window_does_not_grow() -> None:
    window = Window(100)
    for number in range(1, 200):
        window.sent(float(number))
        window.in_flight -= 1
        window.replied(number, seconds=0.1, now=number + 0.01, sent_count=number)
    assert window.size(200.0) == START


def overloaded(pace: Pace, tickets: list[Ticket], now: float) -> None:
    for ticket in tickets:
        pace.overloaded(ticket, now=now)


def fly(pace: Pace, now: float = 0.0) -> list[Ticket]:
    """Send what may be sent."""
    tickets = []
    while not pace.wait(now):
        tickets.append(pace.sent(now, prompt_bytes=1000))
    return tickets


def test_an_overload_halves_once_for_all_that_were_in_flight_together() -> None:
    pace = Pace(most=16)
    overloaded(pace, fly(pace), 1.0)
    assert pace.window.size(1.0) == 8
    overloaded(pace, fly(pace, 2.0), 3.0)
    assert pace.window.size(3.0) == 4


def test_a_single_overload_may_be_chance() -> None:
    pace = Pace(most=16)
    first, second, *_ = fly(pace)
    overloaded(pace, [first, second], 1.0)
    assert pace.window.size(1.0) == 16
    assert pace.wait(1.0) == 0


def test_refusals_with_a_wish_hold_everything_up_for_so_long() -> None:
    pace = Pace(most=16)
    for ticket in fly(pace):
        pace.refused(ticket, now=1.0, headers={}, wish=7.0, said="")
    assert pace.wait(1.0) == pytest.approx(7.0)
    assert pace.window.size(1.0) == 8


def test_an_endpoint_that_wants_days_is_spent() -> None:
    pace = Pace(most=16)
    for ticket in fly(pace):
        pace.refused(ticket, now=1.0, headers={}, wish=86400.0, said="come back tomorrow")
    assert pace.spent == "come back tomorrow"


@pytest.mark.parametrize("burst", [5, 50])
@pytest.mark.parametrize("latency", [0.02, 0.2])
@pytest.mark.parametrize("wish", [None, 0.02])
def test_a_rate_nobody_tells_is_learned_to_five_per_cent(burst: int, latency: float, wish: float | None) -> None:
    server = Simulated(rate=50, burst=burst, latency=latency, wish=wish)
    took = server.run(Pace(most=64), 3000)
    assert 3000 / took > 0.95 * 50
    assert server.refused < 0.03 * server.sent


def test_a_rate_is_learned_where_replies_take_long_too() -> None:
    server = Simulated(rate=50, burst=50, latency=3.0)
    server.run(Pace(most=512), 4000)
    later = [at for at in server.done if at > server.done[-1] / 3]
    assert len(later) / (later[-1] - later[0]) > 0.95 * 50
    assert server.refused < 0.03 * server.sent


@pytest.mark.parametrize("rate", [2, 500])
def test_slow_and_fast_rates_are_learned(rate: int) -> None:
    server = Simulated(rate=rate, burst=rate)
    took = server.run(Pace(most=256), 200 + 20 * rate)
    assert (200 + 20 * rate) / took > 0.9 * rate
    assert server.refused < max(60, 0.03 * server.sent)


def test_a_count_a_minute_that_nobody_tells_is_lived_with() -> None:
    server = Simulated(rate=5, burst=300, period=60.0)
    assert server.run(Pace(most=64), 1000) < 240
    assert server.refused < 0.08 * server.sent


@pytest.mark.parametrize("period", [0.0, 10.0])
def test_a_rate_that_headers_tell_is_used_and_hardly_ever_refused(period: float) -> None:
    server = Simulated(rate=50, burst=500 if period else 100, period=period, told=True)
    took = server.run(Pace(most=64), 4000)
    assert 4000 / took > (0.8 if period else 0.95) * 50
    assert server.refused < 0.02 * server.sent


def test_rare_refusals_for_no_reason_cost_next_to_nothing() -> None:
    undisturbed = Simulated().run(Pace(most=64), 1600)
    assert Simulated(chance=0.005).run(Pace(most=64), 1600) < 1.1 * undisturbed


def test_a_queue_at_the_server_is_not_fed_without_end() -> None:
    pace = Pace(most=4000)
    Simulated(latency=0.05, places=32).run(pace, 10_000)
    assert pace.window.size(1e9) < 1000


def test_requests_and_tokens_a_minute_by_hand_are_kept() -> None:
    assert Simulated(latency=0.01).run(Pace(most=64, requests_per_minute=600), 600) == pytest.approx(60, rel=0.05)
    by_tokens = Pace(most=64, tokens_per_minute=60_000)
    assert Simulated(latency=0.01).run(by_tokens, 600, prompt=60, output=40) == pytest.approx(60, rel=0.05)


def test_a_bucket_lets_its_rate_through_and_makes_up_for_late_timers() -> None:
    bucket = Bucket(10.0, burst=1.0)
    went = []
    for i in range(1, 1001):
        now = 0.037 * i
        while not bucket.wait(now):
            bucket.take(1.0)
            went.append(now)
    assert len(went) == pytest.approx(370, abs=3)


def test_what_remains_is_spread_once_less_than_half_of_it_is_left() -> None:
    def rate(limit: int, remaining: int, reset: str) -> float:
        told = Told("tokens")
        names = {"limit": str(limit), "remaining": str(remaining), "reset": reset}
        told.read({f"x-ratelimit-{name}-tokens": value for name, value in names.items()}, 0.0)
        return told.bucket.rate

    assert rate(1000, 900, "6s") == math.inf
    assert rate(1000, 400, "20s") == 20.0
    assert rate(1000, 400, "8h") == math.inf
    assert rate(600, 0, "1m0s") == 600 / 60 / 8
    assert rate(1000, 400, "soon") == math.inf


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6m0s", 360), ("20ms", 0.02), ("1h2m3.5s", 3723.5), ("12", 12), ("0.5", 0.5), ("1s", 1), ("2d", 172800)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert read_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "6 minutes", "nan", "-", "2026-01-01T00:00:00Z"])
def test_what_is_no_duration_is_none(text: str) -> None:
    assert read_duration(text) is None
