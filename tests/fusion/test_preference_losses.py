from __future__ import annotations

import ast
import importlib.util
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fusion import losses
from fusion.errors import FusionError, RecipeError
from fusion.preference_losses import (
    PREFERENCE_KINDS,
    PreferenceLoss,
    ResponseLogprobs,
    preference_loss,
    sequence_logprobs,
    wrpo_alpha,
)

B, T, V = 4, 9, 13
OWN: dict[str, dict[str, float]] = {"simpo": {"gamma": 0.5}, "wrpo": {"alpha": 0.25}}  # parameters of one kind


def response(policy: float, reference: float, tokens: int) -> ResponseLogprobs:
    return ResponseLogprobs(torch.tensor([policy]).double(), torch.tensor([reference]).double(), torch.tensor([tokens]))


CHOSEN, REJECTED, SOURCE = response(-10, -12, 4), response(-14, -13, 5), response(-20, -26, 7)


def by_hand(kind: str, beta: float, **params: float) -> PreferenceLoss:
    source = SOURCE if kind == "wrpo" else None
    return preference_loss(kind, CHOSEN, REJECTED, source=source, beta=beta, **OWN.get(kind, {}), **params)


def batch() -> tuple[Tensor, Tensor]:
    """Logits and unshifted labels: prompts and padding of several lengths, one sequence without a prompt."""
    labels = torch.randint(V, (B, T))
    for row, (start, end) in enumerate(((3, 9), (0, 7), (5, 6), (1, 8))):
        labels[row, :start] = labels[row, end:] = -100
    return 3 * torch.randn(B, T, V), labels


