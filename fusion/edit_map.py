"""The map by minimum edit distance (MinED): each token to the target's nearest string.

Wan et al. 2024, arXiv:2401.10491 (FuseLLM), section 3.2; FuseAI@7d9a307, FuseLLM's vocab_mapping.py is the form that
works. The distance is Levenshtein's over the characters of the tokens' text, a leading space among them. The result
is the same as of comparing each token with the whole vocabulary; two differences from the code there: a byte that is
no whole character counts as one of its own (there all such are equal), and special tokens go by role.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fusion.errors import FusionError
from fusion.token_maps import EDIT, NONE, TokenMap, exact_map, ids_by_text, one_to_one

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fusion.pieces import Pieces

__all__ = ["edit_map", "nearest_texts", "written"]

_CHUNK = 2048  # distinct strings searched at a time: some tenths of a second
_CODE_POINTS = 0x110000


def edit_map(
    source: Pieces, target: Pieces, *, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> TokenMap:
    """Map each token exactly where there is such a token, else to one of minimum edit distance.

    Of equals the lowest id wins. A special token that has no counterpart stays unmapped. ``workers`` threads search;
    ``progress`` hears how many of how many distinct strings are done. 262k tokens onto 49k take a core a quarter of a
    minute.
    """
    exact = exact_map(source, target)
    known = {text: number for text, number in ids_by_text(target).items() if number not in target.special}
    unmapped = exact.kinds == NONE
    wanted = [n for n in np.flatnonzero(unmapped).tolist() if source.text[n] and n not in source.special]
    if not wanted or not known:
        return exact
    texts = [written(source.text[number] or b"") for number in wanted]
    near, _ = nearest_texts(
        texts, [written(text) for text in known], list(known.values()), workers=workers, progress=progress
    )
    ids = np.full(source.size, -1, np.int32)
    ids[~unmapped] = exact.indices  # a row of an exact map has one entry
    ids[wanted] = near
    kinds = exact.kinds.copy()
    kinds[wanted] = EDIT
    return one_to_one(ids, kinds, target_size=target.size)


def written(text: bytes) -> str:
    """Return a token's bytes as characters; a byte that is part of no whole character is a lone surrogate."""
    return text.decode("utf-8", "surrogateescape")


def nearest_texts(
    texts: Sequence[str],
    targets: Sequence[str],
    ids: Sequence[int],
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return for each text the id of the nearest of the targets, the lowest among equals, and its edit distance.

    No text or target may be empty.
    """
    if not all(texts) or not all(targets) or not targets:
        raise FusionError("the nearest of no texts, or of empty ones, was asked for; leave empty tokens out")
    index = _index(targets, ids)
    # Characters that no target has are all alike, so texts in scripts the target lacks fall together.
    coded: dict[bytes, list[int]] = {}
    codes, starts = index.encode(texts)
    for number in range(len(texts)):
        coded.setdefault(codes[starts[number] : starts[number + 1]].tobytes(), []).append(number)
    distinct = sorted(coded)
    answers = _search(distinct, index, workers=workers, progress=progress)
    near = np.empty(len(texts), np.int32)
    distances = np.empty(len(texts), np.int64)
    for code, (row, distance) in zip(distinct, answers.tolist(), strict=True):
        near[coded[code]], distances[coded[code]] = index.ids[row], distance
    return near, distances


@dataclass(frozen=True, slots=True)
class _Index:
    """The targets as ``edit_kernels.nearest`` wants them."""

    alphabet: NDArray[np.int32]  # (0x110000,) code by code point, the most frequent first; 0: in no target
    size: int  # codes, 0 included
    codes: NDArray[np.int32]
    firsts: NDArray[np.int64]  # (n+1,)
    ids: NDArray[np.int64]  # (n,)
    lengths: NDArray[np.int64]  # (longest + 2,)
    once: NDArray[np.uint64]  # (n,)
    twice: NDArray[np.uint64]  # (n,)

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        points, starts = _code_points(texts)
        return self.alphabet[points], starts


def _index(targets: Sequence[str], ids: Sequence[int]) -> _Index:
    from fusion.edit_kernels import signatures

    order = sorted(range(len(targets)), key=lambda row: (len(targets[row]), ids[row]))
    points, firsts = _code_points([targets[row] for row in order])
    found, frequency = np.unique(points, return_counts=True)
    alphabet = np.zeros(_CODE_POINTS, np.int32)
    alphabet[found[np.argsort(-frequency, kind="stable")]] = np.arange(1, len(found) + 1)
    codes = alphabet[points]
    sizes = np.diff(firsts)
    lengths = np.searchsorted(sizes, np.arange(sizes[-1] + 2))
    once, twice = np.empty(len(order), np.uint64), np.empty(len(order), np.uint64)
    signatures(codes, firsts, once, twice)
    numbers = np.asarray(ids, np.int64)[order]
    return _Index(alphabet, len(found) + 1, codes, firsts, numbers, lengths.astype(np.int64), once, twice)


def _code_points(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return all characters' code points one after the other, and where each text starts: (n+1,)."""
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")
    starts = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=starts[1:])
    return points, starts


def _search(
    distinct: Sequence[bytes], index: _Index, *, workers: int, progress: Callable[[int, int], None] | None
) -> NDArray[np.int64]:
    """Return for each string its nearest target's row and distance: (n, 2)."""
    from fusion.edit_kernels import nearest

    answers = np.empty((len(distinct), 2), np.int64)
    targets = (index.codes, index.firsts, index.ids, index.once, index.twice, index.lengths)

    def search(first: int) -> int:
        part = distinct[first : first + _CHUNK]
        starts = np.zeros(len(part) + 1, np.int64)
        np.cumsum([len(code) // 4 for code in part], out=starts[1:])
        sources = np.frombuffer(b"".join(part), np.int32)
        masks = np.zeros(index.size, np.uint64)
        nearest(sources, starts, targets, masks, answers[first : first + len(part)])
        return len(part)

    done = 0
    with ThreadPoolExecutor(max(1, min(workers, os.cpu_count() or 1))) as pool:
        running = [pool.submit(search, first) for first in range(0, len(distinct), _CHUNK)]
        for future in as_completed(running):
            done += future.result()
            if progress:
                progress(done, len(distinct))
    return answers
