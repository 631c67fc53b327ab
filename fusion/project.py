"""What a source model expects next, said in the target's tokens.

After tokens that end at the same byte, both models have read the same text, so that what they expect next can be
compared. Probabilities go through a map of the vocabularies; what lands on one target token adds up, and what lands on
none stays as the tail. Wan et al. 2024, arXiv:2401.10491 and 2402.16107, project so. Differences from FuseAI@7d9a307:
there the first of several entries on one token wins, what is not mapped is lost, and positions come from a dynamic
time warping of token strings.

Of the token that really comes next, the text itself says to which target token it belongs; no map is needed:

- ONE_TO_ONE: it is the target's next token.
- MANY_TO_ONE: the source's token covers the target's next and more, so it begins with the target's next token.
- ONE_TO_MANY: the target's next token is several of the source's. By the chain rule its probability is the product
  of theirs. The rest of the first piece's probability goes where the map says.
- SPLIT: they cross later. The source's tokens up to the one that crosses the end of the target's next token begin with
  it, so that the product of theirs is the least that its probability can be; the rest goes where the map says.
- elsewhere the source says nothing: the target's next token has all the probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.align import Kind
from fusion.errors import FusionError
from fusion.sparse import Floats, Ints, Sparse, gather

if TYPE_CHECKING:
    from fusion.align import Alignment
    from fusion.pieces import Encoded
    from fusion.teachers import TeacherRow
    from fusion.token_maps import TokenMap

__all__ = ["Projection", "Sparse", "project"]

ALIGNED = (Kind.ONE_TO_ONE, Kind.ONE_TO_MANY, Kind.MANY_TO_ONE, Kind.SPLIT)
"""The kinds of positions at which the source's distribution is what stands there."""

_LEAST = -1e4  # a log-probability that is 0 as a probability, and still a number when others are added to it


@dataclass(frozen=True, slots=True)
class Projection:
    """A source's distributions in the target's tokens, at the target's m positions.

    A position is after a token of the text and expects the next. ``gold`` is the probability of the token that really
    comes next, also where it is not among those kept; NaN where the source says nothing.
    """

    sparse: Sparse
    kind: NDArray[np.uint8]  # (m,) values of fusion.align.Kind
    aligned: NDArray[np.bool_]  # (m,) whether the source's distribution is what stands there
    gold: NDArray[np.float64]  # (m,)


def project(
    row: TeacherRow, target: Encoded, alignment: Alignment, token_map: TokenMap | None, *, k: int | None = None
) -> Projection:
    """Project the distributions of ``row`` to the target's tokens, ``k`` a position; None: as many as the row has.

    Without a map, source and target have one vocabulary. Kept probabilities and tail sum to 1. The last position has no
    next token: it keeps nothing, and its tail is 1. With one tokenizer this changes nothing. A position whose source
    positions lie beyond the row, which was cut at some length, counts as UNALIGNED. FusionError where row, text and
    alignment do not fit together.
    """
    _check(row, target, alignment)
    length, columns = len(target.ids), k if k is not None else row.top_ids.shape[1]
    pieces = _pieces(row, target, alignment)
    kind = _kinds(row, alignment, pieces)
    aligned = np.isin(kind, ALIGNED)
    at = np.flatnonzero(aligned)
    mapped, direct = _split_gold(row, alignment.source[at], pieces[at], at)
    rows, ids, mass = _mapped(*mapped, token_map)
    alone = np.flatnonzero(~aligned & (np.arange(length) < length - 1))  # one-hot on the token that comes next
    rows = np.concatenate((rows, at, alone))
    ids = np.concatenate((ids, target.ids[at + 1], target.ids[alone + 1]))
    mass = np.concatenate((mass, direct, np.ones(len(alone))))
    gold = np.full(length, np.nan)
    here = np.flatnonzero(aligned[rows])
    here = here[ids[here] == target.ids[rows[here] + 1]]
    gold[at] = np.bincount(rows[here], weights=mass[here], minlength=length)[at]
    return Projection(gather(rows, ids, mass, length=length, k=columns), kind, aligned, np.minimum(gold, 1.0))


