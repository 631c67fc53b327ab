"""Distributions of which the likeliest tokens are kept, and of the rest the sum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from fusion.errors import FusionError
from fusion.sparse import Sparse, entries, gather


def gathered(*given: tuple[int, int, float], length: int = 1, k: int = 2) -> Sparse:
    rows, ids, mass = (np.array(column) for column in zip(*given, strict=True))
    return gather(rows, ids, mass, length=length, k=k)


def test_what_one_token_gets_several_times_adds_up_and_the_rest_is_the_tail():
    sparse = gathered((0, 7, 0.25), (0, 3, 0.3), (0, 7, 0.25), (0, 9, 0.1))
    assert_array_equal(sparse.ids, [[7, 3]])
    assert_allclose(sparse.probs, [[0.5, 0.3]])
    assert_allclose(sparse.tail, [0.2], atol=1e-6)


def test_of_equals_the_lower_id_is_kept():
    assert_array_equal(gathered((0, 9, 0.25), (0, 4, 0.25), (0, 6, 0.25)).ids, [[4, 6]])


def test_positions_without_entries_are_all_tail():
    sparse = gathered((1, 5, 0.5), (1, 4, 0.0), length=3)
    assert_array_equal(sparse.ids, [[-1, -1], [5, -1], [-1, -1]])
    assert_array_equal(sparse.tail, [1.0, 0.5, 1.0])


def test_a_mass_too_small_for_float32_is_not_listed():
    assert_array_equal(gathered((0, 1, 0.5), (0, 2, 1e-200)).ids, [[1, -1]])


def test_nothing_at_all_is_all_tail():
    nothing = np.array([], np.int64)
    assert_array_equal(gather(nothing, nothing, nothing.astype(float), length=2, k=1).tail, [1.0, 1.0])


def test_a_mass_that_rounding_put_above_1_is_scaled_down():
    sparse = gathered((0, 1, 0.8), (0, 2, 0.3))
    assert sparse.probs.sum() == pytest.approx(1.0)
    assert sparse.tail[0] == pytest.approx(0.0, abs=1e-6)


def test_arrays_that_do_not_belong_together_are_refused():
    with pytest.raises(FusionError, match=r"ids \(1, 2\), probabilities \(1, 1\)"):
        Sparse(np.zeros((1, 2), np.int32), np.zeros((1, 1), np.float32), np.zeros(1, np.float32))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_gathering_is_what_a_dictionary_says(data: st.DataObject):
    length, k = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    one = st.tuples(st.integers(0, length - 1), st.integers(0, 6), st.just(0.0) | st.floats(1e-30, 1 / 64))
    given_ = data.draw(st.lists(one, min_size=1, max_size=16))
    sparse = gathered(*given_, length=length, k=k)
    for row in range(length):
        sums: dict[int, float] = {}
        for at, token, mass in given_:
            if at == row and mass > 0:
                sums[token] = sums.get(token, 0.0) + mass
        wanted = sorted(sums.values(), reverse=True)[:k]
        kept = sparse.ids[row] >= 0
        assert_allclose(sparse.probs[row][kept], wanted, rtol=1e-6)
        assert_allclose([sums[token] for token in sparse.ids[row][kept]], wanted, rtol=1e-12)
    assert_allclose(sparse.probs.sum(axis=1, dtype=np.float64) + sparse.tail, 1.0, atol=1e-6)
    rows, ids, probs = entries(sparse)
    again = gather(rows, ids, probs, length=length, k=k)
    assert_array_equal(again.probs, sparse.probs)
