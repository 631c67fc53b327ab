from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.align import align
from fusion.errors import FusionError
from fusion.pieces import Encoded, Pieces
from fusion.statistics_map import Counts, reference_rule, statistics_map
from fusion.token_maps import KINDS


def vocabulary(*text, **roles):
    special = {number: role for role, number in roles.items()}
    plain = tuple(None if number in special else piece for number, piece in enumerate(text))
    return Pieces(size=len(text), text=plain, special=special, written={})


def encoded(pieces, *tokens, bos=None):
    """The tokens one after the other, with a bos that covers nothing before them if it is given."""
    lengths = [0] * (bos is not None) + [len(token) for token in tokens]
    ids = [bos] * (bos is not None) + [pieces.text.index(token) for token in tokens]
    ends = np.cumsum(lengths, dtype=np.int64)
    return Encoded(ids=np.array(ids, np.int32), starts=ends - lengths, ends=ends)


TARGET = vocabulary(b"<s>", b"a", b"b", b"cd", b"e", b"ab", bos=0)
SOURCE = vocabulary(b"[B]", b"abc", b"d", b"e", b"a", b"bc", bos=0)


def counted(*texts, pairs="start", source=SOURCE, target=TARGET):
    counts = Counts(source, target, pairs=pairs)
    for there, here in texts:
        left, right = encoded(target, *here, bos=0), encoded(source, *there, bos=0)
        counts.add(left, right, align(left, right))
    return counts


def pairs_of(counts):
    return {(int(s), int(t)): int(n) for s, t, n in zip(*counts.table(), strict=True)}


def rows(token_map):
    return [dict(zip(*map(np.ndarray.tolist, token_map.row(s)), strict=True)) for s in range(token_map.source_size)]


def test_the_tokens_that_come_next_at_aligned_positions_are_counted():
    counts = counted(([b"abc", b"d", b"e"], [b"a", b"b", b"cd", b"e"]), ([b"abc"], [b"ab"]))
    assert pairs_of(counts) == {(1, 1): 1, (3, 4): 1, (1, 5): 1}


def test_or_all_that_share_a_byte():
    counts = counted(([b"abc", b"d", b"e"], [b"a", b"b", b"cd", b"e"]), pairs="overlap")
    assert pairs_of(counts) == {(1, 1): 1, (1, 2): 1, (1, 3): 1, (2, 3): 1, (3, 4): 1}


def test_special_tokens_are_not_counted():
    source, target = vocabulary(b"</s>", b"<", eos=0), vocabulary(b"<", b"/s>")
    left, right = encoded(target, b"<", b"/s>"), Encoded(*(np.array([n]) for n in (0, 0, 4)))
    counts = Counts(source, target, pairs="overlap")
    counts.add(left, right, align(left, right))
    assert pairs_of(counts) == {}


def test_a_token_goes_where_it_was_seen_in_proportion_and_exactly_where_it_can():
    texts = [([b"abc"], [b"a"])] * 3 + [([b"abc"], [b"ab"]), ([b"e"], [b"e"]), ([b"e"], [b"e"])]
    found = statistics_map(counted(*texts))
    assert rows(found) == [{0: 1.0}, {1: 0.75, 5: 0.25}, {}, {4: 1.0}, {1: 1.0}, {}]
    assert [KINDS[kind] for kind in found.kinds] == ["role", "statistics", "none", "exact", "exact", "none"]


def test_or_whole_where_it_was_seen_most_often_of_equals_to_the_lowest_id():
    more = counted(([b"abc"], [b"a"]), ([b"abc"], [b"ab"]), ([b"abc"], [b"ab"]))
    equal = counted(([b"abc"], [b"ab"]), ([b"abc"], [b"a"]))
    assert [rows(statistics_map(counts, argmax=True))[1] for counts in (more, equal)] == [{5: 1.0}, {1: 1.0}]


def test_the_weights_of_a_row_are_never_more_than_one():
    target = vocabulary(*[bytes([65 + number]) for number in range(50)])
    source = vocabulary(b"?")
    counts = Counts(source, target, pairs="overlap")
    for number in range(50):
        left, right = encoded(target, bytes([65 + number])), encoded(source, b"?")
        for _ in range(1 + number % 7):
            counts.add(left, right, align(left, right))
    weights = statistics_map(counts).weights.astype(np.float64)
    assert 1 - 1e-5 < weights.sum() <= 1


