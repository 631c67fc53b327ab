import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.errors import RecipeError
from fusion.pieces import BYTE_TOKENS, added_before, encode, encode_all, read_pieces, turn_end
from tests.fusion.tiny_tokenizers import EXACT, FAMILIES, byte_fallback, byte_level, normalising, unigram

TEXTS = (
    "The cat sees the dog.  The dog, too: sees\n\n\tthe cat!",
    "Ça coûte 12 € à Zoë, naïve façade",
    "שלום עולם مرحبا بالعالم",
    "漢字かな交じり文 한국어",
    "👩‍👩‍👧 🏳️‍🌈 👍🏽 e\u0301\u0327 \u202eabc\u202c",
)
NASTY = (
    " ",
    "  ",
    "▁",
    "Ġ",
    "<0x41>",
    "<s>",
    "<|end|>",
    "<",
    "\n",
    "\r\n",
    "\u00a0",
    "\u200d",
    "\ufffd",
    "é",
    "🏽",
    "\x00",
)
unicode_text = st.lists(st.one_of(st.sampled_from((*TEXTS, *NASTY)), st.text(max_size=12)), max_size=6).map("".join)


def spans(text, encoded):
    raw = text.encode()
    return [raw[start:end] for start, end in zip(encoded.starts, encoded.ends, strict=True)]


def make(family, texts=TEXTS):
    tokenizer = FAMILIES[family](texts)
    return tokenizer, read_pieces(tokenizer)


@pytest.fixture(scope="module")
def ready():
    return {family: make(family) for family in FAMILIES}.__getitem__


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", [*TEXTS, "", " ", " a", "a ", "<|turn|>user\nHi 👍🏽<|end|>\n"])
def test_tokens_cover_their_text_without_gap_or_overlap(ready, family, text):
    tokenizer, pieces = ready(family)
    encoded = encode(tokenizer, pieces, text, bos=False)
    assert encoded.ids.tolist() == tokenizer(text, add_special_tokens=False).input_ids
    assert b"".join(spans(text, encoded)) == text.encode()
    assert (encoded.starts[1:] == encoded.ends[:-1]).all()
    assert (encoded.ids.dtype, encoded.starts.dtype, encoded.ends.dtype) == (np.int32, np.int64, np.int64)


@pytest.mark.parametrize("family", EXACT)
def test_each_token_covers_the_bytes_of_its_piece(ready, family):
    tokenizer, pieces = ready(family)
    for text in TEXTS:
        encoded = encode(tokenizer, pieces, text, bos=False)
        assert spans(text, encoded) == [pieces.text[i] for i in encoded.ids]


@settings(max_examples=40, deadline=None)
@given(text=unicode_text, family=st.sampled_from(sorted(FAMILIES)))
def test_any_text_is_covered_in_order(ready, text, family):
    tokenizer, pieces = ready(family)
    encoded = encode(tokenizer, pieces, text, bos=False)
    assert (encoded.starts <= encoded.ends).all()
    assert (encoded.starts[1:] == encoded.ends[:-1]).all()
    assert b"".join(spans(text, encoded)) == text.encode()


@settings(max_examples=15, deadline=None)
@given(corpus=st.lists(unicode_text.filter(str.strip), min_size=1, max_size=5), text=unicode_text, data=st.data())
def test_pieces_of_a_random_tokenizer_make_up_any_text(corpus, text, data):
    family = data.draw(st.sampled_from(("byte-level", "byte fallback")))
    tokenizer = FAMILIES[family](corpus, data.draw(st.integers(290, 420)))
    pieces = read_pieces(tokenizer)
    if family == "byte fallback":
        text = text.replace("▁", "_")  # which it takes for a space
    encoded = encode(tokenizer, pieces, text, bos=False)
    assert spans(text, encoded) == [pieces.covering[i] for i in encoded.ids]


def test_tokens_within_one_character_cover_their_own_bytes():
    for tokenizer in (byte_level(["a"], 262), byte_fallback(["a"], 262)):
        pieces = read_pieces(tokenizer)
        encoded = encode(tokenizer, pieces, "a👍", bos=False)
        assert spans("a👍", encoded) == [b"a", b"\xf0", b"\x9f", b"\x91", b"\x8d"]


def test_a_made_up_space_covers_nothing():
    tokenizer = byte_fallback(["hello"], 400, legacy=True)
    pieces = read_pieces(tokenizer)
    encoded = encode(tokenizer, pieces, "hello👍<|end|>hello", bos=False)
    covered = list(zip((pieces.covering[i] for i in encoded.ids), spans("hello👍<|end|>hello", encoded), strict=True))
    assert covered[0] == (b" hello", b"hello")
    assert covered[1:5] == [(byte, byte) for byte in (b"\xf0", b"\x9f", b"\x91", b"\x8d")]
    assert covered[5:] == [(b"<|end|>", b"<|end|>"), (b" hello", b"hello")]


