from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import fusion.blocks
from fusion.blocks import NotFinite
from fusion.deltas import (
    breadcrumbs,
    breadcrumbs_ties,
    dare_linear,
    dare_ties,
    della,
    della_linear,
    task_arithmetic,
    ties,
    ties_grid,
)
from fusion.errors import RecipeError

Method = Callable[..., Tensor]
RANDOM: tuple[Method, ...] = (dare_linear, dare_ties, della, della_linear)
THINNING: tuple[Method, ...] = (ties, breadcrumbs, breadcrumbs_ties, *RANDOM)
ADDING: tuple[Method, ...] = (breadcrumbs, dare_linear, della_linear)
# More than a block; and more than the size up to which thresholds are found without a sample.
LARGE = [((70_001,), torch.bfloat16), ((3, 90_000), torch.float32), ((3, 90_000), torch.bfloat16)]


def deltas(*rows: Sequence[float]) -> tuple[Tensor, list[Tensor]]:
    """A base of zeros, and sources whose deltas are the rows."""
    return torch.zeros(len(rows[0])), [torch.tensor(row, dtype=torch.float32) for row in rows]


def models(sources: int, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor]]:
    base = torch.randn(shape).mul(0.02)
    tuned = [(base + torch.randn(shape).mul(0.0004 * (k + 1))).to(dtype) for k in range(sources)]
    return base.to(dtype), tuned


def heard(method: Method, *args: object, **params: object) -> dict[str, list[float]]:
    told: dict[str, list[float]] = {}
    method(*args, tell=lambda name, values: told.update({name: list(values)}), **params)
    return told


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(base: Tensor, tuned: Sequence[Tensor]) -> list[np.ndarray]:
    return [(source.float() - base.float()).flatten().numpy() for source in tuned]


def ranks(delta: np.ndarray) -> np.ndarray:
    """Each element's place by magnitude, the largest first, of equal ones the lowest index."""
    places = np.empty(delta.size, dtype=int)
    places[np.argsort(-np.abs(delta), kind="stable")] = np.arange(delta.size)
    return places


def elected(thinned: Sequence[np.ndarray], weights: Sequence[float], *, normalize: bool) -> np.ndarray:
    weighted = [w * d.astype(np.float64) for w, d in zip(weights, thinned, strict=True)]
    sign = np.where(sum(weighted) >= 0, 1.0, -1.0)
    update = sum(np.where(np.sign(d) == sign, d, 0.0) for d in weighted)
    total = sum(np.where(np.sign(d) == sign, w, 0.0) for w, d in zip(weights, weighted, strict=True))
    return update / np.where(total == 0, 1.0, total) if normalize else update


def close(merged: Tensor, base: Tensor, update: np.ndarray) -> None:
    wide = merged.float().flatten().numpy()
    expected = base.float().flatten().numpy() + update
    if merged.dtype == torch.bfloat16:
        np.testing.assert_allclose(wide, expected, rtol=2**-8)
    else:
        np.testing.assert_allclose(wide, expected, atol=1e-8, rtol=1e-6)


# By hand


def test_task_arithmetic_by_hand():
    base, tuned = torch.tensor([1.0, 1.0]), [torch.tensor([2.0, 1.0]), torch.tensor([1.0, 5.0])]
    merged = task_arithmetic(base, tuned, weights=[1.0, 0.5], scale=2.0)
    assert merged.tolist() == [3.0, 5.0]  # 1 + 2·(1·1 + 0.5·0), 1 + 2·(1·0 + 0.5·4)


def test_normalised_task_arithmetic_is_a_mean_of_deltas():
    base, tuned = deltas([1, 2], [4, 8])
    assert task_arithmetic(base, tuned, weights=[1, 2], normalize=True).tolist() == pytest.approx([3, 6])
    assert heard(task_arithmetic, base, tuned, weights=[1, 2], scale=3.0, normalize=True)["weight"] == [1.0, 2.0]


def test_weights_that_sum_to_zero_cannot_be_normalised():
    base, tuned = deltas([1], [4])
    with pytest.raises(RecipeError, match=r"sum to 0.*set normalize to false"):
        task_arithmetic(base, tuned, weights=[1, -1], normalize=True)


