"""What a tokenizer's tokens are made of: bytes, and where in a text each of them ends.

Two models see the same text where their tokens end at the same byte, whatever their vocabularies. Bytes are read from
what the tokenizer itself says of its pieces (its decoder, else its pre-tokenizer and normalizer), not from a table by
class, and every encoded text is checked: pieces that make up the text give exact bytes, and where a normalizer changed
the text, the tokenizer's own offsets stand in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusion.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("end_of_turn", "eos", "bos", "pad", "unk", "other")  # of several, a token has the first
PROBE = "fuseval"  # what the assistant says where only what surrounds it matters
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))  # SentencePiece's names of single bytes


@dataclass(frozen=True, slots=True)
class Pieces:
    """A tokenizer's vocabulary as bytes.

    ``text`` gives by id the bytes that a token stands for, None for special tokens and ids without a piece; a model may
    have more logits than ``size``, which never mean anything. Several ids may have the same bytes.
    """

    size: int  # the highest id plus 1
    text: tuple[bytes | None, ...] = field(repr=False)  # (size,)
    special: Mapping[int, str] = field(repr=False)  # id of a special token → its role, one of ROLES
    written: Mapping[int, bytes] = field(repr=False)  # id of a special token → how it is written in a text
    before: tuple[int, ...] = ()  # ids that belong before every text: most often none, or bos
    covering: tuple[bytes, ...] = field(init=False, repr=False, compare=False)  # by id, as it stands in a text
    lengths: NDArray[np.int64] = field(init=False, repr=False, compare=False)  # of ``covering``, in bytes

    def __post_init__(self) -> None:
        covering = tuple(piece if piece is not None else self.written.get(i, b"") for i, piece in enumerate(self.text))
        object.__setattr__(self, "covering", covering)
        object.__setattr__(self, "lengths", np.fromiter(map(len, covering), np.int64, len(covering)))

    def with_role(self, role: str) -> tuple[int, ...]:
        """Return the ids of the special tokens that have this role, lowest first."""
        return tuple(sorted(i for i, name in self.special.items() if name == role))


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text as tokens: token t covers the bytes ``starts[t]`` to ``ends[t]`` of its UTF-8.

    Neither falls from token to token. A token without text of its own (an added bos, a prefix that the tokenizer made
    up) has equal start and end. Of tokens that share one normalised character, the first covers it and the others
    stand at its end.
    """

    ids: NDArray[np.int32]  # (n,)
    starts: NDArray[np.int64]  # (n,)
    ends: NDArray[np.int64]  # (n,)

    def __len__(self) -> int:
        return len(self.ids)


def read_pieces(tokenizer: PreTrainedTokenizerBase, *, eos: Sequence[int] = ()) -> Pieces:
    """Read a tokenizer's vocabulary as bytes; ``eos`` are further ids that end what is generated.

    Special tokens get their roles from the tokenizer's own attributes, ``eos`` (a generation config's), and from what
    the chat template writes after the assistant's words. RecipeError: not a tokenizer of the tokenizers library.
    """
    backend = _backend(tokenizer)
    plain: dict[str, int] = backend.get_vocab(with_added_tokens=False)
    added = backend.get_added_tokens_decoder()
    special = _roles(tokenizer, added, eos)
    size = 1 + max(max(plain.values(), default=-1), max(added, default=-1))
    read = _reader(backend, plain)
    text: list[bytes | None] = [None] * size
    for i, token in added.items():
        text[i] = token.content.encode()
    for piece, i in plain.items():
        text[i] = read(piece)  # an added token that the model itself can make is read as the model's
    written = {}
    for i in special:
        written[i] = (added[i].content if i in added else backend.id_to_token(i) or "").encode()
        text[i] = None
    return Pieces(size=size, text=tuple(text), special=special, written=written, before=added_before(tokenizer))


def encode(tokenizer: PreTrainedTokenizerBase, pieces: Pieces, text: str, *, bos: bool) -> Encoded:
    """Turn a text into tokens with exact bytes; special tokens that stand in the text are taken as such.

    With ``bos``, what belongs before every text (``pieces.before``) comes first, unless the text begins with it.
    Nothing is added at the end, and nothing cut off.
    """
    [encoded] = encode_all(tokenizer, pieces, [text], bos=bos)
    return encoded


