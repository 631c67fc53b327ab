"""The map by first pieces: a token that the target does not have whole goes to what the target would say first of it.

This is what a distribution of the next token means: a model that puts 0.3 on " fusions" expects a text that goes on
so, and of that text the other model's next token is " fusion". The papers have no such map; theirs take a token that
looks alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fusion.errors import FusionError
from fusion.token_maps import FIRST_PIECE, NONE, TokenMap, exact_map, ids_by_text, one_to_one

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from fusion.pieces import Pieces

__all__ = ["FirstToken", "first_piece_map", "first_tokens", "longest_prefix"]

FirstToken = Callable[[Sequence[bytes]], "NDArray[np.int32]"]
_BATCH = 8192  # texts tokenized at a time: some megabytes


def first_piece_map(source: Pieces, target: Pieces, first_token: FirstToken) -> TokenMap:
    """Map each token exactly where there is such a token, else to the target's first token of the same bytes.

    ``first_token`` says which that is, −1 for none: see ``first_tokens``.
    """
    exact = exact_map(source, target)
    unmapped = exact.kinds == NONE
    wanted = [n for n in np.flatnonzero(unmapped).tolist() if source.text[n] and n not in source.special]
    found = np.asarray(first_token([source.text[number] or b"" for number in wanted]), np.int32)
    if found.shape != (len(wanted),):
        raise FusionError(f"first_token answered {len(wanted)} texts with an array of shape {found.shape}")
    ids = np.full(source.size, -1, np.int32)
    ids[~unmapped] = exact.indices  # a row of an exact map has one entry
    ids[wanted] = found
    kinds = exact.kinds.copy()
    kinds[wanted] = FIRST_PIECE
    return one_to_one(ids, kinds, target_size=target.size)


def first_tokens(tokenizer: PreTrainedTokenizerBase, pieces: Pieces) -> FirstToken:
    """Return the function that gives the first token of each of several texts, as the tokenizer splits them.

    ``pieces`` are the tokenizer's. Where a text is no whole UTF-8, its whole beginning counts; where the tokenizer's
    first token is not how the text begins (it adds a space, or changes letters), the longest token that is.
    """
    by_prefix = longest_prefix(pieces)

    def first(texts: Sequence[bytes]) -> NDArray[np.int32]:
        ids = by_prefix(texts)
        for start in range(0, len(texts), _BATCH):
            part = texts[start : start + _BATCH]
            for place, found in enumerate(_tokenized(tokenizer, pieces, part), start):
                if found is not None:
                    ids[place] = found
        return ids

    return first


def longest_prefix(pieces: Pieces) -> FirstToken:
    """Return the function that gives, for each of several texts, the longest token that it begins with, −1 for none."""
    known = {text: number for text, number in ids_by_text(pieces).items() if number not in pieces.special}
    longest = max(map(len, known), default=0)

    def first(texts: Sequence[bytes]) -> NDArray[np.int32]:
        ids = np.full(len(texts), -1, np.int32)
        for place, text in enumerate(texts):
            for length in range(min(len(text), longest), 0, -1):
                found = known.get(text[:length])
                if found is not None:
                    ids[place] = found
                    break
        return ids

    return first


def _tokenized(tokenizer: PreTrainedTokenizerBase, pieces: Pieces, texts: Sequence[bytes]) -> list[int | None]:
    """Return the tokenizer's first token of each text, None where it is not how the text begins."""
    from fusion.pieces import encode_all

    found: list[int | None] = []
    whole = [_whole(text) for text in texts]
    for text, encoded in zip(texts, encode_all(tokenizer, pieces, whole, bos=False), strict=True):
        said = encoded.ids[encoded.ends > 0]  # without a prefix that the tokenizer made up
        piece = pieces.text[said[0]] if len(said) else None
        found.append(int(said[0]) if piece and text.startswith(piece) else None)
    return found


def _whole(text: bytes) -> str:
    """Return the characters up to the first byte that is part of none."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        return text[: error.start].decode()
