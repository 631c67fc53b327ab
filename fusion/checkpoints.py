"""Checkpoints: folders of safetensors, read lazily, written shard by shard; GGUF in.

Pickled weights are never read. A folder appears under its name only when it is whole.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion.errors import CheckpointError, FusionError, RecipeError, need
from fusion.hashes import content_hash, decides
from fusion.quiet import quiet_libraries
from fusion.shards import SINGLE, Shard, ShardWriter, dtype_names, main_dtype, name_shards, read_header

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "DTYPES",
    "MAX_SHARD_BYTES",
    "Checkpoint",
    "content_hash",
    "copy_companions",
    "from_gguf",
    "whole_folder",
    "write_checkpoints",
    "write_folders",
]

MAX_SHARD_BYTES = 5 << 30  # of a file of weights

DTYPES = ("bfloat16", "float16", "float32")
"""The storage dtypes that a checkpoint can be asked for by name."""

_INDEX = f"{SINGLE}.index.json"


class Checkpoint:
    """A folder of safetensors, one file or several with an index; a tensor is read when it is asked for.

    ``names`` are in the order in which they lie on disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        promised = _promised(folder)
        self._headers = {file: read_header(folder / file) for file in sorted(set(promised.values()))}
        self._file_of = {name: file for file, header in self._headers.items() for name in header}
        if lost := sorted(name for name in promised if name and name not in self._file_of):
            raise CheckpointError(
                f"{folder / promised[lost[0]]} lacks tensor {lost[0]!r}, which {_INDEX} names "
                f"({len(lost)} such in all); fetch the checkpoint again"
            )
        self._open: dict[str, Any] = {}
        self._data: dict[str, int] = {}  # where each file's data begin
        self.names: tuple[str, ...] = tuple(self._file_of)
        self.config: Mapping[str, Any] = _read_json(folder / "config.json", "every checkpoint needs one")

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def tensor(self, name: str) -> Tensor:
        """Read one tensor."""
        from safetensors import safe_open

        file = self.file(name).name
        if (opened := self._open.get(file)) is None:
            opened = safe_open(self.folder / file, framework="pt")
            # Only the last two stay mapped, besides what someone has tensors of.
            self._open = dict([*self._open.items(), (file, opened)][-2:])
        tensor: Tensor = opened.get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return tuple(self._headers[self.file(name).name][name]["shape"])

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's storage dtype without reading it."""
        code = self._headers[self.file(name).name][name]["dtype"]
        try:
            return dtype_names()[code]
        except KeyError:
            raise CheckpointError(
                f"tensor {name!r} in {self.file(name)} has dtype {code}, which is not supported"
            ) from None

    def prefetch(self, name: str) -> None:
        """Have the kernel read a tensor's bytes from the disk while something else is done."""
        file = self.file(name).name
        if file not in self._data:
            with (self.folder / file).open("rb") as opened:
                self._data[file] = 8 + int.from_bytes(opened.read(8), "little")
        first, last = self._headers[file][name]["data_offsets"]
        with (self.folder / file).open("rb") as opened:
            os.posix_fadvise(opened.fileno(), self._data[file] + first, last - first, os.POSIX_FADV_WILLNEED)

    def file(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        try:
            return self.folder / self._file_of[name]
        except KeyError:
            raise CheckpointError(f"there is no tensor {name!r} in {self.folder}") from None


def _promised(folder: Path) -> dict[str, str]:
    """Return tensor name → file as the index has it; of a single file, which has no index, the name is empty."""
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {folder}; check the path")
    if (folder / _INDEX).is_file():
        weight_map: dict[str, str] = _read_json(folder / _INDEX, "it lists the shards").get("weight_map") or {}
        missing = sorted({file for file in weight_map.values() if not (folder / file).is_file()})
        if missing or not weight_map:
            what = f"lacks {', '.join(missing)}, which {_INDEX} names" if missing else f"has an {_INDEX} without files"
            raise CheckpointError(f"{folder} {what}; fetch the checkpoint again")
        return weight_map
    if (folder / SINGLE).is_file():
        return {"": SINGLE}
    if pickles := sorted(file.name for file in folder.glob("*.bin")):
        raise CheckpointError(
            f"{folder} has only pickled weights ({pickles[0]}), which can run code when they are read; convert it once "
            "where you trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    raise CheckpointError(f"{folder} has neither {SINGLE} nor {_INDEX}; is it a checkpoint folder?")


def _read_json(path: Path, why: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} lacks {path.name}; {why}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object; fetch it again")
    return value


def check_dtype(name: str) -> None:
    """Raise RecipeError unless ``name`` is one of DTYPES."""
    if name not in DTYPES:
        raise RecipeError(f"dtype is {name!r}; it must be one of {', '.join(DTYPES)}")


def from_gguf(gguf: Path, folder: Path, *, dtype: str = "bfloat16") -> None:
    """Turn a GGUF file into a checkpoint folder: weights dequantised to ``dtype``, tokenizer, chat template."""
    check_dtype(dtype)
    if not gguf.is_file():
        raise CheckpointError(f"there is no GGUF file {gguf}; check the path")
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CheckpointError(f"{gguf} is not a GGUF file (it does not begin with the letters GGUF)")
    need("gguf", extra="demo")
    import torch

    with whole_folder(folder) as work, quiet_libraries():
        tokenizer, model = _read_gguf(gguf)
        # transformers takes a model that came from GGUF for a quantised one, and refuses to save it.
        model.hf_quantizer, model.is_quantized = None, False
        del model.config.quantization_config
        model.to(getattr(torch, dtype)).save_pretrained(work)
        tokenizer.save_pretrained(work)
        _write_json(work / "config.json", _without_paths(_read_json(work / "config.json", "just written")))


def _read_gguf(gguf: Path) -> tuple[Any, Any]:
    """Return the tokenizer and the model, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    except MemoryError:
        raise
    except ImportError as error:
        raise FusionError(f"{gguf} needs a package: {error}; pip install 'fuseval[demo]'") from error
    except Exception as error:  # of a broken file: struct.error, ValueError, KeyError, IndexError, UnicodeError, ...
        raise CheckpointError(
            f"{gguf} cannot be read ({type(error).__name__}: {error}); fetch it again if it may be cut short, "
            "else use a model whose GGUF transformers can read, or its safetensors"
        ) from error
    return tokenizer, model


def write_checkpoints(
    tensors: Iterable[tuple[str, Sequence[Tensor | None]]],
    folders: Sequence[Path],
    *,
    like: Path,
    complete: Callable[[int, Path], None],
    written: Callable[[Tensor], None] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a stream of tensors, one for each folder, as checkpoint folders; nothing but the current ones in memory.

    A None comes at another time, under the same name. ``written`` is called with every tensor that is in its file;
    see write_folders.
    """

    def fill(works: Sequence[Path]) -> list[list[Shard]]:
        with ExitStack() as shards:
            writers = [shards.enter_context(ShardWriter(work, max_bytes=max_shard_bytes)) for work in works]
            for name, variants in tensors:
                for writer, tensor in zip(writers, variants, strict=True):
                    if tensor is not None:
                        writer.add(name, tensor)
                for tensor in variants if written else ():
                    if tensor is not None:
                        written(tensor)  # type: ignore[misc]
                del variants, tensor  # or they would be kept until the next are there
        return [writer.shards for writer in writers]

    write_folders(fill, folders, like=like, complete=complete)


def write_folders(
    fill: Callable[[Sequence[Path]], Sequence[Sequence[Shard]]],
    folders: Sequence[Path],
    *,
    like: Path,
    complete: Callable[[int, Path], None],
) -> None:
    """Make checkpoint folders whose weights ``fill`` writes into the working folders that it is given.

    Configuration, tokenizer and chat template are those of the checkpoint ``like``. ``complete`` is called with each
    folder's number and the folder, which has not its name yet, to put in what else belongs there.
    """
    with ExitStack() as whole:
        works = [whole.enter_context(whole_folder(folder)) for folder in folders]
        for number, (work, shards) in enumerate(zip(works, fill(works), strict=True)):
            if not shards:
                raise CheckpointError(f"there are no tensors to write to {folders[number]}")
            name_shards(work, shards)
            copy_companions(like, work, dtype=main_dtype(shards))
            complete(number, work)


def copy_companions(like: Path, folder: Path, *, dtype: str) -> None:
    """Copy everything that decides what a model says, but its weights, from ``like``; config.json names ``dtype``."""
    for file in sorted(like.iterdir()):
        if (
            file.is_file()
            and decides(file.name)
            and not file.name.endswith((".safetensors", ".safetensors.index.json"))
        ):
            shutil.copyfile(file, folder / file.name)
    before = _read_json(like / "config.json", "every checkpoint needs one")
    config = _without_paths(before)
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    config[key] = dtype
    if config != before:
        _write_json(folder / "config.json", config)


def _without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.endswith("name_or_path")}


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a working folder beside ``folder`` that takes its name when the block ends well, and is removed if not.

    What a killed process left behind is removed by the next one that writes here. An existing folder is never
    overwritten, an empty one is used. Where another process made the same checkpoint meanwhile, its folder stays.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already; remove it or choose another name")
    prefix = f".{folder.name}.partial-{socket.gethostname()}-"
    work = folder.parent / f"{prefix}{os.getpid()}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for stale in folder.parent.glob(glob.escape(prefix) + "*"):
            if not _alive(stale.name.removeprefix(prefix)):
                shutil.rmtree(stale, ignore_errors=True)
        work.mkdir()
        yield work
        readable = work.stat().st_mode & 0o666
        for file in work.iterdir():
            if not file.is_symlink():  # or what it points to would be changed
                file.chmod(readable)  # safetensors makes its files private, whatever the umask
        _take_name(work, folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(f"the disk is full: {folder} was not written; make room and run again") from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _take_name(work: Path, folder: Path) -> None:
    try:
        os.replace(work, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # It was not there when the work began, and whole folders come by one rename: another process was faster.
        if lacking := sorted({file.name for file in work.iterdir()} - {file.name for file in folder.iterdir()}):
            raise CheckpointError(
                f"{folder} was made by something else meanwhile (it lacks {', '.join(lacking)}); "
                "remove it or choose another name"
            ) from None


def _alive(pid: str) -> bool:
    if not pid.isdecimal():
        return True  # not one of ours
    if int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
