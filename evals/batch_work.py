"""The work of one call of a batch model: which request is in which batch, and what came of it."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING

from evals.batch_calls import BatchCalls, Missing
from evals.batch_rows import custom_id, read_name, write_row
from evals.chat import ChatError, ChatRequest, NoReply, Reply
from evals.chat_json import request_body
from evals.endpoint_errors import Trouble
from evals.records import Batch

if TYPE_CHECKING:
    from openai.types import Batch as State

    from evals.batch import BatchModel

SUBMITTED, COLLECTED = "submitted", "collected"
_ENDED = {"completed", "failed", "expired", "cancelled"}
_FULL = "token_limit_exceeded"  # the endpoint's queue of this model is full: a batch fails, and may succeed later
_LEFT = NoReply("bad_reply", "the batch ended without a word on this request", attempts=1)
_UNDONE = NoReply("expired", "the batch ended before this request had its turn", attempts=1)


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How a batch stands; ``state`` is the endpoint's word for it, the counts are of requests."""

    id: str
    state: str
    completed: int
    failed: int
    total: int


@dataclass(eq=False)
class _Open:
    """A batch that replies are wanted of: which, and whether any came."""

    record: Batch
    wanted: set[str]
    replied: bool = False
    state: str = SUBMITTED


@dataclass(eq=False)
class Work:
    """One call of ``chat``: which request is where."""

    model: BatchModel
    calls: BatchCalls
    indices: dict[str, list[int]] = field(default_factory=dict)  # custom id -> places among the requests
    waiting: dict[str, _Open] = field(default_factory=dict)  # batch id -> batch
    queued: list[_Open] = field(default_factory=list)  # batches that the endpoint had no room for
    done: list[_Open] = field(default_factory=list)
    fields: set[str] = field(default_factory=set)  # of the requests' bodies

    def hand_in(self, requests: Iterable[ChatRequest], *, open_: Iterable[Batch]) -> None:
        """Submit what is not in an open batch; wait for all."""
        held = {name: batch for batch in open_ for name in batch.requests}
        self._submit(self._rows(requests, held))

    def _rows(self, requests: Iterable[ChatRequest], held: Mapping[str, Batch]) -> Iterator[tuple[str, bytes]]:
        model = self.model
        for index, request in enumerate(requests):
            body = request_body(request, extra=model.extra_body, for_openai=model.base_url is None)
            name = custom_id(request, body=body, model=model.model)
            if name in self.indices:
                self.indices[name].append(index)
                continue
            self.indices[name] = [index]
            self.fields |= body.keys()
            if name in held:
                batch = held[name]
                self.waiting.setdefault(batch.id, _Open(batch, set())).wanted.add(name)
            else:
                yield name, write_row(name, body=body, model=model.model)

    def _submit(self, rows: Iterable[tuple[str, bytes]], *, most: int | None = None) -> None:
        """Make batches of rows, of at most ``most`` requests each; remember each at once."""
        most = most or self.model.max_requests
        names: list[str] = []
        with tempfile.TemporaryFile() as spool:
            for name, row in rows:
                if names and (len(names) == most or spool.tell() + len(row) > self.model.max_bytes):
                    self._create(spool, names)
                    names = []
                    spool.seek(0)
                    spool.truncate()
                names.append(name)
                spool.write(row)
            if names:
                self._create(spool, names)

    def _create(self, spool: IO[bytes], names: list[str]) -> None:
        spool.flush()
        made = self.calls.submit(spool, metadata=self.model.metadata())
        record = Batch(made.id, self.model.place, self.model.model, tuple(names), SUBMITTED)
        self.model.remember(record)
        self.waiting[record.id] = _Open(record, set(names))

    def look(self) -> Generator[tuple[int, Reply | NoReply], None, None]:
        """Look at every batch once; yield what those that ended brought, then raise if one was refused."""
        refused: list[tuple[_Open, State]] = []
        room = False
        for opened in list(self.waiting.values()):
            state = self._state(opened)
            if state.status not in _ENDED:
                continue
            if state.status == "failed":
                del self.waiting[opened.record.id]
                self.model.remember(replace(opened.record, state="failed"))
                refused.append((opened, state))
                continue
            yield from self._collect(opened, state)
            room = True
        for opened, state in refused:
            self._refuse(opened, state)
        if self.queued and (room or not self.waiting):
            self._again(self.queued.pop(0), parts=1)

    def close(self) -> None:
        """Remember what has been collected, now that the caller has taken all of it."""
        for opened in self.done:
            left = tuple(name for name in opened.record.requests if name not in opened.wanted)
            if left:
                self.model.remember(replace(opened.record, requests=left))
            else:
                self.model.remember(replace(opened.record, state=COLLECTED if opened.replied else opened.state))

    def _state(self, opened: _Open) -> State:
        batch = opened.record.id
        try:
            state = self.calls.retrieve(batch)
        except Missing:
            raise ChatError(
                f"batch {batch} of {len(opened.record.requests)} requests to model {self.model.model!r} is not "
                f"known at {self.model.place}: use the key that it was submitted with, or set its state in the "
                f"ledger's table batches to 'lost' to ask and pay again"
            ) from None
        if self.model.watch is not None:
            counts, total = state.request_counts, len(opened.record.requests)
            completed, failed = (counts.completed, counts.failed) if counts else (0, 0)
            self.model.watch(BatchProgress(batch, state.status, completed, failed, total))
        return state

    def _collect(self, opened: _Open, state: State) -> Generator[tuple[int, Reply | NoReply], None, None]:
        left, failed = set(opened.wanted), set[str]()
        fatal: Trouble | None = None
        for name, outcome in self.calls.outcomes(state, sent=self.fields):
            if name not in left:
                continue
            left.discard(name)
            if isinstance(outcome, Reply):
                opened.replied = True
                yield from ((index, outcome) for index in self.indices[name])
                continue
            failed.add(name)
            if outcome.fatal is not None:
                fatal = outcome
                continue
            message = self.calls.clean(f"{outcome.message}: {outcome.hint}" if outcome.hint else outcome.message)
            none = NoReply(outcome.kind, message, attempts=1, discarded=outcome.used)
            yield from ((index, none) for index in self.indices[name])
        missing = _LEFT if state.status == "completed" else _UNDONE
        yield from ((index, missing) for name in left for index in self.indices[name])
        opened.state = COLLECTED if state.status == "completed" else state.status
        if failed or left:  # whoever asks for them again shall have them asked again
            replied = tuple(name for name in opened.record.requests if name not in failed and name not in left)
            changed = (
                replace(opened.record, requests=replied) if replied else replace(opened.record, state=opened.state)
            )
            self.model.remember(changed)
        del self.waiting[opened.record.id]
        self.done.append(opened)
        if fatal is not None:
            raise self.calls.fatal(fatal, doing=f"use batch {opened.record.id}")

    def _refuse(self, opened: _Open, state: State) -> None:
        errors = (state.errors and state.errors.data) or []
        if any(error.code == _FULL for error in errors):
            if self.waiting:
                self.queued.append(opened)
                return
            if len(opened.wanted) > 1:
                self._again(opened, parts=2)
                return
        said = "; ".join(
            f"{error.message or error.code}" + (f" (line {error.line})" if error.line else "") for error in errors[:3]
        )
        raise ChatError(
            f"{self.model.place} refused batch {opened.record.id} of {len(opened.record.requests)} requests to model "
            f"{self.model.model!r}: {self.calls.clean(said) or 'no reason given'}. Nothing of it was paid for: mend "
            f"that and run again, or ask without batches"
        )

    def _again(self, opened: _Open, *, parts: int) -> None:
        """Submit again the wanted requests of a batch that was refused as a whole, in so many parts."""
        try:
            file = self.calls.retrieve(opened.record.id).input_file_id
            lines = self.calls.lines(file)
            rows = ((name, line) for line in lines if (name := read_name(line)) in opened.wanted and name is not None)
            self._submit(rows, most=-(-len(opened.wanted) // parts))
        except Missing as missing:
            message = f"the rows of batch {opened.record.id} are gone at {self.model.place} ({missing}): run again"
            raise ChatError(message) from None
