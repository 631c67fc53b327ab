"""A source's distributions on the target's tokens, by hand and by law.

Texts are written as their pieces; "" is a token without text, as bos is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from fusion.align import Alignment, Kind, align
from fusion.errors import FusionError
from fusion.pieces import Encoded
from fusion.project import Projection, project
from fusion.teacher_shards import TeacherRow
from fusion.token_maps import EXACT, FIRST_PIECE, TokenMap

TARGET = ["", "a", "b", "c", "ab", "abc", "x", "z"]
SOURCE = ["q", "abc", "bc", "ab", "c", "b", "a", "y", ""]
FIRST = {"": "", "a": "a", "b": "b", "c": "c", "ab": "ab", "abc": "abc", "bc": "b", "y": "x"}  # nothing for q


def written(pieces: Sequence[str], vocabulary: Sequence[str]) -> Encoded:
    ends = np.cumsum([len(piece) for piece in pieces])
    ids = np.array([vocabulary.index(piece) for piece in pieces], np.int32)
    return Encoded(ids, np.concatenate(([0], ends[:-1])).astype(np.int64), ends.astype(np.int64))


def mapped(pairs: Mapping[str, str] = FIRST) -> TokenMap:
    ids = [TARGET.index(pairs[piece]) if piece in pairs else -1 for piece in SOURCE]
    indptr = np.concatenate(([0], np.cumsum([number >= 0 for number in ids]))).astype(np.int64)
    indices = np.array([number for number in ids if number >= 0], np.int32)
    weights, kinds = np.ones(len(indices), np.float32), np.full(len(ids), EXACT, np.uint8)
    return TokenMap(indptr, indices, weights, kinds, len(TARGET))


def heard(pieces: Sequence[str], *expected: Mapping[str, float], real: Mapping[int, float] | None = None) -> TeacherRow:
    """What the source expects after each piece; ``real`` is p of the next piece where it is not among these."""
    told, k = written(pieces, SOURCE), max(len(one) for one in expected)
    ids, logprobs = np.full((len(pieces), k), -1, np.int32), np.full((len(pieces), k), -np.inf, np.float32)
    following = np.full(len(pieces), np.nan, np.float32)
    for at, one in enumerate(expected):
        for column, (piece, p) in enumerate(one.items()):
            ids[at, column], logprobs[at, column] = SOURCE.index(piece), np.log(p)
        if at + 1 < len(pieces):
            following[at] = np.log((real or {}).get(at) or one[pieces[at + 1]])
    return TeacherRow("chat", told.ids, told.ends, following, ids, logprobs)


def projected(target: Sequence[str], row: TeacherRow, token_map: TokenMap | None = None, **options: int) -> Projection:
    text = written(target, TARGET)
    alignment = align(text, Encoded(row.ids, row.ends, row.ends))
    return project(row, text, alignment, token_map or mapped(), **options)


def said(part: Projection, at: int) -> dict[str, float]:
    ids, probs = part.sparse.ids[at], part.sparse.probs[at]
    return {TARGET[token]: pytest.approx(p, abs=1e-6) for token, p in zip(ids, probs, strict=True) if token >= 0}


def test_the_same_next_token_keeps_what_the_map_gives():
    part = projected(["", "a"], heard(["", "a"], {"a": 0.5, "b": 0.2}, {"q": 0.1}))
    assert part.kind[0] == Kind.ONE_TO_ONE
    assert part.aligned[0]
    assert said(part, 0) == {"a": 0.5, "b": 0.2}
    assert part.sparse.tail[0] == pytest.approx(0.3)
    assert part.gold[0] == pytest.approx(0.5)


def test_probabilities_that_land_on_one_token_add_up_and_unmapped_ones_are_the_tail():
    part = projected(["", "a"], heard(["", "a"], {"a": 0.4, "b": 0.2, "bc": 0.1, "q": 0.2}, {"q": 0.1}))
    assert said(part, 0) == {"a": 0.4, "b": pytest.approx(0.3)}
    assert part.sparse.tail[0] == pytest.approx(0.3)


def test_a_next_token_that_is_not_among_the_likeliest_is_known_all_the_same():
    part = projected(["", "a"], heard(["", "a"], {"b": 0.6, "c": 0.3}, {"q": 0.1}, real={0: 0.05}), k=3)
    assert said(part, 0) == {"b": 0.6, "c": 0.3, "a": 0.05}
    assert part.gold[0] == pytest.approx(0.05)


def test_a_next_token_that_the_map_does_not_know_is_the_targets_where_both_cover_the_same():
    part = projected(["", "a"], heard(["", "a"], {"a": 0.5}, {"q": 0.1}), mapped({"b": "b"}))
    assert said(part, 0) == {"a": 0.5}


def test_several_source_tokens_for_one_of_the_targets_follow_the_chain_rule():
    row = heard(["", "a", "b", "c"], {"a": 0.5, "y": 0.2}, {"b": 0.4}, {"c": 0.9}, {"q": 0.1})
    part = projected(["", "abc"], row, k=3)
    assert part.kind[0] == Kind.ONE_TO_MANY
    assert part.gold[0] == pytest.approx(0.5 * 0.4 * 0.9)
    assert said(part, 0) == {"a": 0.5 - 0.18, "abc": 0.18, "x": 0.2}
    assert part.sparse.tail[0] == pytest.approx(0.3)


def test_the_rest_of_a_first_piece_without_a_place_is_the_tail():
    row = heard(["", "a", "b", "c"], {"a": 0.5}, {"b": 0.4}, {"c": 0.9}, {"q": 0.1})
    part = projected(["", "abc"], row, mapped({}))
    assert said(part, 0) == {"abc": 0.18}
    assert part.sparse.tail[0] == pytest.approx(0.82)


def test_a_longer_source_token_begins_with_the_targets_next():
    row = heard(["", "abc"], {"abc": 0.6, "a": 0.1, "b": 0.2}, {"q": 0.1})
    part = projected(["", "a", "b", "c"], row)
    assert list(part.kind) == [Kind.MANY_TO_ONE, Kind.UNALIGNED, Kind.UNALIGNED, Kind.LAST]
    assert said(part, 0) == {"a": 0.7, "b": 0.2}
    assert part.gold[0] == pytest.approx(0.7)


def test_crossing_tokens_that_begin_with_the_targets_next_follow_the_chain_rule():
    row = heard(["", "a", "bc"], {"a": 0.5, "ab": 0.2}, {"bc": 0.9}, {"q": 0.1})
    part = projected(["", "ab", "c"], row)
    assert part.kind[0] == Kind.SPLIT
    assert said(part, 0) == {"ab": 0.2 + 0.5 * 0.9, "a": 0.05}
    assert part.gold[0] == pytest.approx(0.65)


def test_a_crossing_token_that_is_the_longer_begins_with_the_targets_next():
    vocabulary = [*TARGET, "bc"]
    row = heard(["", "ab", "c"], {"ab": 0.6, "a": 0.1}, {"c": 0.9}, {"q": 0.1})
    text = written(["", "a", "bc"], vocabulary)
    alignment = align(text, Encoded(row.ids, row.ends, row.ends))
    part = project(row, text, alignment, mapped())
    assert part.kind[0] == Kind.SPLIT
    assert said(part, 0) == {"a": 0.7}


def test_where_the_source_says_nothing_the_next_token_has_all():
    row = heard(["", "abc"], {"abc": 0.6}, {"q": 0.1})
    part = projected(["", "a", "b", "c"], row)
    assert [said(part, 1), said(part, 2)] == [{"b": 1.0}, {"c": 1.0}]
    assert not part.aligned[1:].any()
    assert np.isnan(part.gold[1:]).all()


def test_the_last_position_keeps_nothing():
    part = projected(["", "a"], heard(["", "a"], {"a": 1.0}, {"b": 1.0}))
    assert said(part, 1) == {}
    assert part.sparse.tail[1] == 1.0


def test_beyond_a_row_that_was_cut_the_text_is_all_there_is():
    whole = heard(["", "a", "b", "c"], {"a": 0.5}, {"b": 0.4}, {"c": 0.9}, {"q": 0.1})
    cut = replace(whole, ids=whole.ids[:3], next_logprob=np.array([np.log(0.5), np.log(0.4), np.nan], np.float32))
    for target, kind in ((["", "abc"], Kind.UNALIGNED), (["", "a", "b", "c"], Kind.ONE_TO_ONE)):
        text = written(target, TARGET)
        part = project(cut, text, align(text, written(["", "a", "b", "c"], SOURCE)), mapped())
        assert part.kind[0] == kind
        assert said(part, len(target) - 2) == {target[-1]: 1.0}


def test_one_tokenizer_projects_onto_itself_without_loss():
    row = heard(["", "a", "b"], {"a": 0.5, "q": 0.25}, {"c": 0.4, "": 0.3}, {"q": 0.1}, real={1: 0.01})
    text = Encoded(row.ids, row.ends, row.ends)
    part = project(row, text, align(text, text), None)
    assert_array_equal(part.sparse.ids[:2], row.top_ids[:2])
    assert_allclose(part.sparse.probs[:2], np.exp(row.top_logprobs[:2]), rtol=1e-6)
    assert_allclose(part.sparse.tail[:2], 1 - np.exp(row.top_logprobs[:2]).sum(axis=1), rtol=1e-5)
    assert_allclose(part.gold[:2], np.exp(row.next_logprob[:2]), rtol=1e-6)


def test_a_token_that_only_the_model_knows_is_the_tail():
    row = heard(["", "a"], {"a": 0.5, "b": 0.2}, {"q": 0.1})
    row.top_ids[0, 1] = len(SOURCE) + 3
    assert said(projected(["", "a"], row), 0) == {"a": 0.5}


def test_a_source_token_may_go_to_several():
    token_map = mapped({"a": "a"})
    shared = TokenMap(
        np.array([0, 0, 0, 0, 0, 2, 3, 4, 4, 4], np.int64),
        np.array([2, 3, 2, 1], np.int32),
        np.array([0.5, 0.25, 1, 1], np.float32),
        np.full(len(SOURCE), FIRST_PIECE, np.uint8),
        len(TARGET),
    )
    row = heard(["", "a"], {"a": 0.4, "c": 0.4, "b": 0.1}, {"q": 0.1})
    assert said(projected(["", "a"], row, shared), 0) == {"a": 0.4, "b": 0.3, "c": 0.1}
    assert said(projected(["", "a"], row, token_map), 0) == {"a": 0.4}


def test_an_alignment_of_another_text_is_refused():
    text, row = written(["", "a"], TARGET), heard(["", "a"], {"a": 0.5}, {"q": 0.1})
    other = align(written(["", "a", "b"], TARGET), written(["", "a", "b"], SOURCE))
    with pytest.raises(FusionError, match="2 tokens and the alignment 3 positions"):
        project(row, text, other, mapped())
    nothing = Encoded(*(np.array([], kind) for kind in (np.int32, np.int64, np.int64)))
    with pytest.raises(FusionError, match="has no tokens"):
        project(row, nothing, align(nothing, nothing), mapped())


@st.composite
def texts(draw: st.DrawFn) -> tuple[Encoded, TeacherRow, Alignment, TokenMap]:
    """One text cut twice at random, with random distributions and a random map with shares."""
    length, known, theirs = draw(st.integers(1, 12)), draw(st.integers(2, 6)), draw(st.integers(2, 6))
    seed = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def cut(vocabulary: int) -> Encoded:
        inner = np.flatnonzero(seed.random(length - 1) < draw(st.sampled_from((0.2, 0.5, 0.9)))) + 1
        ends = np.concatenate(([0] * draw(st.integers(0, 1)), inner, [length])).astype(np.int64)
        starts = np.concatenate(([0], ends[:-1]))
        return Encoded(seed.integers(0, vocabulary, len(ends)).astype(np.int32), starts, ends)

    target, source = cut(known), cut(theirs)
    n, k = len(source.ids), draw(st.integers(1, theirs))
    dense = seed.dirichlet(np.full(theirs, 0.5), size=n)
    top = np.argsort(-dense, axis=1)[:, :k].astype(np.int32)
    with np.errstate(divide="ignore"):
        logs = np.log(dense)
    following = np.full(n, np.nan, np.float32)
    following[:-1] = logs[np.arange(n - 1), source.ids[1:]]
    rounded = np.take_along_axis(logs, top, axis=1).astype(np.float16).astype(np.float32)
    row = TeacherRow("chat", source.ids, source.ends, following, top, rounded)
    widths = seed.integers(0, 3, theirs)
    indices = [np.sort(seed.choice(known, width, replace=False)) for width in widths]
    shares = [seed.dirichlet(np.ones(width)) * seed.choice((0.5, 1)) for width in widths]
    token_map = TokenMap(
        np.concatenate(([0], np.cumsum(widths))).astype(np.int64),
        np.concatenate(indices).astype(np.int32),
        np.concatenate(shares).astype(np.float32),
        np.full(theirs, EXACT, np.uint8),
        known,
    )
    return target, row, align(target, source), token_map


def by_hand(target: Encoded, row: TeacherRow, alignment: Alignment, token_map: TokenMap, at: int) -> dict[int, float]:
    """The rules of fusion.project, entry by entry."""
    sums: dict[int, float] = {}

    def put(token: int, mass: float) -> None:
        sums[token] = sums.get(token, 0.0) + mass

    def through_the_map(source: int, mass: float) -> None:
        for token, weight in zip(*token_map.row(source), strict=True):
            put(int(token), mass * float(weight))

    s, gold = int(alignment.source[at]), int(target.ids[at + 1])
    if alignment.kind[at] == Kind.UNALIGNED:
        return {gold: 1.0}
    top = {int(i): float(np.exp(np.float64(p))) for i, p in zip(row.top_ids[s], row.top_logprobs[s], strict=True)}
    scale = max(1.0, sum(top.values()))
    top = {token: p / scale for token, p in top.items()}
    real = int(row.ids[s + 1])
    first = top.pop(real, None)
    if first is None:
        first = min(float(np.exp(np.float64(row.next_logprob[s]))), 1 - sum(top.values()))
    for token, p in top.items():
        through_the_map(token, p)
    last = s + 1  # the source's token that reaches the end of the target's next
    while row.ends[last] < target.ends[at + 1]:
        last += 1
    rest = float(np.exp(row.next_logprob[s + 1 : last].astype(np.float64).sum()))
    put(gold, first * rest)
    through_the_map(real, first * (1 - rest))
    return sums


@settings(max_examples=50, deadline=None)
@given(texts())
def test_projection_is_its_rules_and_keeps_total_probability(case: tuple[Encoded, TeacherRow, Alignment, TokenMap]):
    target, row, alignment, token_map = case
    part = project(row, target, alignment, token_map, k=token_map.target_size)
    sparse = part.sparse
    assert_allclose(sparse.probs.sum(axis=1, dtype=np.float64) + sparse.tail, 1.0, atol=1e-6)
    assert ((sparse.tail >= 0) & (sparse.tail <= 1)).all()
    assert (np.diff(sparse.probs, axis=1) <= 0).all()
    for at in range(len(target.ids) - 1):
        wanted = by_hand(target, row, alignment, token_map, at)
        found = {int(token): p for token, p in zip(sparse.ids[at], sparse.probs[at], strict=True) if token >= 0}
        assert found == {
            token: pytest.approx(p, abs=1e-6) for token, p in wanted.items() if found.get(token) or p > 1e-6
        }
        if part.aligned[at]:
            assert part.gold[at] == pytest.approx(wanted.get(int(target.ids[at + 1]), 0.0), abs=1e-9)
    narrow = project(row, target, alignment, token_map, k=1).sparse
    assert_array_equal(narrow.ids, sparse.ids[:, :1])
    assert_allclose(narrow.probs.sum(axis=1, dtype=np.float64) + narrow.tail, 1.0, atol=1e-6)
