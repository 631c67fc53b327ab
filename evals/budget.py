"""A limit on spending that holds while many requests are in flight: what might be spent is counted before it is asked.

A request is let go only if what was spent, the worst case of everything in flight and its own worst case stay within
the limit. So the limit holds as far as endpoints report what they bill: a reply that was lost on its way (a timeout,
a connection that broke) may be billed too, and nobody tells us.

Tokens are not known before a request is sent, only its bytes. At first a prompt is taken to have a token a byte, the
most that a byte-level tokenizer makes of it; once a reply to a long prompt has told its tokens, the most tokens a byte
seen so far and a margin. A later prompt that is denser than that by more than the margin (digits after prose) may still
cost more than was set aside for it: it is learnt from, and what is in flight by then may pass the limit by so much.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sized

from evals.chat import ChatModel, ChatRequest, NoReply, Reply
from evals.prices import Price, cost, token_cost

DUST = 1e-9  # US dollars: sums of floats may miss by so much
TOKENS_PER_BYTE = 1.0  # of a prompt, until a reply shows how many; English is near 1/4, Chinese in UTF-8 near 1/3
MARGIN = 1.25  # on the most tokens a byte seen so far
LEAST_PER_BYTE = 0.3  # however few were seen
LONG = 500  # bytes of a prompt against which what a chat template puts around it is little
FRAME = 64  # tokens that a chat template puts around a conversation, at most: some add a system message of their own
MESSAGE = 8  # and around each message


class BudgetReached(Exception):
    """Nothing more fits into the budget; all replies that were paid for have been yielded before this is raised.

    ``spent`` and ``limit`` are US dollars; ``left`` counts the requests that were not asked (None: not known).
    """

    def __init__(self, *, spent: float, limit: float, left: int | None) -> None:
        rest = "further requests were" if left is None else f"{left} request{' was' if left == 1 else 's were'}"
        super().__init__(
            f"the budget is reached: {usd(spent)} of {usd(limit)} are spent, and another request might pass it; "
            f"{rest} not asked. What came is stored: raise the budget and run again, and only the rest is asked"
        )
        self.spent, self.limit, self.left = spent, limit, left


class Budget:
    """US dollars that a run may spend: one for all the models of the run, used from any thread.

    ``limit`` None means no limit, spending is only counted. ``spent`` may begin with what earlier runs spent.
    """

    def __init__(self, limit: float | None = None, *, spent: float = 0.0) -> None:
        if limit is not None and not limit >= 0:
            raise ValueError(f"a budget of {limit} US dollars cannot be kept: give a number from 0 on, or none")
        self.limit = limit
        self._spent = spent
        self._reserved = 0.0
        self._lock = threading.Lock()

    @property
    def spent(self) -> float:
        """US dollars spent so far."""
        return self._spent

    def reserve(self, dollars: float) -> bool:
        """Set so much aside and return True, or return False where it does not fit; nothing always fits."""
        with self._lock:
            most = None if self.limit is None else self.limit + DUST
            if dollars > 0 and most is not None and self._spent + self._reserved + dollars > most:
                return False
            self._reserved += dollars
            return True

    def settle(self, reserved: float, spent: float) -> None:
        """Give back what was reserved, and count what was spent instead."""
        with self._lock:
            self._reserved -= reserved
            self._spent += spent


class Metered:
    """A chat model whose replies are paid from a budget, and which asks nothing that might pass its limit.

    It stands around the model that talks to the endpoint. ``batch`` is whether the batch price holds, ``attempts``
    how many replies one request may bring that are paid for (an endpoint's ``max_attempts``), ``extra_body`` what the
    endpoint adds to each request: another limit of tokens or several choices may stand there. Several metered models
    may share a budget, also in several threads.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        price: Price,
        budget: Budget,
        batch: bool = False,
        attempts: int = 1,
        extra_body: Mapping[str, object] | None = None,
    ) -> None:
        self.model = model
        self.price = price
        self.budget = budget
        self.batch = batch
        self.attempts = attempts
        self._extra = dict(extra_body or {})
        self._extra_bytes = len(json.dumps(self._extra, default=str)) if self._extra else 0
        self._tokens_per_byte = TOKENS_PER_BYTE
        self._densest = 0.0  # tokens a byte, the most seen
        self._overrun = 1.0  # tokens written per token allowed, the most seen: some endpoints do not count thinking
        if budget.limit is not None and most_output(self._extra, max_tokens=1) is None:
            raise ValueError(
                "a budget cannot be kept where extra_body takes max_tokens away and sets no other limit: "
                "add max_completion_tokens to extra_body"
            )

    def chat(self, requests: Iterable[ChatRequest]) -> Iterator[tuple[int, Reply | NoReply]]:
        """Yield (index, reply or failure) as each arrives; raises BudgetReached once no further request fits.

        Requests are taken one by one while they fit; then what is in flight is waited for and yielded, and more are
        asked as long as what was left over lets one go.
        """
        total = len(requests) if isinstance(requests, Sized) else None
        waiting, done = _Waiting(requests), 0
        while True:
            asked = _Round(self, waiting)
            for index, reply in asked.replies():
                yield done + index, reply
            done += asked.count
            if not waiting:
                return
            if not asked.count:
                left = None if total is None else total - done
                raise BudgetReached(spent=self.budget.spent, limit=self.budget.limit or 0.0, left=left)

    def worst_case(self, request: ChatRequest) -> float:
        """Return the most US dollars that a request may cost, all its attempts counted."""
        return self.attempts * self._worst_reply(request)

    def charge(self, request: ChatRequest, reply: Reply | NoReply) -> float:
        """Return what a reply cost in US dollars, the worst case where it came without usage; learn from it."""
        dollars = cost(self.price, reply, batch=self.batch)
        if dollars is None:
            read, written = reply.discarded
            return self._worst_reply(request) + token_cost(self.price, read, written, batch=self.batch)
        if isinstance(reply, Reply):
            self._learn(request, reply)
        return dollars

    def _learn(self, request: ChatRequest, reply: Reply) -> None:
        size = max(1, self._bytes(request))
        long = size >= LONG
        if reply.prompt_tokens:
            framed = 0 if long else _framed(request)
            self._densest = max(self._densest, (reply.prompt_tokens - framed) / size)
            if long or MARGIN * self._densest > self._tokens_per_byte:
                self._tokens_per_byte = max(LEAST_PER_BYTE, MARGIN * self._densest)
        allowed = most_output(self._extra, max_tokens=request.sampling.max_tokens)
        self._overrun = max(self._overrun, reply.output_tokens / max(1, allowed or reply.output_tokens))

    def _worst_reply(self, request: ChatRequest) -> float:
        prompt = _framed(request) + self._tokens_per_byte * self._bytes(request)
        output = (most_output(self._extra, max_tokens=request.sampling.max_tokens) or 0) * self._overrun
        return token_cost(self.price, prompt, output, batch=self.batch)

    def _bytes(self, request: ChatRequest) -> int:
        said = sum(len(message.content.encode("utf-8", "replace")) for message in request.messages)
        return said + len(request.schema) + sum(map(len, request.choices)) + self._extra_bytes


