"""What a model learns from a fused distribution: cross-entropy, KL, reverse KL or JSD to a sparse target.

FuseLLM (arXiv:2401.10491) and FuseChat (arXiv:2408.07990) train with λ · CLM + (1 − λ) · fusion. FuseAI@7d9a307 spreads
a target over a dense (B, T, V); here a target keeps its K entries and one number for all the others. A loss needs of
the model's logits only those at the K entries and their logsumexp, so the rest of the arithmetic is (N, K).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fusion.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("ce", "kl", "reverse_kl", "jsd")
TAIL_POLICIES = ("renormalise", "bucket", "drop")

_CHUNK = 1 << 24  # logits that are held in float32 at a time, 64 MiB


def fusion_loss(
    logits: Tensor,
    ids: Tensor,
    probs: Tensor,
    tail: Tensor,
    mask: Tensor,
    *,
    kind: str = "ce",
    tail_policy: str = "renormalise",
    temperature: float = 1.0,
) -> Tensor:
    """Return the mean over the positions of ``mask`` of a distance from the target P to the model's distribution Q.

    ``logits`` (B, T, V) are the model's and ``ids``, ``probs`` (B, T, K) the target's entries, all different, with id
    -1 where there are fewer than K; ``tail`` (B, T) is the probability of all other tokens together, ``mask`` (B, T)
    true where the next token is to be learnt. With q the model's probabilities of the entries:

    - ``ce``          −Σ p log q                       (FuseLLM's and FuseChat's)
    - ``kl``          Σ p log(p / q)                   (its gradient is that of ``ce``)
    - ``reverse_kl``  Σ q log(q / p)
    - ``jsd``         ½ KL(P ‖ M) + ½ KL(Q ‖ M),  M = ½ (P + Q)

    ``tail_policy`` says what becomes of the tail. ``renormalise``: the entries are all there is of P, scaled to sum to
    1, as FuseChat does; ``reverse_kl``, infinite then, compares both on the entries alone. ``bucket``: the tail is one
    more entry, for P and Q alike. ``drop``: the sums run over the entries as they are. ``temperature`` divides the
    logarithms of the entries, whose sum stays.

    In nats, a scalar in float32 (float64 for float64 logits) with a gradient for ``logits``; 0 where nothing counts.
    """
    rows = mask.reshape(-1).nonzero().squeeze(-1)
    width = ids.size(-1)
    ids, probs = ids.reshape(-1, width)[rows], probs.reshape(-1, width)[rows]
    entries, normaliser = entries_of(logits.reshape(-1, logits.size(-1)), rows, ids.clamp(min=0))
    each = _distances(
        entries - normaliser.unsqueeze(-1),
        ids >= 0,
        *_target(probs, tail.reshape(-1)[rows], entries.dtype, temperature),
        kind=kind,
        tail_policy=tail_policy,
    )
    return each.sum() / max(1, len(rows))


def clm_and_fusion_loss(
    logits: Tensor,
    labels: Tensor,
    ids: Tensor,
    probs: Tensor,
    tail: Tensor,
    *,
    kind: str = "ce",
    tail_policy: str = "renormalise",
    temperature: float = 1.0,
    count: Tensor | int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss of the next tokens themselves and fusion_loss, from one pass over the logits.

    ``labels`` (B, T) are the next tokens, -100 where nothing is to be learnt: shifted already, so that position t of
    all arguments speaks of token t + 1. Both are sums over the positions that count, divided by ``count``: their
    number where it is None, else that of the whole batch of which this is a part.
    """
    labels = labels.reshape(-1)
    rows = (labels != -100).nonzero().squeeze(-1)
    width = ids.size(-1)
    ids, probs = ids.reshape(-1, width)[rows], probs.reshape(-1, width)[rows]
    wanted = torch.cat([ids.clamp(min=0), labels[rows].unsqueeze(-1)], dim=-1)  # (N, K + 1)
    entries, normaliser = entries_of(logits.reshape(-1, logits.size(-1)), rows, wanted)
    log_q = entries - normaliser.unsqueeze(-1)
    each = _distances(
        log_q[:, :width],
        ids >= 0,
        *_target(probs, tail.reshape(-1)[rows], entries.dtype, temperature),
        kind=kind,
        tail_policy=tail_policy,
    )
    share = max(1, len(rows)) if count is None else count
    return -log_q[:, width].sum() / share, each.sum() / share


