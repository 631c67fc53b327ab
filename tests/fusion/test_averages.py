from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fusion.averages import energies, linear, model_stock, multislerp, passthrough, slerp, varm
from fusion.blocks import NotFinite
from fusion.errors import RecipeError
from fusion.params import parameters

SHAPE = (300, 257)  # more than one block, and rows that do not fill one evenly
SEVERAL: dict[str, Callable[..., Tensor]] = {
    "linear": linear,
    "multislerp": multislerp,
    "multislerp without a base": functools.partial(multislerp, origin="zero"),
    "model_stock": model_stock,
    "model_stock by row": functools.partial(model_stock, filter_wise=True),
    "varm": varm,
    "varm by element": functools.partial(varm, granularity="element"),
}
ONE: dict[str, Callable[..., Tensor]] = {"slerp": functools.partial(slerp, t=0.3), "passthrough": passthrough}
LOOKS_AT_THE_BASE = sorted({*SEVERAL, "slerp"} - {"linear", "multislerp without a base"})
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def models(count: int, *, dtype: torch.dtype = torch.float32, shape: Sequence[int] = SHAPE) -> list[Tensor]:
    """A base and fine-tunes of it that move by 0.5, 1, 2 … % of its standard deviation."""
    base = (0.5 * torch.randn(tuple(shape))).to(dtype)
    return [base, *((base.float() + 0.0025 * 2**k * torch.randn(tuple(shape))).to(dtype) for k in range(count))]


def heard(method: Callable[..., Tensor], base: Tensor, tuned: Sequence[Tensor], **params: object) -> dict[str, list]:
    told: dict[str, list] = {}
    method(base, tuned, tell=lambda name, values: told.__setitem__(name, list(values)), **params)
    return told


def wide(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    return [t.double().numpy() for t in tensors]


def mergekits_slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    cosine = (a * b).sum() / np.sqrt((a * a).sum()) / np.sqrt((b * b).sum())
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def mergekits_multislerp(origin: np.ndarray | float, tuned: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """With the tangent space and the exponential map, which ours has not."""
    points = np.stack([t - origin for t in tuned]).reshape(len(tuned), -1)
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    unit = points / (norms + 1e-8)
    mean = (unit * weights[:, None]).sum(0)
    mean /= np.linalg.norm(mean)
    tangent = ((unit - (unit * mean).sum(1, keepdims=True) * mean) * weights[:, None]).sum(0)
    angle = np.linalg.norm(tangent) + 1e-8
    point = mean * np.cos(angle) + tangent * np.sin(angle) / angle
    return origin + (point * (norms[:, 0] * weights).sum()).reshape(tuned[0].shape)


def stock_of_rows(base: np.ndarray, tuned: list[np.ndarray]) -> np.ndarray:
    """Equation by equation for each row of a matrix."""
    merged = base.copy()
    for r in range(len(base)):
        deltas = [t[r] - base[r] for t in tuned]
        pairs = list(itertools.combinations(deltas, 2))
        cosine = np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])
        t = len(tuned) * cosine / (1 + (len(tuned) - 1) * cosine)
        merged[r] = t * np.mean([source[r] for source in tuned], axis=0) + (1 - t) * base[r]
    return merged


# By hand


def test_linear_by_hand():
    sources = [torch.tensor([1.0, 2.0]), torch.tensor([4.0, 8.0])]
    assert linear(torch.zeros(2), sources, weights=[1, 2]).tolist() == [3.0, 6.0]
    assert linear(torch.zeros(2), sources, weights=[1, 2], normalize=False).tolist() == [9.0, 18.0]
    assert linear(torch.zeros(2), sources).tolist() == [2.5, 5.0]
    assert heard(linear, torch.zeros(2), sources, weights=[1, 3]) == {"weight": [0.25, 0.75]}


def test_weights_that_cancel_are_an_error_and_not_infinite():
    with pytest.raises(RecipeError, match="sum to 0, by which normalize would divide"):
        linear(torch.zeros(1), [torch.ones(1)] * 3, weights=[0.1, 0.2, -0.3])


def test_slerp_by_hand():
    # A quarter turn from (1, 0) to (0, 2), which a third of the way is 30 degrees: (cos 30°, 2 sin 30°).
    here, there = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    assert slerp(here, [there], t=1 / 3).tolist() == pytest.approx([math.sqrt(3) / 2, 1.0])
    assert heard(slerp, here, [there], t=1 / 3) == {"t": [1 / 3], "angle": [pytest.approx(math.pi / 2)]}


def test_slerp_of_nearly_parallel_and_of_opposite_tensors_is_a_straight_line():
    assert slerp(torch.tensor([1.0, 0.0]), [torch.tensor([3.0, 0.0])], t=0.25).tolist() == [1.5, 0.0]
    assert slerp(torch.tensor([1.0, 0.0]), [torch.tensor([-3.0, 0.0])], t=0.25).tolist() == [0.0, 0.0]


