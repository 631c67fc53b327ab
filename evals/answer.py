"""A model and questions in, answers out: turn by turn, all questions of a turn in one batch, only what is missing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from evals.chat import ChatModel, ChatRequest, NoReply, Reply
from evals.keys import content_key
from evals.records import Answer, Failure, Message, Question, Sampling

Stored = Callable[[Sequence[str]], Mapping[str, Answer]]
Cost = Callable[[Reply | NoReply], float | None]
"""What came of a request → what it cost in US dollars; None where no price is known."""


def no_price(_reply: Reply | NoReply) -> None:
    """Return None: the price of a model without one."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One turn to be asked: its content key, what the model is shown, and how the reply is drawn."""

    key: str
    question: Question
    turn: int
    messages: tuple[Message, ...]
    sampling: Sampling  # with the run's seed
    seed: int  # of this very reply


def answer(
    questions: Sequence[Question],
    *,
    identity: str,
    model: Callable[[], ChatModel],
    sampling: Callable[[Question], Sampling],
    stored: Stored,
    cost: Cost = no_price,
    given_up: Collection[str] = (),
) -> Iterator[Answer | Failure]:
    """Yield an answer or a failure for every turn that ``stored`` lacks; after a failed turn the next is not asked.

    ``identity`` is the model's; ``model`` is called only when something is missing, ``stored`` maps those of the
    given keys that are in the ledger to their answers; ``given_up`` are keys that are not asked. ``cost`` prices each
    reply, and what brought none. The model takes each request only when it can send it.
    """
    answered: dict[str, list[str]] = {question.id: [] for question in questions}
    for turn in range(1, 1 + max((len(q.turns) for q in questions), default=0)):
        wanted = [
            _ask(q, turn, answered[q.id], identity=identity, sampling=sampling(q))
            for q in questions
            if len(q.turns) >= turn and len(answered[q.id]) == turn - 1
        ]
        known = stored([ask.key for ask in wanted])
        for ask in wanted:
            if ask.key in known:
                answered[ask.question.id].append(known[ask.key].text)
        missing = [ask for ask in wanted if ask.key not in known and ask.key not in given_up]
        if missing:
            for record in _ask_all(missing, identity=identity, model=model(), cost=cost):
                if isinstance(record, Answer):
                    answered[record.question].append(record.text)
                yield record


def stored_answers(
    questions: Sequence[Question],
    *,
    identity: str,
    sampling: Callable[[Question], Sampling],
    stored: Stored,
) -> dict[str, tuple[Answer, ...]]:
    """Return, by question id, the answers of every turn, for the questions whose every turn is stored."""
    found: dict[str, list[Answer]] = {question.id: [] for question in questions}
    for turn in range(1, 1 + max((len(q.turns) for q in questions), default=0)):
        wanted = [
            _ask(q, turn, [a.text for a in found[q.id]], identity=identity, sampling=sampling(q))
            for q in questions
            if len(q.turns) >= turn and len(found[q.id]) == turn - 1
        ]
        for known in stored([ask.key for ask in wanted]).values():
            found[known.question].append(known)
    return {q.id: tuple(found[q.id]) for q in questions if len(found[q.id]) == len(q.turns)}


def asks(questions: Iterable[Question], *, identity: str, sampling: Callable[[Question], Sampling]) -> Iterator[Ask]:
    """Yield every turn that would be asked, for its size: what the model said before a later turn is left empty."""
    for q in questions:
        for turn in range(1, len(q.turns) + 1):
            yield _ask(q, turn, [""] * (turn - 1), identity=identity, sampling=sampling(q))


def item_seed(seed: int, *parts: object) -> int:
    """Return a seed in [0, 2³¹) for one item of a run: equal prompts of one run must not share a random stream."""
    return int(content_key("seed", seed, *parts)[:8], 16) & 0x7FFFFFFF


def _ask(question: Question, turn: int, said: Sequence[str], *, identity: str, sampling: Sampling) -> Ask:
    messages = [Message("system", question.system)] if question.system else []
    for asked, replied in zip(question.turns, said, strict=False):
        messages += [Message("user", asked), Message("assistant", replied)]
    messages.append(Message("user", question.turns[turn - 1]))
    key = content_key("answer", identity, question.benchmark, question.version, question.id, turn, messages, sampling)
    seed = item_seed(sampling.seed, question.benchmark, question.id, turn)
    return Ask(key, question, turn, tuple(messages), sampling, seed)


def _ask_all(wanted: Sequence[Ask], *, identity: str, model: ChatModel, cost: Cost) -> Iterator[Answer | Failure]:
    requests = (ChatRequest(ask.messages, replace(ask.sampling, seed=ask.seed)) for ask in wanted)
    for index, reply in model.chat(requests):
        ask = wanted[index]
        if isinstance(reply, Reply):
            yield Answer(
                key=ask.key,
                model=identity,
                benchmark=ask.question.benchmark,
                version=ask.question.version,
                question=ask.question.id,
                turn=ask.turn,
                text=reply.text,
                finish_reason=reply.finish_reason,
                prompt_tokens=reply.prompt_tokens,
                output_tokens=reply.output_tokens,
                seconds=reply.seconds,
                seed=ask.seed,
                sampling=ask.sampling,
                thinking=reply.thinking,
                thinking_tokens=reply.thinking_tokens,
                cost=cost(reply),
            )
        else:
            yield Failure(
                key=ask.key,
                stage="answer",
                model=identity,
                benchmark=ask.question.benchmark,
                question=ask.question.id,
                kind=reply.kind,
                message=reply.message,
                attempts=reply.attempts,
                cost=cost(reply),
            )
