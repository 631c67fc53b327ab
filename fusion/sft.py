"""Supervised fine-tuning: a model and conversations in, a checkpoint out. trl's SFTTrainer does the training.

Only the last assistant turn of a conversation counts in the loss. Conversations are turned into tokens here and not
by trl, which would drop those that are too long without a word.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion.checkpoints import Checkpoint
from fusion.conversations import Conversation, read_conversations
from fusion.crew import crew
from fusion.errors import CheckpointError, RecipeError, need
from fusion.hashes import content_hash
from fusion.parquet_shards import key_of
from fusion.quiet import quiet_libraries
from fusion.trained import free, written
from fusion.training_arguments import as_json, training_arguments, versions
from fusion.training_resume import claim_work, last_checkpoint, watch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCHEDULERS = ("constant", "constant_with_warmup", "cosine", "linear")
NUMBERS = ("learning_rate", "epochs", "warmup_ratio", "weight_decay")


@dataclass(frozen=True, slots=True)
class SftParams:
    """How to train; the defaults are FuseChat's (arXiv:2408.07990), but for the batch, which was 128."""

    learning_rate: float = 5e-6  # AdamW's, at its highest
    epochs: float = 3.0  # passes over the data; a fraction is fine
    batch_size: int = 4  # conversations in one forward pass
    gradient_accumulation: int = 1  # forward passes before the weights move
    max_length: int = 2048  # tokens of a conversation; the rest of a longer one is cut off
    warmup_ratio: float = 0.03  # share of all steps in which the learning rate rises from 0
    scheduler: str = "cosine"  # how the learning rate falls afterwards: one of SCHEDULERS
    weight_decay: float = 0.0  # AdamW's
    seed: int = 0  # of the order of the data and of dropout
    dtype: str = "bfloat16"  # of the saved checkpoint, "bfloat16" or "float32"; training keeps float32 weights
    gradient_checkpointing: bool = False  # a fifth less memory for a sixth more time

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if problem := _problem(field.name, value):
                raise RecipeError(f"{field.name} of the fine-tuning is {value!r}; it must be {problem}")


@dataclass(frozen=True, slots=True)
class Step:
    """One update of the weights: ``loss`` in nats a token before it, ``tokens`` seen so far, prompts included."""

    step: int
    total: int
    loss: float
    learning_rate: float
    tokens: int


def fine_tune(
    base: Path,
    data: Path,
    folder: Path,
    params: SftParams,
    *,
    on_step: Callable[[Step], None] | None,
    recipe: Mapping[str, object],
    card: str,
    checkpoint_every: int = 100,
) -> tuple[Step, ...]:
    """Train ``base`` on the conversations of ``data`` and write the result to ``folder``; return every step.

    ``data`` is read by :func:`fusion.conversations.read_conversations`. Training is in float32 on a CPU, and in
    bfloat16 with float32 weights on a GPU. On a CPU the same inputs and thread count give the same bytes. The folder
    also gets training.json: the steps, and how many conversations were cut or left out for their length.
    Every ``checkpoint_every`` steps (0: never) a checkpoint is kept in ``folder``'s name + ".work", from which a killed
    training goes on; the result is the same.
    """
    need("trl", "datasets", "accelerate", extra="train")
    conversations = read_conversations(data)
    Checkpoint(base)  # its files are there and whole
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already; remove it or choose another name")
    recipe_text = as_json({"kind": "sft", "params": asdict(params), **versions(), **recipe})
    work = folder.with_name(f"{folder.name}.work") / "training"
    heard: list[Step] = []
    together = crew()
    with quiet_libraries():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(base)
        rows, lengths = _tokenized(conversations, tokenizer, params, data=data, base=base)
        if together.main:
            claim_work(work, key_of("sft", asdict(params), content_hash(base), rows, versions()))
        together.wait()
        args = training_arguments(params, work, checkpoint_every=checkpoint_every)
        trainer = _trainer(base, rows, tokenizer, args, heard=heard, on_step=on_step if together.main else None)
        last = last_checkpoint(work)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        with written(trainer, folder, base, dtype=params.dtype) as made:
            if made is not None:
                told = as_json({**lengths, "steps": [asdict(step) for step in heard]})
                for name, text in {"recipe.json": recipe_text, "README.md": card, "training.json": told}.items():
                    (made / name).write_text(text, encoding="utf-8")
        if together.main:
            shutil.rmtree(work)
            with suppress(OSError):  # something else may be kept there
                work.parent.rmdir()
        free(trainer)
    return tuple(heard)