def test_slerp_from_or_to_a_zero_tensor_takes_it_for_a_right_angle_as_mergekit_does():
    half = math.sin(math.pi / 4)
    assert slerp(torch.zeros(2), [torch.tensor([1.0, 2.0])], t=0.5).tolist() == pytest.approx([half, 2 * half])
    assert slerp(torch.tensor([1.0, 2.0]), [torch.zeros(2)], t=0.5).tolist() == pytest.approx([half, 2 * half])


@pytest.mark.parametrize("dtype", DTYPES)
def test_slerp_ends_at_the_base_and_at_the_source_bit_for_bit(dtype: torch.dtype):
    base, source = models(1, dtype=dtype)
    base[0], source[1] = -0.0, -0.0
    assert slerp(base, [source], t=0.0).view(torch.uint8).equal(base.view(torch.uint8))
    assert slerp(base, [source], t=1.0).view(torch.uint8).equal(source.view(torch.uint8))


def test_multislerp_by_hand():
    # From the base (1, 1) the sources lie 2 to the right and 4 up: halfway in direction, 3 far.
    sources = [torch.tensor([3.0, 1.0]), torch.tensor([1.0, 5.0])]
    assert multislerp(torch.ones(2), sources).tolist() == pytest.approx([1 + 3 * math.sqrt(0.5)] * 2)
    assert heard(multislerp, torch.ones(2), sources) == {"weight": [0.5, 0.5], "length": [2.0, 4.0]}


def test_multislerp_of_opposite_deltas_is_the_weighted_sum():
    sources = [torch.tensor([2.0, 1.0]), torch.tensor([-2.0, 1.0])]
    assert multislerp(torch.ones(2), sources).tolist() == pytest.approx([0.0, 1.0])


def test_multislerp_keeps_its_digits_where_directions_nearly_cancel():
    base, source = models(1)
    tuned = [source, base - (source - base) + 1e-5 * torch.randn(SHAPE)]
    expected = mergekits_multislerp(wide([base])[0], wide(tuned), np.array([0.5, 0.5]))
    np.testing.assert_allclose(multislerp(base, tuned).numpy(), expected, atol=1e-6)


def test_model_stock_by_hand():
    # Deltas (2, 0) and (2, 2): the cosine is √½, t = 2√½ / (1 + √½), their mean (2, 1).
    base, t = torch.ones(2), 2 * math.sqrt(0.5) / (1 + math.sqrt(0.5))
    tuned = [torch.tensor([3.0, 1.0]), torch.tensor([3.0, 3.0])]
    assert model_stock(base, tuned).tolist() == pytest.approx([1 + 2 * t, 1 + t])
    assert heard(model_stock, base, tuned) == {"t": [pytest.approx(t)], "cosine": [pytest.approx(math.sqrt(0.5))]}


