from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fusion.blocks import NotFinite
from fusion.sce import sce, sce_fusechat, sce_fusechat_grid, sce_grid, sce_mergekit, sce_mergekit_grid

FORMS: dict[str, Callable[..., Tensor]] = {
    "paper": sce,
    "fusechat": sce_fusechat,
    "mergekit": sce_mergekit,
}
GRIDS: dict[str, Callable[..., list[Tensor]]] = {
    "paper": sce_grid,
    "fusechat": sce_fusechat_grid,
    "mergekit": sce_mergekit_grid,
}
SHARES = [0.05, 0.1, 0.3, 0.6, 1.0]


def models(sources: int, *shape: int, dtype: torch.dtype = torch.float32, unit: float = 2**-10) -> list[Tensor]:
    """A base and sources that differ from it by whole numbers of units.

    All their sums and squares are exact, so that no selection hangs on rounding; many variances are equal, and some 0.
    """
    base = torch.randint(-120, 121, shape)
    deltas = [torch.randint(-60, 61, shape) * torch.randint(0, 2, shape) // (1 + k) for k in range(sources)]
    return [(base * unit).to(dtype), *(((base + delta) * unit).to(dtype) for delta in deltas)]


def finetunes(numel: int, *, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """A base as of SmolLM2's matrices, and three sources with noise of 0.5, 1 and 2 % of its standard deviation."""
    base = (0.1 * torch.randn(numel)).to(dtype)
    return [base, *((base.float() + 0.1 * part * torch.randn(numel)).to(dtype) for part in (0.005, 0.01, 0.02))]


def reference(form: str, base: Tensor, tuned: Sequence[Tensor], tau: float) -> tuple[np.ndarray, list[float]]:
    """The three columns of FUSION.md's table in float64; what is merged, and the weights."""
    start = base.double().numpy().reshape(-1)
    deltas = np.stack([t.double().numpy().reshape(-1) for t in tuned]) - start  # (n, numel)
    n, numel = deltas.shape
    variance = n * (deltas**2).sum(axis=0) - deltas.sum(axis=0) ** 2  # times n², exact for whole numbers
    k = math.floor(tau * (numel if form == "paper" else np.count_nonzero(variance)) + 1e-9)
    mask = np.zeros(numel)
    mask[np.argsort(-variance, kind="stable")[:k]] = 1
    masked = deltas * (1 if form != "paper" and tau >= 1 else mask)

    energy = (masked**2).sum(axis=1)
    if form == "paper":
        eta = energy / (energy.sum() or 1)
    elif form == "fusechat":
        eta = energy / energy.sum() if energy.sum() != 0 else np.full(n, 1 / n)
    else:
        eta = energy / energy.sum() if energy.sum() / numel >= 1e-6 else np.full(n, 1 / n)

    if form == "paper":
        elected = np.sign(masked.sum(axis=0))
        update = (eta[:, None] * np.where((np.sign(masked) == elected) & (elected != 0), masked, 0)).sum(axis=0)
    else:
        merged = deltas if form == "fusechat" else masked
        elected = np.where(merged.sum(axis=0) >= 0, 1, -1)
        weights = eta[:, None] * (np.sign(merged) == elected)
        divisor = weights.sum(axis=0)
        divisor = np.where(divisor == 0, 1, divisor) if form == "fusechat" else np.maximum(divisor, 1e-6)
        update = (weights * merged).sum(axis=0) / divisor
    return (start + update).reshape(base.shape), eta.tolist()


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.itemsize])


def changed(base: Tensor, merged: Tensor) -> float:
    return float((bits(base) != bits(merged)).float().mean())


# By hand


def test_the_three_forms_by_hand():
    # Deltas (0, 4, 1, 0) and (0, -2, 1, 2): variances 0, 9, 0, 1.
    base = torch.full((4,), 10.0)
    tuned = [base + torch.tensor([0.0, 4, 1, 0]), base + torch.tensor([0.0, -2, 1, 2])]
    # Half of four are the second and the fourth: energies 16 and 4 + 4, η = 2/3 and 1/3. Of the second -2 is erased.
    assert sce(base, tuned, select_topk=0.5).tolist() == pytest.approx([10, 10 + 8 / 3, 10, 10 + 2 / 3])
    # Of the two whose variance is not 0, all: the same η; what stays is divided by the weights of what stays.
    assert sce_mergekit(base, tuned, select_topk=0.999999).tolist() == pytest.approx([10, 14, 10, 10])
    # Half of the two is the second: energies 16 and 4, η = 4/5 and 1/5, but all elements are merged.
    assert sce_fusechat(base, tuned, select_topk=0.5).tolist() == pytest.approx([10, 14, 11, 12])
    assert sce_mergekit(base, tuned, select_topk=0.5).tolist() == pytest.approx([10, 14, 10, 10])


