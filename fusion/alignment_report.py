"""What an alignment is like, before anything is trained on it: how much fits, how much is kept, and what it reads like.

Counted conversation by conversation, so that memory does not grow with the data. Positions that are counted are those
whose next token is supervised, unless it says otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusion.align import Kind
from fusion.alignment_examples import example
from fusion.alignment_markdown import as_markdown
from fusion.errors import FusionError
from fusion.targets import supervised_positions, winners
from fusion.token_maps import KINDS, NONE

if TYPE_CHECKING:
    from fusion.align import Alignment
    from fusion.chats import Chat
    from fusion.pieces import Encoded, Pieces
    from fusion.project import Projection
    from fusion.teachers import TeacherRow
    from fusion.token_maps import TokenMap

__all__ = ["Cost", "Model", "Said", "Survey", "as_markdown", "report"]

NAMES = {kind: kind.name.lower().replace("_", " ") for kind in Kind}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BYTES_A_TOKEN = 48  # on disk, at most, of ten likeliest tokens; only where the bytes are not given

_BINS = 1000  # of a histogram of probabilities


@dataclass(frozen=True, slots=True)
class Model:
    """A model whose tokens are aligned; ``token_map`` is from its vocabulary to the target's, None of the target."""

    name: str
    pieces: Pieces
    token_map: TokenMap | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """What the models say of one conversation, in each the target's own first: rows, projections and ``nll``.

    ``nll`` is what was given to ``fusion.targets.fuse``: (parts,) or (parts, m).
    """

    rows: Sequence[TeacherRow]
    parts: Sequence[Projection]
    nll: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model's pass over the conversations takes; what is None is not known."""

    parameters: int | None = None
    bytes: int | None = None  # on disk
    seconds: float | None = None


