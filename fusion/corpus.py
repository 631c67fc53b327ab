"""Conversations as a target and its sources read them: tokenizers, the maps between their vocabularies, alignments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion.align import Alignment, align
from fusion.align_dtw import align_dtw, as_alignment, token_texts
from fusion.alignment_report import Model, Survey
from fusion.chats import Chat, render
from fusion.checkpoints import Checkpoint
from fusion.conversations import read_conversations
from fusion.edit_map import edit_map
from fusion.errors import RecipeError
from fusion.first_piece import first_piece_map, first_tokens
from fusion.hashes import content_hash
from fusion.pieces import Encoded, Pieces, encode, read_pieces
from fusion.statistics_map import Counts, statistics_map
from fusion.teachers import tokenizer_hash
from fusion.token_maps import TokenMap, exact_map, filled, map_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY_MAPS = ("first_piece", "exact", "edit", "statistics")
"""How a source's tokens become the target's; all map what both have exactly. See :mod:`fusion.token_maps`."""


ALIGNMENTS = ("bytes", "dtw")
"""How positions are aligned: :mod:`fusion.align`, or the reference's way, :mod:`fusion.align_dtw`, to compare with."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A model as far as reading goes; ``identity`` is its content hash and ``parameters`` the size of its tensors."""

    name: str
    folder: Path
    identity: str
    parameters: int
    tokenizer: PreTrainedTokenizerBase
    pieces: Pieces

    def read(self, chat: Chat) -> Encoded:
        """Return a chat in this model's tokens."""
        return encode(self.tokenizer, self.pieces, chat.text, bos=True)


def open_reader(name: str, folder: Path, *, cache: Path | None = None) -> Reader:
    """Open a checkpoint's tokenizer; CheckpointError where the checkpoint is not whole. ``cache`` keeps its hash."""
    from transformers import AutoTokenizer

    checkpoint = Checkpoint(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Reader(
        name=name,
        folder=folder,
        identity=content_hash(folder, cache=cache),
        parameters=sum(math.prod(checkpoint.shape(tensor)) for tensor in checkpoint.names),
        tokenizer=tokenizer,
        pieces=read_pieces(tokenizer, eos=_eos(folder)),
    )


def _eos(folder: Path) -> list[int]:
    from transformers import GenerationConfig

    try:
        told: Any = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:  # there is none
        return []
    return [told] if isinstance(told, int) else list(told or [])


def as_read(row_ids: Any, row_ends: Any) -> Encoded:
    """Return the tokens that a teacher kept, each of which begins where the one before it ends."""
    ends = np.asarray(row_ends, np.int64)
    return Encoded(ids=np.asarray(row_ids, np.int32), starts=np.concatenate([[0], ends[:-1]])[: len(ends)], ends=ends)


def token_map(
    source: Reader,
    target: Reader,
    chats: Sequence[Chat],
    *,
    how: str,
    cache: Path,
) -> TokenMap:
    """Return the map from the source's vocabulary to the target's, from ``cache`` where it is known there.

    ``how`` is one of VOCABULARY_MAPS. "statistics" counts in ``chats``; what they do not show goes by first pieces.
    """
    seen = [chat.id for chat in chats] if how == "statistics" else []
    key = map_key(source.pieces, target.pieces, how, tokenizer_hash(target.tokenizer), seen)
    file = cache / f"{key}.npz"
    if file.is_file():
        return TokenMap.load(file, key=key)
    made = _makers(source, target, chats)[how]()
    made.save(file, key=key)
    return made


def _makers(source: Reader, target: Reader, chats: Iterable[Chat]) -> Mapping[str, Callable[[], TokenMap]]:
    def first_piece() -> TokenMap:
        return first_piece_map(source.pieces, target.pieces, first_tokens(target.tokenizer, target.pieces))

    def statistics() -> TokenMap:
        counts = Counts(source.pieces, target.pieces)
        for chat in chats:
            ours, theirs = target.read(chat), source.read(chat)
            counts.add(ours, theirs, align(ours, theirs))
        return filled(statistics_map(counts), first_piece())

    return {
        "exact": lambda: exact_map(source.pieces, target.pieces),
        "first_piece": first_piece,
        "edit": lambda: edit_map(source.pieces, target.pieces),
        "statistics": statistics,
    }


@dataclass(frozen=True, slots=True)
class Scene:
    """Who reads what: the target and its sources, how the sources' vocabularies map to the target's, and the chats."""

    target: Reader
    sources: tuple[Reader, ...]
    maps: tuple[TokenMap, ...]  # one a source
    chats: tuple[Chat, ...]
    vocabulary: str  # how the maps were made, of VOCABULARY_MAPS
    alignment: str = "bytes"  # of ALIGNMENTS

    @property
    def readers(self) -> tuple[Reader, ...]:
        """The target, then the sources."""
        return self.target, *self.sources

    def align(self, tokens: Encoded, theirs: Sequence[Encoded]) -> list[Alignment]:
        """Align the target's tokens of a chat with those of each source."""
        if self.alignment == "bytes":
            return [align(tokens, read) for read in theirs]
        ours = token_texts(self.target.pieces, tokens)
        return [
            as_alignment(align_dtw(ours, token_texts(source.pieces, read)), len(read))
            for source, read in zip(self.sources, theirs, strict=True)
        ]

    def survey(self, *, examples: int) -> Survey:
        """Return an empty survey of how these models align, to count the chats in."""
        pairs = zip(self.sources, self.maps, strict=True)
        models = [Model(source.name, source.pieces, found) for source, found in pairs]
        return Survey(Model(self.target.name, self.target.pieces), models, examples=examples)


def open_scene(
    base: Mapping[str, Path],
    sources: Mapping[str, Path],
    data: Path,
    *,
    vocabulary: str,
    alignment: str = "bytes",
    cache: Path,
    on_map: Callable[[int, int], None] | None = None,
) -> Scene:
    """Open the models, by name, and write the conversations of ``data`` with the template of ``base``, which is one.

    ``vocabulary`` is one of VOCABULARY_MAPS, ``alignment`` of ALIGNMENTS; ``on_map`` hears how many maps are there.
    """
    [name] = base
    if not sources or name in sources:
        what = f"a source is named {name!r}, as the base is" if sources else "there are no sources"
        raise RecipeError(f"{what}; name one or more models to fuse into {name!r}")
    conversations = read_conversations(data)
    cache.mkdir(parents=True, exist_ok=True)
    target, *others = (open_reader(*model, cache=cache) for model in (*base.items(), *sources.items()))
    chats = render(conversations, target.tokenizer)
    maps = []
    for number, source in enumerate(others, 1):
        maps.append(token_map(source, target, chats, how=vocabulary, cache=cache / "maps"))
        if on_map is not None:
            on_map(number, len(others))
    return Scene(target, tuple(others), tuple(maps), tuple(chats), vocabulary, alignment)
