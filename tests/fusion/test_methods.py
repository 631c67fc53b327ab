from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fusion.errors import RecipeError
from fusion.methods import METHODS, check_params, linear, sce, task_arithmetic

PARAMS: dict[str, dict[str, object]] = {
    "linear": {},
    "sce": {"select_topk": 0.3},
    "task_arithmetic": {"weights": [0.5, 0.5]},
}


def tensors(count: int, *shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape).to(dtype) for _ in range(count)]


def sce_by_the_book(base: np.ndarray, tuned: list[np.ndarray], tau: float) -> np.ndarray:
    """Algorithm 1 with Python loops over elements, written without a look at ours."""
    n, size = len(tuned), base.size
    delta = [[float(t.flat[i]) - float(base.flat[i]) for i in range(size)] for t in tuned]
    spread = [float(np.var([delta[j][i] for j in range(n)])) for i in range(size)]
    best = sorted(range(size), key=lambda i: (-spread[i], i))[: int(tau * size + 1e-9)]
    energy = [sum(delta[j][i] ** 2 for i in best) for j in range(n)]
    out = base.astype(np.float64).copy()
    for i in best:
        direction = np.sign(sum(delta[j][i] for j in range(n)))
        for j in range(n):
            if np.sign(delta[j][i]) == direction:
                out.flat[i] += energy[j] / sum(energy) * delta[j][i]
    return out


def test_linear_by_hand():
    merged = linear(torch.zeros(2), [torch.tensor([1.0, 2.0]), torch.tensor([4.0, 8.0])], weights=[1, 2])
    assert merged.tolist() == [3.0, 6.0]


def test_linear_without_normalisation_is_a_plain_weighted_sum():
    sources = [torch.tensor([1.0]), torch.tensor([4.0])]
    assert linear(torch.zeros(1), sources, weights=[1, 2], normalize=False).tolist() == [9.0]


def test_linear_weighs_equally_unless_told():
    assert linear(torch.zeros(1), [torch.tensor([1.0]), torch.tensor([4.0])]).tolist() == [2.5]


def test_task_arithmetic_by_hand():
    merged = task_arithmetic(
        torch.tensor([1.0, 1.0]), [torch.tensor([2.0, 1.0]), torch.tensor([1.0, 5.0])], weights=[1.0, 0.5], scale=2.0
    )
    assert merged.tolist() == [3.0, 5.0]  # 1 + 2·(1·1 + 0.5·0), 1 + 2·(1·0 + 0.5·4)


def test_sce_by_hand():
    # deltas (0, 4, 1, 0) and (0, -2, 1, 2): variances 0, 9, 0, 1; half of four elements are the second and the fourth.
    # Energies 16 and 4 + 4, so η = 2/3, 1/3. Second: the sum is +2, so -2 is erased: 10 + 2/3·4. Fourth: 10 + 1/3·2.
    base = torch.full((4,), 10.0)
    merged = sce(base, [base + torch.tensor([0.0, 4, 1, 0]), base + torch.tensor([0.0, -2, 1, 2])], select_topk=0.5)
    assert merged.tolist() == pytest.approx([10, 10 + 8 / 3, 10, 10 + 2 / 3])