class Survey:
    """Counts over conversations; ``examples`` of each kind of position are kept for each source."""

    def __init__(self, target: Model, sources: Sequence[Model], *, examples: int = 2) -> None:
        self.target, self.sources, self.examples = target, tuple(sources), examples
        self.conversations = self.said = 0
        self.tokens = np.zeros(1 + len(sources), np.int64)  # the target's first
        self.positions, self.supervised = 0, 0
        self.wins = np.zeros(1 + len(sources), np.int64)
        self.votes = "conversations"  # what is won
        self.nll = np.zeros((3, 1 + len(sources)))  # nats, and the tokens and bytes that they are of
        self.counted = [_Counts() for _ in sources]

    def add(
        self,
        chat: Chat,
        target: Encoded,
        sources: Sequence[Encoded],
        alignments: Sequence[Alignment],
        said: Said | None = None,
    ) -> None:
        """Count one conversation; without ``said``, only what the tokenizers alone can tell."""
        if not len(sources) == len(alignments) == len(self.sources):
            raise FusionError(
                f"chat {chat.id}: {len(sources)} encodings and {len(alignments)} alignments for "
                f"{len(self.sources)} sources; give one of each for every source"
            )
        counts = supervised_positions(target.ends, chat.supervised)
        self.conversations += 1
        self.tokens += [len(target.ids), *(len(source.ids) for source in sources)]
        self.positions, self.supervised = self.positions + len(counts), self.supervised + int(counts.sum())
        if said is not None:
            self._hear(chat, said, counts)
        for number, (model, into) in enumerate(zip(self.sources, self.counted, strict=True)):
            alignment = alignments[number]
            row, part = (said.rows[number + 1], said.parts[number + 1]) if said else (None, None)
            kind = alignment.kind if part is None else part.kind
            into.count(kind, counts)
            if row is not None and part is not None:
                into.weigh(row, part, alignment, counts, model.token_map)
            for value, name in NAMES.items():
                places = np.flatnonzero(counts & (kind == value))
                if len(places) and into.shown[name] < self.examples:
                    into.shown[name] += 1
                    at = int(places[len(places) // 2])
                    texts = (target, sources[number]), (self.target.pieces, model.pieces)
                    found = example(chat, at, *texts, source_at=int(alignment.source[at]), row=row, part=part)
                    into.examples.append({"kind": name, **found})

    def _hear(self, chat: Chat, said: Said, counts: NDArray[np.bool_]) -> None:
        self.said += 1
        won = winners(said.nll)
        self.votes = "positions" if won.ndim else "conversations"
        self.wins += np.bincount(won[counts] if won.ndim else won[None], minlength=len(self.wins))
        for number, row in enumerate(said.rows):
            at = np.flatnonzero(supervised_positions(row.ends, chat.supervised) & np.isfinite(row.next_logprob))
            nats = -row.next_logprob[at].sum(dtype=np.float64)
            self.nll[:, number] += nats, len(at), (row.ends[at + 1] - row.ends[at]).sum()


class _Counts:
    """What is counted of one source."""

    def __init__(self) -> None:
        self.kinds = np.zeros((2, len(NAMES)), np.int64)  # at all positions, and at supervised ones
        self.kept, self.teacher = np.zeros(_BINS + 1, np.int64), np.zeros(_BINS + 1, np.int64)
        self.sums = np.zeros(2)  # of the mass kept, and of the teacher's own
        self.mass = np.zeros(len(KINDS))  # of the teacher's likeliest, by how the map has them
        self.shown: Counter[str] = Counter()
        self.examples: list[dict[str, Any]] = []

    def count(self, kind: NDArray[np.uint8], counts: NDArray[np.bool_]) -> None:
        for number, places in enumerate((kind, kind[counts])):
            found = np.bincount(places, minlength=max(NAMES) + 1)
            self.kinds[number] += [found[value] for value in NAMES]

    def weigh(
        self,
        row: TeacherRow,
        part: Projection,
        alignment: Alignment,
        counts: NDArray[np.bool_],
        token_map: TokenMap | None,
    ) -> None:
        at = np.flatnonzero(counts & part.aligned)
        source = alignment.source[at]
        ids, probs = row.top_ids[source], np.exp(row.top_logprobs[source].astype(np.float64))
        probs[ids < 0] = 0.0
        teacher = np.minimum(probs.sum(axis=1), 1.0)
        kept = 1.0 - part.sparse.tail[at].astype(np.float64)
        self.sums += kept.sum(), teacher.sum()
        self.kept += np.bincount(np.rint(kept * _BINS).astype(np.int64), minlength=_BINS + 1)
        self.teacher += np.bincount(np.rint(teacher * _BINS).astype(np.int64), minlength=_BINS + 1)
        if token_map is not None:
            known = (ids >= 0) & (ids < len(token_map.kinds))
            kinds = np.where(known, token_map.kinds[np.where(known, ids, 0)], NONE)
            self.mass += np.bincount(kinds.ravel(), weights=probs.ravel(), minlength=len(KINDS))


def report(survey: Survey, costs: Mapping[str, Cost] | None = None) -> dict[str, Any]:
    """Return what the survey found, as JSON values; ``costs`` are by the models' names.

    Shares are of supervised positions. ``bits_a_byte`` compares models whatever their tokens; ``nats_a_token``, by
    which they win, does not quite. What could not be counted is None.
    """
    models = (survey.target, *survey.sources)
    return {
        "conversations": survey.conversations,
        "heard": survey.said,
        "positions": {"all": survey.positions, "supervised": survey.supervised},
        "wins_are": survey.votes,
        "models": [
            {
                "name": model.name,
                "role": "source" if number else "target",
                "tokens": int(survey.tokens[number]),
                "nats_a_token": _ratio(survey.nll[0, number], survey.nll[1, number]),
                "bits_a_byte": _ratio(survey.nll[0, number] / np.log(2), survey.nll[2, number]),
                "wins": int(survey.wins[number]) if survey.said else None,
                "share_won": _ratio(survey.wins[number], survey.wins.sum()),
                **_cost((costs or {}).get(model.name, Cost()), int(survey.tokens[number])),
            }
            for number, model in enumerate(models)
        ],
        "sources": [_source(model, found) for model, found in zip(survey.sources, survey.counted, strict=True)],
    }


def _source(model: Model, found: _Counts) -> dict[str, Any]:
    every, counted = found.kinds
    weighed, mass = int(found.kept.sum()), found.mass.sum()
    sizes = model.token_map.counts() if model.token_map is not None else {}
    return {
        "name": model.name,
        "kinds": {
            name: {"all": int(every[i]), "supervised": int(counted[i]), "share": _ratio(counted[i], counted.sum())}
            for i, name in enumerate(NAMES.values())
        },
        "vocabulary": {
            name: {
                "tokens": tokens,
                "share": _ratio(tokens, sum(sizes.values())),
                "mass": _ratio(found.mass[KINDS.index(name)], mass),
            }
            for name, tokens in sizes.items()
        },
        "kept": _spread(found.kept, found.sums[0], weighed),
        "teacher": _spread(found.teacher, found.sums[1], weighed),
        "examples": found.examples,
    }


def _spread(bins: NDArray[np.int64], total: float, count: int) -> dict[str, Any]:
    """Return mean and quantiles of a histogram of probabilities; quantiles are exact to half a thousandth."""
    below = np.cumsum(bins)
    places = {f"{q:.0%}": int(np.searchsorted(below, q * count)) / _BINS if count else None for q in QUANTILES}
    return {"positions": count, "mean": _ratio(total, count), "quantiles": places}


def _cost(cost: Cost, tokens: int) -> dict[str, Any]:
    return {
        "parameters": cost.parameters,
        "forward_flops": None if cost.parameters is None else 2 * cost.parameters * tokens,
        "bytes": tokens * BYTES_A_TOKEN if cost.bytes is None else cost.bytes,
        "bytes_are": "at most" if cost.bytes is None else "measured",
        "seconds": cost.seconds,
    }


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