class _Waiting:
    """Requests that were not asked yet, the next of which can be looked at; true while there is one."""

    def __init__(self, requests: Iterable[ChatRequest]) -> None:
        self._requests = iter(requests)
        self._next: ChatRequest | None = None

    def __bool__(self) -> bool:
        return self.next() is not None

    def next(self) -> ChatRequest | None:
        """Return the next request and leave it there; None where there is none."""
        if self._next is None:
            self._next = next(self._requests, None)
        return self._next

    def take(self) -> None:
        """Take the request that was looked at away."""
        self._next = None


class _Round:
    """One call of the model: ``count`` requests, as many as fit, each kept until its reply is there."""

    def __init__(self, metered: Metered, waiting: _Waiting) -> None:
        self.count = 0
        self._metered = metered
        self._waiting = waiting
        self._in_flight: dict[int, tuple[ChatRequest, float]] = {}

    def replies(self) -> Iterator[tuple[int, Reply | NoReply]]:
        """Ask while it fits; yield what comes, each counted before it is yielded."""
        metered, budget = self._metered, self._metered.budget
        first = self._take()
        if first is None:
            return  # the model is not even called
        replies = metered.model.chat(self._fitting(first))
        try:
            for index, reply in replies:
                request, reserved = self._in_flight.pop(index)
                budget.settle(reserved, metered.charge(request, reply))
                yield index, reply
        finally:
            if close := getattr(replies, "close", None):
                close()
            while self._in_flight:
                _, (_, reserved) = self._in_flight.popitem()
                budget.settle(reserved, 0.0)

    def _fitting(self, first: ChatRequest) -> Iterator[ChatRequest]:
        """Yield requests, perhaps to another thread, until one does not fit: waiting here might wait for ever."""
        taken: ChatRequest | None = first
        while taken is not None:
            yield taken
            taken = self._take()

    def _take(self) -> ChatRequest | None:
        request = self._waiting.next()
        if request is None:
            return None
        most = self._metered.worst_case(request)
        if not self._metered.budget.reserve(most):
            return None
        self._waiting.take()
        self._in_flight[self.count] = request, most
        self.count += 1
        return request


def _framed(request: ChatRequest) -> int:
    return FRAME + MESSAGE * len(request.messages)


def most_output(extra_body: Mapping[str, object], *, max_tokens: int) -> int | None:
    """Return how many tokens a reply may have with these fields added to its request; None: no limit is left."""
    fields = {"max_tokens": max_tokens, **extra_body}
    limits = [fields.get(name) for name in ("max_tokens", "max_completion_tokens")]
    bounds = [limit for limit in limits if isinstance(limit, int)]
    choices = extra_body.get("n")
    return max(bounds) * (choices if isinstance(choices, int) else 1) if bounds else None


def usd(amount: float) -> str:
    """Return an amount for people, like "3.20 USD" or "0.0004 USD"."""
    return f"{amount:.2f} USD" if amount >= 0.1 or amount == 0 else f"{amount:.2g} USD"
