"""Work on many tensors at once, in order, within bounds: what is in flight is limited by its size, not its number."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    items: Iterable[T],
    work: Callable[[T], R],
    *,
    size: Callable[[T], int],
    most: int,
    workers: int,
    ahead: Callable[[T], None] | None = None,
) -> Generator[R, None, None]:
    """Yield ``work(item)`` of every item, in the items' order, done by ``workers`` threads.

    At any time the sizes of the items begun and not yet yielded sum to at most ``most``, or it is a single item.
    ``ahead`` is called with an item when it is lined up.
    """
    waiting = iter(items)
    flying: deque[tuple[int, Future[R]]] = deque()
    before = _threads()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="merge", initializer=_set_threads, initargs=(1,))
    try:
        upcoming = next(waiting, None)
        while upcoming is not None or flying:
            while upcoming is not None and (not flying or _room(flying, size(upcoming), most, workers)):
                if ahead is not None:
                    ahead(upcoming)
                flying.append((size(upcoming), pool.submit(work, upcoming)))
                upcoming = next(waiting, None)
            yield flying.popleft()[1].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        _set_threads(before)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def _room(flying: deque[tuple[int, Future[R]]], more: int, most: int, workers: int) -> bool:
    return sum(size for size, _ in flying) + more <= most and len(flying) < 4 * workers


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _set_threads(number: int) -> None:
    """Set in how many threads torch does one operation: in a worker one, for the workers are the parallelism.

    A thread that torch sees for the first time takes the number that was set last, whoever set it.
    """
    import torch

    torch.set_num_threads(number)
