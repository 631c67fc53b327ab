"""Judge requests in, judgments out: equal requests are asked once, stored ones never again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from evals.chat import ChatModel, ChatRequest, Reply
from evals.records import Failure, JudgeRequest, Judgment
from judges.replies import REPLIES


def unjudged(
    requests: Sequence[JudgeRequest], *, stored: Callable[[Sequence[str]], Collection[str]]
) -> list[JudgeRequest]:
    """Return one request for each judgment that ``stored`` (those of the given keys in the ledger) does not hold."""
    first = {request.judgment: request for request in reversed(requests)}
    known = stored(list(first))
    return [r for r in requests if first[r.judgment] is r and r.judgment not in known]


def judge(requests: Sequence[JudgeRequest], *, by: ChatModel) -> Iterator[Judgment | Failure]:
    """Yield a judgment or a failure for each request, as it arrives; the requests must differ in ``judgment``."""
    for index, reply in by.chat([_chat_request(request) for request in requests]):
        request = requests[index]
        if isinstance(reply, Reply):
            yield Judgment(
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
        else:
            yield Failure(
                key=request.judgment,
                stage="judge",
                model=request.judge,
                benchmark=request.benchmark,
                question=request.question,
                kind=reply.kind,
                message=reply.message,
                attempts=reply.attempts,
            )


def _chat_request(request: JudgeRequest) -> ChatRequest:
    form = REPLIES[request.reply]
    sampling = replace(request.sampling, seed=int(request.judgment[:8], 16) & 0x7FFFFFFF)
    return ChatRequest(request.messages, sampling, top_logprobs=form.top_logprobs, choices=form.choices)
