"""Teachers: what a model says of every token of chats, computed once and kept on disk.

Every model reads the same text with its own tokenizer, and a text is run once however often it occurs. FuseChat
(arXiv:2408.07990) keeps the k = 10 largest raw logits of 2048 padded positions; here the log-probabilities are
normalised over the whole vocabulary, so that the mass of the rest is known, and only real positions are kept.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion.crew import crew
from fusion.errors import FusionError, RecipeError
from fusion.hashes import content_hash
from fusion.parquet_shards import ShardFolder, key_of
from fusion.pieces import encode_all, read_pieces
from fusion.quiet import quiet_libraries
from fusion.teacher_forward import ForwardScorer, Scorer, Scores
from fusion.teacher_shards import Spoken, Teacher, TeacherRow, read, table

if TYPE_CHECKING:
    from fusion.chats import Chat

__all__ = ["Teacher", "TeacherParams", "TeacherRow", "distributions", "read"]

DTYPES = ("auto", "bfloat16", "float16", "float32")
"""What a teacher can be run in; "auto" is float32 on a CPU and the checkpoint's on a GPU."""


@dataclass(frozen=True, slots=True)
class TeacherParams:
    """How a teacher is asked; ``k`` and ``max_length`` are FuseChat's."""

    k: int = 10  # next tokens kept a position, the likeliest
    max_length: int = 2048  # tokens of a chat, by the teacher's own tokenizer; the rest of a longer one is cut off
    batch_tokens: int = 4096  # tokens of one forward pass, padding counted
    dtype: str = "auto"  # one of DTYPES
    temperature: float = 1.0  # divides the logits behind the kept distributions; next_logprob is always at 1
    shard_chats: int = 256  # texts in one shard: what a killed run does again

    def __post_init__(self) -> None:
        for name in ("k", "max_length", "batch_tokens", "shard_chats"):
            value: object = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RecipeError(f"{name} of the teachers is {value!r}; it must be a whole number, 1 or more")
        if self.dtype not in DTYPES:
            raise RecipeError(f"dtype of the teachers is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")
        number = isinstance(self.temperature, int | float) and not isinstance(self.temperature, bool)
        if not number or not 0 < self.temperature < float("inf"):
            raise RecipeError(f"temperature of the teachers is {self.temperature!r}; it must be a number above 0")


def distributions(
    model_folder: Path,
    chats: Sequence[Chat],
    folder: Path,
    params: TeacherParams,
    *,
    on_chat: Callable[[str], None] | None = None,
    device: str | None = None,
    engine: Scorer | None = None,
    identity: str | None = None,
    repair: bool = False,
) -> Teacher:
    """Ask a checkpoint what it says of every token of ``chats``, keep it in ``folder``, and return it opened.

    A killed run goes on at the first shard that is not finished, and a finished one costs nothing; chats may be added.
    Under ``accelerate launch`` each process does its share of the shards. ``on_chat`` is told the id of each distinct
    text that is done; ``device`` is torch's name of one, None for a GPU where there is one; ``engine`` runs the model
    in place of transformers (:func:`fusion.teachers_vllm.vllm_prompt_logprobs`); ``identity`` is the model's content
    hash where it is known. FusionError where ``folder`` was begun with another model or other parameters, or where a
    finished shard is damaged (``repair``: it is made again).
    """
    place = crew(device)
    tokenizer = _tokenizer(model_folder)
    engine = engine or ForwardScorer(
        model_folder,
        k=params.k,
        batch_tokens=params.batch_tokens,
        dtype=params.dtype,
        temperature=params.temperature,
        device=place.device,
    )
    longest = min(params.max_length, _context(model_folder) - engine.beyond)
    settings = {
        "kind": "teacher",
        "model": identity or content_hash(model_folder),
        "tokenizer": tokenizer_hash(tokenizer),
        "engine": engine.name,
        "dtype": engine.dtype,
        "k": params.k,
        "max_length": longest,
        "temperature": float(params.temperature),
    }
    texts, same_text = _distinct(chats)
    parts = [texts[first : first + params.shard_chats] for first in range(0, len(texts), params.shard_chats)]
    keys = [key_of(*((chat.id, _sha(chat.text)) for chat in part)) for part in parts]
    shards = ShardFolder(folder, settings, repair=repair)
    place.wait()
    asked = _Asked(engine, tokenizer, model_folder, longest, on_chat or (lambda _: None))
    for number in range(place.number, len(parts), place.count):
        if shards.has(keys[number]):
            asked.known(parts[number])
            continue
        rows, counts = asked.rows(parts[number])
        shards.write(number, keys[number], table(rows, k=params.k), **counts)
    place.wait()
    if place.main:
        made_with = {name: importlib.metadata.version(name) for name in ("fuseval", "torch", "transformers")}
        order = [chat.id for chat in chats]
        shards.finish(keys, chats=order, same_text=same_text, params=asdict(params), made_with=made_with)
    place.wait()
    return read(folder)


