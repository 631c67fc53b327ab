"""A folder of Parquet shards that can be filled by several processes, killed, resumed and checked.

A shard is named by its number and by the key of what it was made from, so that a changed input makes a new file and
never a wrong one. It is written beside its name and renamed, then a small JSON file vouches for it with a SHA-256;
when all shards are there, one manifest takes the place of these files. What is not vouched for is made again.

    settings.json                     what all shards have in common
    00000-8c7dd922ad47ff12.parquet    a shard
    00000-8c7dd922ad47ff12.json       its voucher, until the manifest is written
    manifest.json                     all shards; only a finished folder has one
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fusion.errors import FusionError

FORMAT = 1
"""Raised when the layout of these folders changes."""

ZSTD_LEVEL = 9  # reading is as fast as at level 3; writing is far faster than any model's forward pass


@dataclass(frozen=True, slots=True)
class Shard:
    """One finished shard; ``counts`` are the numbers that its writer gave with it, such as rows and tokens."""

    number: int
    file: str
    key: str
    sha256: str
    bytes: int
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A finished folder: its settings, its shards in order, and what else its maker told."""

    folder: Path
    settings: Mapping[str, Any]
    shards: tuple[Shard, ...]
    told: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        """Return the size of all shards on disk."""
        return sum(shard.bytes for shard in self.shards)

    def count(self, name: str) -> int:
        """Return the sum of one count over all shards; a shard without it adds nothing."""
        return sum(shard.counts.get(name, 0) for shard in self.shards)


class ShardFolder:
    """A folder being filled; several processes may fill one, each its own shards.

    ``settings`` (JSON values) say what all shards have in common. FusionError where the folder was begun with others,
    or where a shard's bytes are not those that were written (``repair``: such a shard is forgotten, to be redone).
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, repair: bool = False) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = json.loads(_json({"format": FORMAT, **settings}))
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / "settings.json"
        if known.exists():
            _same_settings(known, self.settings)
        else:
            _write(known, _json(self.settings).encode("utf-8"))
        self._done = {shard.key: shard for shard in _finished(folder) if _usable(folder, shard, repair=repair)}

    def has(self, key: str) -> bool:
        """Tell whether the shard of this key is finished, by whichever process."""
        return key in self._done

    def write(self, number: int, key: str, table: Any, **counts: int) -> Shard:
        """Write a pyarrow table as shard ``number``, and vouch for it."""
        name = f"{number:05d}-{key[:16]}"
        data = _parquet(table)
        shard = Shard(number, f"{name}.parquet", key, hashlib.sha256(data).hexdigest(), len(data), counts)
        _write(self.folder / shard.file, data)
        _write(self.folder / f"{name}.json", _json(asdict(shard)).encode("utf-8"))
        self._done[key] = shard
        return shard

    def finish(self, keys: Sequence[str], **told: Any) -> Manifest:
        """Write the manifest of the shards with these keys, in this order, and remove all other shards.

        One process calls it when all are done. FusionError names a shard that is missing.
        """
        found = {shard.key: shard for shard in _finished(self.folder)} | self._done
        if lacking := [number for number, key in enumerate(keys) if key not in found]:
            raise FusionError(
                f"{self.folder} lacks shard {lacking[0]} ({len(lacking)} of {len(keys)} in all); "
                "run the same command again: what is finished is kept"
            )
        shards = tuple(replace(found[key], number=number) for number, key in enumerate(keys))  # it may have moved
        manifest = {"settings": self.settings, "told": told, "shards": [asdict(shard) for shard in shards]}
        _write(self.folder / "manifest.json", _json(manifest).encode("utf-8"))
        kept = {"settings.json", "manifest.json", *(shard.file for shard in shards)}
        for file in self.folder.iterdir():
            if file.name not in kept and file.suffix in (".parquet", ".json", ".partial"):
                file.unlink()
        return read_manifest(self.folder)


def key_of(*parts: object) -> str:
    """Return a key of 64 hex digits that is equal for equal JSON values."""
    return hashlib.sha256(_json(parts).encode("utf-8")).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a finished folder; FusionError where it is not finished or not there."""
    file = folder / "manifest.json"
    if not file.is_file():
        what = "is not finished" if (folder / "settings.json").is_file() else "is no folder of shards"
        raise FusionError(f"{folder} {what} (it has no manifest.json); run what makes it again, or check the path")
    value = _load(file)
    if value["settings"].get("format") != FORMAT:
        raise FusionError(
            f"{file} has format {value['settings'].get('format')!r}, and this version reads {FORMAT}; make it again"
        )
    return Manifest(folder, value["settings"], tuple(Shard(**shard) for shard in value["shards"]), value["told"])


def read_shard(folder: Path, shard: Shard, *, columns: Sequence[str] | None = None) -> Any:
    """Read a shard as a pyarrow table once its bytes are seen to be those that were written, else FusionError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = _checked(folder, shard)
    return pq.read_table(pa.BufferReader(data), columns=list(columns) if columns else None, use_threads=False)


def _parquet(table: Any) -> bytes:
    """Return a table as one Parquet row group: numbers by bytes or by differences, then zstd."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    encodings = {}
    for field in table.schema:
        of = field.type.value_type if pa.types.is_list(field.type) else field.type
        path = f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
        if pa.types.is_floating(of):
            encodings[path] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_integer(of) and of.bit_width >= 32:
            by_steps = (field.metadata or {}).get(b"steps") == b"1"
            encodings[path] = "DELTA_BINARY_PACKED" if by_steps else "BYTE_STREAM_SPLIT"
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        use_dictionary=False,
        column_encoding=encodings or None,
        write_statistics=False,
        row_group_size=max(1, table.num_rows),
    )
    return bytes(sink.getvalue())


def _finished(folder: Path) -> Iterator[Shard]:
    """Yield the shards that a manifest or a voucher speaks for and whose file is there."""
    shards = []
    if (folder / "manifest.json").is_file():
        shards += _load(folder / "manifest.json")["shards"]
    shards += [_load(file) for file in sorted(folder.glob("[0-9]*-*.json"))]
    for shard in shards:
        if (folder / shard["file"]).is_file():
            yield Shard(**shard)


def _usable(folder: Path, shard: Shard, *, repair: bool) -> bool:
    try:
        _checked(folder, shard)
    except FusionError:
        if not repair:
            raise
        return False
    return True


def _checked(folder: Path, shard: Shard) -> bytes:
    """Return the bytes of a shard; FusionError names it where they are not there or not those that were written."""
    file = folder / shard.file
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise FusionError(f"{file} is gone, but the manifest names it; run what makes it again") from None
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise FusionError(
            f"{file} is damaged: its SHA-256 is not the one that was noted when it was written; "
            "remove this file, or ask for repair, and run what makes it again"
        )
    return data


def _same_settings(file: Path, wanted: Mapping[str, Any]) -> None:
    known = _load(file)
    for name in sorted(known.keys() | wanted.keys()):
        if known.get(name) != wanted.get(name):
            raise FusionError(
                f"{file.parent} was begun with {name} {known.get(name)!r}, and now it is {wanted.get(name)!r}; "
                "choose another folder, or remove this one"
            )


def _write(file: Path, data: bytes) -> None:
    """Write a file beside its name and rename it, so that it is whole wherever it is seen."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    os.replace(partial, file)


def _load(file: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FusionError(f"{file} is not JSON ({error}); remove it and run what makes it again") from None
    return value


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
