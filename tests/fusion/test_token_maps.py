import numpy as np
import pytest

from fusion.errors import CheckpointError, FusionError
from fusion.pieces import Pieces
from fusion.token_maps import KINDS, STATISTICS, TokenMap, exact_map, filled, map_key, one_to_one


def vocabulary(*text, written=None, **roles):
    """Pieces of these texts; ``eos=3`` makes token 3 special, written as ``written`` says."""
    special = {number: role for role, number in roles.items()}
    special |= dict.fromkeys(set(written or {}) - set(special), "other")
    plain = [None if number in special else piece for number, piece in enumerate(text)]
    return Pieces(size=len(text), text=tuple(plain), special=special, written=written or {})


def ways(token_map):
    return [KINDS[kind] for kind in token_map.kinds]


def rows(token_map):
    return [dict(zip(*map(np.ndarray.tolist, token_map.row(s)), strict=True)) for s in range(token_map.source_size)]


def sparse(*given, size=9):
    indptr = np.cumsum([0, *map(len, given)])
    entries = [entry for row in given for entry in row.items()]
    return TokenMap(
        indptr.astype(np.int64),
        np.array([target for target, _ in entries], np.int32),
        np.array([weight for _, weight in entries], np.float32),
        np.array([STATISTICS if row else 0 for row in given], np.uint8),
        size,
    )


def test_tokens_of_the_same_bytes_map_whole_and_others_not_at_all():
    found = exact_map(vocabulary(b"a", b" b", b"\xe2", b"c"), vocabulary(b"\xe2", b"a", b"b"))
    assert rows(found) == [{1: 1.0}, {}, {0: 1.0}, {}]
    assert ways(found) == ["exact", "none", "exact", "none"]
    assert found.counts() == {"none": 2, "exact": 2, "role": 0, "first_piece": 0, "edit": 0, "statistics": 0}


def test_special_tokens_map_by_role_whatever_they_are_called():
    source = vocabulary(b"<s>", b"</s>", b"x", bos=0, eos=1)
    assert rows(exact_map(source, vocabulary(b"x", b"</s>", b"[B]", bos=2, eos=1))) == [{2: 1.0}, {1: 1.0}, {0: 1.0}]


@pytest.mark.parametrize(("has", "wants"), [("eos", "end_of_turn"), ("end_of_turn", "eos")])
def test_what_ends_a_text_and_what_ends_a_turn_stand_for_one_another_where_one_is_lacking(has, wants):
    assert rows(exact_map(vocabulary(b"</s>", **{wants: 0}), vocabulary(b"x", b"<e>", **{has: 1}))) == [{1: 1.0}]


def test_a_target_that_has_both_ends_keeps_them_apart():
    target = vocabulary(b"<e>", b"<t>", eos=0, end_of_turn=1)
    assert rows(exact_map(vocabulary(b"</t>", b"</s>", end_of_turn=0, eos=1), target)) == [{1: 1.0}, {0: 1.0}]


def test_special_tokens_without_a_role_map_by_how_they_are_written():
    source = vocabulary(b"", b"", written={0: b"<tool>", 1: b"<mine>"})
    found = exact_map(source, vocabulary(b"<mine>", b"", written={1: b"<tool>"}))
    assert rows(found) == [{1: 1.0}, {}]  # text that looks like a special token is none


def test_a_letter_maps_to_its_own_token_before_that_of_its_byte():
    target = vocabulary(*[bytes([value]) for value in range(256)], b"a", b"b")
    assert rows(exact_map(vocabulary(b"a", b"\xff"), target)) == [{256: 1.0}, {255: 1.0}]


def test_of_several_tokens_with_the_same_bytes_the_lowest_id_wins():
    assert rows(exact_map(vocabulary(b"a", b""), vocabulary(b"x", b"a", b"a"))) == [{1: 1.0}, {}]


def test_a_vocabulary_maps_onto_itself_whole():
    both = vocabulary(b"a", b"a", b"", b"<o>", b"<e>", None, written={3: b"<o>"}, eos=4)
    found = exact_map(both, both)
    assert rows(found) == [{0: 1.0}, {1: 1.0}, {}, {3: 1.0}, {4: 1.0}, {}]
    assert ways(found) == ["exact", "exact", "none", "role", "role", "none"]


