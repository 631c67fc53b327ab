"""Several engines as one model: whoever has room takes the next requests; one that is lost is replaced.

Ray (or whatever ``crew`` is) places the engines and carries what is said; here stands only who is handed what. What
a lost engine had not done is asked again of others, and nothing is yielded twice. An
engine is handed a little more than it works on at a time, so that its batch is full while word goes to and fro, and of
the last requests no more than its share.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from evals.chat import ChatError, ChatRequest, NoReply, Reply
from evals.endpoint_errors import one_line
from evals.engine import shape
from evals.replica import About, Item, Kind

LOSSES = 3  # of one replica in a row, nothing done in between: then the run stops
SOON = 120.0  # seconds; when no replica has started by then it is said what they may be waiting for
PATIENCE = 1800.0  # seconds to wait for the first replica, which may have to wait for its machine
AHEAD = 1.5  # requests that a replica is handed, in batches


class Lost(Exception):
    """The replica that was asked is gone, and why."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What replicas are to hold: a checkpoint's, or those ``shared`` by the crew, with all else like ``folder``'s."""

    folder: Path
    identity: str
    shared: Any = None

    @property
    def path(self) -> str:
        """The folder as a process in another folder finds it."""
        return str(self.folder.absolute())


class Crew(Protocol):
    """What starts replicas (see evals.replica.Replica) and carries calls to them and back."""

    def start(self) -> Any:
        """Begin to start a replica, and return what stands for it."""
        ...

    def call(self, replica: Any, method: str, *args: Any) -> Any:
        """Begin a call, behind those begun before; return its ticket, which is hashable."""
        ...

    def wait(self, tickets: Sequence[Any], *, seconds: float) -> list[Any]:
        """Wait for some of the calls to end and return their tickets; none, where the time is over."""
        ...

    def result(self, ticket: Any) -> Any:
        """Return what an ended call returned; raises its ChatError, or Lost."""
        ...

    def share(self, tensors: Iterable[tuple[str, Any]]) -> Any:
        """Lay tensors where every replica's ``stream_shared`` finds them, for as long as what is returned is kept."""
        ...

    def end(self, replica: Any) -> None:
        """End a replica, whatever it does."""
        ...

    def shortage(self) -> str:
        """Say what a replica takes and what there is in all."""
        ...


@dataclass(slots=True, eq=False)
class _Slot:
    number: int  # from 1
    replica: Any
    identity: str = ""  # of the weights in it
    about: About | None = None  # None: its engine is starting
    held: dict[int, Any] = field(default_factory=dict)  # requests that it has and has not done, by number
    losses: int = 0


@dataclass(slots=True)
class _Work:
    """Requests that nobody has yet, those of lost replicas first."""

    items: Iterator[Item]
    waiting: deque[Item] = field(default_factory=deque)

    def take(self, room: int, *, mine: int, held: int, among: int) -> list[Item]:
        """Return at most ``room`` requests for one that has ``mine`` of the ``held``, and no more than its share."""
        while len(self.waiting) < room * among and (item := next(self.items, None)) is not None:
            self.waiting.append(item)
        share = math.ceil((len(self.waiting) + held) / among) - mine
        return [self.waiting.popleft() for _ in range(min(room, max(0, share), len(self.waiting)))]

    def is_over(self) -> bool:
        """Say whether nothing waits and nothing is to come."""
        if not self.waiting and (item := next(self.items, None)) is not None:
            self.waiting.append(item)
        return not self.waiting


