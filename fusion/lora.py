"""LoRA adapters as models: a peft folder laid over its base, computed a tensor at a time when one is asked for.

Follows peft 0.21 (``merge_and_unload``), in float32. Refused is what no merge of weights can say: variants of LoRA
that compute something else, and adapters that were trained against weights other than the base's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion.checkpoints import Checkpoint
from fusion.errors import CheckpointError
from fusion.shards import dtype_names, read_header
from fusion.vocabulary import over_vocabulary

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Adapted", "is_adapter"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_HEAD = "lm_head.weight"
_LOW_RANK = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.(?P<kind>weight|bias))?")
_VARIANTS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
# These begin with a base of changed weights: the adapter is a difference from those, not from the base's own.
_CHANGES_BASE = ("pissa", "corda", "olora", "lora_ga", "loftq")
_MOST_LISTED = 10


@dataclass(slots=True)
class _Change:
    """What the adapter file holds for one weight of the base: names in the file."""

    full: str | None = None  # takes the base's place
    a: str | None = None  # (r, in)
    b: str | None = None  # (out, r), or of a bias (out)
    scaling: float = 1.0
    transposed: bool = False  # the base stores (in, out)


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder is a peft adapter's."""
    return (folder / _CONFIG).is_file()


class Adapted:
    """A base with a LoRA adapter on it, read like a Checkpoint: W + s · B A in float32 where the adapter has a part.

    ``config`` is the base's. Everything is checked here, from the file's header; no weight is read.
    """

    def __init__(self, folder: Path, base: Checkpoint) -> None:
        self.folder = folder
        self.config: Mapping[str, Any] = base.config
        self._base = base
        self._settings = _settings(folder)
        if not (folder / _WEIGHTS).is_file() and (pickles := sorted(file.name for file in folder.glob("*.bin"))):
            raise CheckpointError(
                f"{folder} has only pickled weights ({pickles[0]}), which can run code when they are read; convert "
                "them once where you trust them: PeftModel.from_pretrained(base, folder).save_pretrained(new_folder)"
            )
        self._header = read_header(folder / _WEIGHTS)
        self._open: Any = None
        self._changes = self._sort()
        self._tie()
        self._check()
        self.names: tuple[str, ...] = base.names

    def __contains__(self, name: str) -> bool:
        return name in self._base

    def tensor(self, name: str) -> Tensor:
        """Read one tensor; what the adapter changes is computed, in float32."""
        import torch

        change = self._changes.get(name)
        if change is None:
            return self._base.tensor(name)
        weight = (self._read(change.full) if change.full else self._base.tensor(name)).float()
        if change.b is None:
            return weight
        b = self._read(change.b).float()
        if change.a is None:
            return weight.add(b, alpha=change.scaling)
        a = self._read(change.a).float()
        left, right = (a.T, b.T) if change.transposed else (b, a)
        return torch.addmm(weight, left, right, alpha=change.scaling)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it; an adapter may have resized the embedding."""
        change = self._changes.get(name)
        return self._shape(change.full) if change and change.full else self._base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype without reading it: float32 where the adapter has a part."""
        import torch

        return torch.float32 if name in self._changes else self._base.dtype(name)

    def file(self, name: str) -> Path:
        """Return the file that decides a tensor: the adapter's where it has a part, else the base's."""
        return self.folder / _WEIGHTS if name in self._changes else self._base.file(name)

    def _read(self, stored: str) -> Tensor:
        from safetensors import safe_open

        if self._open is None:
            self._open = safe_open(self.folder / _WEIGHTS, framework="pt")
        tensor: Tensor = self._open.get_tensor(stored)
        return tensor

    def _shape(self, stored: str) -> tuple[int, ...]:
        return tuple(self._header[stored]["shape"])

    def _sort(self) -> dict[str, _Change]:
        """Return the base's names and what changes them, or raise one error that lists what fits nowhere."""
        changes: dict[str, _Change] = {}
        lost = []
        for stored in self._header:
            name = stored.removeprefix(_PREFIX)
            low = _LOW_RANK.fullmatch(name)
            if low is None:
                target = self._find(name.replace(".base_layer.", "."))
            else:
                target = self._find(f"{low['module']}.{'bias' if low['kind'] == 'bias' else 'weight'}")
            if target is None:
                lost.append(stored)
                continue
            change = changes.setdefault(target, _Change())
            if low is None:
                change.full = stored
                continue
            if low["side"] == "A":
                change.a = stored
            else:
                change.b = stored
            change.scaling = self._scaling(low["module"])
            change.transposed = bool(low["embedding"])
        if lost:
            more = f" and {len(lost) - _MOST_LISTED} more" if len(lost) > _MOST_LISTED else ""
            raise CheckpointError(
                f"{self.folder / _WEIGHTS} has tensors that belong to no weight of {self._base.folder}: "
                f"{', '.join(lost[:_MOST_LISTED])}{more}; use the base that the adapter was trained on "
                f"({_CONFIG} names {self._settings.get('base_model_name_or_path')})"
            )
        return changes

    def _find(self, name: str) -> str | None:
        """Return the base's name of a weight; some checkpoints are stored without the outermost module's name."""
        head, _, rest = name.partition(".")
        shorter = [rest] if head in ("model", "transformer") else []
        for candidate in (name, *shorter, f"model.{name}", f"transformer.{name}"):
            if candidate in self._base:
                return candidate
        return _HEAD if name == _HEAD and self._ties() else None

    def _ties(self) -> bool:
        return bool(self.config.get("tie_word_embeddings", _HEAD not in self._base))

    def _pattern(self, which: str, module: str, default: object) -> Any:
        # As peft's get_pattern_key: a key is a regular expression for the end of the module's name.
        for key, value in (self._settings.get(which) or {}).items():
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        return default

    def _scaling(self, module: str) -> float:
        rank = self._rank(module)
        alpha = self._pattern("alpha_pattern", module, self._settings["lora_alpha"])
        return float(alpha / (math.sqrt(rank) if self._settings.get("use_rslora") else rank))

    def _rank(self, module: str) -> int:
        return int(self._pattern("rank_pattern", module, self._settings["r"]))

    def _tie(self) -> None:
        """Drop the output layer's part where it is the embedding's, or refuse where the two have come apart."""
        if not self._ties():
            return
        embeddings = [name for name in self._changes if over_vocabulary(name) and not name.startswith("lm_head.")]
        head = self._changes.get(_HEAD)
        if not head and not embeddings:
            return
        if head and embeddings and (self._settings.get("ensure_weight_tying") or self._same(head, embeddings[0])):
            del self._changes[_HEAD]
            return
        raise CheckpointError(
            f"{self.folder / _WEIGHTS} changes {' and '.join([*embeddings, *([_HEAD] if head else [])])}, "
            f"but {self._base.folder} ties its output layer to its embedding, so that one matrix would have to be two; "
            "train the adapter with ensure_weight_tying=True, or untie the base before training "
            "(tie_word_embeddings=false, with lm_head.weight saved)"
        )

    def _same(self, head: _Change, embedding: str) -> bool:
        """Tell whether both are stored whole and alike, as peft does when a tied embedding was resized."""
        other = self._changes[embedding]
        if not head.full or not other.full or head.b or other.b:
            return False
        return self._shape(head.full) == self._shape(other.full) and self._read(head.full).equal(self._read(other.full))

    def _check(self) -> None:
        wrong = [
            f"{stored} has dtype {entry['dtype']}, which no adapter's weights have"
            for stored, entry in self._header.items()
            if entry["dtype"] not in dtype_names() or not dtype_names()[entry["dtype"]].is_floating_point
        ]
        for name, change in self._changes.items():
            wrong += self._misfits(name, change)
        bias = self._settings.get("bias", "none")
        for name in self._base.names if bias != "none" else ():
            trained = bias == "all" or f"{name.removesuffix('bias')}weight" in self._changes
            if name.endswith(".bias") and trained and not (name in self._changes and self._changes[name].full):
                wrong.append(f"{name} was trained (bias={bias!r} in {_CONFIG}) but is not stored")
        if wrong:
            more = f"\n  … and {len(wrong) - _MOST_LISTED} more" if len(wrong) > _MOST_LISTED else ""
            raise CheckpointError(
                f"{self.folder / _WEIGHTS} does not fit {self._base.folder}; use the base that the adapter was trained "
                "on, and the adapter as peft saved it:\n  " + "\n  ".join(wrong[:_MOST_LISTED]) + more
            )

    def _misfits(self, name: str, change: _Change) -> list[str]:
        """Return what is wrong with one weight's part; of a square matrix only the settings say which way it lies."""
        target = self._base.shape(name)
        if change.full:
            full = self._shape(change.full)
            if full[1:] != target[1:] or (full != target and not over_vocabulary(name)):
                return [f"{change.full} has shape {full}, where the base's {name} has {target}"]
            target = full
        if change.a is None and change.b is None:
            return []
        if change.b is None or (change.a is None) != name.endswith(".bias"):
            return [f"{name} has only one of lora_A and lora_B"]
        b = self._shape(change.b)
        if change.a is None:
            return [] if b == target else [f"{change.b} has shape {b}, where the base's {name} has {target}"]
        a = self._shape(change.a)
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] < 1:
            return [f"{change.a} has shape {a} and {change.b} has {b}, which are not (r, in) and (out, r)"]
        rank = self._rank(change.a.removeprefix(_PREFIX).partition(".lora_")[0])
        if a[0] != rank:
            return [f"{change.a} has rank {a[0]}, where {_CONFIG} says {rank}"]
        plain, turned = (b[0], a[1]), (a[1], b[0])
        if not change.transposed:
            change.transposed = target == turned and (plain != turned or bool(self._settings.get("fan_in_fan_out")))
        if target != (turned if change.transposed else plain):
            return [f"{change.a} and its lora_B make shape {plain}, where the base's {name} has {target}"]
        return []


