from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fusion import losses
from fusion.errors import RecipeError
from fusion.losses import KINDS, TAIL_POLICIES, clm_and_fusion_loss, clm_loss, fusion_loss

B, T, V, K = 2, 5, 11, 4


def example(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Random logits and targets; the last entry of some positions is missing, and some positions do not count."""
    ids = torch.stack([torch.randperm(V)[:K] for _ in range(B * T)]).view(B, T, K)
    parts = torch.rand(B, T, K + 1, dtype=dtype) + 0.05
    ids[0, :2, -1], parts[0, :2, -2] = -1, 0
    parts = parts / parts.sum(-1, keepdim=True)
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, 0] = mask[1, 3:] = False
    logits = (3 * torch.randn(B, T, V, dtype=dtype)).requires_grad_()
    return {"logits": logits, "ids": ids, "probs": parts[..., :-1], "tail": parts[..., -1], "mask": mask}


def distance(p: Tensor, q: Tensor, kind: str) -> Tensor:
    on, middle = p > 0, (p + q) / 2
    if kind == "ce":
        return -(p[on] * q[on].log()).sum()
    if kind == "kl":
        return (p[on] * (p[on] / q[on]).log()).sum()
    if kind == "reverse_kl":
        return (q * (q / p).log()).sum()
    return (p[on] * (p[on] / middle[on]).log()).sum() / 2 + (q * (q / middle).log()).sum() / 2


def dense(logits: Tensor, ids: Tensor, probs: Tensor, tail: Tensor, mask: Tensor, *, kind: str, policy: str) -> Tensor:
    """The definitions, with P and Q over the whole vocabulary, a position at a time."""
    each = []
    for b, t in mask.nonzero().tolist():
        there = ids[b, t] >= 0
        where = ids[b, t][there]
        q_all = logits[b, t].softmax(-1)
        p, q = probs[b, t][there], q_all[where]
        if policy == "renormalise":
            p = p / p.sum()
            if kind == "reverse_kl":
                q = q / q.sum()
            else:  # over all of V
                p, q = torch.zeros_like(q_all).index_put((where,), p), q_all
        elif policy == "bucket":
            p, q = torch.cat([p, tail[b, t, None]]), torch.cat([q, 1 - q.sum(0, keepdim=True)])
        each.append(distance(p, q, kind))
    return torch.stack(each).mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", TAIL_POLICIES)
def test_value_and_gradient_are_those_of_the_dense_definition(kind: str, policy: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(losses, "_CHUNK", 3 * V)  # several chunks
    given = example()
    ours = fusion_loss(**given, kind=kind, tail_policy=policy)
    plain = dense(**given, kind=kind, policy=policy)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    [our_gradient], [gradient] = (torch.autograd.grad(loss, given["logits"]) for loss in (ours, plain))
    torch.testing.assert_close(our_gradient, gradient, rtol=1e-10, atol=1e-12)
    assert our_gradient[~given["mask"]].abs().sum() == 0
    assert torch.autograd.gradcheck(
        lambda logits: fusion_loss(**{**given, "logits": logits}, kind=kind, tail_policy=policy), given["logits"]
    )


def test_by_hand():
    # Q = (1/2, 1/4, 1/8, 1/8), P = 3/4 on token 0, 1/8 on token 2, 1/8 somewhere else
    logits = torch.tensor([[[0.5, 0.25, 0.125, 0.125]]]).log()
    target = torch.tensor([[[0, 2]]]), torch.tensor([[[0.75, 0.125]]]), torch.tensor([[0.125]])
    mask = torch.tensor([[True]])
    ln2 = math.log(2)

    def loss(kind: str, policy: str) -> float:
        return fusion_loss(logits, *target, mask, kind=kind, tail_policy=policy).item()

    assert loss("ce", "drop") == pytest.approx((0.75 + 0.125 * 3) * ln2)
    assert loss("ce", "renormalise") == pytest.approx((0.75 + 0.125 * 3) * ln2 / 0.875)
    assert loss("ce", "bucket") == pytest.approx((0.75 + 0.125 * 3) * ln2 - 0.125 * math.log(0.375))
    assert loss("kl", "bucket") == pytest.approx(0.75 * math.log(1.5) + 0.125 * math.log(1 / 3))
    assert loss("reverse_kl", "bucket") == pytest.approx(0.5 * math.log(2 / 3) + 0.375 * math.log(3))


def test_the_target_itself_is_the_least_loss():
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    logits = probs.log().view(1, 1, 4)
    whole = torch.arange(4).view(1, 1, 4), probs.view(1, 1, 4), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    some = torch.tensor([[[0, 2, -1]]]), torch.tensor([[[0.5, 0.15, 0.0]]]), torch.tensor([[0.35]]), whole[3]
    for kind in ("kl", "reverse_kl", "jsd"):
        for policy in TAIL_POLICIES:
            assert fusion_loss(logits, *whole, kind=kind, tail_policy=policy).item() == pytest.approx(0, abs=1e-12)
        assert fusion_loss(logits, *some, kind=kind, tail_policy="bucket").item() == pytest.approx(0, abs=1e-7)
        assert fusion_loss(logits + torch.eye(4)[1], *some, kind=kind, tail_policy="bucket").item() > 1e-3


def test_the_one_hot_target_is_the_loss_of_the_next_token():
    given = example()
    labels = torch.randint(V, (B, T + 1)).masked_fill(
        ~torch.cat([torch.zeros(B, 1, dtype=bool), given["mask"]], 1), -100
    )
    padded = torch.cat([given["logits"], torch.randn(B, 1, V, dtype=torch.float64)], 1)
    gold = labels[:, 1:].clamp(min=0).unsqueeze(-1), torch.ones(B, T, 1), torch.zeros(B, T)
    clm, fused = clm_and_fusion_loss(given["logits"], labels[:, 1:], *gold)
    theirs = clm_loss(padded, labels)
    torch.testing.assert_close(clm, theirs, rtol=1e-6, atol=1e-6, check_dtype=False)  # theirs is in float32
    torch.testing.assert_close(fused, clm)
    torch.testing.assert_close(fusion_loss(given["logits"], *gold, given["mask"]), clm)


def test_both_losses_of_one_pass_are_the_losses_apart_and_parts_of_a_batch_add_up():
    given = example()
    labels = torch.randint(V, (B, T)).masked_fill(~given["mask"], -100)
    target = {name: given[name] for name in ("ids", "probs", "tail")}
    clm, fused = clm_and_fusion_loss(given["logits"], labels, **target, kind="jsd", tail_policy="bucket")
    torch.testing.assert_close(fused, fusion_loss(**given, kind="jsd", tail_policy="bucket"))
    log_q = given["logits"].log_softmax(-1)[given["mask"]]
    torch.testing.assert_close(clm, -log_q.gather(-1, labels[given["mask"]].unsqueeze(-1)).mean())
    count = given["mask"].sum()
    parts = [
        clm_and_fusion_loss(
            given["logits"][b : b + 1],
            labels[b : b + 1],
            **{name: value[b : b + 1] for name, value in target.items()},
            kind="jsd",
            tail_policy="bucket",
            count=count,
        )
        for b in range(B)
    ]
    torch.testing.assert_close(
        torch.stack([sum(terms) for terms in zip(*parts, strict=True)]), torch.stack([clm, fused])
    )


def test_a_temperature_flattens_the_entries_and_keeps_their_sum():
    given = {**example(), "ids": torch.arange(K).expand(B, T, K)}
    tempered = given["probs"] ** 0.5
    tempered = tempered / tempered.sum(-1, keepdim=True) * given["probs"].sum(-1, keepdim=True)
    for policy in TAIL_POLICIES:
        warm = fusion_loss(**given, tail_policy=policy, temperature=2.0)
        torch.testing.assert_close(warm, fusion_loss(**{**given, "probs": tempered}, tail_policy=policy))


def test_a_batch_without_anything_to_learn_is_0_with_a_gradient_of_0():
    given = example(torch.float32)
    loss = fusion_loss(**{**given, "mask": torch.zeros(B, T, dtype=torch.bool)})
    loss.backward()
    assert loss == 0 and given["logits"].grad.abs().sum() == 0


def test_half_precision_logits_are_summed_in_float32():
    given = example(torch.float32)
    half = given["logits"].detach().bfloat16()
    loss = fusion_loss(**{**given, "logits": half.requires_grad_()})
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, fusion_loss(**{**given, "logits": half.detach().float()}))
    loss.backward()
    assert half.grad.dtype == torch.bfloat16


def test_a_certain_model_and_a_certain_target_give_finite_losses_and_gradients():
    logits = torch.tensor([[[80.0, 0.0, -80.0], [-80.0, 0.0, 80.0]]], requires_grad=True)
    target = torch.tensor([[[0, 2], [0, 2]]]), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.zeros(1, 2)
    for kind in KINDS:
        for policy in TAIL_POLICIES:
            loss = fusion_loss(logits, *target, torch.ones(1, 2, dtype=torch.bool), kind=kind, tail_policy=policy)
            [gradient] = torch.autograd.grad(loss, logits)
            assert loss.isfinite() and gradient.isfinite().all(), (kind, policy)


def test_an_unknown_loss_is_told_what_there_is():
    with pytest.raises(
        RecipeError, match=r"loss is 'reverse-kl'; it must be one of ce, kl.* Did you mean 'reverse_kl'"
    ):
        fusion_loss(**example(), kind="reverse-kl")
    with pytest.raises(RecipeError, match="tail_policy is 'keep'; it must be one of renormalise, bucket, drop"):
        fusion_loss(**example(), tail_policy="keep")