def test_model_stock_stays_at_the_base_where_the_deltas_are_at_right_angles_or_opposite():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert model_stock(torch.zeros(2), [one, other]).tolist() == [0.0, 0.0]
    assert model_stock(torch.zeros(2), [one, -one]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_does_not_depend_on_how_short_the_deltas_are(filter_wise: bool):
    # mergekit 0.1.5 divides the inner product by at least 1e-6, so that its t is 2·10⁻⁶ here.
    base, direction = torch.zeros(2, 4), 1e-6 * torch.ones(2, 4)
    tuned = [direction, direction.clone()]
    assert heard(model_stock, base, tuned, filter_wise=filter_wise)["t"] == [pytest.approx(1.0)]


def test_model_stock_by_row_is_model_stock_of_each_row():
    base, *tuned = models(3, shape=(5, 40))
    merged = model_stock(base, tuned, filter_wise=True)
    for r in range(5):
        np.testing.assert_allclose(merged[r], model_stock(base[r], [t[r] for t in tuned]), atol=1e-6)


def test_model_stock_by_row_of_a_vector_takes_it_for_one_row():
    base, *tuned = models(2, shape=(50,))
    assert model_stock(base, tuned, filter_wise=True).equal(model_stock(base, tuned))


def test_varm_by_hand():
    # Σδ² is 4 and 12, so a quarter of the first and three quarters of the second.
    base, tuned = torch.ones(3), [torch.tensor([3.0, 1, 1]), torch.tensor([3.0, 3, -1])]
    assert varm(base, tuned).tolist() == [3.0, 2.5, -0.5]
    assert heard(varm, base, tuned) == {"weight": [0.25, 0.75]}
    assert energies(base, tuned) == [4.0, 12.0]


def test_varm_by_element_by_hand():
    base, tuned = torch.ones(3), [torch.tensor([2.0, 1, 1]), torch.tensor([4.0, 3, 1])]
    assert varm(base, tuned, granularity="element").tolist() == pytest.approx([1 + 0.1 * 1 + 0.9 * 3, 3.0, 1.0])
    told = heard(varm, base, tuned, granularity="element")
    assert told["weight"] == pytest.approx([(0.1 + 0 + 0.5) / 3, (0.9 + 1 + 0.5) / 3])


@pytest.mark.parametrize("granularity", ["layer", "model"])
def test_varm_of_a_layer_weighs_by_the_energies_of_the_layer(granularity: str):
    base, tuned = torch.zeros(1), [torch.tensor([1.0]), torch.tensor([5.0])]
    assert varm(base, tuned, granularity=granularity, energies=[3.0, 1.0]).tolist() == [2.0]
    assert varm(base, tuned, granularity=granularity).equal(varm(base, tuned))


def test_varm_weighs_equally_where_no_source_moved():
    base = torch.ones(3)
    for granularity in ("matrix", "element"):
        assert heard(varm, base, [base, base.clone()], granularity=granularity) == {"weight": [0.5, 0.5]}
    assert heard(varm, base, [base, base], granularity="layer", energies=[0.0, 0.0]) == {"weight": [0.5, 0.5]}


def test_energies_are_no_parameter_of_a_recipe():
    assert set(parameters(varm)) == {"granularity"}


@pytest.mark.slow
def test_passthrough_is_the_source_bit_for_bit_or_scaled():
    base, source = models(1, dtype=torch.bfloat16)
    source[0] = -0.0
    assert passthrough(base, [source]).view(torch.uint8).equal(source.view(torch.uint8))
    assert passthrough(base, [source], scale=0.5).equal((source.float() * 0.5).bfloat16())


# Laws


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", [*SEVERAL, *ONE])
def test_merging_a_model_with_itself_changes_no_bit(method: str, dtype: torch.dtype):
    [model] = models(0, dtype=dtype)
    model[:2] = -0.0
    tuned = [model.clone()] if method in ONE else [model.clone() for _ in range(3)]
    merged = {**SEVERAL, **ONE}[method](model, tuned)
    assert merged.dtype == dtype
    assert merged.view(torch.uint8).equal(model.view(torch.uint8))
    assert merged.data_ptr() not in [t.data_ptr() for t in (model, *tuned)]


@pytest.mark.parametrize("method", SEVERAL)
def test_the_order_of_sources_does_not_matter(method: str):
    base, *tuned = models(3)
    merged = [SEVERAL[method](base, list(order)) for order in itertools.permutations(tuned)]
    for other in merged[1:]:
        np.testing.assert_allclose(other, merged[0], atol=1e-6)


@pytest.mark.parametrize("granularity", ["matrix", "layer", "model", "element"])
def test_varms_weights_sum_to_1(granularity: str):
    base, *tuned = models(4, dtype=torch.bfloat16)
    weight = heard(varm, base, tuned, granularity=granularity)["weight"]
    assert math.fsum(weight) == pytest.approx(1, abs=1e-6)
    assert weight == sorted(weight)  # the later sources moved farther


@pytest.mark.parametrize("method", [*SEVERAL, *ONE])
def test_the_result_is_the_float32_one_rounded_to_the_bases_dtype(method: str):
    base, *tuned = models(1 if method in ONE else 3, dtype=torch.bfloat16)
    before = [t.clone() for t in (base, *tuned)]
    merge = {**SEVERAL, **ONE}[method]
    precise = merge(base.float(), [t.float() for t in tuned])
    assert merge(base, tuned).equal(precise.bfloat16())
    assert all(old.equal(new) for old, new in zip(before, (base, *tuned), strict=True))


@pytest.mark.parametrize("method", [*SEVERAL, *ONE])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 3, 4), (2, 70000)])
def test_any_shape_will_do(method: str, shape: tuple[int, ...]):
    base, *tuned = models(1 if method in ONE else 2, shape=shape)
    merged = {**SEVERAL, **ONE}[method](base, tuned)
    assert merged.shape == shape
    assert merged.isfinite().all()


@pytest.mark.parametrize("method", [*SEVERAL, *ONE])
def test_sources_may_be_stored_otherwise_than_the_base_and_transposed(method: str):
    base = torch.randn(6, 5).bfloat16().T
    tuned = [torch.randn(5, 6).half(), torch.randn(6, 5).T][: 1 if method in ONE else 2]
    merge = {**SEVERAL, **ONE}[method]
    merged = merge(base, tuned)
    assert (merged.dtype, merged.shape) == (torch.bfloat16, (5, 6))
    assert merged.equal(merge(base.contiguous(), [t.contiguous() for t in tuned]))