def _settings(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json, having refused every adapter that is not W + s · B A."""
    path = folder / _CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} lacks {_CONFIG}; is it a peft adapter's folder?") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds no JSON object; fetch it again")
    merge = "merge it with peft (merge_and_unload) and give the merged checkpoint"
    if (kind := settings.get("peft_type")) != "LORA":
        raise CheckpointError(f"{path}: peft_type is {kind!r}; only LORA is read: {merge}")
    for variant in _VARIANTS:
        if value := settings.get(variant):
            raise CheckpointError(f"{path}: {variant} is {value!r}, which is not plain LoRA; {merge}")
    begin = settings.get("init_lora_weights")
    if isinstance(begin, str) and begin.lower().startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{path}: init_lora_weights is {begin!r}, which changed the base's own weights; convert the adapter with "
            "peft (save_pretrained(..., path_initial_model_for_weight_conversion=...)) or give the merged checkpoint"
        )
    ranks = [settings.get("r"), *(settings.get("rank_pattern") or {}).values()]
    alphas = [settings.get("lora_alpha"), *(settings.get("alpha_pattern") or {}).values()]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        raise CheckpointError(f"{path}: r and rank_pattern hold {ranks}, which must be whole numbers above 0")
    if not all(isinstance(alpha, int | float) for alpha in alphas):
        raise CheckpointError(f"{path}: lora_alpha and alpha_pattern hold {alphas}, which must be numbers")
    return settings
