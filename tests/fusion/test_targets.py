"""Several models' distributions made into one, by hand and by law."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from fusion.align import Kind
from fusion.errors import FusionError, RecipeError
from fusion.project import Projection
from fusion.sparse import Sparse, tail_of
from fusion.targets import fuse, position_nll, supervised_nll, supervised_positions, weights, winners
from fusion.teacher_shards import TeacherRow

NAN = math.nan


def part(ids: Sequence[Sequence[int]], probs: Sequence[Sequence[float]], gold: Sequence[float] = ()) -> Projection:
    p, m = np.array(probs, np.float32), len(ids)
    sparse = Sparse(np.array(ids, np.int32), p, tail_of(p))
    kind = np.full(m, Kind.ONE_TO_ONE, np.uint8)
    return Projection(sparse, kind, np.ones(m, np.bool_), np.array(gold or [NAN] * m, np.float64))


OWN = part([[1, 2], [3, -1]], [[0.5, 0.25], [1.0, 0.0]])
OTHER = part([[2, 4], [5, 3]], [[0.75, 0.125], [0.5, 0.25]])


def row(ends: Sequence[int], *next_logprobs: float) -> TeacherRow:
    n = len(ends)
    nothing = np.zeros((n, 0))
    told = np.array([*next_logprobs, NAN], np.float32)
    return TeacherRow(
        "chat", np.zeros(n, np.int32), np.array(ends), told, nothing.astype(np.int32), nothing.astype(np.float32)
    )


def same(one: Sparse, other: Sparse) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("ids", "probs", "tail"))


def test_the_model_that_is_least_surprised_gives_the_whole_conversation():
    assert same(fuse([OWN, OTHER], [2.0, 1.9]), OTHER.sparse)
    assert same(fuse([OWN, OTHER], [1.9, 2.0]), OWN.sparse)


def test_a_tie_is_the_targets_own():
    assert same(fuse([OWN, OTHER], [1.5, 1.5]), OWN.sparse)


def test_a_model_that_says_nothing_never_wins():
    assert same(fuse([OWN, OTHER, OTHER], [3.0, NAN, 5.0]), OWN.sparse)
    assert same(fuse([OWN, OTHER], [NAN, 5.0]), OTHER.sparse)
    assert same(fuse([OWN, OTHER], [NAN, NAN]), OWN.sparse)
    assert list(winners([[NAN, 1.0, 2.0], [1.0, NAN, 2.0]])) == [1, 0, 0]


def test_at_token_level_each_position_has_its_own_winner():
    sparse = fuse([OWN, OTHER], [[1.0, 1.0], [0.5, NAN]], level="token")
    assert_array_equal(sparse.ids, [[2, 4], [3, -1]])
    assert_allclose(sparse.probs, [[0.75, 0.125], [1.0, 0.0]])
    assert_allclose(sparse.tail, [0.125, 0.0])


def test_parts_of_different_widths_can_be_mixed():
    narrow = part([[7], [8]], [[0.25], [0.5]])
    sparse = fuse([narrow, OTHER], [[1.0, 1.0], [2.0, 0.5]], level="token")
    assert_array_equal(sparse.ids, [[7, -1], [5, 3]])


def test_the_average_is_weighted_by_the_softmax_of_rewards():
    one, two = math.exp(1 / math.e), math.exp(1 / math.exp(2))
    assert_allclose(weights([1.0, 2.0]), [one / (one + two), two / (one + two)])
    share = two / (one + two)
    sparse = fuse([OWN, OTHER], [1.0, 2.0], how="avg_ce")
    assert_array_equal(sparse.ids, [[2, 1], [3, 5]])  # 2 has a quarter of one and three of the other
    wanted = [[0.25 * (1 - share) + 0.75 * share, 0.5 * (1 - share)], [1 - share + 0.25 * share, 0.5 * share]]
    assert_allclose(sparse.probs, wanted, rtol=1e-6)
    assert_allclose(sparse.probs.sum(axis=1) + sparse.tail, 1.0, atol=1e-6)


def test_what_says_nothing_has_no_weight():
    assert list(weights([NAN, 3.0])) == [0.0, 1.0]
    assert list(weights([NAN, NAN])) == [1.0, 0.0]
    assert_allclose(weights([[NAN, 2.0], [3.0, 2.0]]), [[0.0, 0.5], [1.0, 0.5]])
    assert weights([math.inf, math.inf])[0] == 0.5
    assert same(fuse([OWN, OTHER], [[1.0, NAN], [NAN, NAN]], how="avg_ce", level="token"), OWN.sparse)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 50), min_size=1, max_size=4), st.sampled_from(("min_ce", "avg_ce")), st.booleans())
def test_fusing_a_model_with_itself_changes_nothing(nll: list[float], how: str, at_tokens: bool):
    given_ = [[value, value] for value in nll] if at_tokens else nll
    fused = fuse([OTHER] * len(nll), given_, how=how, level="token" if at_tokens else "sequence")
    assert_array_equal(fused.ids, OTHER.sparse.ids)
    assert_allclose(fused.probs, OTHER.sparse.probs, rtol=1e-6)
    assert_allclose(fused.tail, OTHER.sparse.tail, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 50) | st.just(NAN), min_size=2, max_size=2))
def test_total_probability_is_1_whatever_the_weights(nll: list[float]):
    fused = fuse([OWN, OTHER], nll, how="avg_ce")
    assert_allclose(fused.probs.sum(axis=1, dtype=np.float64) + fused.tail, 1.0, atol=1e-6)


def test_supervised_are_the_positions_before_tokens_that_begin_in_a_span():
    ends = np.array([0, 3, 5, 5, 9, 12, 14])  # tokens at 0–0, 0–3, 3–5, 5–5, 5–9, 9–12, 12–14
    assert list(supervised_positions(ends, [(3, 9)])) == [False, True, False, True, False, False, False]
    assert list(np.flatnonzero(supervised_positions(ends, [(12, 14), (0, 3)]))) == [0, 5]
    assert list(np.flatnonzero(supervised_positions(ends, [(4, 10)]))) == [
        3,
        4,
    ]  # 3–5 begins before, 9–12 begins inside
    assert not supervised_positions(ends, []).any()
    assert list(supervised_positions(ends[:0], [(0, 3)])) == []


def test_a_models_surprise_is_the_mean_over_its_own_supervised_tokens():
    heard = row([0, 3, 5, 9, 12], -1.0, -2.0, -4.0, -8.0)
    assert supervised_nll(heard, [(3, 9)]) == pytest.approx(3.0)
    assert math.isnan(supervised_nll(heard, [(12, 20)]))


def test_a_positions_surprise_is_that_of_the_targets_next_token():
    surprise = position_nll(part([[1], [1], [1]], [[0.5], [0.5], [0.5]], gold=[0.25, 0.0, NAN]))
    assert surprise[0] == pytest.approx(math.log(4))
    assert math.isinf(surprise[1])
    assert math.isnan(surprise[2])


def test_what_cannot_be_fused_is_named():
    with pytest.raises(RecipeError, match=r"how is 'min'; there are avg_ce, min_ce\. Did you mean 'min_ce'"):
        fuse([OWN], [1.0], how="min")
    with pytest.raises(RecipeError, match="level is 'tokens'"):
        fuse([OWN], [1.0], level="tokens")
    with pytest.raises(FusionError, match="nothing to fuse"):
        fuse([], [])
    with pytest.raises(FusionError, match=r"have \[2, 1\] positions"):
        fuse([OWN, part([[1]], [[1.0]])], [1.0, 1.0])
    with pytest.raises(FusionError, match=r"shape \(2,\), but at level 'token' 2 parts need \(2, 2\)"):
        fuse([OWN, OTHER], [1.0, 1.0], level="token")
