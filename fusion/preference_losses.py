"""Preference losses: DPO, length-normalised DPO, SimPO and WRPO, from summed log-probabilities of whole responses.

DPO: Rafailov et al. 2023, arXiv:2305.18290. Length-normalised DPO: FuseChat-3.0, arXiv:2503.04222, as
``loss_type="sigmoid_norm"`` of trl 1.16. SimPO: Meng et al. 2024, arXiv:2405.14734. WRPO: Yang et al. 2024,
arXiv:2412.03187, which trl does not have. Three differences from trl 1.16:

- ``label_smoothing`` works for every kind, as in trl's CPOTrainer; its DPOTrainer ignores it for the first two.
- The rewards of ln_dpo are those that its loss compares; trl logs sums there, a response's length times as large.
- A token without a log-probability, the first of a sequence, is not in a response's length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fusion.errors import FusionError, RecipeError, did_you_mean
from fusion.lessons import IGNORED
from fusion.losses import entries_of  # what makes float32 copies of a model's logits, a chunk at a time

if TYPE_CHECKING:
    from collections.abc import Callable

PREFERENCE_KINDS = ("dpo", "ln_dpo", "simpo", "wrpo")

_ALLOWED: dict[str, tuple[Callable[[float], bool], str]] = {
    "beta": (lambda value: 0 < value < math.inf, "a number above 0"),
    "gamma": (lambda value: 0 <= value < math.inf, "a number, 0 or more"),
    "alpha": (lambda value: 0 <= value <= 1, "a number in [0, 1]"),
    "label_smoothing": (lambda value: 0 <= value < 0.5, "a number in [0, 0.5)"),
}

_NORMALISED = ("ln_dpo", "simpo")  # a response's reward is divided by its length


@dataclass(frozen=True, slots=True, eq=False)
class ResponseLogprobs:
    """What two models make of one response an example; all tensors are (B,), as from :func:`sequence_logprobs`."""

    policy: Tensor  # summed log-probability, in nats, under the model that is trained
    reference: Tensor | None = None  # the same under the model that it started as; simpo needs none
    tokens: Tensor | None = None  # how many there are in the sums; dpo and wrpo need none


@dataclass(frozen=True, slots=True, eq=False)
class PreferenceLoss:
    """A loss an example, and what it compared, for curves; all tensors are (B,), and only ``losses`` has a gradient.

    A reward is β · log π/π_ref of a response, for ln_dpo divided by its length; for simpo β · log π divided by it.
    """

    losses: Tensor  # in nats
    chosen_rewards: Tensor  # for wrpo the mean, weighted by alpha, of the next two
    source_rewards: Tensor | None  # of the sources' best response; None but for wrpo
    target_rewards: Tensor | None  # of the target's own best response; None but for wrpo
    rejected_rewards: Tensor
    margins: Tensor  # chosen minus rejected; simpo's gamma is not taken off. Above 0: the example is ranked rightly


def sequence_logprobs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return each sequence's summed log-probability of its labelled tokens, and their number, both (B,).

    ``logits`` (B, T, V) at position t speak of token t + 1; ``labels`` (B, T) are the tokens themselves, unshifted as
    transformers takes them, and -100 where a token is not in the response. The first token has no log-probability
    and never counts. The sums, in nats, are float32 (float64 for float64 logits), with a gradient for ``logits``;
    float32 copies of them are made a chunk at a time, and only where the next token counts. A sequence without labels
    has 0 of 0 tokens. FusionError where the shapes do not fit.
    """
    if logits.dim() != 3 or logits.shape[:2] != labels.shape:
        raise FusionError(
            f"logits have shape {tuple(logits.shape)} and labels {tuple(labels.shape)}; "
            "they must be (B, T, V) and (B, T)"
        )
    _, length, width = logits.shape
    following = labels[:, 1:]  # (B, T - 1)
    counts = following != IGNORED
    example, position = counts.nonzero(as_tuple=True)  # (N,), (N,)
    gold = following[example, position].unsqueeze(-1)
    entries, normaliser = entries_of(logits.reshape(-1, width), example * length + position, gold)
    each = entries.squeeze(-1) - normaliser
    # Put in their places and summed there: adding them up by example is not reproducible on a GPU.
    return each.new_zeros(counts.shape).masked_scatter(counts, each).sum(-1), counts.sum(-1)


