"""The search for the nearest strings by edit distance, compiled.

Exact: a target is passed over only when a lower bound of its distance says that it cannot win. The bounds come from
lengths and from bags of characters kept in two machine words; what they leave is measured by the bit-parallel method
of Myers 1999 (doi:10.1145/316542.316550), in Hyyrö's form for the distance of whole strings.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fusion.compiling import compiled, inner

__all__ = ["nearest", "signatures"]

Array = Any  # an array of numpy

_WORD = 64  # characters that one machine word holds
_OWN = 48  # the characters that are most frequent have a bit each; the others share the rest
_SHARED = _WORD - _OWN

_ZERO, _ONE = np.uint64(0), np.uint64(1)
_ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_PAIRS, _FOURS, _EIGHTS = (
    np.uint64(0x5555_5555_5555_5555),
    np.uint64(0x3333_3333_3333_3333),
    np.uint64(0x0F0F_0F0F_0F0F_0F0F),
)
_BYTES, _TOP = np.uint64(0x0101_0101_0101_0101), np.uint64(56)
_TWO, _FOUR = np.uint64(2), np.uint64(4)


@inner
def _ones(word: Any) -> Any:
    """Count the ones of a word, in the form that compilers know for the processor's own instruction."""
    word = word - ((word >> _ONE) & _PAIRS)
    word = (word & _FOURS) + ((word >> _TWO) & _FOURS)
    word = (word + (word >> _FOUR)) & _EIGHTS
    return np.int64((word * _BYTES) >> _TOP)


@inner
def _bag(codes: Array) -> tuple[Any, Any, Any]:
    """Return which characters stand in it once at least, which twice, and how many are in no target (code 0)."""
    once, twice, unknown = _ZERO, _ZERO, np.int64(0)
    for code in codes:
        if code == 0:
            unknown += 1
            continue
        bit = _ONE << np.uint64(code if code < _OWN else _OWN + code % _SHARED)
        twice |= once & bit
        once |= bit
    return once, twice, unknown


@compiled
def signatures(codes: Array, starts: Array, once: Array, twice: Array) -> None:
    """Write the bag of each string."""
    for i in range(once.size):
        once[i], twice[i], _ = _bag(codes[starts[i] : starts[i + 1]])


@inner
def _short(text: Array, length: Any, masks: Array, most: Any) -> Any:
    """Return the distance of a text from the pattern in ``masks``, of at most 64 characters, or more than ``most``."""
    up, down, score = _ALL, _ZERO, length
    last = _ONE << np.uint64(length - 1)
    left = np.int64(text.size)
    for code in text:
        equal = masks[code]
        vertical = equal | down
        across = (((equal & up) + up) ^ up) | equal
        more = down | ~(across | up)
        less = up & across
        if more & last:
            score += 1
        elif less & last:
            score -= 1
        left -= 1
        if score - left > most:
            return most + 1
        more = (more << _ONE) | _ONE
        less = less << _ONE
        up = less | ~(vertical | more)
        down = more & vertical
    return score


@inner
def _long(text: Array, pattern: Array, row: Array) -> Any:
    """Return the distance by the table, row by row."""
    for j in range(pattern.size + 1):
        row[j] = j
    for i in range(text.size):
        corner, row[0] = row[0], i + 1
        for j in range(pattern.size):
            above = row[j + 1]
            row[j + 1] = min(min(above, row[j]) + 1, corner + (text[i] != pattern[j]))
            corner = above
    return np.int64(row[pattern.size])


@compiled
def nearest(sources: Array, starts: Array, index: tuple[Array, ...], masks: Array, answers: Array) -> None:
    """Write for each source which target (by row) is nearest, the lowest id among equals, and how far it is.

    ``sources`` int32 are the characters' codes, string after string from ``starts`` (n+1,); so are the targets' in
    ``index``: codes, starts, ids, once and twice (``signatures``), and lengths. The targets stand in order of length,
    then id; those of length l are the rows lengths[l] to lengths[l+1]. ``masks`` uint64 (codes,) is zero before and
    after. ``answers`` is int64 (n, 2). Sources in alphabetical order go faster: a neighbour's answer is tried first.
    """
    targets, firsts, ids, once, twice, lengths = index
    longest = lengths.size - 2
    row = np.empty(max(longest, np.max(np.diff(starts))) + 1, np.int64)
    for s in range(len(answers)):
        source = sources[starts[s] : starts[s + 1]]
        length = np.int64(source.size)
        in_source, again, unknown = _bag(source)
        short = length <= _WORD
        if short:
            for j in range(length):
                masks[source[j]] |= _ONE << np.uint64(j)
            masks[0] = _ZERO
        best_row = np.int64(answers[s - 1, 0] if s else 0)
        text = targets[firsts[best_row] : firsts[best_row + 1]]
        best = _long(text, source, row)
        for apart in range(max(longest, length) + 1):
            if apart > best:
                break
            for side in range(2 if apart else 1):
                size = length + apart if side else length - apart
                if size < 1 or size > longest or (side and apart + unknown > best):
                    continue
                for t in range(lengths[size], lengths[size + 1]):
                    surplus = unknown + _ones(in_source & ~once[t]) + _ones(again & ~twice[t])
                    lacking = _ones(once[t] & ~in_source) + _ones(twice[t] & ~again)
                    bound = max(length, size) - min(length - surplus, size - lacking)
                    if bound > best or (bound == best and ids[t] >= ids[best_row]):
                        continue
                    text = targets[firsts[t] : firsts[t + 1]]
                    far = _short(text, length, masks, best) if short else _long(text, source, row)
                    if far < best or (far == best and ids[t] < ids[best_row]):
                        best, best_row = far, np.int64(t)
        if short:
            for j in range(length):
                masks[source[j]] = _ZERO
        answers[s, 0], answers[s, 1] = best_row, best
