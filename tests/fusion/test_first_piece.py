import numpy as np
import pytest

from fusion.errors import FusionError
from fusion.first_piece import first_piece_map, first_tokens, longest_prefix
from fusion.pieces import Pieces, read_pieces
from fusion.token_maps import KINDS
from tests.fusion.tiny_tokenizers import FAMILIES

CORPUS = ("a fusion of models, fusion and confusion", "the café naïve 한국 models", "שלום עולם, model of a 😀 fusion")
BYTE_LEVEL = "byte-level"


@pytest.fixture(scope="module")
def trained():
    """A tiny tokenizer of each family."""
    return {name: train(CORPUS) for name, train in FAMILIES.items()}


def vocabulary(*text, **roles):
    special = {number: role for role, number in roles.items()}
    plain = tuple(None if number in special else piece for number, piece in enumerate(text))
    return Pieces(size=len(text), text=plain, special=special, written={})


def test_a_token_goes_to_what_the_target_says_first_of_it():
    target = vocabulary(b" fus", b" fusion", b"s", b" f")
    found = first_piece_map(vocabulary(b" fusions", b"s", b" fuse", b"x"), target, longest_prefix(target))
    assert [found.row(s)[0].tolist() for s in range(4)] == [[1], [2], [0], []]
    assert [KINDS[kind] for kind in found.kinds] == ["first_piece", "exact", "first_piece", "none"]


def test_special_tokens_have_no_first_piece():
    target = vocabulary(b"<", b"s")
    assert first_piece_map(vocabulary(b"<s>", bos=0), target, longest_prefix(target)).counts()["none"] == 1


def test_the_first_piece_is_as_the_tokenizer_splits_and_not_the_longest_token(trained):
    tokenizer = trained[BYTE_LEVEL]
    texts = ["fusions", " fusional", "café", "한국어", " models"]
    split = [tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in texts]
    assert first_tokens(tokenizer, read_pieces(tokenizer))([text.encode() for text in texts]).tolist() == split


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_has_a_first_piece_where_the_target_has_all_bytes_and_begins_with_it(trained, family):
    pieces = read_pieces(trained[family])
    words = ["fusion", " confusing", "naïve", "한국", "😀", "\n\n", "\u0301a", "שלום", "<s>", "▁", "  "]
    texts = [word.encode()[:cut] for word in words for cut in range(1, len(word.encode()) + 1)]
    texts += [b"\x80", b"\xff\xfe", b"a\xe2", b"\x81abc"]
    found = first_tokens(trained[family], pieces)(texts)
    assert all(text.startswith(pieces.text[number]) for text, number in zip(texts, found, strict=True))


@pytest.mark.parametrize("there", FAMILIES)
@pytest.mark.parametrize("here", FAMILIES)
def test_between_families_every_token_goes_whole_to_one_that_it_begins_with(trained, here, there):
    source, target = read_pieces(trained[here]), read_pieces(trained[there])
    found = first_piece_map(source, target, first_tokens(trained[there], target))
    assert found.counts()["none"] == sum(not text for text in source.text) - found.counts()["role"]
    assert (found.weights == 1).all()
    for number, text in enumerate(source.text):
        if text:
            assert text.startswith(target.text[found.row(number)[0][0]])


def test_a_tokenizer_maps_onto_itself_as_it_is(trained):
    for tokenizer in trained.values():
        pieces = read_pieces(tokenizer)
        found = first_piece_map(pieces, pieces, first_tokens(tokenizer, pieces))
        mapped = [number for number in range(pieces.size) if pieces.text[number] or number in pieces.special]
        assert found.indices.tolist() == mapped and found.counts()["first_piece"] == 0


def test_where_the_tokenizer_puts_a_space_before_a_text_the_longest_token_counts(trained):
    pieces = read_pieces(trained["legacy byte fallback"])
    [found] = first_tokens(trained["legacy byte fallback"], pieces)([b"fusions"])
    assert pieces.text[found] == max((t for t in pieces.text if t and b"fusions".startswith(t)), key=len)


def test_no_texts_have_no_first_tokens(trained):
    assert first_tokens(trained[BYTE_LEVEL], read_pieces(trained[BYTE_LEVEL]))([]).shape == (0,)


def test_an_answer_of_another_length_is_refused():
    with pytest.raises(FusionError, match="answered 1 texts with an array of shape"):
        first_piece_map(vocabulary(b"a"), vocabulary(b"b"), lambda texts: np.zeros(len(texts) + 1, np.int32))