def plain(logits: Tensor, labels: Tensor) -> Tensor:
    """The log-probability of each next token (B, T - 1), 0 where it is not labelled."""
    gold = labels[:, 1:]
    each = logits[:, :-1].log_softmax(-1).gather(-1, gold.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return each * (gold != -100)


def trls(file: str, name: str, **names: object) -> Any:
    """A function of trl's own as it stands in its file; importing the file takes eight seconds."""
    found = importlib.util.find_spec("trl")
    if found is None or found.origin is None:
        pytest.skip("needs trl: pip install 'fuseval[train]'")
    tree = ast.parse((Path(found.origin).parent / file).read_text(encoding="utf-8"))
    [node] = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    node.decorator_list = []
    scope = {"torch": torch, "F": torch.nn.functional, **names}
    exec(compile(ast.Module([node], []), file, "exec"), scope)
    return scope[name]


# (kind, β): z is 0.5 · (2 + 1), 2 · (2/4 + 1/5), 2 · (−10/4 + 14/5) − 0.5, 0.5 · (0.25 · 6 + 0.75 · 2 + 1)
BY_HAND = [
    ("dpo", 0.5, 1.5, 0.2014132779827524, (1.0, -0.5, 1.5)),
    ("ln_dpo", 2.0, 1.4, 0.2204174099184500, (1.0, -0.4, 1.4)),
    ("simpo", 2.0, 0.1, 0.6443966600735709, (-5.0, -5.6, 0.6)),
    ("wrpo", 0.5, 2.0, 0.1269280110429726, (1.5, -0.5, 2.0)),
]


@pytest.mark.parametrize(("kind", "beta", "z", "loss", "curves"), BY_HAND)
def test_losses_rewards_and_margins_by_hand(kind: str, beta: float, z: float, loss: float, curves: tuple[float, ...]):
    result = by_hand(kind, beta)
    assert math.log1p(math.exp(-z)) == pytest.approx(loss, rel=1e-12)
    assert result.losses.item() == pytest.approx(loss, rel=1e-12)
    smoothed = by_hand(kind, beta, label_smoothing=0.25)
    assert smoothed.losses.item() == pytest.approx(loss + 0.25 * z, rel=1e-12)  # −log σ(−z) = −log σ(z) + z
    for each in (result, smoothed):
        rewards = each.chosen_rewards.item(), each.rejected_rewards.item(), each.margins.item()
        assert rewards == pytest.approx(curves, rel=1e-12)
    if kind == "wrpo":
        assert result.source_rewards is not None and result.target_rewards is not None
        assert (result.source_rewards.item(), result.target_rewards.item()) == (3.0, 1.0)
    else:
        assert result.source_rewards is result.target_rewards is None


def test_sequence_logprobs_by_hand():
    # Always (1/2, 1/4, 1/8, 1/8): the token of the first position has no log-probability, that of the last no say
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(2, 4, 4)
    sums, tokens = sequence_logprobs(logits, torch.tensor([[3, 0, 1, 2], [-100, -100, 3, -100]]))
    torch.testing.assert_close(sums, torch.tensor([-6 * math.log(2), -3 * math.log(2)]))
    assert tokens.tolist() == [3, 1]


def test_sequence_logprobs_are_the_sums_of_log_softmax_and_so_are_their_gradients(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(losses, "_CHUNK", 3 * V)  # several chunks
    logits, labels = batch()
    logits = logits.double().requires_grad_()
    sums, tokens = sequence_logprobs(logits, labels)
    expected = plain(logits, labels).sum(-1)
    torch.testing.assert_close(sums, expected, rtol=1e-12, atol=1e-12)
    assert tokens.tolist() == [6, 6, 1, 7]
    weights = torch.randn(B, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(value @ weights, logits)[0] for value in (sums, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_sequence_without_labels_has_no_tokens_and_reward_0():
    logits, labels = batch()
    labels[1] = -100
    labels[2, 1:] = -100  # what is left of it could be the first token alone
    logits.requires_grad_()
    sums, tokens = sequence_logprobs(logits, labels)
    assert sums[1:3].tolist() == [0, 0] and tokens[1:3].tolist() == [0, 0]
    for kind in ("ln_dpo", "simpo"):
        this = ResponseLogprobs(sums, torch.zeros(B), tokens)
        result = preference_loss(kind, this, this, beta=1.0, **OWN.get(kind, {}))
        assert result.chosen_rewards[1] == 0 and result.losses.isfinite().all()
    [gradient] = torch.autograd.grad(sums.sum(), logits)
    assert gradient[1:3].abs().sum() == 0 and gradient.isfinite().all()
    short, none = sequence_logprobs(logits[:, :1], labels[:, :1])
    assert short.tolist() == none.tolist() == [0] * B


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_agree_with_float32_and_no_float32_copy_of_them_is_made(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for made in result if isinstance(result, tuple | list) else (result,):
                if isinstance(made, Tensor) and made.dtype == torch.float32:
                    self.elements = max(self.elements, made.numel())
            return result

    monkeypatch.setattr(losses, "_CHUNK", 4 * V)
    logits, labels = batch()
    half = logits.to(dtype).requires_grad_()
    with Largest() as seen:
        sums, _ = sequence_logprobs(half, labels)
        [gradient] = torch.autograd.grad(sums.sum(), half)
    assert 0 < seen.elements <= 4 * V < half.numel()
    assert (sums.dtype, gradient.dtype) == (torch.float32, dtype)
    same = half.detach().float().requires_grad_()  # of the same numbers, the same sums; of the unrounded, nearly so
    exact, _ = sequence_logprobs(same, labels)
    torch.testing.assert_close(sums, exact, rtol=1e-6, atol=1e-6)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient.float(), torch.autograd.grad(exact.sum(), same)[0], rtol=eps, atol=1e-6)
    tokens = sequence_logprobs(logits, labels)[1]
    bound = tokens * eps * logits.abs().max()  # each logit moved by at most half of eps, and so did the normaliser
    assert ((sums - sequence_logprobs(logits, labels)[0]).abs() <= bound).all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_wrpo_is_dpo_on_the_targets_response_at_0_and_on_the_sources_at_1(label_smoothing: float):
    policy, reference = (-100 * torch.rand(3, 50)).requires_grad_(), -100 * torch.rand(3, 50)
    target, source, rejected = (ResponseLogprobs(*each) for each in zip(policy, reference, strict=True))
    params = {"beta": 0.01, "label_smoothing": label_smoothing}
    for alpha, chosen in ((0.0, target), (1.0, source)):
        ours = preference_loss("wrpo", target, rejected, source=source, alpha=alpha, **params)
        dpo = preference_loss("dpo", chosen, rejected, **params)
        for field in ("losses", "chosen_rewards", "rejected_rewards", "margins"):
            assert torch.equal(getattr(ours, field), getattr(dpo, field))
        gradients = [torch.autograd.grad(each.losses.sum(), policy)[0] for each in (ours, dpo)]
        assert torch.equal(*gradients)


def test_length_normalisation_does_not_see_repeated_tokens_of_equal_probability():
    logits, reference = (torch.randn(1, 1, V, dtype=torch.float64).expand(2, 13, V) for _ in range(2))
    labels = torch.full((2, 13), -100)
    labels[0, 1:4] = labels[1, 1:13] = 5  # three times the token, and twelve times
    (sums, tokens), (of_reference, _) = sequence_logprobs(logits, labels), sequence_logprobs(reference, labels)
    repeated = ResponseLogprobs(sums, of_reference, tokens)
    other = ResponseLogprobs(*(torch.tensor([value, value]).double() for value in (-7.0, -6.0, 4.0)))
    for kind in ("ln_dpo", "simpo"):
        once, often = preference_loss(kind, repeated, other, beta=2.0, **OWN.get(kind, {})).losses
        assert once.item() == pytest.approx(often.item(), rel=1e-12)
    once, often = preference_loss("dpo", repeated, other, beta=2.0).chosen_rewards
    assert often.item() == pytest.approx(4 * once.item(), rel=1e-12)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", PREFERENCE_KINDS)
def test_gradients_are_right_from_the_loss_to_the_logits(kind: str, label_smoothing: float):
    labels = batch()[1]
    logits = torch.randn(3, B, T, V, dtype=torch.float64, requires_grad=True)
    reference = -5 * torch.rand(3, B, dtype=torch.float64)

    def loss(logits: Tensor) -> Tensor:
        chosen, rejected, source = (
            ResponseLogprobs(sums, ref, tokens)
            for (sums, tokens), ref in zip((sequence_logprobs(each, labels) for each in logits), reference, strict=True)
        )
        rest: dict[str, Any] = {"source": source} if kind == "wrpo" else {}
        params = {"beta": 0.5, "label_smoothing": label_smoothing, **OWN.get(kind, {})}
        result = preference_loss(kind, chosen, rejected, **rest, **params)
        assert not any(each.requires_grad for each in (result.chosen_rewards, result.rejected_rewards, result.margins))
        return result.losses

    assert torch.autograd.gradcheck(loss, logits, fast_mode=True)


def test_extreme_margins_are_finite():
    good, bad = ResponseLogprobs(torch.tensor([0.0])), ResponseLogprobs(torch.tensor([-3e4]))
    zero = torch.zeros(1)
    for chosen, rejected, expected in ((good, bad, 0.0), (bad, good, 3e5)):
        pair = (ResponseLogprobs(each.policy, zero) for each in (chosen, rejected))
        assert preference_loss("dpo", *pair, beta=10.0).losses.item() == expected


def trls_dpo(logits: Tensor, reference: Tensor, labels: Tensor, **params: Any) -> tuple[float, dict[str, float]]:
    """The mean loss and the curves of trl's DPOTrainer; the first half of the batch is chosen, the second rejected."""

    def model(**_: Any) -> SimpleNamespace:
        nothing = torch.zeros(labels.size(0), labels.size(1) - 1)
        return SimpleNamespace(
            log_probs=plain(logits, labels), entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
        )

    chosen, rejected = plain(reference, labels).sum(-1).chunk(2)
    inputs = {
        "input_ids": labels.clamp(min=0),
        "attention_mask": torch.ones_like(labels),
        "completion_mask": (labels != -100).long(),
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    off = dict.fromkeys(("aux_loss_enabled", "ld_alpha", "use_weighting"))
    accelerator = SimpleNamespace(device="cpu", gather=lambda each: each, gather_for_metrics=lambda each: each)
    trainer = SimpleNamespace(
        **{**off, "f_divergence_type": "reverse_kl", "precompute_ref_logps": True, "loss_weights": [1.0], **params},
        model=SimpleNamespace(training=False),
        accelerator=accelerator,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    loss = trls("trainer/dpo_trainer.py", "_compute_loss")(trainer, model, inputs, return_outputs=False)
    return loss.item(), {name: value[0] for name, value in trainer._metrics["eval"].items() if name != "num_tokens"}


def ours_as_trl(kind: str, logits: Tensor, reference: Tensor, labels: Tensor, **params: float) -> PreferenceLoss:
    sums, tokens = sequence_logprobs(logits, labels)
    of_reference, _ = sequence_logprobs(reference, labels)
    halves = zip(sums.chunk(2), of_reference.chunk(2), tokens.chunk(2), strict=True)
    return preference_loss(kind, *(ResponseLogprobs(*each) for each in halves), **params)


@pytest.mark.parametrize(("kind", "theirs"), [("dpo", "sigmoid"), ("ln_dpo", "sigmoid_norm")])
def test_dpo_and_ln_dpo_are_trls(kind: str, theirs: str):
    logits, labels = batch()
    labels[:, 0] = -100  # trl's length would count a labelled first token, which has no log-probability
    reference = logits + torch.randn_like(logits)
    ours = ours_as_trl(kind, logits, reference, labels, beta=0.5)
    loss, curves = trls_dpo(logits, reference, labels, beta=0.5, loss_types=[theirs], label_smoothing=0.0)
    assert ours.losses.mean().item() == pytest.approx(loss, rel=1e-5)
    if kind == "dpo":
        assert ours.chosen_rewards.mean().item() == pytest.approx(curves["rewards/chosen"], rel=1e-5)
        assert ours.rejected_rewards.mean().item() == pytest.approx(curves["rewards/rejected"], rel=1e-5)
        assert ours.margins.mean().item() == pytest.approx(curves["rewards/margins"], rel=1e-5)
        assert (ours.margins > 0).double().mean().item() == pytest.approx(curves["rewards/accuracies"])


def test_smoothed_dpo_is_trls_for_a_single_pair():
    # trl 1.16 smooths in "aot" and not in "sigmoid"; aot sorts the batch first, and one pair is sorted
    logits, labels = batch()
    logits, labels = logits[:2], labels[:2]
    reference = logits + torch.randn_like(logits)
    ours = ours_as_trl("dpo", logits, reference, labels, beta=0.5, label_smoothing=0.1)
    loss, _ = trls_dpo(logits, reference, labels, beta=0.5, loss_types=["aot"], label_smoothing=0.1)
    assert ours.losses.item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_simpo_is_trls(label_smoothing: float):
    logits, labels = batch()
    ours = ours_as_trl("simpo", logits, logits, labels, beta=2.0, gamma=0.5, label_smoothing=label_smoothing)
    file = "experimental/cpo/cpo_trainer.py"

    def selective_log_softmax(logits: Tensor, index: Tensor) -> Tensor:  # as its docstring in trl defines it
        return logits.log_softmax(-1).gather(-1, index.unsqueeze(-1)).squeeze(-1)

    averages = trls(file, "get_batch_logps", selective_log_softmax=selective_log_softmax)(logits, labels, True)
    trainer = SimpleNamespace(
        alpha=0.0,  # AlphaPO's, not WRPO's
        beta=2.0,
        simpo_gamma=0.5,
        label_smoothing=label_smoothing,
        loss_type="simpo",
        accelerator=SimpleNamespace(device="cpu"),
    )
    theirs = trls(file, "cpo_loss")(trainer, *averages.chunk(2))
    for mine, its in zip((ours.losses, ours.chosen_rewards, ours.rejected_rewards), theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)


def test_alpha_rises_linearly_from_0_to_alpha_over_all_steps():
    assert wrpo_alpha(0, 7, 0.1) == 0
    assert wrpo_alpha(7, 7, 0.1) == 0.1
    assert [wrpo_alpha(step, 4, 0.5) for step in range(5)] == [0, 0.125, 0.25, 0.375, 0.5]
    assert wrpo_alpha(1, 1, 1) == 1 and wrpo_alpha(3, 9, 0.0) == 0


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("drpo", {}, r"kind .* is 'drpo'; it must be one of dpo, ln_dpo, simpo, wrpo\. Did you mean 'dpo'\?"),
        ("dpo", {"beta": 0.0}, r"beta .* is 0\.0; it must be a number above 0"),
        ("dpo", {"beta": math.nan}, r"beta .* is nan; it must be a number above 0"),
        ("dpo", {"beta": True}, r"beta .* is True; it must be a number above 0"),
        ("dpo", {"label_smoothing": 0.5}, r"label_smoothing .* is 0\.5; it must be a number in \[0, 0\.5\)"),
        ("dpo", {"label_smoothing": -0.1}, r"label_smoothing .* is -0\.1; it must be a number in \[0, 0\.5\)"),
        ("wrpo", {"alpha": 1.5}, r"alpha .* is 1\.5; it must be a number in \[0, 1\]"),
        ("wrpo", {}, r"alpha .* is None; it must be a number in \[0, 1\]"),
        ("simpo", {"gamma": -1}, r"gamma .* is -1; it must be a number, 0 or more"),
        ("simpo", {}, r"gamma .* is None; it must be a number, 0 or more"),
        ("dpo", {"gamma": 0.5}, r"gamma .* is 0\.5; dpo has none, only simpo: leave it out"),
        ("simpo", {"gamma": 0.5, "alpha": 0.1}, r"alpha .* is 0\.1; simpo has none, only wrpo: leave it out"),
        ("dpo", {"source": SOURCE}, r"dpo has no source response, only wrpo; leave it out"),
        ("wrpo", {"alpha": 0.1}, r"source .* is None; wrpo needs the sources' best response"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(kind: str, params: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=message):
        preference_loss(kind, CHOSEN, REJECTED, **{"beta": 0.1, **params})


def test_what_is_missing_of_a_response_or_has_another_shape_is_named():
    bare = ResponseLogprobs(CHOSEN.policy)
    with pytest.raises(RecipeError, match="reference of the rejected response is None; dpo needs it"):
        preference_loss("dpo", CHOSEN, bare, beta=0.1)
    with pytest.raises(RecipeError, match="tokens of the chosen response is None; simpo needs it"):
        preference_loss("simpo", bare, REJECTED, beta=2.0, gamma=0.5)
    column = ResponseLogprobs(CHOSEN.policy[:, None], REJECTED.reference)  # would broadcast to (B, B)
    with pytest.raises(FusionError, match=r"rejected\.policy \(1, 1\), .*; they must all be \(B,\)"):
        preference_loss("dpo", CHOSEN, column, beta=0.1)
    with pytest.raises(FusionError, match=r"logits have shape \(4, 9, 13\) and labels \(4, 8\); they must be"):
        sequence_logprobs(batch()[0], batch()[1][:, 1:])


@pytest.mark.parametrize(
    ("step", "total", "alpha", "message"),
    [
        (11, 10, 0.1, "step .* is 11; it must be a whole number from 0 to 10"),
        (-1, 10, 0.1, "step .* is -1; it must be a whole number from 0 to 10"),
        (0.5, 10, 0.1, r"step .* is 0\.5; it must be a whole number"),
        (0, 0, 0.1, "total .* is 0; it must be a whole number of steps above 0"),
        (0, 10, -0.1, r"alpha .* is -0\.1; it must be a number in \[0, 1\]"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(step: int, total: int, alpha: float, message: str):
    with pytest.raises(RecipeError, match=message):
        wrpo_alpha(step, total, alpha)
