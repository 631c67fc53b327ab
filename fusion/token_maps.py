"""Maps from one model's vocabulary to another's: sparse, row by source token, with what share goes to which target.

Which map answers which question:

- ``exact_map``: the same bytes, and special tokens by role. What the paper of FuseChat calls EM.
- ``fusion.first_piece``: what the target would say first of a token it does not have whole. With the exact map, the
  right one for distributions of the next token, and the default.
- ``fusion.edit_map``: the target's nearest string by edit distance (MinED).
- ``fusion.statistics_map``: what stood opposite how often in a corpus (MS).

What a row lacks to 1 is mass that the target has no place for; it is kept as a tail, never thrown away.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fusion.errors import CheckpointError, FusionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fusion.pieces import Pieces

__all__ = [
    "EDIT",
    "EXACT",
    "FIRST_PIECE",
    "KINDS",
    "NONE",
    "ROLE",
    "STATISTICS",
    "TokenMap",
    "exact_map",
    "filled",
    "ids_by_text",
    "map_key",
    "one_to_one",
]

KINDS = ("none", "exact", "role", "first_piece", "edit", "statistics")  # names, by number
NONE, EXACT, ROLE, FIRST_PIECE, EDIT, STATISTICS = range(len(KINDS))

_FORMAT = 1
_ENDS = ("eos", "end_of_turn")  # either ends what is said: a model that lacks one uses the other
_BYTES = [bytes([value]) for value in range(256)]


@dataclass(frozen=True, slots=True)
class TokenMap:
    """Where each of the S source tokens goes in a target vocabulary of ``target_size`` tokens.

    Row s is ``indices[indptr[s]:indptr[s+1]]``, target ids in rising order, with the ``weights`` there: above 0, and
    at most 1 together.
    """

    indptr: NDArray[np.int64]  # (S+1,)
    indices: NDArray[np.int32]  # (indptr[-1],) target ids
    weights: NDArray[np.float32]  # (indptr[-1],)
    kinds: NDArray[np.uint8]  # (S,) numbers of KINDS
    target_size: int

    def __post_init__(self) -> None:
        size, entries = len(self.kinds), len(self.indices)
        if self.indptr.shape != (size + 1,) or self.indptr[0] != 0 or self.indptr[-1] != entries:
            raise FusionError(f"indptr of a token map of {size} tokens and {entries} entries does not fit them")
        if self.weights.shape != (entries,) or (np.diff(self.indptr) < 0).any():
            raise FusionError(f"a token map has {entries} entries, {len(self.weights)} weights, or rows out of order")
        if entries and (self.indices.min() < 0 or self.indices.max() >= self.target_size):
            raise FusionError(f"a token map names target ids outside 0 to {self.target_size - 1}")

    @property
    def source_size(self) -> int:
        """How many source tokens there are, S."""
        return len(self.kinds)

    def row(self, source: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the target ids that one source token goes to, and its weights there."""
        span = slice(self.indptr[source], self.indptr[source + 1])
        return self.indices[span], self.weights[span]

    def counts(self) -> dict[str, int]:
        """Return how many source tokens are mapped in each way, by the names of KINDS."""
        found = Counter(self.kinds.tolist())
        return {name: found[number] for number, name in enumerate(KINDS)}

    def save(self, path: Path, *, key: str) -> None:
        """Write the map as .npz, whole or not at all; ``key`` says what it was made from (see ``map_key``)."""
        arrays: dict[str, Any] = {
            "format": np.int64(_FORMAT),
            "key": np.frombuffer(key.encode(), np.uint8),
            "target_size": np.int64(self.target_size),
            "indptr": self.indptr,
            "indices": self.indices,
            "weights": self.weights,
            "kinds": self.kinds,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez_compressed(file, **arrays)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: Path, *, key: str) -> Self:
        """Read a map that ``save`` wrote; CheckpointError if it is broken, or was made from something else."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            found, version = arrays.pop("key").tobytes().decode(), int(arrays.pop("format"))
            target_size = int(arrays.pop("target_size"))
        except FileNotFoundError:
            raise CheckpointError(f"there is no token map at {path}; make it first") from None
        except Exception as error:  # zipfile, zlib and numpy each have their own
            raise CheckpointError(f"{path} is no token map, or a broken one ({error}); remove it") from error
        if (version, found) != (_FORMAT, key):
            raise CheckpointError(f"{path} was made from other vocabularies (key {found}, not {key}); remove it")
        try:
            return cls(**arrays, target_size=target_size)
        except (TypeError, FusionError) as error:
            raise CheckpointError(f"{path} is a broken token map ({error}); remove it") from error


def map_key(source: Pieces, target: Pieces, *more: object) -> str:
    """Return 32 hex digits of the content of both vocabularies and of whatever else a map was made from."""
    digest = hashlib.sha256()
    for pieces in (source, target):
        digest.update(b"%d;" % pieces.size)
        for text in pieces.text:
            digest.update(b"-;" if text is None else b"%d:%b;" % (len(text), text))
        digest.update(repr((sorted(pieces.special.items()), sorted(pieces.written.items()))).encode())
    digest.update(repr(more).encode())
    return digest.hexdigest()[:32]


def exact_map(source: Pieces, target: Pieces) -> TokenMap:
    """Map tokens of the same bytes, and special tokens of the same role, or written alike where they have none.

    Where the target has several tokens of the same bytes, those of its byte fallback come last, then the lowest id
    wins. A source's eos goes to the target's end of turn where it has no eos, and the other way round. A vocabulary
    maps onto itself whole.
    """
    if _content(source) == _content(target):
        return _identity(source)
    known, roles = ids_by_text(target), _ids_by_role(target.special)
    alike = {target.written.get(number): number for number in sorted(target.special, reverse=True)}
    ids = np.full(source.size, -1, np.int32)
    kinds = np.zeros(source.size, np.uint8)
    for number, text in enumerate(source.text):
        role = source.special.get(number)
        if role is not None:
            writing = source.written.get(number)
            found, kind = roles.get(role, alike.get(writing) if writing else None), ROLE
        else:
            found, kind = known.get(text) if text else None, EXACT
        if found is not None:
            ids[number], kinds[number] = found, kind
    return one_to_one(ids, kinds, target_size=target.size)


def one_to_one(ids: NDArray[np.int32], kinds: NDArray[np.uint8], *, target_size: int) -> TokenMap:
    """Return the map that gives source token s whole to target ``ids[s]``, or to none where that is −1."""
    mapped = ids >= 0
    indptr = np.zeros(len(ids) + 1, np.int64)
    np.cumsum(mapped, out=indptr[1:])
    weights = np.ones(int(indptr[-1]), np.float32)
    ways = np.where(mapped, kinds, NONE).astype(np.uint8)
    return TokenMap(indptr, ids[mapped].astype(np.int32), weights, ways, target_size)


def filled(first: TokenMap, then: TokenMap) -> TokenMap:
    """Return the rows of ``first``, and those of ``then`` for tokens that ``first`` does not map."""
    if (first.source_size, first.target_size) != (then.source_size, then.target_size):
        raise FusionError(
            f"a map of {first.source_size} tokens onto {first.target_size} cannot be filled from one of "
            f"{then.source_size} onto {then.target_size}; make both for the same two vocabularies"
        )
    lengths = np.stack([np.diff(first.indptr), np.diff(then.indptr)])  # (2, S)
    use_then = lengths[0] == 0
    indptr = np.zeros(first.source_size + 1, np.int64)
    np.cumsum(np.where(use_then, lengths[1], lengths[0]), out=indptr[1:])
    indices, weights = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    for given, chosen, length in ((first, ~use_then, lengths[0]), (then, use_then, lengths[1])):
        taken = np.repeat(chosen, length)
        # Entry e of a row that starts at `a` there and at `b` here stands at e − a + b.
        places = np.arange(len(given.indices)) + np.repeat(indptr[:-1] - given.indptr[:-1], length)
        indices[places[taken]], weights[places[taken]] = given.indices[taken], given.weights[taken]
    return TokenMap(indptr, indices, weights, np.where(use_then, then.kinds, first.kinds), first.target_size)


def ids_by_text(pieces: Pieces) -> dict[bytes, int]:
    """Return the id of each text of a vocabulary: of equals the lowest, byte fallback last.

    Byte fallback is told by its shape: the 256 bytes in order on successive ids. In such a vocabulary a letter has a
    token besides the one of its byte, and only the former is ever said where the letter can be.
    """
    text = pieces.text
    fallback = range(0)
    for first in (number for number, piece in enumerate(text) if piece == b"\0"):
        if list(text[first : first + 256]) == _BYTES:
            fallback = range(first, first + 256)
    known: dict[bytes, int] = {}
    for number, piece in enumerate(text):
        if piece and number not in fallback:
            known.setdefault(piece, number)
    for number in fallback:
        known.setdefault(_BYTES[number - fallback.start], number)
    return known


def _ids_by_role(special: Mapping[int, str]) -> dict[str, int]:
    roles: dict[str, int] = {}
    for number in sorted(special):
        roles.setdefault(special[number], number)
    roles.pop("other", None)
    for one, other in (_ENDS, _ENDS[::-1]):
        if one not in roles and other in roles:
            roles[one] = roles[other]
    return roles


def _content(pieces: Pieces) -> tuple[object, ...]:
    return pieces.text, dict(pieces.special), dict(pieces.written)


def _identity(pieces: Pieces) -> TokenMap:
    ways = (ROLE if number in pieces.special else EXACT if text else NONE for number, text in enumerate(pieces.text))
    kinds = np.fromiter(ways, np.uint8, pieces.size)
    ids = np.where(kinds == NONE, -1, np.arange(pieces.size)).astype(np.int32)
    return one_to_one(ids, kinds, target_size=pieces.size)