def test_where_a_normalizer_changes_the_text_the_offsets_of_the_tokenizer_stand_in():
    tokenizer = normalising(["office naive"], 290)
    pieces = read_pieces(tokenizer)
    text = "NAÏVE ﬃ x"
    encoded = encode(tokenizer, pieces, text, bos=False)
    covered = list(zip((pieces.covering[i] for i in encoded.ids), spans(text, encoded), strict=True))
    assert b"".join(piece for piece, _ in covered) == b"naive ffi x"
    assert b"".join(span for _, span in covered) == text.encode()
    assert covered[-1][1].endswith(b"x")
    assert "ﬃ".encode() in b"".join(span for _, span in covered)


def test_what_belongs_before_a_text_comes_first_and_covers_nothing():
    tokenizer = byte_level(TEXTS, bos=True)
    pieces = read_pieces(tokenizer)
    plain, first = (encode(tokenizer, pieces, "the cat", bos=bos) for bos in (False, True))
    assert first.ids.tolist() == [1, *plain.ids] == tokenizer("the cat").input_ids
    assert (first.starts[0], first.ends[0]) == (0, 0)
    assert first.ends[1:].tolist() == plain.ends.tolist()


def test_a_text_that_begins_with_its_bos_gets_no_second():
    tokenizer = byte_level(TEXTS, bos=True)
    encoded = encode(tokenizer, read_pieces(tokenizer), "<s>the cat", bos=True)
    assert encoded.ids.tolist().count(1) == 1
    assert encoded.ends[0] == 3


def test_a_tokenizer_that_lost_its_rule_means_its_bos():
    lost = byte_fallback(TEXTS)  # as from a GGUF file: nothing is added, and nothing says that nothing should be
    assert added_before(lost) == (1,)
    assert added_before(byte_level(TEXTS)) == ()  # its post-processor leaves no room for one
    assert added_before(unigram(TEXTS, add_bos_token=False)) == ()
    assert added_before(unigram(TEXTS, bos_token="</s>")) == ()  # it ends texts
    assert added_before(unigram(TEXTS, bos_token="<|turn|>")) == ()  # it begins every turn


def test_special_tokens_have_roles_and_no_text():
    tokenizer = byte_level(TEXTS)
    pieces = read_pieces(tokenizer)
    assert dict(pieces.special) == {0: "unk", 1: "bos", 2: "eos", 3: "other", 4: "end_of_turn"}
    assert [pieces.text[i] for i in range(5)] == [None] * 5
    assert pieces.written[4] == b"<|end|>"
    assert pieces.with_role("eos") == (2,)
    assert turn_end(tokenizer) == (4, "<|end|>")
    assert pieces.size == len(pieces.text) == len(tokenizer)


def test_further_ends_of_a_generation_config_are_eos():
    assert read_pieces(byte_level(TEXTS), eos=[3]).special[3] == "eos"


def test_without_a_template_nothing_ends_a_turn():
    tokenizer = byte_level(TEXTS, chat_template=None)
    assert turn_end(tokenizer) is None
    assert read_pieces(tokenizer).special[4] == "other"


def test_a_template_that_refuses_ends_no_turn():
    assert turn_end(byte_level(TEXTS, chat_template="{{ raise_exception('no') }}")) is None


def test_byte_tokens_are_bytes_only_where_the_tokenizer_falls_back_to_them():
    whole = read_pieces(byte_fallback(TEXTS))
    assert {bytes([byte]) for byte in range(256)} <= set(whole.text)
    plain = byte_level(["<0x41>"] * 9, 320)
    assert b"A" in read_pieces(plain).text
    assert len(BYTE_TOKENS) == 256 and BYTE_TOKENS[10] == "<0x0A>"


def test_many_texts_are_encoded_as_each_of_them():
    tokenizer, pieces = make("Unigram with a prefix")
    for text, encoded in zip(TEXTS, encode_all(tokenizer, pieces, TEXTS, bos=True), strict=True):
        alone = encode(tokenizer, pieces, text, bos=True)
        assert encoded.ids.tolist() == alone.ids.tolist()
        assert encoded.ends.tolist() == alone.ends.tolist()


def test_a_limit_left_behind_does_not_cut_a_text():
    tokenizer, pieces = make("byte-level")
    tokenizer(TEXTS[0], truncation=True, max_length=3)
    assert len(encode(tokenizer, pieces, TEXTS[0], bos=False)) > 3


def test_a_tokenizer_of_another_library_is_refused():
    class Foreign:
        pass

    with pytest.raises(RecipeError, match="Foreign is not one of the tokenizers library"):
        read_pieces(Foreign())
