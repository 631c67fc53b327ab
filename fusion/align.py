"""Which positions of two tokenizations of one text have seen the same text, and how their next tokens relate.

A language model's distribution after a token depends on the text up to where that token ends. Two models' distributions
can be compared exactly where their tokens end at the same byte, so alignment is a comparison of two rising sequences of
byte offsets: exact, and linear in the tokens. FuseLLM and FuseChat align token strings by dynamic time warping instead
(arXiv:2401.10491, 2402.16107; fusion/align_dtw.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fusion.pieces import Encoded


class Kind(IntEnum):
    """How the target's next token relates to the source's next tokens at a position."""

    ONE_TO_ONE = 0  # both cover the same bytes
    ONE_TO_MANY = 1  # the target's next token is several whole tokens of the source
    MANY_TO_ONE = 2  # the source's next token is several whole tokens of the target
    SPLIT = 3  # they start together and then cross
    UNALIGNED = 4  # no position of the source ends here, or the source ends here altogether
    LAST = 5  # the target has no next token


SPLIT, UNALIGNED, LAST = int(Kind.SPLIT), int(Kind.UNALIGNED), int(Kind.LAST)  # numpy is slow with enums


@dataclass(frozen=True, slots=True)
class Alignment:
    """The source's position for each of the target's m positions; position t is the one after token t.

    ``source`` is the source position that ends at the same byte, else −1; it rises, and no two targets share one.
    ``pieces`` counts the tokens that make up the longer next token: the source's where the kind is ONE_TO_MANY, the
    target's where it is MANY_TO_ONE, 1 where it is ONE_TO_ONE, else 0.
    """

    kind: NDArray[np.uint8]  # (m,), values of Kind
    source: NDArray[np.int32]  # (m,)
    pieces: NDArray[np.int32]  # (m,)


def align(target: Encoded, source: Encoded) -> Alignment:
    """Align two tokenizations of the same text.

    Tokens without text (bos, prefixes) share an end with others: as many on both sides are taken in order, else only
    the last on each side, which alone has all that comes before that byte behind it. Where the source was cut short,
    what follows is unaligned.
    """
    return classify(_same_ends(target.ends, source.ends), len(source))


def classify(source: NDArray[np.int32], length: int) -> Alignment:
    """Tell how the next tokens relate, given each target position's source position (−1: none) of ``length``.

    From one pair of positions to the next pair, the target takes so many tokens and the source so many: 1 and 1,
    1 and several, several and 1, or several and several that cross.
    """
    kind = np.full(len(source), UNALIGNED, np.uint8)
    pieces = np.zeros(len(source), np.int32)
    paired = (source >= 0).nonzero()[0]
    if len(paired):
        partner = source[paired]
        taken, given = paired[1:] - paired[:-1], partner[1:] - partner[:-1]
        relation = (given > 1) + 2 * (taken > 1)  # the values of the first four kinds
        starts = paired[:-1]
        kind[starts] = relation
        pieces[starts] = np.maximum(taken, given) * (relation < SPLIT)
        if partner[-1] < length - 1:
            kind[paired[-1]] = SPLIT
        elif paired[-1] < len(source) - 1:
            source = source.copy()
            source[paired[-1]] = -1  # its next token is not known
    kind[-1:] = LAST
    return Alignment(kind=kind, source=source, pieces=pieces)


def _same_ends(target: NDArray[np.int64], source: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return for each target position the source position with the same end, −1 where there is none."""
    if not len(target) or not len(source):
        return np.full(len(target), -1, np.int32)
    last = np.full(max(int(target[-1]), int(source[-1])) + 1, -1, np.int32)  # by byte: the last source position
    last[source] = np.arange(len(source), dtype=np.int32)  # of equal ends the last is kept
    found = last[target]
    shared = (target[1:] == target[:-1]).nonzero()[0]
    if len(shared):
        _untie(found, target, source, shared)
    return found


def _untie(
    found: NDArray[np.int32], target: NDArray[np.int64], source: NDArray[np.int64], shared: NDArray[np.intp]
) -> None:
    """Settle target positions that share an end with the next one."""
    ends = target[shared]
    till = np.searchsorted(target, ends, "right")
    here = till - np.searchsorted(target, ends, "left")
    there = np.searchsorted(source, ends, "right") - np.searchsorted(source, ends, "left")
    found[shared] = np.where(here == there, found[shared] - (till - 1 - shared), -1)
