"""A tokenizer's tokens and their ids, read from its files; and added tokens, written to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fusion.errors import CheckpointError
from fusion.hashes import decides

__all__ = ["Lexicon", "add_tokens", "companions", "has_lexicon", "read_lexicon", "same_companions", "same_lexicon"]

# The files that say which token has which id; tokenizer_config.json only in its added_tokens_decoder.
_LEXICA = ("tokenizer.json", "added_tokens.json", "vocab*", "*.model")
_ADDED_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class Lexicon:
    """One model's tokens; ``ids`` None where its tokenizer says nothing of them, so that rows go by position."""

    rows: int  # of the model's embedding
    ids: Mapping[str, int] | None = None  # token → row, of those that have one
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # as tokenizer.json describes added tokens
    next_id: int = 0  # what a token gets that is added to the tokenizer


def has_lexicon(folder: Path) -> bool:
    """Tell whether a folder has a tokenizer of its own."""
    return bool(_files(folder, _is_lexicon))


def companions(folder: Path) -> list[str]:
    """Return the names of the files that go with a tokenizer: its own, the chat template, generation_config.json."""
    return _files(folder, _is_companion)


def same_companions(one: Path, other: Path) -> bool:
    """Tell whether two folders have byte for byte the same tokenizer, chat template and generation_config.json."""
    return _same_files(one, other, _is_companion)


def same_lexicon(one: Path, other: Path) -> bool:
    """Tell whether two folders' tokens and ids are the same by the bytes of their files, which is cheap to see."""
    return _same_files(one, other, _is_lexicon) and _also_added(one) == _also_added(other)


def _is_lexicon(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _LEXICA)


def _is_companion(name: str) -> bool:
    return decides(name) and ".safetensors" not in name and name not in ("config.json", "adapter_config.json")


def _files(folder: Path, wanted: Callable[[str], bool]) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.is_file() and wanted(file.name))


def _same_files(one: Path, other: Path, wanted: Callable[[str], bool]) -> bool:
    if one == other:
        return True
    names = _files(one, wanted)
    return names == _files(other, wanted) and all(
        (one / name).stat().st_size == (other / name).stat().st_size
        and (one / name).read_bytes() == (other / name).read_bytes()
        for name in names
    )


def read_lexicon(folder: Path, *, rows: int) -> Lexicon:
    """Read a tokenizer's tokens; with plain JSON where there is a tokenizer.json, which is much faster."""
    if not (folder / "tokenizer.json").is_file():
        return _ask_transformers(folder, rows) if has_lexicon(folder) else Lexicon(rows)
    described = _read_json(folder / "tokenizer.json")
    vocab = (described.get("model") or {}).get("vocab")
    if not vocab:
        return Lexicon(rows)
    # Unigram lists [piece, score]; the others map token → id.
    regular = vocab if isinstance(vocab, dict) else {piece[0]: number for number, piece in enumerate(vocab)}
    added = {**_also_added(folder), **{token["content"]: token for token in described.get("added_tokens") or []}}
    ids = regular | {token: entry["id"] for token, entry in added.items()}
    # As the tokenizers library numbers a token that is added.
    next_id = max(len(regular), 1 + max((entry["id"] for entry in added.values()), default=-1))
    return Lexicon(rows, _with_row(ids, rows), added, next_id)


def _also_added(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return the added tokens that tokenizer_config.json lists, which may be more than tokenizer.json's."""
    listed = _read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    return {token["content"]: {**token, "id": int(number)} for number, token in listed.items()}


def _ask_transformers(folder: Path, rows: int) -> Lexicon:
    tokenizer = _load(folder)
    added = {token.content: _described(token) for token in tokenizer.added_tokens_decoder.values()}
    return Lexicon(rows, _with_row(tokenizer.get_vocab(), rows), added, len(tokenizer))


def _with_row(ids: Mapping[str, int], rows: int) -> Mapping[str, int]:
    if not rows or max(ids.values(), default=0) < rows:
        return ids
    return {token: row for token, row in ids.items() if row < rows}


def _described(token: Any) -> dict[str, Any]:
    return {name: getattr(token, name) for name in _ADDED_FIELDS}


def add_tokens(folder: Path, tokens: Sequence[Mapping[str, Any]]) -> None:
    """Add tokens, each with the ``id`` that it must get, to a folder's tokenizer through the tokenizer's library."""
    from tokenizers import AddedToken, Tokenizer

    new = [AddedToken(**{name: token[name] for name in _ADDED_FIELDS if name in token}) for token in tokens]
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_tokens(new)
        tokenizer.save(str(folder / "tokenizer.json"))
        ids = [tokenizer.token_to_id(token.content) for token in new]
        settings = _read_json(folder / "tokenizer_config.json")
        if listed := settings.get("added_tokens_decoder"):  # older transformers take the added tokens from here
            listed.update({str(number): _described(token) for number, token in zip(ids, new, strict=True)})
            text = json.dumps(settings, ensure_ascii=False, indent=2) + "\n"
            (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    else:
        loaded = _load(folder)
        loaded.add_tokens(new)
        loaded.save_pretrained(folder)
        ids = loaded.convert_tokens_to_ids([token.content for token in new])
    if ids != (planned := [token["id"] for token in tokens]):
        raise CheckpointError(
            f"the tokenizer in {folder} gave the added tokens {[token.content for token in new]} the ids {ids}, where "
            f"their rows are {planned}; choose the tokenizer of the base or of a source instead of union"
        )


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever the tokenizer's own class raises: OSError, ValueError, KeyError, ...
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be read ({type(error).__name__}: {error}); "
            "save it as tokenizer.json once: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); fetch it again") from None
    return value if isinstance(value, dict) else {}