def test_a_map_is_filled_from_another_where_it_is_empty():
    first, then = sparse({}, {1: 1.0}, {}, {2: 0.5, 3: 0.25}), sparse({4: 0.5, 5: 0.5}, {6: 1.0}, {}, {7: 1.0})
    both = filled(first, then)
    assert rows(both) == [{4: 0.5, 5: 0.5}, {1: 1.0}, {}, {2: 0.5, 3: 0.25}]
    assert rows(filled(then, first)) == rows(then)  # neither has token 2


def test_maps_of_different_vocabularies_do_not_fill_one_another():
    with pytest.raises(FusionError, match="2 tokens onto 9 cannot be filled from one of 1 onto 9"):
        filled(sparse({}, {}), sparse({}))


def test_a_map_is_read_back_as_it_was_written_and_written_alike_again(tmp_path):
    given = sparse({1: 0.25, 8: 0.75}, {}, {0: 1.0})
    for name in ("a.npz", "deep/b.npz"):
        given.save(tmp_path / name, key="k")
    read = TokenMap.load(tmp_path / "a.npz", key="k")
    assert rows(read) == rows(given) and ways(read) == ways(given) and read.target_size == 9
    assert [read.indptr.dtype, read.indices.dtype, read.weights.dtype, read.kinds.dtype] == ["i8", "i4", "f4", "u1"]
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "deep/b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "deep"]


def test_a_map_of_other_vocabularies_is_refused(tmp_path):
    sparse({1: 1.0}).save(tmp_path / "a.npz", key="ours")
    with pytest.raises(CheckpointError, match=r"a\.npz was made from other vocabularies \(key ours, not theirs\)"):
        TokenMap.load(tmp_path / "a.npz", key="theirs")


def test_lacking_and_broken_maps_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no token map"):
        TokenMap.load(tmp_path / "a.npz", key="k")
    sparse({1: 1.0}).save(tmp_path / "a.npz", key="k")
    whole = (tmp_path / "a.npz").read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"text"):
        (tmp_path / "a.npz").write_bytes(broken)
        with pytest.raises(CheckpointError, match="no token map, or a broken one"):
            TokenMap.load(tmp_path / "a.npz", key="k")
    np.savez(tmp_path / "b.npz", format=1, key=np.frombuffer(b"k", np.uint8), target_size=1, indptr=np.zeros(1))
    with pytest.raises(CheckpointError, match="broken token map"):
        TokenMap.load(tmp_path / "b.npz", key="k")


def test_arrays_that_are_no_map_are_refused():
    one = np.array([3], np.int32), np.ones(1, np.float32), np.ones(1, np.uint8)
    with pytest.raises(FusionError, match="outside 0 to 2"):
        TokenMap(np.array([0, 1]), *one, 3)
    with pytest.raises(FusionError, match="indptr"):
        TokenMap(np.array([0, 1, 1]), *one, 4)
    with pytest.raises(FusionError, match="rows out of order"):
        TokenMap(np.array([0, 2, 1]), one[0], one[1], np.ones(2, np.uint8), 4)


def test_the_key_is_of_the_content_of_both_vocabularies():
    a, b = vocabulary(b"a", b"b"), vocabulary(b"b", b"a")
    others = [
        (a, a),
        (b, a),
        (a, vocabulary(b"b", b"a", eos=1)),
        (a, vocabulary(b"ba", b"")),
        (a, vocabulary(b"b", None)),
    ]
    keys = {map_key(*pair) for pair in [(a, b), *others]} | {map_key(a, b, "edit")}
    assert len(keys) == len(others) + 2
    assert map_key(a, b) == map_key(vocabulary(b"a", b"b"), b)


def test_a_map_to_one_token_each_leaves_out_what_goes_nowhere():
    found = one_to_one(np.array([2, -1]), np.array([4, 4], np.uint8), target_size=3)
    assert rows(found) == [{2: 1.0}, {}] and ways(found) == ["edit", "none"]