def test_ties_by_hand():
    # Half of each is kept: (4, 0, 0, 3), (-2, 0, 0, 1), (0, -5, 0, -3.5). The first sums to 2, so 4 alone stays; the
    # last to 0.5, so 3 and 1 stay and are averaged.
    base, tuned = deltas([4, 1, 0, 3], [-2, 0.5, 0.25, 1], [1, -5, 2, -3.5])
    assert ties(base, tuned, density=0.5).tolist() == [4, -5, 0, 2]
    assert ties(base, tuned, density=0.5, normalize=False, scale=2.0).tolist() == [8, -10, 0, 8]
    told = heard(ties, base, tuned, density=0.5)
    assert told == {"conflict": [0.5], "kept": [0.5, 0.25, 0.25]}


def test_ties_elects_by_weight_and_divides_by_the_weights_that_stay():
    base, tuned = deltas([2, -2], [-3, 3], [1, 1])
    # sums 2 and 0, which counts as positive: (4 + 1) / (2 + 1) and (3 + 1) / (1 + 1)
    assert ties(base, tuned, density=1.0, weights=[2, 1, 1]).tolist() == pytest.approx([5 / 3, 2])


def test_a_negative_weight_turns_a_delta_before_the_election():
    base, tuned = deltas([2, 1, 1], [-3, 1, 0])
    # weighted (2, 1, 1) and (3, -1, 0): 5 of weights 1 - 1, which divides by 1; then 1 / 1 both times
    assert ties(base, tuned, density=1.0, weights=[1, -1]).tolist() == [5, 1, 1]
    assert heard(ties, base, tuned, density=1.0, weights=[1, -1])["conflict"] == pytest.approx([1 / 3])


@pytest.mark.parametrize("method", [ties, breadcrumbs])
def test_a_source_without_weight_adds_nothing(method: Method):
    base, tuned = deltas([1, 2], [4, -8])
    assert method(base, tuned, density=1.0, weights=[1, 0]).equal(tuned[0])
    assert heard(method, base, tuned, density=1.0, weights=[1, 0])["kept"] == [1.0, 0.0]


@pytest.mark.parametrize(("size", "density", "kept"), [(10, 0.25, 2), (100, 0.29, 29), (1, 0.3, 1), (3, 1.0, 3)])
def test_ties_keeps_exactly_the_share_but_one_at_least_and_of_equal_ones_the_first(
    size: int, density: float, kept: int
):
    merged = ties(torch.zeros(size), [torch.full((size,), -2.0)], density=density)
    assert merged.nonzero().flatten().tolist() == list(range(kept))


def test_breadcrumbs_by_hand():
    base, tuned = deltas([-10, 1, 5, -4, 2, 3, 9, 7, 6, 8])
    inner = breadcrumbs(base, tuned, density=0.5, gamma=0.2)  # without 10 and 9: 8, 7, 6, 5 and -4
    assert inner.tolist() == [0, 0, 5, -4, 0, 0, 0, 7, 6, 8]
    assert breadcrumbs(base, tuned, density=0.9, gamma=0.2).tolist() == [0, 1, 5, -4, 2, 3, 9, 7, 6, 8]
    assert breadcrumbs(base, tuned, density=1.0, gamma=0.2).equal(tuned[0])
    assert heard(breadcrumbs, base, tuned, density=0.5, gamma=0.2)["kept"] == [0.5]


def test_breadcrumbs_ties_elects_among_what_is_left():
    base, tuned = deltas([9, 2, 1, 0], [-1, -9, 3, 0])
    # left are (0, 2, 1, 0) and (-1, 0, 3, 0)
    assert breadcrumbs_ties(base, tuned, density=0.5, gamma=0.25).tolist() == [-1, 2, 4, 0]
    told = heard(breadcrumbs_ties, base, tuned, density=0.5, gamma=0.25)
    assert told == {"conflict": [0.0], "kept": [0.5, 0.5]}


# Laws