# Against the formulas in float64


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_linear_agrees_with_its_formula(dtype: torch.dtype, normalize: bool):
    base, *tuned = models(3, dtype=dtype)
    weights = [0.5, 1.0, -0.2]
    expected = sum(w * t for w, t in zip(weights, wide(tuned), strict=True)) / (sum(weights) if normalize else 1)
    merged = linear(base.float(), tuned, weights=weights, normalize=normalize)
    np.testing.assert_allclose(merged.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("t", [0.1, 0.8])
def test_slerp_agrees_with_mergekits_formula(dtype: torch.dtype, near: bool, t: float):
    base, source = models(1, dtype=dtype) if near else [*models(0, dtype=dtype), *models(0, dtype=dtype)]
    merged = slerp(base.float(), [source], t=t)
    np.testing.assert_allclose(merged.numpy(), mergekits_slerp(*wide([base, source]), t), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("origin", ["base", "zero"])
@pytest.mark.parametrize("normalize", [True, False])
def test_multislerp_agrees_with_mergekits_exponential_map(dtype: torch.dtype, origin: str, normalize: bool):
    base, *tuned = models(3, dtype=dtype)
    weights = [0.4, 0.3, 0.2]
    expected = mergekits_multislerp(
        wide([base])[0] if origin == "base" else 0.0,
        wide(tuned),
        np.array(weights) / (sum(weights) if normalize else 1),
    )
    merged = multislerp(base.float(), tuned, weights=weights, normalize=normalize, origin=origin)
    np.testing.assert_allclose(merged.numpy(), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sources", [2, 4])
@pytest.mark.parametrize("filter_wise", [True, False])
def test_model_stock_agrees_with_its_formula(dtype: torch.dtype, sources: int, filter_wise: bool):
    base, *tuned = models(sources, dtype=dtype)
    tuned = [t + tuned[0] - base for t in tuned]  # a common direction
    rows = [t if filter_wise else t.reshape(1, -1) for t in wide([base, *tuned])]
    merged = model_stock(base.float(), tuned, filter_wise=filter_wise)
    np.testing.assert_allclose(merged.numpy(), stock_of_rows(rows[0], rows[1:]).reshape(SHAPE), atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("granularity", ["matrix", "element"])
def test_varm_agrees_with_its_formula(dtype: torch.dtype, granularity: str):
    base, *tuned = models(3, dtype=dtype)
    start, *ends = wide([base, *tuned])
    squares = np.stack([(end - start) ** 2 for end in ends])
    if granularity == "matrix":
        squares = squares.mean(axis=(1, 2), keepdims=True)
    total = squares.sum(axis=0)
    weights = np.divide(squares, total, out=np.full_like(squares, 1 / 3), where=total != 0)
    merged = varm(base.float(), tuned, granularity=granularity)
    np.testing.assert_allclose(merged.numpy(), (weights * np.stack(ends)).sum(axis=0), atol=1e-6)
    told = heard(varm, base, tuned, granularity=granularity)["weight"]
    np.testing.assert_allclose(told, weights.mean(axis=(1, 2)), atol=1e-6)


# What must not be merged


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize("method", [*SEVERAL, *ONE])
def test_a_source_with_a_nan_or_infinity_is_named(method: str, bad: float):
    base, *tuned = models(1 if method in ONE else 3)
    tuned[-1][-1, -1] = bad
    with pytest.raises(NotFinite) as error:
        {**SEVERAL, **ONE}[method](base, tuned)
    assert error.value.source == len(tuned) - 1


def test_a_weight_of_0_hides_no_nan():
    base, *tuned = models(2)
    tuned[1][0, 0] = math.nan
    with pytest.raises(NotFinite):
        linear(base, tuned, weights=[1, 0])


@pytest.mark.parametrize("method", LOOKS_AT_THE_BASE)
def test_a_base_with_a_nan_is_named(method: str):
    base, *tuned = models(1 if method in ONE else 3)
    base[-1, -1] = math.nan
    with pytest.raises(NotFinite) as error:
        {**SEVERAL, **ONE}[method](base, tuned)
    assert error.value.source is None


@pytest.mark.parametrize("method", ["linear", "passthrough"])
def test_equal_sources_are_looked_at_as_well(method: str):
    base, source = models(1)
    source[0, 0] = math.inf
    with pytest.raises(NotFinite):
        {**SEVERAL, **ONE}[method](base, [source] if method in ONE else [source, source.clone()])


def test_numbers_whose_sum_overflows_are_no_infinities():
    huge = torch.full((8,), 60000.0, dtype=torch.float16)
    assert linear(huge, [huge, huge.clone()]).equal(huge)
    assert passthrough(huge, [huge]).equal(huge)
    largest = torch.full((8,), 3e38)
    assert linear(largest, [largest, -largest]).tolist() == [0.0] * 8
    assert linear(largest, [largest, largest / 2], weights=[1, 0]).equal(largest)
