import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.align import Kind, align, classify
from fusion.pieces import Encoded, encode, read_pieces
from tests.fusion.tiny_tokenizers import EXACT, FAMILIES

TEXTS = ("the cat sees the dog, naïve façade\n", "漢字かな交じり文 שלום", "👩‍👩‍👧 👍🏽 e\u0301\u0327 12 €")


def tokens(text, bos=0):
    """The pieces of ``text`` between bars, with ``bos`` tokens before that cover nothing."""
    ends = np.cumsum([0] * bos + [len(piece.encode()) for piece in text.split("|")], dtype=np.int64)
    return Encoded(np.arange(len(ends), dtype=np.int32), np.concatenate([[0], ends[:-1]]), ends)


def kinds(alignment):
    return [Kind(kind).name for kind in alignment.kind]


def aligned(target, source):
    found = align(target, source)
    return list(zip(kinds(found), found.source.tolist(), found.pieces.tolist(), strict=True))


def test_equal_tokens_are_one_to_one():
    assert aligned(tokens("a|b|c"), tokens("a|b|c")) == [("ONE_TO_ONE", 0, 1), ("ONE_TO_ONE", 1, 1), ("LAST", 2, 0)]


def test_a_next_token_of_several_source_tokens_counts_them():
    assert aligned(tokens("a|bcd|e"), tokens("a|b|c|d|e"))[:2] == [("ONE_TO_MANY", 0, 3), ("ONE_TO_ONE", 3, 1)]


def test_a_source_token_of_several_target_tokens_counts_them_and_leaves_its_inside_unaligned():
    assert aligned(tokens("a|b|c|d"), tokens("a|bc|d")) == [
        ("MANY_TO_ONE", 0, 2),
        ("UNALIGNED", -1, 0),
        ("ONE_TO_ONE", 1, 1),
        ("LAST", 2, 0),
    ]


def test_next_tokens_that_cross_are_split():
    assert aligned(tokens("a|bc|d"), tokens("a|b|cd")) == [("SPLIT", 0, 0), ("UNALIGNED", -1, 0), ("LAST", 2, 0)]
    assert aligned(tokens("a|bc|de|f"), tokens("a|b|cd|ef"))[0] == ("SPLIT", 0, 0)


def test_an_added_bos_pairs_with_an_added_bos():
    assert aligned(tokens("ab", bos=1), tokens("a|b", bos=1)) == [("ONE_TO_MANY", 0, 2), ("LAST", 2, 0)]


def test_a_bos_on_one_side_alone_pairs_with_nothing():
    assert aligned(tokens("a", bos=1), tokens("a")) == [("UNALIGNED", -1, 0), ("LAST", 0, 0)]
    assert aligned(tokens("a|b"), tokens("a|b", bos=1)) == [("ONE_TO_ONE", 1, 1), ("LAST", 2, 0)]


def test_of_unequal_numbers_of_tokens_without_text_only_the_last_pair():
    assert aligned(tokens("a", bos=2), tokens("a", bos=1)) == [
        ("UNALIGNED", -1, 0),
        ("ONE_TO_ONE", 0, 1),
        ("LAST", 1, 0),
    ]
    assert aligned(tokens("a", bos=1), tokens("a", bos=2)) == [("ONE_TO_ONE", 1, 1), ("LAST", 2, 0)]


def test_what_a_cut_source_does_not_reach_is_unaligned():
    assert aligned(tokens("a|b|c|d"), tokens("a|b")) == [
        ("ONE_TO_ONE", 0, 1),
        ("UNALIGNED", -1, 0),
        ("UNALIGNED", -1, 0),
        ("LAST", -1, 0),
    ]


def test_a_cut_target_ends_with_last():
    assert aligned(tokens("a|b"), tokens("a|b|c")) == [("ONE_TO_ONE", 0, 1), ("LAST", 1, 0)]


def test_without_tokens_nothing_aligns():
    nothing = Encoded(*(np.array([], kind) for kind in (np.int32, np.int64, np.int64)))
    assert aligned(nothing, tokens("a")) == []
    assert aligned(tokens("a|b"), nothing) == [("UNALIGNED", -1, 0), ("LAST", -1, 0)]
    assert len(classify(np.array([], np.int32), 0).kind) == 0