@pytest.mark.parametrize("method", [task_arithmetic, *THINNING])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_a_model_with_itself_changes_no_bit(method: Method, dtype: torch.dtype):
    model = torch.randn(5, 6).to(dtype)
    model[0, 0] = -0.0
    merged = method(model, [model.clone(), model.clone()], **({} if method is task_arithmetic else {"density": 0.5}))
    assert merged.view(torch.uint8).equal(model.view(torch.uint8))
    assert merged.data_ptr() != model.data_ptr()


@pytest.mark.parametrize("method", THINNING)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3, 4)])
def test_any_shape_will_do(method: Method, shape: tuple[int, ...]):
    base, tuned = models(2, *shape)
    merged = method(base, tuned, density=0.5, **({"epsilon": 0.1} if "della" in method.__name__ else {}))
    assert merged.shape == shape
    assert merged.isfinite().all()


@pytest.mark.parametrize("method", THINNING)
def test_nothing_thinned_and_nothing_to_elect_is_task_arithmetic(method: Method):
    base, tuned = models(1, 300, 7)
    merged = method(base, tuned, density=1.0, weights=0.7, normalize=False)
    assert merged.equal(task_arithmetic(base, tuned, weights=0.7))


@pytest.mark.slow
@pytest.mark.parametrize("method", ADDING)
def test_sums_of_whole_deltas_are_task_arithmetic(method: Method):
    base, tuned = models(3, 300, 7, dtype=torch.bfloat16)
    params = {"weights": [0.5, 0.2, -0.4], "normalize": True, "scale": 0.8}
    assert method(base, tuned, density=1.0, **params).equal(task_arithmetic(base, tuned, **params))


@pytest.mark.parametrize("method", [task_arithmetic, ties, breadcrumbs, breadcrumbs_ties])
def test_the_order_of_sources_does_not_matter(method: Method):
    base, tuned = models(2, 50, 6)
    params = {} if method is task_arithmetic else {"density": [0.3, 0.6]}
    back = {} if method is task_arithmetic else {"density": [0.6, 0.3]}
    assert method(base, tuned, **params).equal(method(base, tuned[::-1], **back))


@pytest.mark.parametrize("method", [task_arithmetic, *THINNING])
def test_a_number_that_is_none_is_told_with_its_source(method: Method):
    base, tuned = models(2, 4, 4)
    tuned[1][2, 3] = torch.nan
    with pytest.raises(NotFinite) as caught:
        method(base, tuned, **({} if method is task_arithmetic else {"density": 0.5}))
    assert caught.value.source == 1


@pytest.mark.parametrize("method", THINNING)
def test_inputs_are_left_alone_and_strides_do_not_matter(method: Method):
    base, tuned = models(2, 40, 30)
    before = [one.clone() for one in (base, *tuned)]
    merged = method(base, tuned, density=0.5)
    assert all(old.equal(new) for old, new in zip(before, (base, *tuned), strict=True))
    assert method(base, [one.T.contiguous().T for one in tuned], density=0.5).equal(merged)


# Against the formulas written out, over many blocks


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.6, [0.2, 0.5, 0.9]])
@pytest.mark.parametrize(("shape", "dtype"), LARGE)
def test_ties_agrees_with_the_formula_written_out(
    shape: tuple[int, ...], dtype: torch.dtype, density: float | list[float]
):
    base, tuned = models(3, *shape, dtype=dtype)
    shares = density if isinstance(density, list) else [density] * 3
    thinned = [
        np.where(ranks(d) < int(share * d.size + 1e-6), d, 0.0)
        for share, d in zip(shares, flat(base, tuned), strict=True)
    ]
    weights = [0.5, 1.0, 0.25]
    merged = ties(base, tuned, density=density, weights=weights, scale=0.5)
    close(merged, base, 0.5 * elected(thinned, weights, normalize=True))
    told = heard(ties, base, tuned, density=density, weights=weights)
    signs = np.sign(thinned)
    assert told["conflict"] == [np.mean((signs.max(axis=0) > 0) & (signs.min(axis=0) < 0))]
    majority = np.where(np.einsum("k,kn->n", weights, thinned) >= 0, 1, -1)
    assert told["kept"] == [np.mean(sign == majority) for sign in signs]