def preference_loss(
    kind: str,
    chosen: ResponseLogprobs,
    rejected: ResponseLogprobs,
    *,
    beta: float,
    source: ResponseLogprobs | None = None,
    gamma: float | None = None,
    alpha: float | None = None,
    label_smoothing: float = 0.0,
) -> PreferenceLoss:
    """Return −(1 − ε) · log σ(z) − ε · log σ(−z) an example, with ε the ``label_smoothing`` of conservative DPO.

    With r(y) = log π(y) − log π_ref(y), summed over the |y| tokens of a response, z is

    - ``dpo``     β · [r(chosen) − r(rejected)]
    - ``ln_dpo``  β · [r(chosen) / |chosen| − r(rejected) / |rejected|]
    - ``simpo``   β · [log π(chosen) / |chosen| − log π(rejected) / |rejected|] − γ
    - ``wrpo``    β · [α · r(source) + (1 − α) · r(chosen) − r(rejected)]

    For wrpo ``chosen`` and ``rejected`` are the best and the worst of the target's own responses, and ``source`` the
    best of all sources'; ``alpha`` is that of the step, see :func:`wrpo_alpha`. ``gamma`` is simpo's alone, ``alpha``
    and ``source`` are wrpo's. A response without a token has reward 0. Computed in float32, or float64 where a
    log-probability is. RecipeError where a parameter or a model's log-probabilities are missing, out of range or
    of no use to the kind; FusionError where the tensors are not all (B,).
    """
    check_preference_loss(kind, beta=beta, gamma=gamma, alpha=alpha, label_smoothing=label_smoothing)
    responses = _responses(kind, chosen, rejected, source)
    scores = {name: _score(kind, response) for name, response in responses.items()}
    good, bad = scores["chosen"], scores["rejected"]
    if alpha is not None:
        good = alpha * scores["source"] + (1 - alpha) * good
    margin = beta * (good - bad)
    z = margin if gamma is None else margin - gamma
    losses = -logsigmoid(z)
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * logsigmoid(-z)
    rewards = {name: beta * score.detach() for name, score in scores.items()}
    return PreferenceLoss(
        losses=losses,
        chosen_rewards=beta * good.detach(),
        source_rewards=rewards.get("source"),
        target_rewards=rewards["chosen"] if alpha is not None else None,
        rejected_rewards=rewards["rejected"],
        margins=margin.detach(),
    )


def wrpo_alpha(step: int, total: int, alpha: float) -> float:
    """Return the weight of the sources' response at ``step``: it rises linearly from 0 to ``alpha`` over all steps.

    As WRPO trains: 0 before the first of ``total`` steps, ``alpha`` after the last, no matter how the learning rate
    goes. ``step`` is the number of updates made so far. RecipeError where it is not from 0 to ``total``.
    """
    _check("alpha", alpha)
    if not _whole(total) or total < 1:
        raise RecipeError(f"total of the preference training is {total!r}; it must be a whole number of steps above 0")
    if not _whole(step) or not 0 <= step <= total:
        raise RecipeError(f"step of the preference training is {step!r}; it must be a whole number from 0 to {total}")
    return alpha * (step / total)


def check_preference_loss(
    kind: str, *, beta: float, gamma: float | None = None, alpha: float | None = None, label_smoothing: float = 0.0
) -> None:
    """Raise RecipeError where there is no such kind, or a parameter is out of range, missing, or not the kind's."""
    if kind not in PREFERENCE_KINDS:
        hint = did_you_mean(str(kind), PREFERENCE_KINDS)
        raise RecipeError(
            f"kind of the preference loss is {kind!r}; it must be one of {', '.join(PREFERENCE_KINDS)}.{hint}"
        )
    _check("beta", beta)
    _check("label_smoothing", label_smoothing)
    for name, value, owner in (("gamma", gamma, "simpo"), ("alpha", alpha, "wrpo")):
        if kind == owner:
            _check(name, value)
        elif value is not None:
            raise RecipeError(
                f"{name} of the preference loss is {value!r}; {kind} has none, only {owner}: leave it out"
            )


def _check(name: str, value: object) -> None:
    fits, text = _ALLOWED[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
        raise RecipeError(f"{name} of the preference loss is {value!r}; it must be {text}")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _responses(
    kind: str, chosen: ResponseLogprobs, rejected: ResponseLogprobs, source: ResponseLogprobs | None
) -> dict[str, ResponseLogprobs]:
    """Return the responses by name, once all is there that the kind needs, in one shape."""
    responses = {"chosen": chosen, "rejected": rejected}
    if kind == "wrpo" and source is not None:
        responses["source"] = source
    elif kind == "wrpo":
        raise RecipeError("source of the preference loss is None; wrpo needs the sources' best response")
    elif source is not None:
        raise RecipeError(f"{kind} has no source response, only wrpo; leave it out")
    needed = {"policy": True, "reference": kind != "simpo", "tokens": kind in _NORMALISED}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, response in responses.items():
        for what in (what for what, needs in needed.items() if needs):
            value: Tensor | None = getattr(response, what)
            if value is None:
                raise RecipeError(f"{what} of the {name} response is None; {kind} needs it: see sequence_logprobs")
            shapes[f"{name}.{what}"] = tuple(value.shape)
    if len(set(shapes.values())) > 1 or chosen.policy.dim() != 1:
        raise FusionError(
            f"the responses have shapes {', '.join(f'{name} {shape}' for name, shape in shapes.items())}; "
            "they must all be (B,)"
        )
    return responses


def _score(kind: str, response: ResponseLogprobs) -> Tensor:
    """Return a response's reward divided by β, (B,)."""
    score = response.policy.to(torch.promote_types(response.policy.dtype, torch.float32))
    if kind != "simpo" and response.reference is not None:
        score = score - response.reference
    if kind in _NORMALISED and response.tokens is not None:
        score = score / response.tokens.clamp(min=1)
    return score
