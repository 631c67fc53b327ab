"""What distillation and preference training can be told beside what plain fine-tuning can."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from fusion.errors import RecipeError
from fusion.sft import SftParams

Allowed = Mapping[str, tuple[Callable[[object], bool], str]]
"""By a parameter's name: which values it may have, and how to say so."""

SKIP_PREPARING: Mapping[str, Any] = {"dataset_kwargs": {"skip_prepare_dataset": True}}
"""What SFTConfig is told where the examples are tokens already."""


@dataclass(frozen=True, slots=True)
class TrainingParams(SftParams):
    """How to train beside what SftParams says: AdamW's parameters, an adapter, checkpoints."""

    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0  # a longer gradient is shortened to this
    lora_rank: int | None = None  # None: all weights are trained; else low-rank changes of the linear layers
    lora_alpha: float | None = None  # the change is scaled by alpha / rank; None: twice the rank
    lora_targets: tuple[str, ...] | None = None  # names of layers, such as q_proj; None: all linear ones but the head
    checkpoint_every: int = 100  # steps from which a killed training goes on; 0: none. The result is the same

    def __post_init__(self) -> None:
        SftParams(**{field.name: getattr(self, field.name) for field in fields(SftParams)})  # checks its own
        check_fields(self, _ALLOWED, "training")

    def optimiser(self) -> dict[str, float]:
        """Return the arguments of trl that plain fine-tuning leaves as they are."""
        return {"adam_beta1": self.adam_beta1, "adam_beta2": self.adam_beta2, "max_grad_norm": self.max_grad_norm}


def check_fields(params: object, allowed: Allowed, what: str) -> None:
    """Raise RecipeError where a field of the parameters of ``what`` has a value that it may not have."""
    for name, (fits, wanted) in allowed.items():
        if not fits(value := getattr(params, name)):
            raise RecipeError(f"{name} of the {what} is {value!r}; it must be {wanted}")


def is_within(value: object, low: float, high: float) -> bool:
    """Tell whether the value is a number in [low, high]; true, false and NaN are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_whole(value: object, low: int) -> bool:
    """Tell whether the value is a whole number, ``low`` or more."""
    return isinstance(value, int) and is_within(value, low, math.inf)


def is_positive(value: object) -> bool:
    """Tell whether the value is a finite number above 0."""
    return is_within(value, 0, math.inf) and value not in (0, math.inf)


_ALLOWED: Allowed = {
    "adam_beta1": (lambda value: is_within(value, 0, 1) and value != 1, "a number in [0, 1)"),
    "adam_beta2": (lambda value: is_within(value, 0, 1) and value != 1, "a number in [0, 1)"),
    "max_grad_norm": (is_positive, "a number above 0"),
    "lora_rank": (lambda value: value is None or is_whole(value, 1), "a whole number, 1 or more, or nothing"),
    "lora_alpha": (lambda value: value is None or is_positive(value), "a number above 0, or nothing"),
    "lora_targets": (
        lambda value: (
            value is None
            or (isinstance(value, tuple) and bool(value) and all(isinstance(name, str) and name for name in value))
        ),
        "a list of layers' names, or nothing",
    ),
    "checkpoint_every": (lambda value: is_whole(value, 0), "a whole number, 0 or more"),
}