@pytest.mark.slow
@pytest.mark.parametrize("elect", [False, True])
@pytest.mark.parametrize(("shape", "dtype"), LARGE)
def test_breadcrumbs_agree_with_the_formula_written_out(shape: tuple[int, ...], dtype: torch.dtype, elect: bool):
    base, tuned = models(2, *shape, dtype=dtype)
    first, last = int(0.05 * base.numel() + 1e-6), int(0.05 * base.numel() + 1e-6) + int(0.4 * base.numel() + 1e-6)
    thinned = [np.where((ranks(d) >= first) & (ranks(d) < last), d, 0.0) for d in flat(base, tuned)]
    method = breadcrumbs_ties if elect else breadcrumbs
    expected = elected(thinned, [1, 1], normalize=False) if elect else sum(thinned)
    close(method(base, tuned, density=0.4, gamma=0.05), base, expected)


def test_a_grid_is_what_its_single_merges_are():
    base, tuned = models(3, 3, 100_000, dtype=torch.bfloat16)
    grid: list[float | list[float]] = [0.1, 0.6, 1.0, [0.3, 0.1, 1.0]]
    told: list[dict[str, Sequence[float]]] = [{} for _ in grid]
    merged = ties_grid(
        base, tuned, density=grid, weights=0.5, tells=[lambda name, v, one=one: one.update({name: v}) for one in told]
    )
    for density, result, one in zip(grid, merged, told, strict=True):
        assert result.equal(ties(base, tuned, density=density, weights=0.5))
        assert one == heard(ties, base, tuned, density=density, weights=0.5)


# Random dropping


@pytest.mark.parametrize("method", [dare_linear, dare_ties])
def test_dare_keeps_each_element_with_the_probability_and_divides_by_it(method: Method):
    base, tuned = torch.zeros(100_003), [torch.ones(100_003), torch.full((100_003,), 4.0)]
    one = method(base, tuned, density=[0.25, 1.0], weights=[1, 0.0])
    assert set(one.tolist()) == {0.0, 4.0}
    assert float((one != 0).float().mean()) == pytest.approx(0.25, abs=0.007)  # five standard deviations
    assert method(base, tuned, density=[0.25, 1.0], rescale="none", weights=[1, 0.0]).max() == 1.0


def test_the_mean_of_dare_is_the_delta():
    base, tuned = models(1, 30)
    generator = seeded(1)
    draws = torch.stack([dare_linear(base, tuned, density=0.5, generator=generator) for _ in range(400)])
    delta = tuned[0] - base
    assert bool(((draws.mean(dim=0) - tuned[0]).abs() < 5 * delta.abs() / 400**0.5 + 1e-7).all())