def clm_loss(logits: Tensor, labels: Tensor, *, count: Tensor | int | None = None) -> Tensor:
    """Return transformers' own loss of the next tokens: ``logits`` (B, T, V), unshifted ``labels`` (B, T)."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    loss = ForCausalLMLoss(logits, labels, vocab_size=logits.size(-1), num_items_in_batch=count)
    return cast("Tensor", loss)


def check_loss(kind: str, tail_policy: str) -> None:
    """Raise RecipeError where there is no such loss or no such way with the tail."""
    for name, value, known in (("loss", kind, KINDS), ("tail_policy", tail_policy, TAIL_POLICIES)):
        if value not in known:
            raise RecipeError(f"{name} is {value!r}; it must be one of {', '.join(known)}.{did_you_mean(value, known)}")


def _target(probs: Tensor, tail: Tensor, dtype: torch.dtype, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the entries' probabilities (N, K) at ``temperature`` and the tail (N,), in ``dtype``."""
    probs = probs.to(dtype)
    if temperature != 1:
        mass = probs.sum(-1, keepdim=True)
        highest = probs.amax(-1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)
        probs = (probs / highest) ** (1 / temperature)
        probs = probs * (mass / probs.sum(-1, keepdim=True).clamp(min=torch.finfo(dtype).tiny))
    return probs, tail.to(dtype)


def _distances(log_q: Tensor, there: Tensor, p: Tensor, p_tail: Tensor, *, kind: str, tail_policy: str) -> Tensor:
    """Return the distance at each position (N,) from log q and p of the entries (N, K); ``there``: no padding."""
    check_loss(kind, tail_policy)
    q = log_q.exp() * there
    log_q = log_q.masked_fill(~there, 0.0)
    outside = None  # Q's mass where P has none
    if tail_policy == "renormalise":
        p = p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
        if kind == "reverse_kl":
            log_mass = torch.where(there, log_q, -math.inf).logsumexp(-1, keepdim=True)
            log_q = torch.where(there, log_q - log_mass, 0.0)
            q = log_q.exp() * there
        outside = 1 - q.sum(-1)
    elif tail_policy == "bucket":
        # The rest of Q is a difference of numbers near 1: known to within the precision that they have, and no better.
        q_tail = (1 - q.sum(-1, keepdim=True)).clamp(min=torch.finfo(q.dtype).eps)
        q, log_q = torch.cat([q, q_tail], -1), torch.cat([log_q, q_tail.log()], -1)
        p = torch.cat([p, p_tail.unsqueeze(-1)], -1)
    if kind == "ce":
        return -(p * log_q).sum(-1)
    if kind == "kl":
        return (torch.xlogy(p, p) - p * log_q).sum(-1)
    if kind == "reverse_kl":
        # A token that P rules out costs what the rarest float32 costs, and not infinity.
        log_p = p.clamp(min=torch.finfo(torch.float32).tiny).log()
        return (q * (log_q - log_p)).sum(-1)
    middle = (p + q) / 2
    log_middle = middle.clamp(min=torch.finfo(middle.dtype).tiny).log()
    jsd = ((torch.xlogy(p, p) - p * log_middle) + q * (log_q - log_middle)).sum(-1) / 2
    return jsd if outside is None else jsd + outside * (math.log(2) / 2)


def entries_of(logits: Tensor, rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits[rows] at ``ids`` (N, K), and the logsumexp of each row (N,)."""
    entries, normaliser = _Entries.apply(logits, rows, ids.long())  # type: ignore[no-untyped-call]
    return entries, normaliser


class _Entries(torch.autograd.Function):
    """Some logits of each row, and its logsumexp; float32 copies of the logits are made a chunk at a time.

    Autograd's own gather and logsumexp would each make a gradient of the size of the logits, and keep float32 copies.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, K) and (N,) of ``logits`` (M, V), at ``rows`` (N,) and ``ids`` (N, K)."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        entries = torch.empty(ids.shape, dtype=dtype, device=logits.device)
        normaliser = torch.empty(ids.shape[:1], dtype=dtype, device=logits.device)
        for chunk in _chunks(len(rows), logits.size(-1)):
            part = logits.index_select(0, rows[chunk]).to(dtype)  # (n, V)
            entries[chunk] = part.gather(-1, ids[chunk])
            normaliser[chunk] = part.logsumexp(-1)
        ctx.save_for_backward(logits, rows, ids, normaliser)
        return entries, normaliser

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return dL/dlogits = softmax · dL/dnormaliser, and dL/dentries added at the entries; each row comes once."""
        logits, rows, ids, normaliser = ctx.saved_tensors
        of_entries, of_normaliser = gradients
        result = torch.zeros_like(logits)
        for chunk in _chunks(len(rows), logits.size(-1)):
            part = logits.index_select(0, rows[chunk]).to(normaliser.dtype)
            part.sub_(normaliser[chunk].unsqueeze(-1)).exp_().mul_(of_normaliser[chunk].unsqueeze(-1))
            part.scatter_add_(-1, ids[chunk], of_entries[chunk])
            result.index_copy_(0, rows[chunk], part.to(result.dtype))
        return result, None, None


def _chunks(rows: int, width: int) -> Iterator[slice]:
    size = max(1, _CHUNK // width)
    return (slice(start, start + size) for start in range(0, rows, size))
