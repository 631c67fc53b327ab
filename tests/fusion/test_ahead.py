"""A merge made ahead gives what one made at once gives, holds no more than it may, and leaves no thread behind."""

import threading

import pytest
import torch

from fusion.ahead import Ahead, in_stretches
from fusion.errors import CheckpointError


def tensors(count=6, *, made=None, broken_at=None):
    for number in range(count):
        if number == broken_at:
            raise CheckpointError("NaN")
        if made is not None:
            made.append(number)
        yield f"t{number}", torch.full((256,), float(number))  # 1 KiB


def test_what_was_made_ahead_comes_in_order_and_is_not_made_again():
    made: list[int] = []
    ahead = Ahead()
    ahead.begin("soup", lambda: tensors(made=made))
    found = list(ahead.take("soup", lambda: tensors(made=made)))
    assert [(name, float(value[0])) for name, value in found] == [(f"t{n}", float(n)) for n in range(6)]
    assert made == list(range(6))


def test_another_merge_than_the_one_that_waits_is_made_at_once():
    ahead = Ahead()
    ahead.begin("soup", tensors)
    assert len(list(ahead.take("other", lambda: tensors(2)))) == 2
    assert len(list(ahead.take("soup", lambda: tensors(0)))) == 6


def test_a_second_begin_takes_the_place_of_the_first():
    made: list[int] = []
    ahead = Ahead()
    ahead.begin("soup", tensors)
    ahead.begin("top", lambda: tensors(3))
    assert len(list(ahead.take("top", lambda: tensors(0)))) == 3
    assert len(list(ahead.take("soup", lambda: tensors(2, made=made)))) == len(made) == 2


def test_no_more_waits_than_the_bound_allows():
    made: list[int] = []
    ahead = Ahead(most=2048)
    ahead.begin("soup", lambda: tensors(made=made))
    stream = ahead.take("soup", tensors)
    next(stream)
    assert len(made) <= 4  # one taken, two that wait, one in hand
    assert len(list(stream)) == 5


def test_a_tensor_larger_than_the_bound_comes_all_the_same():
    ahead = Ahead(most=1)
    ahead.begin("soup", tensors)
    assert len(list(ahead.take("soup", tensors))) == 6


def test_an_error_is_raised_where_the_tensors_are_taken_after_those_before_it():
    ahead = Ahead()
    ahead.begin("soup", lambda: tensors(broken_at=2))
    taken = ahead.take("soup", tensors)
    assert [next(taken)[0], next(taken)[0]] == ["t0", "t1"]
    with pytest.raises(CheckpointError, match="NaN"):
        next(taken)


@pytest.mark.parametrize("take", [0, 2])
def test_what_nobody_wants_any_more_is_given_up(take):
    ahead = Ahead(most=1024)
    ahead.begin("soup", lambda: tensors(1000))
    stream = ahead.take("soup", tensors)
    for _ in range(take):
        next(stream)
    stream.close()
    ahead.drop()
    assert not [thread for thread in threading.enumerate() if thread.name == "merge-ahead"]


def test_a_stretch_is_computed_before_its_first_tensor_is_taken():
    made: list[int] = []
    stream = in_stretches(tensors(made=made), most=2048)  # two of them
    found = []
    for name, _ in stream:
        found.append((name, len(made)))
    assert found == [("t0", 2), ("t1", 2), ("t2", 4), ("t3", 4), ("t4", 6), ("t5", 6)]
    assert [name for name, _ in in_stretches(tensors(5), 1 << 20)] == ["t0", "t1", "t2", "t3", "t4"]
