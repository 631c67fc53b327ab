"""Alignment by dynamic time warping over token strings, as FuseLLM and FuseChat do it; kept to compare with.

Wan et al., arXiv:2401.10491 and 2402.16107; FuseAI@7d9a307, FuseChat/train/token_alignment.py. It knows nothing of what
was before a token, so it pairs tokens that look alike with others where the text up to them differs: fusion/align.py
compares byte offsets instead, exactly and some thousand times faster. Not taken over: the padding to 2048 tokens, which
went through the warping too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fusion.align import Alignment, classify
from fusion.pieces import Encoded, Pieces

REASONS = (
    "agree",  # the same source position
    "no shared end",  # warping names a source position, but no source token ends where the target's does
    "not the last",  # the right position is among several, of which the reference takes the last
    "elsewhere",  # the right position exists, and warping names others
)


def token_texts(pieces: Pieces, encoded: Encoded) -> list[str]:
    """Return the tokens as strings, as the reference sees them: parts of characters are all U+FFFD."""
    return [pieces.covering[i].decode(errors="replace") for i in encoded.ids.tolist()]


def align_dtw(
    target_texts: Sequence[str], source_texts: Sequence[str], *, target_marker: str = " ", source_marker: str = " "
) -> list[tuple[int, ...]]:
    """Return for each target token the source tokens (rising) that the cheapest warping pairs with it.

    D[i, j] = d(source i, target j) + min(D[i−1, j], D[i, j−1], D[i−1, j−1]), with d the Levenshtein distance of the
    strings without their markers of a space. Of equally cheap ways back, FuseChat goes to both previous tokens, else to
    the target's, else to the source's. Time and memory are in proportion to the product of the lengths.
    """
    if not target_texts or not source_texts:
        return [()] * len(target_texts)
    sums = _sums(_distances(target_texts, source_texts, target_marker=target_marker, source_marker=source_marker))
    pairs: list[list[int]] = [[] for _ in target_texts]
    i, j = len(source_texts), len(target_texts)
    while i and j:
        pairs[j - 1].append(i - 1)
        ways = sums[i - 1, j - 1], sums[i, j - 1], sums[i - 1, j]
        back = ways.index(min(ways))
        i, j = i - (back != 1), j - (back != 2)
    return [tuple(reversed(found)) for found in pairs]


def as_alignment(matches: Sequence[Sequence[int]], length: int) -> Alignment:
    """Read a warping over a source of ``length`` tokens as an alignment, so that it can be used and compared.

    A target position has the last of its source positions, as in the reference; of target positions with the same one,
    only the last has it. The kinds are what the warping claims, not what the bytes say.
    """
    last = np.array([found[-1] if found else -1 for found in matches], np.int32)
    last[:-1][last[:-1] == last[1:]] = -1
    return classify(last, length)


def agreement(matches: Sequence[Sequence[int]], alignment: Alignment) -> Counter[str]:
    """Count the target positions by whether warping and bytes agree, and why not: keys are REASONS."""
    counts: Counter[str] = Counter()
    for found, right in zip(matches, alignment.source.tolist(), strict=True):
        if right < 0:
            counts["no shared end"] += 1
        elif right not in found:
            counts["elsewhere"] += 1
        else:
            counts["agree" if found[-1] == right else "not the last"] += 1
    return counts


def _distances(
    target_texts: Sequence[str], source_texts: Sequence[str], *, target_marker: str, source_marker: str
) -> NDArray[np.int32]:
    """Return the distance of each source token (rows) and target token (columns), each distinct pair computed once."""
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    sources, row = np.unique(np.array(source_texts, object), return_inverse=True)
    targets, column = np.unique(np.array(target_texts, object), return_inverse=True)
    bare_sources = [text.replace(source_marker, "") for text in sources]
    bare_targets = [text.replace(target_marker, "") for text in targets]
    table = cdist(bare_sources, bare_targets, scorer=Levenshtein.distance, dtype=np.int32)
    swapped = [text.replace(source_marker, target_marker) for text in sources]
    for i in (i for i, text in enumerate(bare_sources) if not text):  # only markers: compared with their markers
        table[i] = cdist([swapped[i]], targets.tolist(), scorer=Levenshtein.distance, dtype=np.int32)[0]
    for j in (j for j, text in enumerate(bare_targets) if not text):
        table[:, j] = cdist(swapped, [targets[j]], scorer=Levenshtein.distance, dtype=np.int32)[:, 0]
    return np.asarray(table[row][:, column], np.int32)


def _sums(cost: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the least sums D, with a border before the first row and column, one antidiagonal at a time."""
    n, m = cost.shape
    sums = np.full((n + 1, m + 1), np.iinfo(np.int64).max // 2, np.int64)
    sums[0, 0] = 0
    sums[1:, 1:] = cost
    flat = sums.reshape(-1)
    for diagonal in range(n + m - 1):
        top = max(0, diagonal - m + 1)
        bottom = min(n - 1, diagonal)
        first = (top + 1) * (m + 1) + diagonal - top + 1
        stop = first + (bottom - top) * m + 1
        before = np.minimum(flat[first - 1 : stop - 1 : m], flat[first - m - 1 : stop - m - 1 : m])
        flat[first:stop:m] += np.minimum(before, flat[first - m - 2 : stop - m - 2 : m])
    return sums