@pytest.mark.parametrize("tau", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("sources", [2, 3])
def test_sce_agrees_with_the_algorithm_written_out(sources: int, tau: float):
    base, *tuned = tensors(sources + 1, 7, 11)
    expected = sce_by_the_book(base.numpy(), [t.numpy() for t in tuned], tau)
    np.testing.assert_allclose(sce(base, tuned, select_topk=tau).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("size", "tau", "changed"), [(10, 0.1, 1), (100, 0.29, 29), (9, 0.1, 0), (5, 1.0, 5)])
def test_sce_selects_exactly_the_share_and_of_ties_the_first(size: int, tau: float, changed: int):
    base = torch.zeros(size)
    merged = sce(base, [torch.ones(size), torch.full((size,), 3.0)], select_topk=tau)
    assert (merged != 0).nonzero().flatten().tolist() == list(range(changed))


def test_sce_leaves_what_it_did_not_select_bit_identical():
    base, *tuned = tensors(3, 64, 64, dtype=torch.bfloat16)
    base[0] = -0.0
    merged = sce(base, [base + 0.01 * t for t in tuned], select_topk=0.1)
    same = merged.view(torch.int16) == base.view(torch.int16)
    assert int((~same).sum()) <= int(0.1 * base.numel())


def test_sce_erases_both_where_the_signs_balance():
    base = torch.zeros(1)
    assert sce(base, [torch.ones(1), -torch.ones(1)], select_topk=1.0).tolist() == [0.0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_merging_a_model_with_itself_changes_no_bit(method: str, dtype: torch.dtype):
    [model] = tensors(1, 5, 6, dtype=dtype)
    merged = METHODS[method](model, [model.clone(), model.clone()], **PARAMS[method])
    assert merged.dtype == dtype
    assert merged.view(torch.uint8).equal(model.view(torch.uint8))
    assert merged.data_ptr() != model.data_ptr()


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_sources_does_not_matter(method: str):
    base, one, other = tensors(3, 5, 6)
    there = METHODS[method](base, [one, other], **PARAMS[method])
    back = METHODS[method](base, [other, one], **PARAMS[method])
    assert there.equal(back)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_left_alone(method: str):
    base, one, other = tensors(3, 5, 6)
    before = [t.clone() for t in (base, one, other)]
    METHODS[method](base, [one, other], **PARAMS[method])
    assert all(old.equal(new) for old, new in zip(before, (base, one, other), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_arithmetic_is_float32_whatever_the_storage(method: str):
    base, one, other = (t.bfloat16() for t in tensors(3, 50, 6))
    wide = METHODS[method](base.float(), [one.float(), other.float()], **PARAMS[method])
    assert METHODS[method](base, [one, other], **PARAMS[method]).equal(wide.bfloat16())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3, 4)])
def test_any_shape_will_do(method: str, shape: tuple[int, ...]):
    base, one, other = tensors(3, *shape)
    assert METHODS[method](base, [one, other], **PARAMS[method]).shape == shape


@pytest.mark.parametrize("method", METHODS)
def test_sources_may_be_stored_otherwise_than_the_base_and_transposed(method: str):
    base = torch.randn(6, 5).bfloat16().T
    merged = METHODS[method](base, [torch.randn(5, 6), torch.randn(5, 6).half()], **PARAMS[method])
    assert (merged.dtype, merged.shape) == (torch.bfloat16, (5, 6))


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_own_examples_pass_the_check(method: str):
    check_params(method, PARAMS[method], sources=2)


@pytest.mark.parametrize(
    ("method", "params", "sources", "message"),
    [
        ("sec", {}, 2, "no merge method 'sec'; there are linear, sce, task_arithmetic. Did you mean 'sce'?"),
        ("sce", {"select_top": 0.1}, 2, "takes no 'select_top'; it takes select_topk. Did you mean 'select_topk'?"),
        ("linear", {"base": 1}, 2, "takes no 'base'; it takes normalize, weights."),
        ("task_arithmetic", {}, 2, "needs 'weights'; it takes scale, weights"),
        ("sce", {}, 1, "needs at least 2 sources, and there are 1"),
        ("sce", {"select_topk": 0}, 2, "is 0; it must be a number in (0, 1]"),
        ("sce", {"select_topk": 10}, 2, "is 10; it must be a number in (0, 1]"),
        ("sce", {"select_topk": True}, 2, "is True; it must be a number in (0, 1]"),
        ("sce", {"select_topk": "0.1"}, 2, "is '0.1'; it must be a number in (0, 1]"),
        ("linear", {"weights": [1, 2, 3]}, 2, "has 3 numbers for 2 sources; give one a source"),
        ("linear", {"weights": 1.0}, 2, "is 1.0; it must be a list of finite numbers, one a source"),
        ("linear", {"weights": [1, float("nan")]}, 2, "must be a list of finite numbers"),
        ("task_arithmetic", {"weights": None}, 2, "is None; it must be a list of finite numbers"),
        ("linear", {"weights": [1, -1]}, 2, "sum to 0, by which normalize would divide"),
        ("linear", {"normalize": "no"}, 2, "is 'no'; it must be true or false"),
        ("task_arithmetic", {"weights": [1, 1], "scale": "big"}, 2, "is 'big'; it must be a finite number"),
    ],
)
def test_a_wrong_recipe_is_told_what_would_be_right(method: str, params: dict[str, object], sources: int, message: str):
    with pytest.raises(RecipeError) as error:
        check_params(method, params, sources=sources)
    assert message in str(error.value)