def test_counting_text_by_text_and_at_once_is_the_same():
    texts = [([b"abc", b"d"], [b"ab", b"cd"]), ([b"e", b"abc"], [b"e", b"a"]), ([b"abc", b"d"], [b"ab", b"cd"])]
    one = Counts(SOURCE, TARGET)
    for there, here in texts:
        left, right = encoded(TARGET, *here, bos=0), encoded(SOURCE, *there, bos=0)
        one.add(left, right, align(left, right))
        one.table()  # counts what is pending
    assert pairs_of(one) == pairs_of(counted(*texts))


TOKENS = st.lists(st.integers(0, 4), max_size=12)


@settings(max_examples=100, deadline=None)
@given(TOKENS, TOKENS)
def test_overlaps_are_those_that_a_walk_through_the_bytes_finds(here, there):
    # Token n covers n bytes, so some cover nothing.
    both = [
        Encoded(np.array(ids, np.int32), np.cumsum(ids) - ids, np.cumsum(ids)) for ids in map(np.array, (here, there))
    ]
    both = [Encoded(e.ids.astype(np.int32), e.starts.astype(np.int64), e.ends.astype(np.int64)) for e in both]
    pieces = vocabulary(b"", b"a", b"ab", b"abc", b"abcd")
    counts = Counts(pieces, pieces, pairs="overlap")
    counts.add(*both, align(*both))
    owners = [[place for place, number in enumerate(ids) for _ in range(number)] for ids in (here, there)]
    met = set(zip(*(owner[: min(map(len, owners))] for owner in owners), strict=True))
    assert pairs_of(counts) == Counter((there[right], here[left]) for left, right in met)


def test_the_references_rule_holds_frequency_against_a_candidate():
    source, target = vocabulary(b"xyz", b"w"), vocabulary(b"<u>", b"abcd", b"xyqq", unk=0)
    counts = Counts(source, target, pairs="overlap")
    [right] = [encoded(source, b"xyz")]
    for piece, times in ((b"abcd", 1), (b"xyqq", 50)):
        left = encoded(target, piece)
        for _ in range(times):
            counts.add(left, right, align(left, right))
    # Distances 4 and 2: 4 · 0.73 against 2 · 1. The near one wins, in spite of its count.
    assert rows(reference_rule(counts)) == [{2: 1.0}, {0: 1.0}]
    near = vocabulary(b"<u>", b"pqz", b"xqq", unk=0)  # both at distance 2: the rare one wins
    counts = Counts(source, near, pairs="overlap")
    for piece, times in ((b"pqz", 1), (b"xqq", 50)):
        left = encoded(near, piece)
        for _ in range(times):
            counts.add(left, right, align(left, right))
    assert rows(reference_rule(counts))[0] == {1: 1.0}
    assert rows(statistics_map(counts, argmax=True))[0] == {2: 1.0}


def test_the_reference_prefers_a_string_that_contains_the_other():
    source, target = vocabulary(b"fusions"), vocabulary(b"fus", b"fusible")
    counts = Counts(source, target, pairs="overlap")
    for piece in (b"fus", b"fusible"):  # distances 4 · 0.1 and 3
        left, right = encoded(target, piece), encoded(source, b"fusions")
        counts.add(left, right, align(left, right))
    assert rows(reference_rule(counts)) == [{0: 1.0}]


def test_an_unknown_way_to_count_and_ids_of_another_vocabulary_are_refused():
    with pytest.raises(FusionError, match="pairs='bytes'; it is 'start' or 'overlap'"):
        Counts(SOURCE, TARGET, pairs="bytes")
    small = Counts(vocabulary(b"a"), vocabulary(b"b"), pairs="overlap")
    left, right = encoded(TARGET, b"e"), encoded(SOURCE, b"e")
    with pytest.raises(FusionError, match="tokenized by the other model"):
        small.add(left, right, align(left, right))


def test_a_corpus_of_nothing_leaves_the_exact_map():
    assert statistics_map(Counts(SOURCE, TARGET)).counts()["statistics"] == 0
    assert reference_rule(Counts(SOURCE, TARGET)).counts()["exact"] == 2
