"""Rewards by a reward model: a sequence classifier reads a conversation and says how good its last answer is.

FuseChat-3.0 (arXiv:2503.04222) and WRPO (arXiv:2412.03187) take ArmoRM's (PUBLISHED). Its ``score`` comes from code in
its repository, which is run only where ``trust_remote_code`` says so; of any other model the single logit is the
reward. The number depends on the model: only rewards of one model can be compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.conversations import Conversation
from fusion.crew import crew, whole_weights
from fusion.errors import CheckpointError, FusionError, RecipeError
from fusion.quiet import quiet_libraries

PUBLISHED = "RLHFlow/ArmoRM-Llama3-8B-v0.1"
"""The reward model of FuseChat-3.0 and WRPO, by its name on the Hub; it needs ``trust_remote_code``."""

DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class RewardParams:
    """How a reward model is asked."""

    batch_size: int = 8  # conversations of about the same length in one forward pass
    max_length: int | None = None  # tokens of a conversation; None: as many as the model was made for
    dtype: str = "auto"  # one of DTYPES; "auto" is float32 on a CPU and bfloat16 on a GPU
    trust_remote_code: bool = False  # run the Python code that comes with the model

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_length"):
            value: object = getattr(self, name)
            unset = value is None and name == "max_length"
            if not unset and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise RecipeError(f"{name} of the rewards is {value!r}; it must be a whole number, 1 or more")
        if self.dtype not in DTYPES:
            raise RecipeError(f"dtype of the rewards is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")


@dataclass(frozen=True, slots=True)
class Rewarded:
    """The reward of a conversation; None where the model cannot read it, and then ``why``."""

    value: float | None
    why: str = ""


def give_rewards(
    model: Path,
    conversations: Sequence[Conversation],
    params: RewardParams,
    *,
    on_batch: Callable[[list[tuple[int, Rewarded]]], None],
) -> None:
    """Tell the rewards of conversations, with their numbers, batch by batch, as :class:`RewardModel` yields them.

    Processes that :mod:`fusion.launch` starts share the conversations, each with the whole model on its device.
    """
    together = crew()
    mine = range(together.number, len(conversations), together.count)
    for batch in RewardModel(model, params, device=together.device)([conversations[number] for number in mine]):
        on_batch([(mine[number], rewarded) for number, rewarded in batch])
    together.wait()


class RewardModel:
    """A reward model with its own tokenizer and chat template; its weights are loaded when it is first asked.

    ``device`` as torch names it, None for a GPU where there is one. RecipeError where the model brings code of its own
    without ``trust_remote_code``, or has no chat template.
    """

    def __init__(self, model: Path, params: RewardParams | None = None, *, device: str | None = None) -> None:
        import torch
        from transformers import AutoConfig, AutoTokenizer

        self.folder, self.params = model, params or RewardParams()
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = self.params.dtype
        if self.dtype == "auto":
            self.dtype = "float32" if self.device.type == "cpu" else "bfloat16"
        _check_code(model, trusted=self.params.trust_remote_code)
        with quiet_libraries(), _reading(model):
            self._config = AutoConfig.from_pretrained(model, trust_remote_code=self.params.trust_remote_code)
            self._tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=self.params.trust_remote_code)
        if not getattr(self._tokenizer, "chat_template", None):
            raise RecipeError(f"the reward model {model} has no chat template; add a chat_template.jinja to it")
        most = getattr(self._config.get_text_config(), "max_position_embeddings", None)
        self.longest = int(min(self.params.max_length or math.inf, most or 1 << 30))
        self._model: Any = None

    def __call__(self, conversations: Sequence[Conversation]) -> Iterator[list[tuple[int, Rewarded]]]:
        """Yield the rewards of a batch after the other, with the numbers of the conversations; the longest come first.

        A conversation of more tokens than the model or ``max_length`` allows gets None: it is never cut off.
        """
        tokens = [self._tokens(conversation, number) for number, conversation in enumerate(conversations, 1)]
        long = [number for number, ids in enumerate(tokens) if len(ids) > self.longest]
        if long:
            yield [(n, Rewarded(None, f"{len(tokens[n])} tokens, more than {self.longest}")) for n in long]
        fits = sorted(set(range(len(tokens))) - set(long), key=lambda n: (-len(tokens[n]), n))
        for first in range(0, len(fits), self.params.batch_size):
            batch = fits[first : first + self.params.batch_size]
            values = self._values([tokens[number] for number in batch])
            for number, value in zip(batch, values, strict=True):
                if not math.isfinite(value):
                    raise FusionError(
                        f"the reward model {self.folder} gives {value} for conversation {number + 1} in {self.dtype}; "
                        "try dtype float32 or bfloat16, and see whether its weights are whole"
                    )
            yield [(number, Rewarded(value)) for number, value in zip(batch, values, strict=True)]

    def _tokens(self, conversation: Conversation, number: int) -> list[int]:
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template([dict(m) for m in conversation], tokenize=False)
            text.encode()
        except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            raise RecipeError(
                f"the chat template of the reward model {self.folder} refuses conversation {number}: {error}; mend or "
                "leave it out"
            ) from error
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise RecipeError(f"conversation {number} is empty; leave it out")
        return ids

    def _values(self, batch: Sequence[Sequence[int]]) -> list[float]:
        """Return the rewards of token sequences, padded on the right, where an attention mask hides the padding."""
        import torch

        model = self._loaded()
        pad = self._padding(batch)
        lengths = torch.tensor([len(ids) for ids in batch])
        real = torch.arange(int(lengths.max()))[None] < lengths[:, None]  # (B, T)
        ids = torch.full(real.shape, pad)
        ids[real] = torch.tensor([token for sequence in batch for token in sequence])
        try:
            with torch.inference_mode():
                said = model(input_ids=ids.to(self.device), attention_mask=real.long().to(self.device))
        except torch.cuda.OutOfMemoryError as error:
            raise FusionError(
                f"{self.folder} does not fit the GPU's memory with batch_size {len(batch)}; lower it"
            ) from error
        score = getattr(said, "score", None)
        if score is None:
            score = said.logits  # (B, labels)
            if score.shape[1:] != (1,):
                raise RecipeError(
                    f"{self.folder} tells {score.shape[-1]} labels apart and gives no score, so nothing says which of "
                    "its numbers is the reward; take a reward model, with one label"
                )
        found: list[float] = score.reshape(len(batch)).float().tolist()
        return found

    def _padding(self, batch: Sequence[Sequence[int]]) -> int:
        """Return the padding token.

        Causal classifiers read their value at the last token that is no padding. Where a model has no padding token,
        it is told that it is one which does not occur in the batch, so that this is the last token of all.
        """
        if (known := self._config.get_text_config().pad_token_id) is not None:
            return int(known)
        used = {token for sequence in batch for token in sequence}
        unused = next(token for token in range(len(used) + 1) if token not in used)
        for config in {id(c): c for c in (self._model.config, self._model.config.get_text_config())}.values():
            config.pad_token_id = unused
        return unused

    def _loaded(self) -> Any:
        if self._model is None:
            import torch
            from transformers import AutoModelForSequenceClassification

            with quiet_libraries(), _reading(self.folder), whole_weights():
                model, told = AutoModelForSequenceClassification.from_pretrained(
                    self.folder,
                    dtype=getattr(torch, self.dtype),
                    use_safetensors=True,
                    trust_remote_code=self.params.trust_remote_code,
                    output_loading_info=True,
                )
            if lacking := sorted(told["missing_keys"]):
                raise CheckpointError(
                    f"{self.folder} lacks {lacking[0]} ({len(lacking)} tensors in all), so it is no trained reward "
                    "model; a chat model is none"
                )
            self._model = model.to(self.device).eval()
        return self._model


def _check_code(model: Path, *, trusted: bool) -> None:
    """Raise RecipeError where a model brings code of its own that is not to be run.

    Without this, transformers would take its own class for the architecture, and a head that nobody has trained.
    """
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"there is no reward model at {model}: it has no config.json; check the path") from None
    except ValueError as error:
        raise CheckpointError(f"{model / 'config.json'} is not JSON ({error}); fetch the model again") from None
    own = config.get("auto_map", {})
    needed = [own[name] for name in ("AutoConfig", "AutoModelForSequenceClassification") if name in own]
    if needed and not trusted:
        raise RecipeError(
            f"the reward model {model} comes with Python code of its own ({needed[-1]}), which would be run here with "
            "all your rights; read it, and say trust_remote_code: true if you trust it, or take another model"
        )


@contextmanager
def _reading(model: Path) -> Iterator[None]:
    """Say which reward model it is that transformers cannot read."""
    try:
        yield
    except (OSError, ValueError, ImportError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"transformers cannot read the reward model {model}: {error}; fetch it again, or, where its own code is "
            "older than this transformers, take another model"
        ) from error