def read_steps(folder: Path) -> tuple[Step, ...]:
    """Return the steps of the training that made the checkpoint in ``folder``."""
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return tuple(Step(**step) for step in training["steps"])


def need_template(tokenizer: PreTrainedTokenizerBase, base: Path) -> None:
    """Raise RecipeError where a model does not say how its chats are written."""
    if not tokenizer.chat_template:
        raise RecipeError(f"{base} has no chat template; add a chat_template.jinja to say how its chats are written")


def tokens_of(messages: Conversation, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """Return a conversation's tokens by the model's template, and which is the first of its last message."""
    whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
    # Some templates write the start of an answer otherwise than the prompt for one: learn from where they part.
    start = next((i for i, pair in enumerate(zip(prompt, whole, strict=False)) if len(set(pair)) > 1), len(prompt))
    return whole, start


def _tokenized(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    params: SftParams,
    *,
    data: Path,
    base: Path,
) -> tuple[list[dict[str, list[int]]], dict[str, int]]:
    """Return input_ids and labels (-100: not in the loss) a conversation, and how many were too long."""
    need_template(tokenizer, base)
    rows, cut = [], 0
    for messages in conversations:
        whole, start = tokens_of(messages, tokenizer)
        cut += start < params.max_length < len(whole)
        labels = [-100] * start + whole[start:]
        if start < params.max_length:
            rows.append({"input_ids": whole[: params.max_length], "labels": labels[: params.max_length]})
    if not rows:
        raise RecipeError(f"max_length is {params.max_length}: no prompt of {data} is that short; raise it")
    return rows, {"conversations": len(conversations), "cut": cut, "left_out": len(conversations) - len(rows)}


def _trainer(
    base: Path,
    rows: Sequence[Mapping[str, list[int]]],
    tokenizer: PreTrainedTokenizerBase,
    args: Any,
    *,
    heard: list[Step],
    on_step: Callable[[Step], None] | None,
) -> Any:
    """Return the trainer; ``heard`` takes the steps as they are made."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PrinterCallback
    from trl import SFTTrainer

    class SilentTrainer(SFTTrainer):  # type: ignore[misc]
        """trl's trainer, but it tells nobody that it is used, and writes no model card into its checkpoints."""

        def _send_telemetry(self) -> None: ...

        def create_model_card(self, *_: Any, **__: Any) -> None: ...

    trainer = SilentTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watch(trainer, heard, on_step, _step))
    return trainer


def _step(logs: Mapping[str, Any], step: int, total: int) -> Step:
    return Step(step, total, logs["loss"], logs["learning_rate"], int(logs["num_tokens"]))


def _problem(name: str, value: object) -> str | None:
    """Return what the value must be, or None where it is that."""
    wanted: tuple[bool, str]
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    )  # NaN fails all
    if name in ("learning_rate", "epochs"):
        wanted = 0 < number < math.inf, "a number above 0"
    elif name in ("batch_size", "gradient_accumulation", "max_length"):
        wanted = whole and number >= 1, "a whole number, 1 or more"
    elif name == "seed":
        wanted = whole and 0 <= number < 2**32, "a whole number from 0 to 2**32 - 1"
    elif name == "warmup_ratio":
        wanted = 0 <= number < 1, "a number in [0, 1)"
    elif name == "weight_decay":
        wanted = 0 <= number < math.inf, "a number, 0 or more"
    elif name == "scheduler":
        wanted = value in SCHEDULERS, f"one of {', '.join(SCHEDULERS)}"
    elif name == "dtype":
        wanted = value in ("bfloat16", "float32"), "bfloat16 or float32"
    else:
        wanted = isinstance(value, bool), "true or false"
    if wanted[0]:
        return None
    return wanted[1] + (_yaml_hint(value) if name in NUMBERS and isinstance(value, str) else "")


def _yaml_hint(text: str) -> str:
    """Return how YAML wants the number that ``text`` was meant to be: with a point, and the exponent with a sign."""
    if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.IGNORECASE):
        return ""
    mantissa, e, exponent = text.lower().partition("e")
    if not e:
        return " (written without quotes)"
    mantissa += "" if "." in mantissa else ".0"
    return f" (YAML needs {mantissa}e{exponent if exponent[0] in '+-' else '+' + exponent} for a number)"
