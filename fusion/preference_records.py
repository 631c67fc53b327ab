"""What preferences are made from and of: prompts, scored responses, the rules by which examples are chosen, and these.

The rules are those of FuseChat-3.0 (Yang et al. 2025, arXiv:2503.04222) or of WRPO (Yang et al. 2024,
arXiv:2412.03187); what they mean is told where they are followed, in ``fusion.preference_split`` and
``fusion.preference_pairs``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fusion.errors import RecipeError, did_you_mean

KINDS = ("chat", "math", "code", "language")
PAIRS = ("best", "widest", "all")

# Why a prompt is dropped, ...
NO_RESPONSE = "no response"
NONE_COUNTS = "no response that counts"
NO_TARGET = "no response of the target"
NO_SOURCE = "no response of a source"
ONE_RESPONSE = "no source has two different responses"
NONE_CORRECT = "no correct response"
NONE_WRONG = "no incorrect response"
NOT_BOTH = "no source has a correct and an incorrect response"
GAPS = "gaps too small and too large"
# ... a pair, and with its last pair the prompt, ...
TOO_SMALL = "gap too small"
TOO_LARGE = "gap too large"
EQUAL = "equal rewards"
SAME_PAIR = "same texts as another source's pair"
NOT_CHOSEN = "another source's pair was chosen"
# ... or a response.
BLANK = "blank"
REPEATED = "repeated"
OTHER_SCRIPT = "another script than the prompt's"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the sources answered; the last of ``messages`` is the user's."""

    id: str
    messages: Sequence[Mapping[str, str]]
    kind: str  # one of KINDS
    set: str = ""  # the data set that it is from; its kind where this is empty


@dataclass(frozen=True, slots=True)
class Response:
    """One sample of what a model answered, scored."""

    prompt: str  # its id
    source: str
    sample: int
    text: str
    reward: float
    correct: bool | None = None  # by gold answer or unit tests; needed for kinds "math" and "code"


@dataclass(frozen=True, slots=True)
class PairParams:
    """The rules, by default FuseChat-3.0's; ``wrpo`` gives those of WRPO. RecipeError where a value makes no sense."""

    sft_share: float = 0.4
    """The share of each set's prompts that go to SFT, the others to preference; of n prompts, floor(share · n)."""
    set_shares: Mapping[str, float] = field(default_factory=dict)
    """Sets with a share of their own."""
    seed: int = 0
    min_gap: float = 0.01
    max_gap: float = 0.1
    """Bounds of reward(chosen) − reward(rejected), both included."""
    gap_kinds: tuple[str, ...] = ("chat", "math")
    """The kinds of prompts to which the bounds apply."""
    same_source: bool = True
    """Whether chosen and rejected come from one source, or else are the best and worst of all responses."""
    pairs: Literal["best", "widest", "all"] = "best"
    """Of several sources' pairs within the bounds: that of the best chosen response, of the widest gap, or all."""
    sources: tuple[str, ...] = ()
    """The order in which sources win ties; alphabetical where it is empty."""
    target: str | None = None
    """The source that is WRPO's target: quadruples are made instead of pairs, and its responses are not sources'."""

    def __post_init__(self) -> None:
        for name, share in (("sft_share", self.sft_share), *((f"set_shares[{k!r}]", v) for k, v in self._shares())):
            if not is_number(share) or not 0 <= share <= 1:
                raise RecipeError(f"{name} is {share!r}; it must be a number from 0 to 1, as 0.4")
        for name in ("min_gap", "max_gap"):
            if not is_number(value := getattr(self, name)):
                raise RecipeError(f"{name} is {value!r}; it must be a finite number, as 0.01")
        if self.min_gap > self.max_gap:
            raise RecipeError(
                f"min_gap is {self.min_gap} and max_gap {self.max_gap}; min_gap must not be above max_gap"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise RecipeError(f"seed is {self.seed!r}; it must be a whole number")
        if not isinstance(self.same_source, bool):
            raise RecipeError(f"same_source is {self.same_source!r}; it must be true or false")
        one_of("pairs", self.pairs, PAIRS)
        for name in ("gap_kinds", "sources"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence) or len(set(value)) < len(value):
                raise RecipeError(f"{name} is {value!r}; it must be a list of different names")
            object.__setattr__(self, name, tuple(value))
        for kind in self.gap_kinds:
            one_of("gap_kinds", kind, KINDS)
        if self.target is not None and (not self.same_source or self.pairs != "best"):
            raise RecipeError("same_source and pairs are for pairs; with a target there are quadruples: leave them out")

    def _shares(self) -> Iterable[tuple[str, float]]:
        if not isinstance(self.set_shares, Mapping):
            raise RecipeError(f"set_shares is {self.set_shares!r}; it must give the shares of sets, as {{'math': 0.7}}")
        return self.set_shares.items()

    @classmethod
    def wrpo(cls, target: str, **changed: Any) -> PairParams:
        """Return WRPO's rules: a third of the prompts for SFT, no bounds on the gap."""
        return replace(cls(sft_share=1 / 3, gap_kinds=(), target=target), **changed)


@dataclass(frozen=True, slots=True)
class Example:
    """What SFT learns: the best response of all sources."""

    prompt: Prompt
    best: Response


@dataclass(frozen=True, slots=True)
class Pair:
    """What DPO learns; ``gap`` is the difference of the rewards."""

    prompt: Prompt
    chosen: Response
    rejected: Response
    gap: float


@dataclass(frozen=True, slots=True)
class Quadruple:
    """What WRPO learns: y_ws, y_wt and y_l; ``gap`` is that of the target's two."""

    prompt: Prompt
    source_best: Response
    target_best: Response
    rejected: Response
    gap: float


@dataclass(frozen=True, slots=True)
class Dropped:
    """What was not kept, and why: a whole prompt, a pair of a kept or dropped one, or a response."""

    what: Literal["prompt", "pair", "response"]
    reason: str
    prompt: str
    source: str | None = None  # of a pair, the chosen response's
    sample: int | None = None
    gap: float | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """The examples in the order of the prompts' ids; every prompt is in one of them, or is dropped."""

    params: PairParams
    prompts: tuple[Prompt, ...]
    responses: tuple[Response, ...]
    sides: Mapping[str, str]  # prompt id → SFT or PREFERENCE
    sft: tuple[Example, ...]
    pairs: tuple[Pair, ...]
    quadruples: tuple[Quadruple, ...]
    dropped: tuple[Dropped, ...]


def is_number(value: object) -> bool:
    """Tell whether a value is a finite number, and no truth value or text."""
    try:
        return not isinstance(value, (bool, str)) and math.isfinite(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False


def one_of(what: str, value: object, known: Sequence[str]) -> None:
    """Raise RecipeError, which calls the value ``what``, where it is not among those known."""
    if value not in known:
        raise RecipeError(
            f"{what} is {value!r}; it must be one of {', '.join(known)}.{did_you_mean(str(value), known)}"
        )
