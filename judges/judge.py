"""Judge requests in, judgments out: equal requests are asked once, unreadable replies asked for again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from evals.answer import Cost, item_seed, no_price
from evals.chat import ChatModel, ChatRequest, NoReply, Reply
from evals.records import Failure, JudgeRequest, Judgment, Message
from judges.replies import reply_format


def judge(
    requests: Iterable[JudgeRequest], *, by: ChatModel, attempts: int = 1, cost: Cost = no_price
) -> Iterator[Judgment | Failure]:
    """Yield a judgment or a failure for each request as it arrives; those with equal ``judgment`` are asked once.

    ``requests`` are taken as ``by`` takes them (an endpoint: when it can send them, in a thread of its own); what is in
    flight is held, and nothing else. A reply in which the format reads no verdict is asked for again with another seed,
    until there are ``attempts`` of them; then the last is the judgment, which counts as missing. A try of a format that
    asks to go on (:class:`judges.replies.ReplyFormat`) may take two replies. Tokens, seconds, cost and ``asked`` are
    those of all replies of a request together; ``cost`` prices each (None: no price is known).

    What brought nothing the first time is a Failure; a later attempt that brings nothing is an attempt used up. An
    error that ``by`` raises (ChatError, the budget's) is raised after what is held back was yielded: no reply that was
    paid for is lost. Only first replies that were to go on are, so that they are judged afresh.
    """
    if attempts < 1:
        raise ValueError(f"attempts is {attempts}: a judge must be asked at least once")
    run = _Run(requests, attempts, cost)
    first = True
    try:
        while first or run.again:  # an engine takes all requests at once, so what is asked again makes another round
            first = False
            for index, reply in by.chat(run.take()):
                record = run.arrived(index, reply)
                if record is not None:
                    yield record
    except (Exception, KeyboardInterrupt):
        yield from run.held_back()
        raise


def after(first: Judgment, second: Judgment) -> Judgment:
    """Return the ``second`` judgment of what was judged before, with what both took."""
    return replace(
        second,
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
        thinking_tokens=first.thinking_tokens + second.thinking_tokens,
        seconds=first.seconds + second.seconds,
        cost=_sum(first.cost, second.cost),
        asked=first.asked + second.asked,
    )


@dataclass(frozen=True, slots=True)
class _Try:
    """One reply wanted: the ``number``-th try of the request, ``so_far`` what came of it before.

    ``going_on`` means that ``so_far`` is this very try's first reply.
    """

    request: JudgeRequest
    number: int
    so_far: Judgment | None = None
    going_on: bool = False


class _Run:
    """What one call of :func:`judge` holds: what is in flight, and what is to be asked again.

    ``take`` may run in a thread of the model's, beside the rest; it shares only a dict and a deque, by single steps.
    """

    def __init__(self, requests: Iterable[JudgeRequest], attempts: int, cost: Cost) -> None:
        self.attempts, self.cost = attempts, cost
        self.again: deque[_Try] = deque()
        self._new = iter(requests)
        self._seen: set[str] = set()
        self._flying: dict[int, _Try] = {}

    def take(self) -> Iterator[ChatRequest]:
        """Yield what is to be asked, that which is asked again as soon as it is known; each index counts from here."""
        self._flying.clear()
        index = 0
        while (tried := self._next()) is not None:
            self._flying[index] = tried
            index += 1
            yield _chat_request(tried)

    def _next(self) -> _Try | None:
        if self.again:
            return self.again.popleft()
        for request in self._new:
            if request.judgment not in self._seen:
                self._seen.add(request.judgment)
                return _Try(request, 1)
        return None

    def arrived(self, index: int, reply: Reply | NoReply) -> Judgment | Failure | None:
        """Return what came of the request, or None where it is to be asked again."""
        tried = self._flying.pop(index)
        request, number, so_far = tried.request, tried.number, tried.so_far
        paid = self.cost(reply)
        if isinstance(reply, NoReply):
            if so_far is None:
                return _failure(request, reply, paid)
            said = replace(so_far, cost=_sum(so_far.cost, paid))
        else:
            said = _joined(tried, _judgment(request, reply, paid))
            form = reply_format(request.reply)
            if form.read(said) is not None:
                return said
            if form.again is not None and not tried.going_on and form.span(said) is None:
                self.again.append(_Try(request, number, said, going_on=True))
                return None
        if number == self.attempts:
            return said
        self.again.append(_Try(request, number + 1, said))
        return None

    def held_back(self) -> Iterator[Judgment]:
        """Yield the last reply of what was to be asked again, but for what has only begun."""
        for tried in [*self._flying.values(), *self.again]:
            if tried.so_far is not None and not (tried.going_on and tried.number == 1):
                yield tried.so_far


def _chat_request(tried: _Try) -> ChatRequest:
    request, form = tried.request, reply_format(tried.request.reply)
    seed = int(request.judgment[:8], 16) & 0x7FFFFFFF
    seed = seed if tried.number == 1 else item_seed(seed, "attempt", tried.number)
    messages = request.messages
    if tried.going_on and tried.so_far is not None and form.again is not None:
        messages = (*messages, Message("assistant", tried.so_far.text), Message("user", form.again))
    sampling = replace(request.sampling, seed=seed)
    return ChatRequest(messages, sampling, top_logprobs=form.top_logprobs, choices=form.choices, schema=form.schema)


def _judgment(request: JudgeRequest, reply: Reply, cost: float | None) -> Judgment:
    return Judgment(
        key=request.judgment,
        judge=request.judge,
        text=reply.text,
        finish_reason=reply.finish_reason,
        top_logprobs=reply.top_logprobs,
        prompt_tokens=reply.prompt_tokens,
        output_tokens=reply.output_tokens,
        seconds=reply.seconds,
        served_model=reply.served_model,
        fingerprint=reply.fingerprint,
        thinking=reply.thinking,
        thinking_tokens=reply.thinking_tokens,
        cost=cost,
    )


def _joined(tried: _Try, said: Judgment) -> Judgment:
    """Add up what the replies before took; one that went on continues the text, another takes its place."""
    before = tried.so_far
    if before is None:
        return said
    if tried.going_on:
        thinking = "\n\n".join(filter(None, (before.thinking, said.thinking)))
        said = replace(said, text=f"{before.text}\n{said.text}", thinking=thinking, top_logprobs=before.top_logprobs)
    return replace(
        said,
        prompt_tokens=before.prompt_tokens + said.prompt_tokens,
        output_tokens=before.output_tokens + said.output_tokens,
        thinking_tokens=before.thinking_tokens + said.thinking_tokens,
        seconds=before.seconds + said.seconds,
        cost=_sum(before.cost, said.cost),
        asked=before.asked + said.asked,
    )


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _failure(request: JudgeRequest, reply: NoReply, cost: float | None) -> Failure:
    return Failure(
        key=request.judgment,
        stage="judge",
        model=request.judge,
        benchmark=request.benchmark,
        question=request.question,
        kind=reply.kind,
        message=reply.message,
        attempts=reply.attempts,
        cost=cost,
    )
