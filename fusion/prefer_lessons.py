"""Preferences as training examples: tokens of two or three responses to a prompt, and their log-probabilities before.

A model's own log-probabilities before the training are computed once, in batches, and kept as they come.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion.crew import Crew, crew, whole_weights
from fusion.errors import RecipeError
from fusion.lessons import IGNORED
from fusion.preference_losses import sequence_logprobs
from fusion.preference_records import Pair, Quadruple
from fusion.sft import tokens_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Examples = Sequence[Pair] | Sequence[Quadruple]

PAIR = ("chosen", "rejected")
QUADRUPLE = (*PAIR, "source")
_REFERENCE = "reference-{}.jsonl"
_BATCH = 8  # responses of one forward pass of the reference


@dataclass(frozen=True, slots=True)
class Kept:
    """How many examples there were, and how many were left out, for a response was longer than max_length."""

    examples: int
    left_out: int


def lessons_of(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> tuple[list[dict[str, Any]], Kept]:
    """Return, for each example that fits, input_ids and labels of its responses, each behind the prompt.

    Nothing is cut: half a response is no better or worse than another one. RecipeError where nothing fits.
    """
    lessons = []
    for example in examples:
        lesson: dict[str, Any] = {}
        for part, response in _responses(example).items():
            messages = [*example.prompt.messages, {"role": "assistant", "content": response}]
            whole, start = tokens_of(messages, tokenizer)
            lesson[f"{part}_ids"], lesson[f"{part}_labels"] = whole, [IGNORED] * start + whole[start:]
        if all(len(ids) <= max_length for ids in lesson.values()):
            lessons.append(lesson)
    if not lessons:
        raise RecipeError(f"max_length is {max_length}: none of the {len(examples)} examples is that short; raise it")
    return lessons, Kept(len(examples), len(examples) - len(lessons))


def _responses(example: Pair | Quadruple) -> dict[str, str]:
    if isinstance(example, Pair):
        return {"chosen": example.chosen.text, "rejected": example.rejected.text}
    return {
        "chosen": example.target_best.text,
        "rejected": example.rejected.text,
        "source": example.source_best.text,
    }


@dataclass(frozen=True, slots=True)
class PreferCollator:
    """Makes a batch of B lessons with ``parts`` responses each, padded on the right, part by part."""

    pad_token_id: int
    parts: Sequence[str]

    def __call__(self, lessons: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return input_ids, labels, attention_mask (parts · B, T), and reference (parts · B,) where lessons have it."""
        import torch

        rows = [(lesson[f"{part}_ids"], lesson[f"{part}_labels"]) for part in self.parts for lesson in lessons]
        longest = max(len(ids) for ids, _ in rows)
        tokens = torch.full((len(rows), longest), self.pad_token_id)
        labels, mask = torch.full_like(tokens, IGNORED), torch.zeros_like(tokens)
        for row, (ids, counted) in enumerate(rows):
            tokens[row, : len(ids)] = torch.tensor(ids)
            labels[row, : len(ids)] = torch.tensor(counted)
            mask[row, : len(ids)] = 1
        batch = {"input_ids": tokens, "labels": labels, "attention_mask": mask}
        if lessons[0].get("reference") is not None:
            reference = torch.tensor([lesson["reference"] for lesson in lessons], dtype=torch.float32)  # (B, parts)
            batch["reference"] = reference.T.reshape(-1)
        return batch


def response_logprobs(model: Any, batch: Mapping[str, Tensor], *, selects: bool) -> tuple[Tensor, Tensor]:
    """Return the summed log-probability of each response and how many tokens it has, both (rows of the batch,).

    Where the model ``selects``, its head runs only at the positions of responses.
    """
    import torch

    labels = batch["labels"]
    following = labels[:, 1:]  # position t speaks of token t + 1
    keep = (following != IGNORED).any(0).nonzero().squeeze(-1)
    keep = torch.cat([keep, keep.new_tensor([labels.shape[1] - 1])])  # the last speaks of nothing
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    logits = model(**inputs, logits_to_keep=keep).logits if selects else model(**inputs).logits[:, keep]
    wanted = torch.cat([labels.new_full((len(labels), 1), IGNORED), following[:, keep[:-1]]], dim=1)
    return sequence_logprobs(logits, wanted)


def add_reference(
    lessons: Sequence[dict[str, Any]],
    base: Path,
    folder: Path,
    *,
    parts: Sequence[str],
    pad: int,
    together: Crew | None = None,
) -> None:
    """Give each lesson ``reference``, its responses' log-probabilities under the model in ``base``.

    Each process computes its share and keeps it in a file of its own in ``folder``, a line an example, as it is
    computed; what is there is not computed again. The model must fit one device.
    """
    import torch

    together = together or crew()
    known = _known(folder)
    together.wait()  # or what one writes already would be known to another, and its share another one
    left = [number for number in range(len(lessons)) if number not in known][together.number :: together.count]
    if left:
        asked = _Reference(base, together.device)
        collate = PreferCollator(pad, parts)
        left.sort(key=lambda number: -max(len(lessons[number][f"{part}_ids"]) for part in parts))
        size = max(1, _BATCH // len(parts))
        file = folder / _REFERENCE.format(together.number)
        _end_last_line(file)
        with file.open("a", encoding="utf-8") as out, torch.inference_mode():
            for first in range(0, len(left), size):
                some = left[first : first + size]
                sums = asked(collate([lessons[number] for number in some])).reshape(len(parts), -1).T.tolist()
                out.writelines(json.dumps([number, values]) + "\n" for number, values in zip(some, sums, strict=True))
                out.flush()
    together.wait()
    known = _known(folder)
    for number, lesson in enumerate(lessons):
        lesson["reference"] = known[number]


class _Reference:
    """A model that is only read, in the arithmetic that training uses."""

    def __init__(self, base: Path, device: str | None) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        with whole_weights():
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self._model, self._selects = model.to(self._device).eval(), selects_positions(model)

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        import torch

        there = {name: tensor.to(self._device) for name, tensor in batch.items()}
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            sums, _ = response_logprobs(self._model, there, selects=self._selects)
        return sums.float().cpu()


def selects_positions(model: Any) -> bool:
    """Tell whether a model can run its head at some positions only."""
    import inspect

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(type(base).forward).parameters


def _known(folder: Path) -> dict[int, list[float]]:
    """Return what was computed before, by however many processes."""
    found: dict[int, list[float]] = {}
    for file in sorted(folder.glob(_REFERENCE.format("*"))):
        text = file.read_text(encoding="utf-8")
        found |= dict(json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines())
    return found


def _end_last_line(file: Path) -> None:
    """Take away the line that a killed process did not write to its end."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if (whole := text[: text.rfind("\n") + 1]) != text:
        file.write_text(whole, encoding="utf-8")
