from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from fusion.pool import in_order


def sizes(item: int) -> int:
    return item


def test_results_come_in_the_order_of_the_items_whoever_is_faster():
    def work(item: int) -> int:
        time.sleep(0.02 if item == 1 else 0)
        return item * 10

    assert list(in_order([1, 2, 3, 4], work, size=sizes, most=100, workers=4)) == [10, 20, 30, 40]


def test_what_is_in_flight_is_bounded_by_size_but_a_larger_item_is_let_through_alone():
    flying, seen, lock = 0, [], threading.Lock()

    def ahead(item: int) -> None:
        nonlocal flying
        with lock:
            flying += item
            seen.append(flying)

    items = [3, 3, 3, 20, 3, 3]
    for item in in_order(items, lambda item: item, size=sizes, most=6, workers=4, ahead=ahead):
        flying -= item
    # A result that was handed out counts until the next is asked for: the caller still holds it.
    assert max(seen) <= 23
    assert sorted(items) == [3, 3, 3, 3, 3, 20]


def test_no_more_items_are_taken_than_workers_can_use_soon():
    taken = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    stream = in_order(items(), lambda item: item, size=lambda item: 0, most=1, workers=2)
    next(stream)
    assert len(taken) <= 10
    stream.close()


def test_an_error_reaches_the_caller_and_stops_the_rest():
    done = []

    def work(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        done.append(item)
        return item

    with pytest.raises(ValueError, match="two"):
        list(in_order(range(1000), work, size=sizes, most=10_000, workers=2))
    assert len(done) < 20
