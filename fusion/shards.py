"""The safetensors format, as far as we write it ourselves: shards that grow a tensor at a time.

The format wants a JSON header before the data. Room for it is left at the start of the file and filled, padded with
spaces (which the format allows), when the shard is closed; so no shard is ever held in memory.
https://huggingface.co/docs/safetensors#format
"""

from __future__ import annotations

import json
from collections import Counter
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


class ShardWriter:
    """Writes tensors into a folder as they come; leaving the block closes the last shard and writes the index."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._codes = {dtype: code for code, dtype in dtype_names().items()}
        self._elements: Counter[torch.dtype] = Counter()
        self._shards: list[dict[str, dict[str, Any]]] = []
        self._file: DirectFile | None = None
        self._offset = 0
        self._room = 0
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
        self._name_shards()

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor."""
        import torch

        if name in self.names:
            raise CheckpointError(f"tensor {name!r} came twice")
        if tensor.dtype not in self._codes:
            raise CheckpointError(f"tensor {name!r} has dtype {tensor.dtype}, which is not supported")
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        entry = {"dtype": self._codes[tensor.dtype], "shape": list(tensor.shape)}
        room = len(json.dumps(name)) + len(json.dumps(entry)) + 80  # the offsets, and what holds it together
        if self._file is not None and (
            self._offset + data.nbytes > self._max_bytes
            or self._room + room > _ROOM
            or self._offset % tensor.element_size()  # the format has no gaps to align by
        ):
            self._close_shard()
        if self._file is None:
            self._open_shard()
        assert self._file is not None
        self._file.write(data.data)
        self._shards[-1][name] = {**entry, "data_offsets": [self._offset, self._offset + data.nbytes]}
        self._offset += data.nbytes
        self._room += room
        self._elements[tensor.dtype] += tensor.numel()
        self.names.add(name)

    def main_dtype(self) -> str:
        """Return the name of the dtype that most elements have, for config.json."""
        [(dtype, _)] = self._elements.most_common(1)
        return str(dtype).removeprefix("torch.")

    def _open_shard(self) -> None:
        self._shards.append({})
        self._file = DirectFile(self._path(len(self._shards)), start=_ROOM)
        self._offset, self._room = 0, 100

    def _close_shard(self) -> None:
        assert self._file is not None
        header = json.dumps({"__metadata__": {"format": "pt"}, **self._shards[-1]}, separators=(",", ":")).encode()
        self._file.close(head=(_ROOM - 8).to_bytes(8, "little") + header.ljust(_ROOM - 8))
        self._file = None

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05d}.safetensors"

    def _name_shards(self) -> None:
        count = len(self._shards)
        if count == 1:
            self._path(1).rename(self._folder / SINGLE)
            return
        weight_map: dict[str, str] = {}
        total = 0
        for number, shard in enumerate(self._shards, 1):
            file = f"model-{number:05d}-of-{count:05d}.safetensors"
            self._path(number).rename(self._folder / file)
            weight_map |= dict.fromkeys(shard, file)
            total += max(entry["data_offsets"][1] for entry in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (self._folder / f"{SINGLE}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
