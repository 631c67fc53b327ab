"""The safetensors format, as far as we write it ourselves: shards that grow a tensor at a time.

The format wants a JSON header before the data. Room for it is left at the start of the file and filled, padded with
spaces (which the format allows), when the shard is closed; so no shard is ever held in memory.
https://huggingface.co/docs/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fusion.direct import DirectFile
from fusion.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SINGLE = "model.safetensors"
_ROOM = 1 << 18  # bytes for the header, enough for some 2,000 tensors; a fuller shard is closed early


def dtype_names() -> dict[str, torch.dtype]:
    """Return the format's dtype codes and what torch calls them."""
    import torch

    return {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return name → {dtype, shape, data_offsets} of one file, in the order of the data, having checked its length."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 2 <= length <= size - 8 else None
        if not isinstance(header, dict):
            raise ValueError("its header is not whole")
        header.pop("__metadata__", None)
        ordered = dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"]))
        end = max((entry["data_offsets"][1] for entry in ordered.values()), default=0)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} lacks {path.name}; fetch the checkpoint again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error}); fetch it again") from None
    if size != 8 + length + end:
        raise CheckpointError(f"{path} has {size} bytes where its header promises {8 + length + end}; fetch it again")
    return ordered


@dataclass(slots=True)
class Shard:
    """The tensors of one file, in the order of the data: name → {dtype, shape, data_offsets}."""

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    size: int = 0  # bytes of data
    _room: int = 100  # bytes of header, counted generously

    def add(self, name: str, dtype: torch.dtype, shape: Sequence[int], *, max_bytes: int) -> bool:
        """Note the tensor as the next one; False: it belongs into another file."""
        nbytes = math.prod(shape) * dtype.itemsize
        entry = {"dtype": _code(name, dtype), "shape": list(shape)}
        room = len(json.dumps(name)) + len(json.dumps(entry)) + 80  # the offsets, and what holds it together
        if self.entries and (
            self.size + nbytes > max_bytes
            or self._room + room > _ROOM
            or self.size % dtype.itemsize  # the format has no gaps to align by
        ):
            return False
        self.entries[name] = {**entry, "data_offsets": [self.size, self.size + nbytes]}
        self.size += nbytes
        self._room += room
        return True

    def header(self) -> bytes:
        """Return the file's beginning."""
        header = json.dumps({"__metadata__": {"format": "pt"}, **self.entries}, separators=(",", ":")).encode()
        return (_ROOM - 8).to_bytes(8, "little") + header.ljust(_ROOM - 8)


def layout(tensors: Iterable[tuple[str, torch.dtype, Sequence[int]]], *, max_bytes: int) -> list[Shard]:
    """Return the files that a ShardWriter would make of tensors of these names, dtypes and shapes."""
    shards: list[Shard] = []
    for name, dtype, shape in tensors:
        if not shards or not shards[-1].add(name, dtype, shape, max_bytes=max_bytes):
            shards.append(Shard())
            shards[-1].add(name, dtype, shape, max_bytes=max_bytes)
    return shards


class ShardWriter:
    """Writes tensors into a folder as they come; leaving the block closes the last shard.

    ``first`` is its first shard's number, from 0. The files get their names from name_shards.
    """

    def __init__(self, folder: Path, *, max_bytes: int, first: int = 0) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._first = first
        self._file: DirectFile | None = None
        self.shards: list[Shard] = []
        self.names: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._file is None:
            return
        if kind is not None:
            self._file.abandon()
            return
        self._close_shard()

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor."""
        import torch

        if name in self.names:
            raise CheckpointError(f"tensor {name!r} came twice")
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        if not self.shards or not self.shards[-1].add(name, tensor.dtype, tensor.shape, max_bytes=self._max_bytes):
            if self._file is not None:
                self._close_shard()
            self.shards.append(Shard())
            self.shards[-1].add(name, tensor.dtype, tensor.shape, max_bytes=self._max_bytes)
        if self._file is None:
            self._file = DirectFile(_numbered(self._folder, self._first + len(self.shards) - 1), start=_ROOM)
        self._file.write(data.data)
        self.names.add(name)

    def _close_shard(self) -> None:
        assert self._file is not None
        self._file.close(head=self.shards[-1].header())
        self._file = None


def main_dtype(shards: Iterable[Shard]) -> str:
    """Return the name of the dtype that most elements have, for config.json."""
    elements: Counter[str] = Counter()
    for shard in shards:
        for entry in shard.entries.values():
            elements[entry["dtype"]] += math.prod(entry["shape"])
    [(code, _)] = elements.most_common(1)
    return str(dtype_names()[code]).removeprefix("torch.")


def name_shards(folder: Path, shards: Sequence[Shard]) -> None:
    """Give the files of a folder, numbered from 0, their names, and several an index."""
    if len(shards) == 1:
        _numbered(folder, 0).rename(folder / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        _numbered(folder, number).rename(folder / file)
        weight_map |= dict.fromkeys(shard.entries, file)
    total = sum(shard.size for shard in shards)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / f"{SINGLE}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _numbered(folder: Path, number: int) -> Path:
    """Return the name that a shard has until their number is known."""
    return folder / f"{number + 1:05d}.safetensors"


def _code(name: str, dtype: torch.dtype) -> str:
    for code, known in dtype_names().items():
        if known == dtype:
            return code
    raise CheckpointError(f"tensor {name!r} has dtype {dtype}, which is not supported")
