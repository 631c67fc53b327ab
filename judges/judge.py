"""Judge requests in, judgments out: equal requests are asked once, stored ones never again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from evals.chat import ChatModel, ChatRequest, NoReply, Reply
from evals.records import Failure, JudgeRequest, Judgment, Message
from judges.replies import reply_format


def unjudged(
    requests: Sequence[JudgeRequest], *, stored: Callable[[Sequence[str]], Collection[str]]
) -> list[JudgeRequest]:
    """Return one request for each judgment that ``stored`` (those of the given keys in the ledger) does not hold."""
    first = {request.judgment: request for request in reversed(requests)}
    known = stored(list(first))
    return [r for r in requests if first[r.judgment] is r and r.judgment not in known]


def judge(requests: Sequence[JudgeRequest], *, by: ChatModel) -> Iterator[Judgment | Failure]:
    """Yield a judgment or a failure for each request, as it arrives; the requests must differ in ``judgment``.

    Replies that must be asked to go on (:class:`judges.replies.ReplyFormat`) are held back, and asked together once
    all others are there. Where going on brings nothing, the first reply is the judgment; a ChatError meanwhile leaves
    those that still wait without one, so that they are judged afresh.
    """
    asked = [_chat_request(request) for request in requests]
    unfinished: list[tuple[Judgment, ChatRequest]] = []
    for index, reply in by.chat(asked):
        request = requests[index]
        if isinstance(reply, NoReply):
            yield _failure(request, reply)
            continue
        judgment = _judgment(request, reply)
        form = reply_format(request.reply)
        if form.again is not None and form.span(judgment) is None:
            unfinished.append((judgment, _further(asked[index], judgment, form.again)))
        else:
            yield judgment
    if unfinished:
        for index, reply in by.chat([further for _, further in unfinished]):
            first = unfinished[index][0]
            yield first if isinstance(reply, NoReply) else _joined(first, reply)


def _chat_request(request: JudgeRequest) -> ChatRequest:
    form = reply_format(request.reply)
    sampling = replace(request.sampling, seed=int(request.judgment[:8], 16) & 0x7FFFFFFF)
    return ChatRequest(request.messages, sampling, top_logprobs=form.top_logprobs, choices=form.choices)


def _further(asked: ChatRequest, first: Judgment, again: str) -> ChatRequest:
    return replace(asked, messages=(*asked.messages, Message("assistant", first.text), Message("user", again)))


def _judgment(request: JudgeRequest, reply: Reply) -> Judgment:
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
    )


def _joined(first: Judgment, second: Reply) -> Judgment:
    return replace(
        first,
        text=f"{first.text}\n{second.text}",
        finish_reason=second.finish_reason,
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
        seconds=first.seconds + second.seconds,
    )


def _failure(request: JudgeRequest, reply: NoReply) -> Failure:
    return Failure(
        key=request.judgment,
        stage="judge",
        model=request.judge,
        benchmark=request.benchmark,
        question=request.question,
        kind=reply.kind,
        message=reply.message,
        attempts=reply.attempts,
    )