class Replicas:
    """A model in ``count`` engines; used as :class:`evals.local.LocalModel` is, whose methods say more."""

    def __init__(
        self,
        folder: Path,
        *,
        identity: str,
        count: int,
        crew: Crew,
        hear: Callable[[int, int, str], None] = lambda *_: None,
    ) -> None:
        """Begin to start the engines; ``hear`` is told how many of how many are there, and of what was lost."""
        self._crew, self._hear = crew, hear
        self._weights = Weights(folder, identity)
        self._shape = shape(folder)  # now: a merge's folder may be taken away when it has answered
        self._tokenizer: Any = None
        self._about: About | None = None
        self._tickets: dict[Any, tuple[_Slot, str]] = {}  # calls under way: whose, and the method
        self._slots = [_Slot(number, crew.start()) for number in range(1, count + 1)]
        for slot in self._slots:
            self._begin(slot)

    @property
    def folder(self) -> Path:
        """Where the tokenizer is, and the weights unless they are streamed."""
        return self._weights.folder

    @property
    def identity(self) -> str:
        """Of the model whose weights are in, or will be before it is asked."""
        return self._weights.identity

    def fits(self, folder: Path) -> bool:
        """Say whether these engines can hold that checkpoint."""
        return bool(self._slots) and shape(folder) == self._shape

    def load(self, folder: Path, *, identity: str) -> None:
        """Have every engine load a checkpoint, before it is asked next."""
        if identity != self.identity:
            if not self.fits(folder):
                raise ChatError(f"{folder} does not fit engines made for {self.folder}: start new ones")
            self._become(Weights(folder, identity))

    def stream(self, tensors: Iterable[tuple[str, Any]], *, like: Path, identity: str) -> None:
        """Lay the tensors out once, and have every engine take them before it is asked next."""
        if not self.fits(like):
            raise ChatError(f"weights like {like}'s do not fit engines made for {self.folder}: start new ones")
        self._become(Weights(self.folder, ""))  # lets go of the last ones, before there are two
        try:
            shared = self._crew.share(tensors)
        except Exception as error:
            raise ChatError(f"the weights that are merged in memory cannot be had: {one_line(str(error))}") from error
        self._become(Weights(like, identity, shared))

    def close(self) -> None:
        """Stop the engines."""
        for slot in self._slots:
            self._crew.end(slot.replica)
        self._slots, self._tickets = [], {}

    def chat(self, requests: Iterable[ChatRequest]) -> Iterator[tuple[int, Reply | NoReply]]:
        """Yield what came of each request within a second of its end; what the model cannot be asked is a NoReply.

        Raises ChatError where no engine can be had, or where one is lost again and again.
        """
        yield from self._ask("chat", requests)

    def complete(self, prompts: Iterable[tuple[list[int], Any]]) -> Iterator[tuple[int, Any]]:
        """Yield (number of the prompt, vLLM's RequestOutput); a prompt is token ids with vLLM's SamplingParams."""
        yield from self._ask("complete", prompts)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the tokenizer makes of a text by itself."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model whose weights are in."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self.folder)
        return self._tokenizer

    @property
    def context(self) -> int:
        """How many tokens an engine holds of a prompt and its reply together; waits for the first engine."""
        self._check_open()
        while self._about is None:
            list(self._hear_back(_Work(iter(()))))
        return self._about.context

    @property
    def processes(self) -> list[int]:
        """The process ids of the engines that have started, on whatever machines."""
        return [slot.about.pid for slot in self._slots if slot.about]

    def _become(self, weights: Weights) -> None:
        if weights.folder != self.folder:
            self._tokenizer = None
        self._weights = weights

    def _ask(self, kind: Kind, items: Iterable[Any]) -> Iterator[Item]:
        self._check_open()
        if not self.identity:
            raise ChatError("the engines hold no whole model, for the last weights did not come in: load others")
        work = _Work(iter(enumerate(items)))
        try:
            while self._hand_out(work, kind):
                yield from self._hear_back(work)
        finally:
            for slot in self._slots:
                if slot.held:  # the caller wants no more
                    slot.held = {}
                    self._call(slot, "stop")

    def _check_open(self) -> None:
        if not self._slots:
            raise ChatError(f"the engines that held {self.folder} are stopped: start new ones")

    def _hand_out(self, work: _Work, kind: Kind) -> bool:
        """Give every engine that waits for word something to do, and say whether anything is left to do."""
        busy = {slot.number for slot, _ in self._tickets.values()}
        for slot in self._slots:
            if slot.number in busy or slot.about is None:
                continue
            if slot.identity != self.identity:
                self._put(slot)
                continue
            room = max(0, math.ceil(slot.about.batch * AHEAD) - len(slot.held))
            held = sum(len(each.held) for each in self._slots)
            more = work.take(room, mine=len(slot.held), held=held, among=len(self._slots))
            slot.held.update(more)
            if slot.held:
                self._call(slot, "advance", kind, more)
        return any(slot.held for slot in self._slots) or not work.is_over()

    def _hear_back(self, work: _Work) -> Iterator[Item]:
        """Wait for word from some engine, yield what is done, and replace those that are lost."""
        for ticket in self._word():
            if ticket not in self._tickets:  # of one that was just found lost
                continue
            slot, method = self._tickets.pop(ticket)
            try:
                found = self._crew.result(ticket)
            except Lost as error:
                self._replace(slot, work, why=str(error))
            except ChatError as error:
                slot.identity = ""
                if method != "begin":
                    raise
                if self._about is None:  # none has started yet, nor will the others
                    self.close()
                    raise
                self._replace(slot, work, why=str(error))
            else:
                yield from self._heard(slot, method, found)

    def _word(self) -> list[Any]:
        """Return the calls that have ended, when there are some."""
        tickets = list(self._tickets)
        if any(slot.about for slot in self._slots):
            return self._crew.wait(tickets, seconds=PATIENCE)
        ended = self._crew.wait(tickets, seconds=SOON)
        if not ended:
            wait = f"none has started after {SOON:.0f} s; if there is no room for them: {self._crew.shortage()}"
            self._hear(0, len(self._slots), wait)
            ended = self._crew.wait(tickets, seconds=PATIENCE - SOON)
        if not ended:
            raise ChatError(f"no engine has started within {PATIENCE:.0f} s: {self._crew.shortage()}")
        return ended

    def _heard(self, slot: _Slot, method: str, found: Any) -> Iterator[Item]:
        if method == "begin":
            slot.about = self._about = found
            self._hear(sum(each.about is not None for each in self._slots), len(self._slots), "")
        elif method == "advance":
            for number, arrival in found:
                if slot.held.pop(number, None) is not None:  # else it is of a call that was broken off
                    slot.losses = 0
                    yield number, arrival

    def _replace(self, slot: _Slot, work: _Work, *, why: str) -> None:
        """Start another engine in place of a lost one, and put what that had not done before all that waits."""
        self._tickets = {ticket: told for ticket, told in self._tickets.items() if told[0] is not slot}
        self._crew.end(slot.replica)
        work.waiting.extendleft(reversed(slot.held.items()))
        slot.held, slot.about, slot.identity, slot.losses = {}, None, "", slot.losses + 1
        name = f"replica {slot.number} of {len(self._slots)}"
        if slot.losses >= LOSSES:
            self.close()
            raise ChatError(
                f"{name} was lost {LOSSES} times without getting anything done in between, the last time because "
                f"{one_line(why)}: see to its machine (memory above all) and run the same command again: what is "
                "stored is kept"
            )
        ready = sum(each.about is not None for each in self._slots)
        self._hear(ready, len(self._slots), f"{name} was lost and is replaced: {one_line(why)}")
        slot.replica = self._crew.start()
        self._begin(slot)

    def _begin(self, slot: _Slot) -> None:
        weights = self._weights
        slot.identity = weights.identity if weights.shared is None else ""
        self._call(slot, "begin", weights.path, slot.identity or f"like {weights.identity}")

    def _put(self, slot: _Slot) -> None:
        weights = self._weights
        slot.identity = weights.identity
        if weights.shared is None:
            self._call(slot, "load", weights.path, weights.identity)
        else:
            self._call(slot, "stream_shared", weights.shared, weights.path, weights.identity)

    def _call(self, slot: _Slot, method: str, *args: Any) -> None:
        self._tickets[self._crew.call(slot.replica, method, *args)] = (slot, method)
