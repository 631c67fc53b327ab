"""What an experiment may say of an lm-eval task, beside its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

PREFIX = "lm_eval:"
"""What the name of a benchmark begins with that is a task of lm-eval."""

MAX_GEN_TOKS = 256
"""How many tokens a reply may have where a task does not say: lm-eval's own default."""

BACKENDS = ("engine", "hf")

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""How a task may call the most tokens of a reply; of several the first counts."""

ENGINE_DRAWS = frozenset({
    *LENGTHS, "until", "do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "min_tokens", "stop_token_ids", "bad_words", "ignore_eos",
})  # fmt: skip
"""What the engine can be told of how replies are drawn."""

ENDPOINT_DRAWS = frozenset({*LENGTHS, "until", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty"})
"""What an endpoint is told."""

_AS_WITHOUT = {"num_beams": 1, "num_return_sequences": 1}  # as if nothing were said
_WHOLE = ("num_fewshot", "fewshot_seed", "batch_size")
_TEXTS = ("system_instruction", "fewshot_split")
_SWITCHES = ("apply_chat_template", "fewshot_as_multiturn")


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Options of an lm-eval task; those of lm-eval's command line bear its names and have its defaults.

    Raises ValueError for a value of the wrong kind.
    """

    num_fewshot: int | None = None  # None: the task's own
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = True  # examples as turns of their own, where there is a chat template
    system_instruction: str | None = None
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)  # over the task's generation_kwargs
    fewshot_seed: int = 1234
    fewshot_split: str | None = None  # None: the task's own
    data: str | Mapping[str, str] | None = None  # a folder, a file, or files by split; None: from the hub
    backend: str = "engine"  # or hf: transformers, slow and exact, in a version of its own
    batch_size: int = 1  # of the backend hf

    def __post_init__(self) -> None:
        for names, kind, said in (
            (_WHOLE, int, "a whole number"),
            (_TEXTS, str, "a text"),
            (_SWITCHES, bool, "true or false"),
        ):
            for name in names:
                value: object = getattr(self, name)
                wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
                if wrong and not (value is None and name in ("num_fewshot", *_TEXTS)):
                    raise ValueError(f"option {name} of an lm-eval task is {value!r}; it must be {said}")
        if self.batch_size < 1 or (self.num_fewshot or 0) < 0:
            raise ValueError("num_fewshot of an lm-eval task must be 0 or more, and batch_size 1 or more")
        if not isinstance(self.gen_kwargs, Mapping):
            raise ValueError(f"option gen_kwargs of an lm-eval task is {self.gen_kwargs!r}; it must be a mapping")
        if self.data is not None and not isinstance(self.data, str | Mapping):
            raise ValueError(f"option data of an lm-eval task is {self.data!r}; it must be a path, or paths by split")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend {self.backend!r} of an lm-eval task; there are {', '.join(BACKENDS)}")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TaskOptions:
        """Return the options as an experiment says them; raises ValueError for one that there is not."""
        known = [each.name for each in fields(cls)]
        for name in given:
            if name not in known:
                raise ValueError(f"an lm-eval task has no option {name!r}; it has {', '.join(known)}")
        return cls(**given)

    def identity(self) -> dict[str, Any]:
        """Return what of it changes a score."""
        apart = ("data", "batch_size", *(["backend"] if self.backend == "engine" else []))
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in apart}


def most_tokens(told: Mapping[str, Any]) -> int:
    """Return how many tokens a reply may have that is drawn so."""
    return int(next((told[name] for name in LENGTHS if told.get(name) is not None), MAX_GEN_TOKS))


def drawing(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return how replies are drawn, less what says nothing: no value, or one beam."""
    return {name: value for name, value in told.items() if value is not None and _AS_WITHOUT.get(name) != value}