def test_signs_that_balance_erase_both_in_the_paper_and_elect_the_positive_in_the_code():
    base, tuned = torch.zeros(1), [torch.ones(1), -torch.ones(1)]
    assert [form(base, tuned, select_topk=1.0).item() for form in FORMS.values()] == pytest.approx([0, 1, 1])


def test_the_weights_and_the_share_of_selected_elements_are_told():
    told: dict[str, list[float]] = {}
    base = torch.full((4,), 10.0)
    tuned = [base + torch.tensor([0.0, 4, 1, 0]), base + torch.tensor([0.0, -2, 1, 2])]
    sce(base, tuned, select_topk=0.5, tell=lambda name, values: told.__setitem__(name, list(values)))
    assert told == {"eta": pytest.approx([2 / 3, 1 / 3]), "selected": [0.5]}


# Against the table's columns in float64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sources", "shape"),
    [(2, (1000,)), (3, (7, 11)), (5, (40, 30)), (2, (300, 257)), (3, (300, 257)), (5, (70_000,)), (3, (600, 500))],
)
@pytest.mark.parametrize("form", FORMS)
def test_each_form_agrees_with_its_column_of_the_table(form: str, sources: int, shape: tuple[int, ...]):
    base, *tuned = models(sources, *shape)
    for tau in SHARES if base.numel() < 100_000 else (0.1, 0.6):
        told: dict[str, Sequence[float]] = {}
        merged = FORMS[form](base, tuned, select_topk=tau, tell=told.__setitem__)
        expected, eta = reference(form, base, tuned, tau)
        np.testing.assert_allclose(merged.numpy(), expected, atol=1e-6, err_msg=f"tau {tau}")
        np.testing.assert_allclose(told["eta"], eta, atol=1e-5, err_msg=f"tau {tau}")