def encode_all(tokenizer: PreTrainedTokenizerBase, pieces: Pieces, texts: Sequence[str], *, bos: bool) -> list[Encoded]:
    """Turn texts into tokens, as ``encode`` does, several at a time."""
    backend = _backend(tokenizer)
    _unlimited(backend)
    prefix = pieces.before if bos else ()
    encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [
        _with_prefix(_located(backend, pieces, text, encoding.ids), prefix)
        for text, encoding in zip(texts, encodings, strict=True)
    ]


def added_before(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids that belong before every text: most often none, or bos.

    They are what the tokenizer adds. A tokenizer that adds nothing and does not say why (one made from a GGUF file has
    lost it) means its bos, unless that also ends texts or is a mark that the chat template writes at each turn.
    """
    backend = _backend(tokenizer)
    _unlimited(backend)
    whole, bare = (backend.encode(PROBE, add_special_tokens=add).ids for add in (True, False))
    starts = [i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare]
    if starts and starts[0]:
        return tuple(whole[: starts[0]])
    bos = tokenizer.bos_token_id
    open_to_it = {part["type"] for part in _parts(backend.post_processor)} <= {"TemplateProcessing"}
    if bos is None or bos == tokenizer.eos_token_id or not open_to_it or "add_bos_token" in tokenizer.init_kwargs:
        return ()
    return () if str(tokenizer.bos_token) in _sample(tokenizer)[1:] else (int(bos),)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> tuple[int, str] | None:
    """Return the token, id and text, that the chat template writes after the assistant's words, None if it has none."""
    _, found, tail = _sample(tokenizer).rpartition(PROBE)
    contents = {token.content: i for i, token in _backend(tokenizer).get_added_tokens_decoder().items()}
    places = [(tail.find(content), -len(content), content) for content in contents if content and content in tail]
    if not found or not places:
        return None
    content = min(places)[2]
    return contents[content], content


def _sample(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a question and an answer as the chat template writes them, nothing where there is none."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # a template may refuse for reasons of its own
        return ""


def _backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise RecipeError(
            f"the tokenizer {type(tokenizer).__name__} is not one of the tokenizers library, so the bytes of its "
            "tokens are not known; save it with a tokenizer.json"
        )
    return backend


def _unlimited(backend: Any) -> None:
    """Forget a limit or padding that an earlier call left behind; transformers sets them anew for each of its calls."""
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()


def _roles(tokenizer: PreTrainedTokenizerBase, added: Mapping[int, Any], eos: Sequence[int]) -> dict[int, str]:
    roles = {i: "other" for i, token in added.items() if token.special} | dict.fromkeys(
        tokenizer.all_special_ids, "other"
    )
    end = turn_end(tokenizer)
    claims: dict[str, Sequence[int | None]] = {
        "unk": [tokenizer.unk_token_id],
        "pad": [tokenizer.pad_token_id],
        "bos": [tokenizer.bos_token_id],
        "eos": [tokenizer.eos_token_id, *eos],
        "end_of_turn": [end[0] if end else None],
    }
    for role, ids in claims.items():  # the last claim counts
        roles |= {i: role for i in ids if i is not None}
    return dict(sorted(roles.items()))


def _reader(backend: Any, plain: Mapping[str, int]) -> Callable[[str], bytes]:
    """Return the function that turns a piece into the bytes it stands for."""
    parts = list(_parts(backend.decoder)) or [*_parts(backend.pre_tokenizer), *_undone(backend.normalizer)]
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        return _read_byte_level
    swaps = [swap for part in parts if (swap := _swap(part))]
    prefix = next((part["prefix"] for part in parts if part["type"] == "WordPiece"), None)
    single = {name: bytes([byte]) for byte, name in enumerate(BYTE_TOKENS)}
    if "ByteFallback" not in kinds and not all(name in plain for name in BYTE_TOKENS):
        single = {}

    def read(piece: str) -> bytes:
        if piece in single:
            return single[piece]
        if prefix is not None:
            piece = piece[len(prefix) :] if piece.startswith(prefix) else f" {piece}"
        for old, new in swaps:
            piece = piece.replace(old, new)
        return piece.encode()

    return read


def _parts(component: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a decoder, pre-tokenizer or normalizer as its JSON has them, sequences taken apart."""
    if component is not None:
        waiting = [json.loads(component.__getstate__())]
        while waiting:
            part = waiting.pop(0)
            if part["type"] == "Sequence":
                waiting[:0] = next(value for value in part.values() if isinstance(value, list))
            else:
                yield part


def _undone(normalizer: Any) -> Iterator[dict[str, Any]]:
    """Yield what turns a normalizer's spaces back, where no decoder says it."""
    for part in _parts(normalizer):
        if part["type"] == "Replace" and part["pattern"].get("String") == " ":
            yield {"type": "Metaspace", "replacement": part["content"]}


def _swap(part: Mapping[str, Any]) -> tuple[str, str] | None:
    if part["type"] == "Metaspace":
        return part["replacement"], " "
    if part["type"] == "Replace" and "String" in part["pattern"]:
        return part["pattern"]["String"], part["content"]
    if part["type"] == "BPEDecoder" and part["suffix"]:
        return part["suffix"], " "
    return None


def _alphabet() -> dict[int, int]:
    """Return GPT-2's alphabet, code point → byte: printable bytes are themselves, the others follow from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {256 + place: byte for place, byte in enumerate(rest)}


_BYTE_OF = _alphabet()


def _read_byte_level(piece: str) -> bytes:
    try:
        return bytes([_BYTE_OF[ord(letter)] for letter in piece])
    except KeyError:  # not of the alphabet: a token that was added as text
        return piece.encode()


def _with_prefix(encoded: Encoded, prefix: Sequence[int]) -> Encoded:
    if not prefix or tuple(encoded.ids[: len(prefix)]) == tuple(prefix):
        return encoded
    nowhere = np.zeros(len(prefix), np.int64)
    return Encoded(
        ids=np.concatenate([np.asarray(prefix, np.int32), encoded.ids]),
        starts=np.concatenate([nowhere, encoded.starts]),
        ends=np.concatenate([nowhere, encoded.ends]),
    )


def _located(backend: Any, pieces: Pieces, text: str, ids: list[int]) -> Encoded:
    """Return the tokens with their bytes: of the pieces where they make up the text, else from the offsets."""
    raw = text.encode()
    joined = b"".join(map(pieces.covering.__getitem__, ids))
    array = np.array(ids, np.int32)
    invented = len(joined) - len(raw)
    if joined != raw and not (invented == 1 and joined.startswith(b" ") and joined.endswith(raw)):
        return _by_offsets(pieces, raw, backend.encode(text, add_special_tokens=False), text)
    ends = np.cumsum(pieces.lengths[array])
    if invented:  # one space that the tokenizer puts before a text
        ends -= 1
    starts = np.empty_like(ends)
    starts[:1] = 0
    starts[1:] = ends[:-1]
    return Encoded(ids=array, starts=starts, ends=ends)


def _by_offsets(pieces: Pieces, raw: bytes, encoding: Any, text: str) -> Encoded:
    """Walk through the text: a token whose bytes stand there covers them, another ends where the tokenizer says."""
    letters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (letters >= 0x80).astype(np.int64) + (letters >= 0x800) + (letters >= 0x10000)
    byte_at = np.concatenate([[0], np.cumsum(widths)])  # by character
    told = byte_at[np.asarray(encoding.offsets, np.int64).reshape(-1, 2)].tolist()
    ends, here = [], 0
    for token, (start, end) in zip(encoding.ids, told, strict=True):
        piece = pieces.covering[token]
        if not raw.startswith(piece, here) and piece.startswith(b" "):
            piece = piece[1:]  # a space that the tokenizer made up
        # Offsets may leave out spaces at either end of a token, but what is there must be where they say.
        agree = start <= here + len(piece) and here + len(piece.rstrip()) <= max(end, start)
        here = here + len(piece) if agree and raw.startswith(piece, here) else max(here, end)
        ends.append(here)
    return Encoded(
        ids=np.asarray(encoding.ids, np.int32),
        starts=np.asarray([0, *ends[:-1]][: len(ends)], np.int64),
        ends=np.asarray(ends, np.int64),
    )
