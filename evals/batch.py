"""A chat model asked through the Batch API of its endpoint: half the price, replies within a day.

Requests go up as files of rows; the endpoint works on them by itself, whatever becomes of this process. What was
handed in is remembered outside, so that a later process collects it instead of paying for it again.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

from evals.batch_calls import BatchCalls, Missing, place_of
from evals.batch_rows import read_name
from evals.batch_work import SUBMITTED, BatchProgress, Work
from evals.chat import ChatError, ChatRequest, NoReply, Reply
from evals.endpoint import NO_KEY
from evals.records import Batch

__all__ = ["BatchModel", "BatchProgress"]

_CLIENT = "fuseval"  # in the metadata of our batches


class BatchModel:
    """A chat model at ``base_url`` (None: OpenAI's own) that is asked through the Batch API.

    ``known`` returns what was remembered so far, in this process and earlier ones, in whatever state, of this endpoint
    at least; ``remember`` stores a batch (a later one of the same id and place replaces it). It must not return before
    the batch is stored, and what the caller was given before must be stored by then as well. ``owner`` names that
    memory: batches that the endpoint lists under the same owner and ``known`` lacks are ours too (we were killed
    before remembering them), while those of others are left alone.

    ``extra_body`` is as in :class:`evals.endpoint.EndpointModel`. A batch holds at most ``max_requests`` requests and
    ``max_bytes`` bytes; those that the endpoint's queue has no room for wait, or are halved. The endpoint is looked
    at after pauses that grow to ``poll`` seconds; each time ``watch`` is told how each batch stands. It may be out of
    reach for ``patience`` seconds.
    """

    def __init__(
        self,
        *,
        base_url: str | None,
        model: str,
        api_key_env: str | None,
        known: Callable[[], Iterable[Batch]],
        remember: Callable[[Batch], None],
        owner: str = "",
        extra_body: Mapping[str, object] | None = None,
        max_requests: int = 50_000,
        max_bytes: int = 190_000_000,  # OpenAI takes 200 MB
        poll: float = 60.0,
        patience: float = 3600.0,
        watch: Callable[[BatchProgress], None] | None = None,
    ) -> None:
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise ChatError(f"base_url {base_url!r} of model {model!r} is no URL: write http://host:port/v1")
        if max_requests < 1:
            raise ValueError(f"max_requests of model {model!r} is {max_requests}: give a number above 0")
        self.base_url, self.model, self.api_key_env = base_url, model, api_key_env
        self.place = place_of(base_url)
        self.known, self.remember, self.owner = known, remember, owner
        self.extra_body = dict(extra_body or {})
        self.max_requests, self.max_bytes = max_requests, max_bytes
        self.poll, self.patience, self.watch = poll, patience, watch
        self._adopted = False

    def chat(self, requests: Iterable[ChatRequest]) -> Generator[tuple[int, Reply | NoReply], None, None]:
        """Yield (index, reply or failure) as batches end; takes all requests first, a batch at a time.

        Equal requests (same body, same seed) are sent once, and those that stand in an open batch are not sent again.
        A batch counts as collected only when this generator has come to its end, or to a ChatError: closed early, or
        interrupted, it leaves its batches running and open for the next process. What an open batch holds beyond
        ``requests`` stays open. ``Reply.seconds`` is 0.0: not known. Raises ChatError when the endpoint takes no
        batch, refuses one as a whole, or no request can succeed.
        """
        requests = iter(requests)
        first = next(requests, None)
        if first is None:
            return
        key = self._read_key()
        pause = min(1.0, self.poll)
        with BatchCalls(
            base_url=self.base_url,
            model=self.model,
            key=key,
            key_name=self.api_key_env or "api_key_env",
            patience=self.patience,
            pause=pause,
        ) as calls:
            work = Work(self, calls)
            try:
                work.hand_in(itertools.chain([first], requests), open_=self._open(calls))
                while work.waiting:
                    yield from work.look()
                    if work.waiting:
                        time.sleep(pause)
                        pause = min(pause * 1.5, self.poll)
            except ChatError:
                work.close()
                raise
            work.close()

    def _read_key(self) -> str:
        if self.api_key_env is None:
            return NO_KEY
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ChatError(
                f"the environment variable {self.api_key_env} (api_key_env of model {self.model!r} at {self.place}) "
                f"is not set: export it with the key, or leave api_key_env out for a server that wants none"
            )
        return key

    def _open(self, calls: BatchCalls) -> list[Batch]:
        """Return the batches whose results are still to be had; the endpoint is asked for forgotten ones once."""
        known = [batch for batch in self.known() if batch.place == self.place and batch.model == self.model]
        open_ = [batch for batch in known if batch.state == SUBMITTED]
        if not self._adopted:
            open_ += self._forgotten(calls, {batch.id for batch in known})
            self._adopted = True
        return open_

    def _forgotten(self, calls: BatchCalls, known: set[str]) -> Iterator[Batch]:
        for state in calls.recent():
            if state.id in known or state.status == "failed" or (state.metadata or {}) != self.metadata():
                continue
            try:
                names = [name for line in calls.lines(state.input_file_id) if (name := read_name(line))]
            except Missing:
                continue
            batch = Batch(state.id, self.place, self.model, tuple(names), SUBMITTED)
            self.remember(batch)
            yield batch

    def metadata(self) -> dict[str, str]:
        """Return what our batches carry at the endpoint."""
        owner = {"owner": self.owner[:512]} if self.owner else {}
        return {"client": _CLIENT, "model": self.model[:512]} | owner