def tokenizer_hash(tokenizer: Any) -> str:
    """Return 32 hex digits that are equal for tokenizers that turn text into the same ids."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    told = fast.to_str() if fast is not None else repr(sorted(tokenizer.get_vocab().items()))
    return _sha(told)[:32]


class _Asked:
    """A teacher with its own tokenizer: chats in, rows out."""

    def __init__(
        self, engine: Scorer, tokenizer: Any, model_folder: Path, longest: int, on_chat: Callable[[str], None]
    ) -> None:
        self._engine, self._tokenizer, self._folder = engine, tokenizer, model_folder
        self._longest, self._on_chat = longest, on_chat
        self._pieces = read_pieces(tokenizer)

    def known(self, chats: Sequence[Chat]) -> None:
        """Tell that these chats were done before."""
        for chat in chats:
            self._on_chat(chat.id)

    def rows(self, chats: Sequence[Chat]) -> tuple[list[Spoken], dict[str, int]]:
        """Return the rows of these chats in their order, and the counts of the shard that they make."""
        encoded = encode_all(self._tokenizer, self._pieces, [chat.text for chat in chats], bos=True)
        ids = [tokens.ids[: self._longest] for tokens in encoded]
        rows: dict[int, Spoken] = {}
        for number, scores in self._engine(ids):
            chat = chats[number].id
            self._check(scores, chat)
            ends = encoded[number].ends[: self._longest]
            rows[number] = Spoken(chat, ids[number], ends, scores.next_logprob, scores.top_ids, scores.top_logprobs)
            self._on_chat(chat)
        cut = sum(len(tokens) > self._longest for tokens in encoded)
        counts = {"rows": len(chats), "tokens": sum(map(len, ids)), "cut": cut}
        return [rows[number] for number in range(len(chats))], counts

    def _check(self, scores: Scores, chat: str) -> None:
        """Raise FusionError where a model gives no numbers, as float16 overflows do."""
        if np.isnan(scores.top_logprobs).any() or np.isnan(scores.next_logprob[:-1]).any():
            raise FusionError(
                f"{self._folder} gives probabilities that are no numbers for chat {chat!r} in {self._engine.dtype}; "
                "try dtype float32 or bfloat16, and see whether its weights are whole"
            )


def _distinct(chats: Sequence[Chat]) -> tuple[list[Chat], dict[str, str]]:
    """Return the chats with texts that came before left out, and for the ids of those the id that was kept."""
    if not chats:
        raise RecipeError("there are no chats to ask a teacher about; the training data holds none")
    kept: dict[str, Chat] = {}
    same: dict[str, str] = {}
    for chat in chats:
        first = kept.setdefault(chat.text, chat)
        if first.id != chat.id:
            same[chat.id] = first.id
    empty: Iterator[str] = (chat.id for chat in kept.values() if not chat.text)
    if (nothing := next(empty, None)) is not None:
        raise RecipeError(f"chat {nothing!r} has no text, so there is nothing to ask a teacher about; leave it out")
    return list(kept.values()), same


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    with quiet_libraries():
        return AutoTokenizer.from_pretrained(folder)


def _context(folder: Path) -> int:
    """Return the positions that a model was made for; a model that names none has no bound."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 1 << 30)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
