"""One of several engines that hold the same weights: takes requests in, works for a moment, gives back what is done.

It lives in a process of its own (see :mod:`evals.ray_replicas`) around the same :class:`evals.local.LocalModel` that
a single engine is; who gets which request is :mod:`evals.replicas`' affair.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evals.engine import EngineSettings
from evals.local import LocalModel

MOMENT = 0.5  # seconds that finished replies may wait for each other: well below the second in which they are stored

Kind = Literal["chat", "complete"]
"""Which of LocalModel's two ways of asking."""

Item = tuple[int, Any]
"""The number that the driver gave a request, and the request; or the number and what came of it."""


@dataclass(frozen=True, slots=True)
class About:
    """What a replica is: tokens that its engine holds of a prompt and its reply, requests in one batch, its process."""

    context: int
    batch: int
    pid: int


class Feed:
    """An iterator that ends when it has nothing for now, and goes on when it was filled again."""

    def __init__(self) -> None:
        self._waiting: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._waiting:
            raise StopIteration
        return self._waiting.popleft()

    def fill(self, items: Iterable[Any]) -> None:
        """Add what is to come next."""
        self._waiting.extend(items)


class Replica:
    """An engine that is fed while it runs, so that its batch stays full."""

    def __init__(self, settings: EngineSettings, make: Callable[..., LocalModel] = LocalModel) -> None:
        self._settings, self._make = settings, make
        self._kind: Kind = "chat"
        self._arrivals: Iterator[Item] | None = None
        self._feed = Feed()
        self._numbers: list[int] = []  # the driver's, in the order in which they were taken

    def begin(self, folder: str, identity: str) -> About:
        """Start the engine; raises ChatError when vLLM or the checkpoint cannot be used."""
        self.model = self._make(Path(folder), identity=identity, settings=self._settings)
        return About(self.model.context, self.model.batch, os.getpid())

    def load(self, folder: str, identity: str) -> None:
        """Put a checkpoint's weights in; raises ChatError as LocalModel does."""
        self._forget()
        self.model.load(Path(folder), identity=identity)

    def stream(self, tensors: Iterable[tuple[str, Any]], like: str, identity: str) -> None:
        """Put weights in that are nowhere on disk."""
        self._forget()
        self.model.stream(tensors, like=Path(like), identity=identity)

    def advance(self, kind: Kind, items: Sequence[Item]) -> list[Item]:
        """Take these in too, work until something is done, and return all that is within a moment.

        Nothing is returned only where there is nothing left.
        """
        if kind != self._kind:  # all that was asked the other way is done, or nobody wants it any more
            self._forget()
        if self._arrivals is None:
            self._kind, self._arrivals = kind, getattr(self.model, kind)(self._feed)
        self._feed.fill(item for _, item in items)
        self._numbers += [number for number, _ in items]
        done: list[Item] = []
        until = time.monotonic() + MOMENT
        for place, arrival in self._arrivals:
            done.append((self._numbers[place], arrival))
            if time.monotonic() >= until:
                return done
        self._forget()
        return done

    def stop(self) -> None:
        """Drop what has been taken in and is not done."""
        self._forget()

    def _forget(self) -> None:
        if isinstance(self._arrivals, Generator):
            self._arrivals.close()
        self._arrivals, self._feed, self._numbers = None, Feed(), []