@pytest.mark.slow
@pytest.mark.parametrize("method", [dare_linear, della_linear])
def test_l1_keeps_the_norm_of_each_source(method: Method):
    _, [one, other] = models(2, 3, 50_001)
    for source in (one, other):
        merged = method(torch.zeros_like(source), [source], density=0.3, rescale="l1")
        assert float(merged.abs().double().sum()) == pytest.approx(float(source.abs().double().sum()), rel=1e-6)
    told = heard(method, torch.zeros_like(one), [one, other * 0], density=0.3, rescale="l1")
    assert told["rescale"][0] == pytest.approx(1 / 0.3, rel=0.2)
    assert (told["rescale"][1], told["kept"][1]) == (1.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("rescale", ["paper", "l1", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dare_ties_elects_among_what_stays(rescale: str, dtype: torch.dtype):
    base, tuned = models(3, 3, 100_000, dtype=dtype)
    ones = torch.zeros(base.shape)
    masks = [  # a source's mask depends on the seed and its number, not on what it holds
        dare_linear(ones, [ones + 1] * 3, density=0.5, rescale="none", weights=w).flatten().numpy()
        for w in ([1, 0, 0], [0, 1, 0], [0, 0, 1])
    ]
    assert not np.array_equal(masks[0], masks[1])
    thinned = [m * d for m, d in zip(masks, flat(base, tuned), strict=True)]
    told = heard(dare_ties, base, tuned, density=0.5, rescale=rescale)
    norms = [np.abs(d).sum() / np.abs(t).sum() for d, t in zip(flat(base, tuned), thinned, strict=True)]
    assert told["rescale"] == pytest.approx({"paper": [2.0] * 3, "l1": norms, "none": [1.0] * 3}[rescale], rel=1e-5)
    factors = told["rescale"]
    expected = elected([f * t for f, t in zip(factors, thinned, strict=True)], [1, 1, 1], normalize=False)
    close(dare_ties(base, tuned, density=0.5, rescale=rescale), base, expected)


@pytest.mark.slow
@pytest.mark.parametrize("method", RANDOM)
@pytest.mark.parametrize("rescale", ["paper", "l1"])
def test_masks_depend_on_the_seed_but_not_on_blocks(method: Method, rescale: str, monkeypatch: pytest.MonkeyPatch):
    base, tuned = models(2, 7, 101, dtype=torch.bfloat16)

    def merge(seed: int) -> Tensor:
        return method(base, tuned, density=0.5, rescale=rescale, generator=seeded(seed))

    whole, other = merge(3), merge(4)
    assert merge(3).equal(whole)
    assert not whole.equal(other)
    for size in (5, 64, 101):  # 5: numbers come four at a time, so some are left for the next block
        monkeypatch.setattr(fusion.blocks, "_CPU_BLOCK", size)
        assert merge(3).equal(whole)


def test_a_generator_gives_another_mask_each_time_and_none_the_same():
    base, tuned = models(1, 500)
    generator = seeded()
    first, second = (dare_linear(base, tuned, density=0.5, generator=generator) for _ in range(2))
    assert not first.equal(second)
    assert dare_linear(base, tuned, density=0.5).equal(first)


def test_what_dare_keeps_it_keeps_at_every_higher_density():
    base, tuned = models(1, 5000)
    low, high = (dare_linear(base, tuned, density=d, rescale="none") != base for d in (0.2, 0.7))
    assert bool((high | ~low).all())
    assert int(high.sum()) > int(low.sum())


def test_della_keeps_large_deltas_of_a_row_more_often():
    # 20,000 rows of (1, 4, 2): kept with 0.5 - 0.3, 0.5 + 0.3 and 0.5, and divided by that.
    tuned = [torch.tensor([1.0, 4.0, -2.0]).repeat(20_000, 1)]
    merged = della_linear(torch.zeros(20_000, 3), tuned, density=0.5, epsilon=0.3)
    assert (merged != 0).float().mean(dim=0).tolist() == pytest.approx([0.2, 0.8, 0.5], abs=0.02)
    assert [sorted(set(column.tolist())) for column in merged.T] == [
        [0, pytest.approx(5, rel=1e-4)],
        [0, pytest.approx(5, rel=1e-4)],
        [pytest.approx(-4, rel=1e-4), 0],
    ]
    plain = della_linear(torch.zeros(20_000, 3), tuned, density=0.5, epsilon=0.3, rescale="none")
    assert plain.equal(torch.where(merged != 0, tuned[0], 0.0))


def test_della_without_a_difference_between_ranks_is_dare():
    base, tuned = models(2, 20, 300)
    assert della_linear(base, tuned, density=0.5, epsilon=0.0, rescale="l1").equal(
        dare_linear(base, tuned, density=0.5, rescale="l1")
    )
    assert della(base, tuned, density=0.5, epsilon=0.0, rescale="none", normalize=False).equal(
        dare_ties(base, tuned, density=0.5, rescale="none")
    )


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.15), (0.9, 0.15), (0.5, 0.5)])
def test_della_refuses_probabilities_outside_0_and_1(density: float, epsilon: float):
    base, tuned = models(1, 4)
    with pytest.raises(RecipeError, match=r"between 0 and 1: make epsilon smaller"):
        della(base, tuned, density=density, epsilon=epsilon)
