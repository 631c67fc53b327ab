"""Which of many texts nearly repeat an earlier one, found in time that grows with their number alone.

A text is known by its sketch: the smallest hashes of its overlapping pieces (shingles) of 16 bytes. Two sketches tell
how alike the texts are in Jaccard's sense, the share of pieces that they have in common (Broder 1997,
doi:10.1109/SEQUEN.1997.666900). A text is only held against the first texts that share one of its very smallest hashes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

SHINGLE = 16  # bytes
KEPT = 64  # hashes of a sketch: a similarity of 0.8 is told with a standard error of 0.05
KEYS = 8  # of these, under which a text is found again: two texts that are 0.8 alike miss each other once in 400,000
ALIKE = 0.8
AT_ONCE = 500  # texts that are hashed together


def near_duplicates(texts: Sequence[str], *, alike: float = ALIKE) -> list[int | None]:
    """Return of each text the place of the first one that it nearly repeats, itself where others repeat it, else None.

    Texts are compared as they are: give them :func:`normalised`. One of fewer than 16 bytes repeats only what equals
    it.
    """
    leaders: dict[int, int] = {}  # from a hash to the first text that has it among its smallest
    short: dict[str, int] = {}
    found: list[int | None] = [None] * len(texts)
    every = [found for begun in range(0, len(texts), AT_ONCE) for found in sketches(texts[begun : begun + AT_ONCE])]
    for place, (text, drawn) in enumerate(zip(texts, every, strict=True)):
        if not drawn:
            other: int | None = short.setdefault(text, place)
        else:
            known = dict.fromkeys(leaders[key] for key in drawn[:KEYS] if key in leaders)
            other = next((each for each in known if similarity(every[each], drawn) >= alike), None)
            if other is None:
                for key in drawn[:KEYS]:
                    leaders.setdefault(key, place)
        if other is not None and other != place:
            found[other] = found[place] = other
    return found


def normalised(text: str) -> str:
    """Return the text in small letters, with one space for all white space between words."""
    return " ".join(text.lower().split())


def sketches(texts: Sequence[str]) -> list[list[int]]:
    """Return, of each text, the smallest distinct hashes of its shingles, at most KEPT, ascending.

    A text of fewer than SHINGLE bytes has none.
    """
    contents = [text.encode("utf-8", errors="surrogatepass") for text in texts]
    lengths = np.array([len(content) for content in contents], dtype=np.int64)
    counts = np.maximum(lengths - SHINGLE + 1, 0)
    hashed = _hashes(b"".join(contents))
    # The smallest of many lie below a bound that is known beforehand; of few, all are wanted.
    bounds = [2**64 // int(n) * 2 * KEPT if n > 4 * KEPT else 2**64 - 1 for n in counts]
    ended = np.cumsum(lengths)
    begun = ended - lengths
    inside = np.zeros(len(hashed) + 1, dtype=np.int64)  # 1 from where a text's shingles begin, 0 from where they end
    np.add.at(inside, begun[counts > 0], 1)
    np.add.at(inside, (begun + counts)[counts > 0], -1)
    small = np.flatnonzero(hashed <= np.repeat(np.array(bounds, np.uint64), lengths)[: len(hashed)])
    small = small[np.cumsum(inside)[small] > 0]
    parts = np.split(hashed[small], np.searchsorted(small, ended[:-1])) if len(texts) else []
    found = []
    for part, first, count in zip(parts, begun, counts, strict=True):
        distinct = set(part.tolist())
        if len(distinct) < KEPT and count > len(part):  # it repeats itself so much that too few are small
            distinct = set(hashed[first : first + count].tolist())
        found.append(sorted(distinct)[:KEPT])
    return found


def _hashes(content: bytes) -> Hashes:
    """Return a hash of every SHINGLE bytes of the content."""
    count = len(content) - SHINGLE + 1
    if count < 1:
        return np.empty(0, np.uint64)
    eights: Hashes = np.ndarray((count + 8,), dtype="<u8", buffer=content, strides=(1,))  # every 8 bytes as a number
    hashed = eights[:count] * np.uint64(0x9E3779B97F4A7C15)
    hashed ^= hashed >> np.uint64(29)
    hashed += eights[8:] * np.uint64(0xC2B2AE3D27D4EB4F)
    hashed ^= hashed >> np.uint64(32)
    hashed *= np.uint64(0xD6E8FEB86659FD93)
    hashed ^= hashed >> np.uint64(32)
    return hashed


def similarity(one: Sequence[int], other: Sequence[int]) -> float:
    """Return the Jaccard similarity of two texts as their sketches, neither empty, tell it: from 0 to 1."""
    mine, theirs = set(one), set(other)
    together = sorted(mine | theirs)[:KEPT]  # the smallest hashes of both texts together
    return sum(each in mine and each in theirs for each in together) / len(together)
