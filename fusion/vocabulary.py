"""Vocabularies that differ between the models of a merge: which tokens the result has, and whose rows they get.

A row belongs to a token, not to a number: equal sizes hide tokens on other ids. The policies:

- ``base``: the result has the base's tokens on the base's ids; a source's other tokens are left out.
- ``1``, ``2``, …: the same with that source's tokens.
- ``union``: the base's, then the added tokens that only sources have, in the order of sources. They take the base's
  padding rows first; then the matrices grow by exactly the rows that are lacking.

A token that a source lacks gets the base's row there, so that it changes nothing. A token that the base lacks gets, as
the base's row, the mean of the rows of the sources that have it (of all the base's rows if only sources have it that
take no part in that tensor). Rows without a token (padding) go by position.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion.errors import CheckpointError, RecipeError
from fusion.lexicon import (
    Lexicon,
    add_tokens,
    companions,
    has_lexicon,
    read_lexicon,
    same_companions,
    same_lexicon,
)

if TYPE_CHECKING:
    from torch import Tensor

    from fusion.checkpoints import Checkpoint
    from fusion.lora import Adapted

__all__ = ["Vocabulary", "over_vocabulary", "plan_vocabulary", "vocabulary_names", "write_tokenizer"]

_OVER_VOCABULARY = (
    "embed_tokens.weight",
    "embed_tokens_per_layer.weight",
    "tok_embeddings.weight",
    "word_embeddings.weight",
    "wte.weight",
    "embed_in.weight",
    "embed_out.weight",
    "lm_head.weight",
    "lm_head.bias",
)
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
_MOST_LISTED = 10


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The result's vocabulary, and where each of its rows lies in each model."""

    size: int  # rows of the result's embedding
    like: Path  # the folder whose tokenizer files go with the result
    added: tuple[Mapping[str, Any], ...]  # tokens to add to it, as tokenizer.json describes added tokens
    told: Mapping[str, object]  # for recipe.json and the model card
    # Per model, the base first: (size,) the row that each of the result's has there, -1 for none.
    rows: tuple[Tensor, ...] = field(repr=False, compare=False)

    def fit(
        self, start: Tensor, tuned: Sequence[Tensor], *, sources: Sequence[int] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the base's and the sources' matrices, or biases, over the result's vocabulary: (size, …) each.

        ``sources`` says, from 0, which sources ``tuned`` are; without it, they are all. A source with borrowed rows
        is widened if its dtype could not hold the base's rows exactly.
        """
        import torch

        chosen = [self.rows[0], *(self.rows[1:] if sources is None else [self.rows[1 + number] for number in sources])]
        where = [_within(rows, matrix) for matrix, rows in zip((start, *tuned), chosen, strict=True)]
        base, *others = [_take(matrix, rows) for matrix, rows in zip((start, *tuned), where, strict=True)]
        new = (where[0] < 0).nonzero().squeeze(1)
        if len(new):
            total, count = base[new].float().zero_(), torch.zeros(len(new), device=base.device)
            for matrix, rows in zip(others, where[1:], strict=True):
                has = (rows[new] >= 0).nonzero().squeeze(1)
                total[has] += matrix[new[has]].float()
                count[has] += 1
            if (count == 0).any():
                total[count == 0] = start.mean(0, dtype=torch.float32)
            base[new] = (total / count.clamp(min=1).reshape(-1, *[1] * (base.ndim - 1))).to(base.dtype)
        for number, rows in enumerate(where[1:]):
            lacking = (rows < 0).nonzero().squeeze(1)
            if len(lacking):
                wide = others[number].to(torch.promote_types(base.dtype, others[number].dtype))
                wide[lacking] = base[lacking].to(wide.dtype)
                others[number] = wide
        return base, others


def _within(rows: Tensor, matrix: Tensor) -> Tensor:
    rows = rows.to(matrix.device)
    return rows.where(rows < len(matrix), -1)


def _take(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return the rows in the result's order, what is lacking undefined; the matrix itself if nothing moves."""
    import torch

    if len(rows) == len(matrix) and rows.equal(torch.arange(len(matrix), device=matrix.device)):
        return matrix
    return matrix.index_select(0, rows.clamp(min=0))


def over_vocabulary(name: str) -> bool:
    """Tell whether a tensor has a row, or a number, for each token: an embedding, an output layer, its bias."""
    return any(name == known or name.endswith(f".{known}") for known in _OVER_VOCABULARY)


def vocabulary_names(model: Checkpoint | Adapted) -> tuple[str, ...]:
    """Return the names of a model's tensors that are over the vocabulary."""
    return tuple(name for name in model.names if over_vocabulary(name))


def plan_vocabulary(
    base: Checkpoint, sources: Sequence[Checkpoint | Adapted], tokenizer: str = "base"
) -> Vocabulary | None:
    """Return how to bring the models to one vocabulary, by a policy; None if they share one already."""
    models = (base, *sources)
    if tokenizer not in ("base", "union", *map(str, range(1, len(models)))):
        numbers = f"or a source's number, 1 to {len(sources)}" if len(sources) > 1 else "or 1, the source"
        raise RecipeError(f"tokenizer is {tokenizer!r}; it must be base, union {numbers}")
    homes = [model.folder if has_lexicon(model.folder) else base.folder for model in models]
    chosen = int(tokenizer) if tokenizer.isdecimal() else 0
    sizes = [_sizes(model) for model in models]
    # A source's tokenizer brings its chat template too, even where the tokens are the base's.
    alone = not chosen or same_companions(homes[0], homes[chosen])
    if alone and len(set(sizes)) == 1 and all(same_lexicon(homes[0], home) for home in homes[1:]):
        return None
    lexica = [read_lexicon(home, rows=max(size, default=0)) for home, size in zip(homes, sizes, strict=True)]
    if len(set(sizes)) == 1 and all(lexicon.ids == lexica[0].ids for lexicon in lexica[1:]):
        if alone:
            return None
    elif not sizes[0]:
        raise CheckpointError(
            f"the tokenizers of {base.folder} and of its sources differ, but none of its tensors has a name of an "
            f"embedding ({', '.join(_OVER_VOCABULARY)}); merge models that share one tokenizer"
        )
    for model, size in zip(models, sizes, strict=True):
        if len(size) > 1:
            raise CheckpointError(
                f"{model.folder} has embeddings of {' and '.join(map(str, size))} rows, so its vocabulary cannot be "
                "changed; merge models that share one tokenizer"
            )
    return _plan(tokenizer, lexica, homes, chosen)


def _plan(tokenizer: str, lexica: Sequence[Lexicon], homes: Sequence[Path], chosen: int) -> Vocabulary:
    import torch

    result = lexica[chosen]
    added: list[Mapping[str, Any]] = []
    if tokenizer == "union":
        result, added = _union(lexica, homes)
    rows = [_rows_of(result, lexicon) for lexicon in lexica]
    told = {
        "tokenizer": tokenizer,
        "size": result.rows,
        "added": [token["content"] for token in added],
        "base": _told(result, lexica[0]),
        "sources": [_told(result, lexicon) for lexicon in lexica[1:]],
    }
    return Vocabulary(result.rows, homes[chosen], tuple(added), told, tuple(torch.tensor(row) for row in rows))


def _sizes(model: Checkpoint | Adapted) -> tuple[int, ...]:
    """Return how many rows a model's embedding and output layer have: one number, none if it has neither."""
    return tuple(sorted({model.shape(name)[0] for name in vocabulary_names(model)}))


def _union(lexica: Sequence[Lexicon], homes: Sequence[Path]) -> tuple[Lexicon, list[Mapping[str, Any]]]:
    """Return the base's lexicon with the sources' added tokens, and those."""
    base = lexica[0]
    if base.ids is None:
        raise RecipeError(f"tokenizer is union, but {homes[0]} has no tokenizer to add to; choose base or a source")
    new: dict[str, Mapping[str, Any]] = {}
    for home, lexicon in zip(homes[1:], lexica[1:], strict=True):
        others = [token for token in lexicon.ids or () if token not in base.ids]
        if regular := [token for token in others if token not in lexicon.added]:
            raise RecipeError(
                f"tokenizer is union, but {home} has {len(regular)} regular tokens that the base lacks "
                f"({', '.join(map(repr, regular[:_MOST_LISTED]))}, …), and a tokenizer takes in only added tokens; "
                "choose base, or the number of the source whose tokenizer the result is to have"
            )
        for token in others:
            new.setdefault(token, {**lexicon.added[token], "id": base.next_id + len(new)})
    if new and base.next_id <= max(base.ids.values()):
        raise RecipeError(
            f"tokenizer is union, but the ids in {homes[0]} have gaps: a token added to it would get the id "
            f"{base.next_id}, below the last; choose base, or the number of a source"
        )
    ids = {**base.ids, **{token: entry["id"] for token, entry in new.items()}}
    return Lexicon(max(base.rows, base.next_id + len(new)) if new else base.rows, ids), list(new.values())


def _rows_of(result: Lexicon, model: Lexicon) -> list[int]:
    """Return, for each of the result's rows, the model's row of the same token; -1 for none."""
    if result.ids is None or model.ids is None:
        return [row if row < model.rows else -1 for row in range(result.rows)]
    used = set(model.ids.values())
    rows = [row if row < model.rows and row not in used else -1 for row in range(result.rows)]
    for row in result.ids.values():
        rows[row] = -1
    for token, row in result.ids.items():
        if (there := model.ids.get(token)) is not None:
            rows[row] = there
    return rows


def _told(result: Lexicon, model: Lexicon) -> dict[str, object]:
    """Return how many tokens were found in a model, of these on another row, were not found, and were left out."""
    if result.ids is None or model.ids is None:
        both = min(result.rows, model.rows)
        return {"by": "position", "matched": both, "lacking": result.rows - both, "left_out": model.rows - both}
    both = len(result.ids.keys() & model.ids.keys())
    moved = sum(row != model.ids.get(token, row) for token, row in result.ids.items())
    lacking, left_out = len(result.ids) - both, len(model.ids) - both
    return {"by": "token", "matched": both, "moved": moved, "lacking": lacking, "left_out": left_out}


def write_tokenizer(vocabulary: Vocabulary, folder: Path) -> None:
    """Give a merged checkpoint, written with the base's companions, the tokenizer and config.json of its vocabulary."""
    like = vocabulary.like
    settings = _read_config(like)
    for name in companions(folder):
        if settings or name != "generation_config.json":  # an adapter has no such settings; the base's stay
            (folder / name).unlink()
    for name in companions(like):
        shutil.copyfile(like / name, folder / name)
    if vocabulary.added:
        add_tokens(folder, vocabulary.added)
    before = _read_config(folder)
    config = before | {key: settings[key] for key in _TOKEN_IDS if key in settings}
    nested = config.get("text_config")
    if vocabulary.size and isinstance(nested, dict) and "vocab_size" in nested:
        config["text_config"] = nested | {"vocab_size": vocabulary.size}
    elif vocabulary.size:
        config["vocab_size"] = vocabulary.size
    if config != before:
        text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return config