def _pieces(row: TeacherRow, target: Encoded, alignment: Alignment) -> Ints:
    """Return of how many source tokens the text is that begins with the target's next token, 1 where it is unknown."""
    pieces = np.where(alignment.kind == Kind.ONE_TO_MANY, alignment.pieces, 1).astype(np.int64)
    split = np.flatnonzero(alignment.kind == Kind.SPLIT)
    covering = np.searchsorted(row.ends, target.ends[split + 1])  # the first that reaches its end
    pieces[split] = np.maximum(covering - alignment.source[split], 1)
    return pieces


def _kinds(row: TeacherRow, alignment: Alignment, pieces: Ints) -> NDArray[np.uint8]:
    """Return the alignment's kinds, with UNALIGNED where the row has no distribution, or not of all the pieces."""
    beyond = (alignment.source < 0) | (alignment.source + pieces > len(row.ids) - 1)
    kind = alignment.kind.astype(np.uint8)
    kind[beyond & (kind != Kind.LAST)] = Kind.UNALIGNED
    return kind


def _split_gold(row: TeacherRow, source: Ints, pieces: Ints, at: Ints) -> tuple[tuple[Ints, Ints, Floats], Floats]:
    """Return the entries that go through the map (position, source token, mass), and what the next token gets itself.

    ``source`` and ``pieces`` are of the aligned positions ``at``. Of the token that comes next, the teacher told the
    probability also where it is not among the likeliest.
    """
    ids = row.top_ids[source]  # (a, K)
    probs = np.exp(row.top_logprobs[source].astype(np.float64))
    probs[ids < 0] = 0.0
    real = row.ids[source + 1]  # the token that comes next
    hit = (ids == real[:, None]) & (probs > 0)
    probs /= np.maximum(probs.sum(axis=1, keepdims=True), 1.0)  # float16 may have rounded above 1
    rest = 1.0 - probs.sum(axis=1)
    told = np.minimum(np.exp(row.next_logprob[source].astype(np.float64)), rest)
    first = np.where(hit.any(axis=1), (probs * hit).sum(axis=1), told)
    probs[hit] = 0.0
    gold = first * _chain(row, source, pieces)
    rows = np.concatenate((np.repeat(at, ids.shape[1]), at))
    return (rows, np.concatenate((ids.ravel(), real)), np.concatenate((probs.ravel(), first - gold))), gold


def _chain(row: TeacherRow, source: Ints, pieces: Ints) -> Floats:
    """Return the probability of the second and later of so many pieces after position ``source``, given the first."""
    told = np.clip(np.nan_to_num(row.next_logprob.astype(np.float64), nan=0.0), _LEAST, 0.0)
    sums = np.concatenate(([0.0], np.cumsum(told)))
    return np.asarray(np.exp(np.minimum(sums[source + pieces] - sums[source + 1], 0.0)))


def _mapped(rows: Ints, ids: Ints, mass: Floats, token_map: TokenMap | None) -> tuple[Ints, Ints, Floats]:
    """Return the same mass on the target's tokens; what the map does not know is left out."""
    if token_map is None:
        return rows, ids, np.where(ids >= 0, mass, 0.0)
    known = (mass > 0) & (ids >= 0) & (ids < len(token_map.indptr) - 1)  # a model may know ids beyond its tokenizer's
    rows, ids, mass = rows[known], ids[known], mass[known]
    begin = token_map.indptr[ids]
    counts = token_map.indptr[ids.astype(np.int64) + 1] - begin
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    place = np.repeat(begin, counts) + within
    return np.repeat(rows, counts), token_map.indices[place], np.repeat(mass, counts) * token_map.weights[place]


def _check(row: TeacherRow, target: Encoded, alignment: Alignment) -> None:
    lengths = len(target.ids), len(alignment.kind)
    if lengths[0] != lengths[1]:
        raise FusionError(
            f"chat {row.chat}: the target has {lengths[0]} tokens and the alignment {lengths[1]} positions; "
            "align the same encoding that is projected on"
        )
    if len(target.ids) == 0:
        raise FusionError(f"chat {row.chat} has no tokens; leave it out")
    if alignment.kind[-1] in ALIGNED:
        raise FusionError(f"chat {row.chat}: the last position is aligned, but no token comes after it; align anew")