def by_hand(target, source):
    """The definition, read token by token."""
    found = []
    for t in range(len(target)):
        same = [s for s in range(len(source)) if source.ends[s] == target.ends[t]]
        mates = [u for u in range(len(target)) if target.ends[u] == target.ends[t]]
        if same and len(same) == len(mates):
            found.append(same[mates.index(t)])
        else:
            found.append(same[-1] if same and t == mates[-1] else -1)
    told = []
    for t, s in enumerate(found):
        if t == len(target) - 1:
            told.append(("LAST", s, 0))
        elif s < 0 or s == len(source) - 1:
            told.append(("UNALIGNED", -1, 0))
        elif found[t + 1] >= 0:
            step = found[t + 1] - s
            told.append(("ONE_TO_ONE" if step == 1 else "ONE_TO_MANY", s, step))
        elif s + 1 in found:
            told.append(("MANY_TO_ONE", s, found.index(s + 1) - t))
        else:
            told.append(("SPLIT", s, 0))
    return told


@st.composite
def offsets(draw, length):
    inside = sorted(draw(st.lists(st.integers(0, length), max_size=12)))
    ends = np.array([*inside, length], np.int64)
    return Encoded(np.zeros(len(ends), np.int32), np.concatenate([[0], ends[:-1]]), ends)


@settings(max_examples=60, deadline=None)
@given(target=offsets(9), source=offsets(9), cut=st.integers(0, 3))
def test_it_does_what_the_definition_says(target, source, cut):
    keep = max(1, len(source) - cut)
    source = Encoded(source.ids[:keep], source.starts[:keep], source.ends[:keep])
    assert aligned(target, source) == by_hand(target, source)


@settings(max_examples=40, deadline=None)
@given(target=offsets(9), source=offsets(9))
def test_seen_from_the_source_pairs_are_the_same_and_many_and_one_change_places(target, source):
    here, there = align(target, source), align(source, target)
    paired = np.flatnonzero(here.source >= 0)
    partner = here.source[paired]
    assert there.source[partner].tolist() == paired.tolist()
    assert (np.diff(partner) > 0).all()
    turned = {Kind.ONE_TO_MANY: Kind.MANY_TO_ONE, Kind.MANY_TO_ONE: Kind.ONE_TO_MANY}
    for t, s in zip(paired[:-1], partner[:-1], strict=True):
        assert there.kind[s] == turned.get(Kind(here.kind[t]), here.kind[t])
        assert there.pieces[s] == here.pieces[t]


@pytest.fixture(scope="module")
def encoders():
    read = {}
    for family, make in FAMILIES.items():
        tokenizer = make(TEXTS)
        read[family] = (tokenizer, read_pieces(tokenizer))
    return lambda family, text: encode(*read[family], text, bos=True)


texts = st.lists(st.one_of(st.sampled_from(TEXTS), st.text(max_size=9)), max_size=4).map("".join)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(text=texts, family=st.sampled_from(sorted(FAMILIES)))
def test_aligning_a_tokenizer_with_itself_is_the_identity(encoders, text, family):
    encoded = encoders(family, text)
    found = align(encoded, encoded)
    assert found.source.tolist() == list(range(len(encoded)))
    assert kinds(found) == (["ONE_TO_ONE"] * (len(encoded) - 1) + ["LAST"])[: len(encoded)]
    assert found.pieces.tolist() == ([1] * (len(encoded) - 1) + [0])[: len(encoded)]


@settings(max_examples=40, deadline=None)
@given(text=texts, pair=st.tuples(st.sampled_from(EXACT), st.sampled_from(EXACT)))
def test_aligned_positions_have_seen_the_same_bytes(encoders, text, pair):
    text = text.replace("▁", "_")
    target, source = (encoders(family, text) for family in pair)
    found = align(target, source)
    paired = np.flatnonzero(found.source >= 0)
    assert target.ends[paired].tolist() == source.ends[found.source[paired]].tolist()
    shared = set(target.ends.tolist()) & set(source.ends.tolist())
    assert shared - {0} <= set(target.ends[paired].tolist())


@settings(max_examples=40, deadline=None)
@given(text=texts, pair=st.tuples(st.sampled_from(sorted(FAMILIES)), st.sampled_from(sorted(FAMILIES))))
def test_counted_pieces_cover_the_bytes_of_the_longer_next_token(encoders, text, pair):
    target, source = (encoders(family, text) for family in pair)
    found = align(target, source)
    for t in np.flatnonzero(found.kind <= Kind.MANY_TO_ONE):
        s, pieces = found.source[t], found.pieces[t]
        many, few = (pieces, 1) if found.kind[t] == Kind.ONE_TO_MANY else (1, pieces)
        assert source.ends[s + many] == target.ends[t + few]
