"""Several models' distributions at the target's positions made into one: what the target is to learn.

Wan et al. 2024: MinCE takes the model that is least surprised by the text, AvgCE weighs the models by how little they
are (arXiv:2401.10491, section 3.2; FuseChat, 2402.16107, uses MinCE alone). Follows FuseAI@7d9a307 in the weights,
softmaxₖ(1 / exp(CEₖ)), and in taking a whole conversation from one model. There the level "token" is read nowhere, and
rewards are in bfloat16, which makes ties of differences below 0.4 %; here they are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fusion.errors import FusionError, RecipeError, did_you_mean, listed
from fusion.sparse import Ints, Sparse, entries, gather

if TYPE_CHECKING:
    from fusion.project import Projection
    from fusion.teachers import TeacherRow

Span = tuple[int, int]

FUSIONS = ("min_ce", "avg_ce")
LEVELS = ("sequence", "token")


def fuse(
    parts: Sequence[Projection],
    nll: ArrayLike,
    *,
    how: Literal["min_ce", "avg_ce"] = "min_ce",
    level: Literal["sequence", "token"] = "sequence",
) -> Sparse:
    """Make one distribution a position of the parts', of which the first is the target's own.

    ``nll`` is each part's cross-entropy in nats: of the conversation (parts,), as ``supervised_nll`` gives it, or at
    level "token" of each position (parts, m), as ``position_nll``. NaN means that the part has nothing to say. With
    "min_ce" the lowest wins; of equals, and where all are NaN, the first. With "avg_ce" the distributions are averaged
    with ``weights``, and the likeliest kept, as many as the widest part has; of a whole conversation the weights also
    hold where a part is not aligned and so is sure of the text. Kept probabilities and tail sum to 1.
    """
    values = np.asarray(nll, np.float64)
    _check(parts, values, how=how, level=level)
    length, k = len(parts[0].sparse), max(part.sparse.ids.shape[1] for part in parts)
    if how == "min_ce":
        won = np.broadcast_to(winners(values), (length,))
        if not (won != won[:1]).any():
            return parts[int(won[0]) if length else 0].sparse
        return _chosen([part.sparse for part in parts], won, k)
    shares = weights(values)
    shares = np.broadcast_to(shares[:, None], (len(parts), length)) if shares.ndim == 1 else shares
    found = [entries(part.sparse) for part in parts]
    mass = [probs * shares[number, rows] for number, (rows, _, probs) in enumerate(found)]
    rows, ids = np.concatenate([rows for rows, _, _ in found]), np.concatenate([ids for _, ids, _ in found])
    return gather(rows, ids, np.concatenate(mass), length=length, k=k)


def winners(nll: ArrayLike) -> NDArray[np.int64]:
    """Return which part has the lowest cross-entropy, () or (m,): of equals, and where all are NaN, the first."""
    values = np.asarray(nll, np.float64)
    return np.asarray(np.argmin(np.where(np.isnan(values), np.inf, values), axis=0), np.int64)


def weights(nll: ArrayLike) -> NDArray[np.float64]:
    """Return AvgCE's weights, (parts,) or (parts, m): softmax over the parts of 1/exp(nll).

    A part with NaN gets 0; where all are NaN, the first gets 1. The reward is in (0, 1], so that of n parts none gets
    more than e times another's weight: AvgCE is close to the plain mean, as published.
    """
    values = np.asarray(nll, np.float64)
    silent = np.isnan(values)
    raw = np.where(silent, 0.0, np.exp(np.exp(-np.where(silent, 0.0, np.maximum(values, 0.0)))))
    raw[0] = np.where(silent.all(axis=0), 1.0, raw[0])
    return np.asarray(raw / raw.sum(axis=0), np.float64)


def supervised_positions(ends: Ints, spans: Sequence[Span]) -> NDArray[np.bool_]:
    """Return for each position whether its next token counts: it begins in one of the spans (bytes) and has text.

    ``ends`` (n,) are the bytes at which the tokens end. A token that begins before a span does not count, for part of
    it is not the assistant's. The last position has no next token.
    """
    counts = np.zeros(len(ends), np.bool_)
    if len(ends) == 0 or not spans:
        return counts
    first, last = np.array(sorted(spans), np.int64).T
    begin = np.asarray(ends[:-1], np.int64)
    place = np.searchsorted(first, begin, side="right") - 1
    counts[:-1] = (place >= 0) & (begin < last[np.maximum(place, 0)]) & (ends[1:] > ends[:-1])
    return counts


def supervised_nll(row: TeacherRow, spans: Sequence[Span]) -> float:
    """Return a model's mean −log p of its own tokens in the spans, in nats a token; NaN where it has none there.

    As FuseChat has it, the mean is over the model's own tokens: a tokenizer that cuts the text finer has more tokens,
    each less surprising.
    """
    counts = supervised_positions(row.ends, spans)
    told = row.next_logprob.astype(np.float64)[counts]
    told = told[~np.isnan(told)]
    return float(-told.mean()) if len(told) else float("nan")


def position_nll(part: Projection) -> NDArray[np.float64]:
    """Return a part's −log p of the target's next token at each position (m,); NaN where the part says nothing."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.maximum(-np.log(part.gold), 0.0), np.float64)


def _chosen(parts: Sequence[Sparse], won: Ints, k: int) -> Sparse:
    """Return of each position the distribution of the part that won there."""
    ids, probs = np.full((len(won), k), -1, np.int32), np.zeros((len(won), k), np.float32)
    tail = np.zeros(len(won), np.float32)
    for number, part in enumerate(parts):
        here, width = won == number, part.ids.shape[1]
        ids[here, :width], probs[here, :width], tail[here] = part.ids[here], part.probs[here], part.tail[here]
    return Sparse(ids, probs, tail)


def _check(parts: Sequence[Projection], nll: NDArray[np.float64], *, how: str, level: str) -> None:
    for what, value, known in (("how", how, FUSIONS), ("level", level, LEVELS)):
        if value not in known:
            raise RecipeError(f"{what} is {value!r}; there are {listed(known)}.{did_you_mean(value, known)}")
    if not parts:
        raise FusionError("there is nothing to fuse; the target's own distributions are the first part")
    lengths = [len(part.sparse) for part in parts]
    if len(set(lengths)) > 1:
        raise FusionError(f"the parts have {lengths} positions; project all on the same encoding of the target")
    wanted = (len(parts),) if level == "sequence" else (len(parts), lengths[0])
    if nll.shape != wanted:
        raise FusionError(
            f"the cross-entropies have shape {nll.shape}, but at level {level!r} {len(parts)} parts need {wanted}"
        )
