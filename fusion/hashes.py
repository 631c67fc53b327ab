"""What a model is: one hash over the files that decide what it says."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from fusion.errors import CheckpointError

DECIDING = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "*.model",
)
_WORTH_REMEMBERING = 1 << 20  # bytes; a smaller file is read again sooner than it is looked up


def content_hash(path: Path, *, cache: Path | None = None) -> str:
    """Return 32 hex digits that are equal for equal models: a checkpoint folder's or a GGUF file's.

    Of a folder count the names and bytes of the files that decide what the model says (weights, configuration,
    tokenizer, chat template), not its recipe or README. With ``cache``, a folder, the hashes of large files are
    remembered there by path, size and time of change, so that a model is read once.
    """
    memory = _Memory(cache)
    if path.is_file():
        digest = memory.sha256(path)
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and decides(file.name))
        if not any(file.suffix == ".safetensors" for file in files):
            raise CheckpointError(f"{path} holds no *.safetensors file, so it is no checkpoint; check the path")
        listing = [[file.name, memory.sha256(file)] for file in files]
        digest = hashlib.sha256(json.dumps(listing, ensure_ascii=False).encode("utf-8", "surrogateescape")).hexdigest()
    else:
        raise CheckpointError(f"there is no model at {path}: neither a file nor a folder; check the path")
    memory.save()
    return digest[:32]


def decides(name: str) -> bool:
    """Tell whether a file of this name in a checkpoint folder decides what the model says."""
    return any(fnmatch(name, pattern) for pattern in DECIDING)


class _Memory:
    """The hashes of large files already read, in ``hashes.json`` of the cache folder."""

    def __init__(self, cache: Path | None) -> None:
        self._file = cache / "hashes.json" if cache else None
        self._known = self._load()
        self._new: dict[str, str] = {}

    def sha256(self, path: Path) -> str:
        before = path.stat()
        key = f"{path.resolve()}|{before.st_size}|{before.st_mtime_ns}"
        if digest := self._known.get(key):
            return digest
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if before.st_size >= _WORTH_REMEMBERING and path.stat().st_mtime_ns == before.st_mtime_ns:
            self._known[key] = self._new[key] = digest
        return digest

    def save(self) -> None:
        if self._file is None or not self._new:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        merged = self._load() | self._new  # another process may have written meanwhile
        handle, temporary = tempfile.mkstemp(dir=self._file.parent, prefix=".hashes-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
                json.dump(merged, file, indent=0, ensure_ascii=False)
            os.replace(temporary, self._file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _load(self) -> dict[str, str]:
        try:
            text = self._file.read_text(encoding="utf-8", errors="surrogateescape") if self._file else "{}"
            known = json.loads(text)
        except (FileNotFoundError, ValueError):
            return {}  # only a cache: what is lost is hashed again
        return known if isinstance(known, dict) else {}