@pytest.mark.parametrize("tau", [0.1, 0.6, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_the_result_is_the_float32_one_rounded_to_the_bases_dtype(form: str, dtype: torch.dtype, tau: float):
    base, *tuned = finetunes(70_000, dtype=dtype)
    precise = FORMS[form](base.float(), [t.float() for t in tuned], select_topk=tau)
    assert FORMS[form](base, tuned, select_topk=tau).equal(precise.to(dtype))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_numbers_that_are_not_whole_agree_but_for_rounding_at_the_threshold(form: str):
    base, *tuned = finetunes(300_000, dtype=torch.float32)
    for tau in (0.1, 0.6):
        expected, _ = reference(form, base, tuned, tau)
        off = np.abs(FORMS[form](base, tuned, select_topk=tau).numpy() - expected) > 1e-6
        assert off.sum() <= 2


# Laws


def test_with_all_selected_the_two_codes_agree():
    base, *tuned = models(3, 300, 257)
    one, other = (form(base, tuned, select_topk=1.0) for form in (sce_fusechat, sce_mergekit))
    np.testing.assert_allclose(one, other, atol=1e-7)


def test_mergekit_weighs_light_finetunes_equally_and_the_others_do_not():
    base, *tuned = models(3, 300, 257, unit=2**-20)
    told: dict[str, dict[str, Sequence[float]]] = {form: {} for form in FORMS}
    for form, merge in FORMS.items():
        merge(base, tuned, select_topk=0.1, tell=told[form].__setitem__)
    assert told["mergekit"]["eta"] == pytest.approx([1 / 3] * 3)
    assert told["paper"]["eta"][0] > 0.5
    assert told["fusechat"]["eta"] == pytest.approx(told["paper"]["eta"], abs=0.05)
    expected, _ = reference("mergekit", base, tuned, 0.1)
    np.testing.assert_allclose(sce_mergekit(base, tuned, select_topk=0.1), expected, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("shares", [SHARES, [1.0, 0.1, 0.6, 0.1], [0.002], []])
@pytest.mark.parametrize("form", FORMS)
def test_a_grid_is_single_merges(form: str, shares: list[float]):
    base, *tuned = models(3, 300, 257, dtype=torch.bfloat16)
    together: list[dict[str, Sequence[float]]] = [{} for _ in shares]
    grid = GRIDS[form](base, tuned, select_topk=shares, tells=[told.__setitem__ for told in together])
    assert len(grid) == len(shares)
    for share, merged, told in zip(shares, grid, together, strict=True):
        alone: dict[str, Sequence[float]] = {}
        assert bits(merged).equal(bits(FORMS[form](base, tuned, select_topk=share, tell=alone.__setitem__)))
        assert told == alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tau", [0.1, 0.6])
@pytest.mark.parametrize("form", ["paper", "mergekit"])
def test_what_was_not_selected_keeps_the_bases_bits(form: str, tau: float, dtype: torch.dtype):
    base, *tuned = models(3, 300, 257, dtype=dtype)
    base[base == 0] = -0.0
    variance = torch.stack(tuned).double().var(dim=0, correction=0).numpy().reshape(-1)
    k = math.floor(tau * (np.count_nonzero(variance) if form == "mergekit" else variance.size))
    threshold = np.sort(variance)[::-1][k - 1] * (1 - 1e-9)
    unselected = torch.from_numpy(variance < threshold).view(base.shape)
    merged = FORMS[form](base, tuned, select_topk=tau)
    assert (base == 0)[unselected].any()
    assert bits(merged)[unselected].equal(bits(base)[unselected])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tau", [0.1, 0.6, 1.0])
def test_a_tensor_that_no_source_changed_comes_out_bit_for_bit(form: str, tau: float):
    base = torch.tensor([[-0.0, 0.0], [1.0, -2.0]], dtype=torch.bfloat16)
    assert bits(FORMS[form](base, [base.clone(), base.clone()], select_topk=tau)).equal(bits(base))


@pytest.mark.parametrize(("size", "tau", "k"), [(10, 0.1, 1), (100, 0.29, 29), (9, 0.1, 0), (5, 1.0, 5), (9, 0.3, 2)])
@pytest.mark.parametrize("form", ["paper", "mergekit"])
def test_exactly_the_share_is_selected_and_of_ties_the_first(form: str, size: int, tau: float, k: int):
    merged = FORMS[form](torch.zeros(size), [torch.ones(size), torch.full((size,), 3.0)], select_topk=tau)
    assert (merged != 0).nonzero().flatten().tolist() == list(range(k))


@pytest.mark.parametrize("tau", [0.1, 0.7])
def test_ties_go_to_the_lowest_flat_index_across_blocks(tau: float):
    size = 300_000
    merged = sce(torch.zeros(size), [torch.ones(size), torch.full((size,), 3.0)], select_topk=tau)
    assert int((merged != 0).sum()) == int((merged[: int(tau * size)] != 0).sum()) == int(tau * size)


def test_with_none_selected_fusechat_weighs_equally_and_the_others_keep_the_base():
    base, tuned = torch.zeros(3), [torch.tensor([1.0, 0, 0]), torch.tensor([3.0, 0, 0])]
    for tau in (0.1, 0.6):
        assert sce_fusechat(base, tuned, select_topk=tau).tolist() == [2.0, 0, 0]
        assert sce_mergekit(base, tuned, select_topk=tau).tolist() == [0.0, 0, 0]
    assert sce(base, tuned, select_topk=0.1).tolist() == [0.0, 0, 0]


def test_sources_that_moved_alike_give_mergekit_nothing_to_select_and_all_of_it_at_1():
    base, moved = torch.zeros(4), torch.tensor([1.0, 2, -3, 4])
    assert sce_mergekit(base, [moved, moved.clone()], select_topk=0.9).equal(base)
    assert sce_mergekit(base, [moved, moved.clone()], select_topk=1.0).equal(moved)
    assert sce_fusechat(base, [moved, moved.clone()], select_topk=0.9).equal(moved)


@pytest.mark.parametrize("tau", [0.1, 0.6, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_sources_does_not_matter(form: str, tau: float):
    base, *tuned = models(3, 300, 257)
    there, back = (FORMS[form](base, order, select_topk=tau) for order in (tuned, tuned[::-1]))
    np.testing.assert_allclose(there, back, atol=1e-7)


# Published and measured


def test_the_codes_differ_from_the_paper_as_measured_on_real_finetunes():
    # FUSION.md, fact 1 and below its table: SmolLM2's matrices with noise of 0.5, 1 and 2 % of their deviation.
    base, *tuned = finetunes(400_000)
    few = {form: merge(base, tuned, select_topk=0.1) for form, merge in FORMS.items()}
    assert [changed(base, few[form]) for form in FORMS] == pytest.approx([0.096, 0.985, 0.098], abs=0.006)
    moved = {form: few[form].double() - base.double() for form in FORMS}
    length = {form: float(moved[form].norm()) for form in FORMS}
    assert length["fusechat"] / length["paper"] == pytest.approx(1.76, abs=0.1)
    assert length["mergekit"] / length["paper"] == pytest.approx(1.09, abs=0.05)
    cosine = float((moved["paper"] * moved["fusechat"]).sum()) / length["paper"] / length["fusechat"]
    assert cosine == pytest.approx(0.61, abs=0.05)


def test_the_weights_are_those_measured_on_real_finetunes():
    told: dict[str, Sequence[float]] = {}
    base, *tuned = finetunes(400_000)
    sce(base, tuned, select_topk=0.1, tell=told.__setitem__)
    assert told["eta"] == pytest.approx([0.017, 0.085, 0.898], abs=0.01)


# What must not be merged


@pytest.mark.parametrize("tau", [0.1, 0.6, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_a_nan_or_infinity_is_named(form: str, tau: float):
    for where, bad in ((None, math.nan), (0, math.inf), (2, math.nan)):
        base, *tuned = models(3, 300, 257, dtype=torch.bfloat16)
        (base if where is None else tuned[where])[-1, -1] = bad
        with pytest.raises(NotFinite) as error:
            FORMS[form](base, tuned, select_topk=tau)
        assert error.value.source == where
