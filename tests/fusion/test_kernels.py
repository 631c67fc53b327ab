"""What is compiled for CPUs gives the bits of what GPUs run in torch's operations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fusion import kernels, mix_kernels, vectorised
from fusion.cuts import Cut
from fusion.thinning import Addition, Band, Drop, Thinning

SIZES = [1, 2047, 2048, 5000]
BOTH = (kernels, vectorised)


def block(size: int, sources: int = 3) -> tuple[Tensor, Tensor]:
    """θ₀ and deltas as bfloat16 models have them, with zeros of both signs and numbers that nearly underflow."""
    draw = torch.Generator().manual_seed(size + sources)
    start = torch.randn(size, generator=draw).bfloat16().float()
    deltas = torch.randn(sources, size, generator=draw).mul(0.01).bfloat16().float()
    start[::7], deltas[:, ::5], deltas[0, ::3], deltas[:, ::11] = -0.0, 0.0, -0.0, 1e-41
    return start, deltas


@pytest.mark.parametrize("dtypes", [["bfloat16"] * 3, ["float32"] * 3, ["float32", "bfloat16", "float16"]])
@pytest.mark.parametrize("size", SIZES)
def test_differences_are_the_same(size: int, dtypes: list[str]):
    start, deltas = block(size, 2)
    base, *tuned = (x.to(getattr(torch, dtype)) for x, dtype in zip((start, *(start + deltas)), dtypes, strict=True))
    found = []
    for each in BOTH:
        values = torch.empty(3, size)
        assert each.differences(base, tuned, values)
        found.append(values)
    values, other = found
    assert values.view(torch.int32).equal(other.view(torch.int32))
    assert values[0].equal(base.float())
    assert values[2].equal(tuned[1].float() - base.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 2047, 2048, 2999])
def test_no_number_that_is_not_finite_goes_unseen(bad: float, place: int, dtype: torch.dtype):
    for each in BOTH:
        for row in (0, 1, 2):
            values = torch.ones(3, 3000, dtype=dtype)
            values[row, place] = bad
            assert not each.differences(values[0], list(values[1:]), torch.empty(3, 3000))


def models(size: int, dtypes: Sequence[str] = ("bfloat16", "bfloat16", "float32", "bfloat16")) -> list[Tensor]:
    """A base and three sources as they are stored."""
    start, deltas = block(size)
    stored = zip((start, *(start + deltas)), dtypes, strict=True)
    return [values.to(getattr(torch, dtype)) for values, dtype in stored]


def rank(base: Tensor, tuned: Sequence[Tensor], by_variance: bool) -> Tensor:
    """What elements are ranked by, which is the same for both."""
    values, other = torch.empty(base.numel()), torch.empty(base.numel())
    assert kernels.ranked(base, tuned, by_variance, values)
    assert vectorised.ranked(base, tuned, by_variance, other)
    assert values.equal(other)
    return values


@pytest.mark.parametrize("by_variance", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_the_same_lies_between_the_ends_of_spans(size: int, by_variance: bool):
    base, *tuned = models(size)[: 4 if by_variance else 2]
    values = rank(base, tuned, by_variance)
    few = values.sort().values[[size // 4, size // 2, size // 2, size - 1]].tolist()
    spans = [few[:2], few[1:3], [0.0, few[0]], [few[2], few[3]], [few[3], math.inf], [-math.inf, 0.0]]
    for ends in (spans, spans[:1], [[-math.inf, math.inf]]):
        found = []
        for each in BOTH:
            counts, between = np.zeros((len(ends), 3), np.int64), torch.empty(size)
            told = each.spans(base, tuned, by_variance, np.array(ends, np.float32), counts, between)
            found.append((told, counts.tolist(), between[: told[2]]))
        (told, counts, between), (other_told, other_counts, other_between) = found
        assert told == other_told == (True, int((values != 0).sum()), between.numel())
        assert counts == other_counts
        assert between.equal(other_between)
        assert counts == [[int(n.sum()) for n in (values > b, values >= b, values >= a)] for a, b in ends]
        inside = torch.stack([(values > a) & (values < b) for a, b in ends]).any(dim=0)
        assert between.equal(values[inside])


@pytest.mark.parametrize("zeros", [0, 3, 10_000])
@pytest.mark.parametrize("size", SIZES)
def test_the_same_are_candidates(size: int, zeros: int):
    base, *tuned = models(size)
    values = rank(base, tuned, True)
    for low in (float(values.median()), -math.inf):
        found = []
        for each in BOTH:
            index, some = torch.empty(size, dtype=torch.int32), torch.empty(size)
            told = each.candidates(base, tuned, True, low, zeros, index, some)
            found.append((told, index[: told[2]].tolist(), some[: told[2]].tolist()))
        assert found[0] == found[1]
        taken = values >= low if low > 0 else (values > 0) | ((values == 0) & ((values == 0).cumsum(0) <= zeros))
        assert found[0][1] == taken.nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("room", [2, 3, 5])
def test_the_same_are_largest_gathered_and_scattered(room: int):
    values, index = torch.tensor([1.0, 3.0, 2.0, 2.0, 9.0, 2.0]), torch.tensor([0, 2, 3, 7, 8, 9], dtype=torch.int32)
    for each in BOTH:
        chosen = torch.empty(room, dtype=torch.int32)
        each.largest(values, index, 2.0, chosen)
        assert chosen.tolist() == {2: [2, 8], 3: [2, 3, 8], 5: [2, 3, 7, 8, 9]}[room]
        stored, picked = torch.arange(10), torch.empty(room, dtype=torch.int64)
        each.gather(stored, chosen, picked)
        assert picked.tolist() == chosen.tolist()
        each.scatter(-picked, chosen, stored)
        assert stored.tolist() == [-n if n in chosen.tolist() else n for n in range(10)]


@pytest.mark.parametrize("tied", [[0, 2, 3, 0], [0, 2100, 2500, 0], [1, 9999, 9999, 9999]])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
@pytest.mark.parametrize("by_variance", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_levels_and_energies_are_the_same(size: int, by_variance: bool, dtype: torch.dtype, tied: list[int]):
    base, *tuned = models(size)[: 4 if by_variance else 2]
    for each in (base, *tuned):
        each[1::2] = 0.0
    tuned[0][1::2] = 0.01  # equal ranks, at every other element
    values = rank(base, tuned, by_variance)
    thresholds = np.array([values.max(), values[size // 2 * 2 - 1], 0.0, -math.inf], np.float32)
    found = []
    for each in BOTH:
        level, sums, ties = torch.empty(size, dtype=dtype), np.zeros((5, len(tuned))), np.array(tied)
        assert each.graded(base, tuned, by_variance, thresholds, ties, level, sums)
        found.append((level, sums, ties))
    (level, sums, ties), (other_level, other_sums, other_ties) = found
    assert level.equal(other_level)
    assert ties.tolist() == other_ties.tolist()
    np.testing.assert_allclose(sums[1:], other_sums[1:], rtol=1e-14)


@pytest.mark.parametrize("average", [-1.0, 0.0, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_what_sce_merges_is_the_same_to_the_bit(size: int, dtype: torch.dtype, average: float):
    base, *tuned = models(size)
    level = torch.arange(size).remainder(4).to(torch.uint8)
    weights = np.array([[0.2, 0.5, 0.3], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]], np.float32)
    merged = []
    for each in BOTH:
        out = torch.empty(3, size, dtype=dtype)
        assert each.combined(base, tuned, level, np.array([1, 2, 3], np.uint8), weights, average, list(out))
        merged.append(out.view({4: torch.int32, 2: torch.int16}[dtype.itemsize]))
    assert merged[0].equal(merged[1])
    assert merged[0][0][level < 1].equal(base.to(dtype).view(merged[0].dtype)[level < 1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_passes_of_sce_see_what_is_not_finite(bad: float):
    for each in BOTH:
        base, *tuned = models(5000)
        tuned[1][4999] = bad
        level, weights = torch.zeros(5000, dtype=torch.uint8), np.ones((1, 3), np.float32)
        none = (np.array([-math.inf], np.float32), np.zeros(1, np.int64), level, np.zeros((2, 3)))
        assert not each.graded(base, tuned, True, *none)
        assert not each.combined(base, tuned, level, np.zeros(1, np.uint8), weights, -1.0, [torch.empty(5000)])


def test_numbers_are_rounded_to_the_nearest_bfloat16_and_halfway_to_the_even_one():
    halfway = torch.arange(0x3F80_0000, 0x3F84_0000, 1 << 12, dtype=torch.int32).view(torch.float32)
    ends = torch.tensor([3.38e38, 3.3895313892515355e38, 3.4e38, 1e-45, 1e-40, 0.0])
    numbers = torch.cat([halfway, ends, -halfway, -ends])
    out, level = torch.empty(numbers.numel(), dtype=torch.bfloat16), torch.zeros(numbers.numel(), dtype=torch.uint8)
    weights, needed = np.ones((1, 1), np.float32), np.zeros(1, np.uint8)
    assert kernels.combined(numbers, [numbers], level, needed, weights, -1.0, [out])
    assert out.view(torch.int16).equal(numbers.bfloat16().view(torch.int16))


THINNED: dict[str, list[Band | Drop | None]] = {
    "trimmed": [Band(Cut(0.01, 3)), Band(Cut(0.0)), Band(Cut(0.005))],
    "trimmed, most of them equal": [Band(Cut(float(np.float32(1e-41)), 300)), Band(Cut(0.01, 9999)), None],
    "between two cuts": [Band(Cut(0.001, 1), Cut(0.02, 2)), None, Band(Cut(-math.inf), Cut(0.01))],
    "dropped": [Drop(5, 0, 30000), None, Drop(5, 2, 1)],
    "dropped by chances of their own": [
        Drop(5, k, np.random.default_rng(k).integers(1, 1 << 16, 8000, dtype=np.uint16), inverse=k > 0)
        for k in range(3)
    ],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [[0.2, 0.3, 0.4], [0.5, -0.5, 1.0], [], None])
@pytest.mark.parametrize("thinned", [None, *THINNED])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_thinned_and_mixed_is_the_same_to_the_bit(
    size: int, thinned: str | None, weights: list[float] | None, dtype: torch.dtype
):
    base, *tuned = models(size)
    how = Addition(
        weights is not None, np.array([0.3, -0.6, 1.5], np.float32), np.array(weights or [], np.float32), 0.7
    )
    found = []
    for each in BOTH:
        thinning = Thinning(THINNED[thinned] if thinned else [None] * 3)
        kept, out = np.zeros(3, np.int64), torch.empty(size, dtype=dtype)
        half = size // 8 * 4  # the state goes on from stretch to stretch
        told = [
            each.mix(base[a:b], [source[a:b] for source in tuned], thinning, a, how, kept, out[a:b])
            for a, b in ((0, half), (half, size))
            if a < b
        ]
        found.append((told, kept.tolist(), out))
    (told, kept, out), (other_told, other_kept, other_out) = found
    assert (told, kept) == (other_told, other_kept)
    as_bits = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    assert out.view(as_bits).equal(other_out.view(as_bits))


@pytest.mark.parametrize("size", SIZES)
def test_magnitudes_and_weighted_sums_are_the_same(size: int):
    base, *tuned = models(size)
    sums, merged = [], []
    for each in BOTH:
        sums.append(np.zeros((3, 2)))
        assert each.magnitudes(base, tuned, Thinning(THINNED["dropped"]), 0, sums[-1])
        merged.append(torch.empty(size))
        assert each.weighted(tuned, np.array([0.2, -0.5, 0.7], np.float32), merged[-1])
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-5)
    assert merged[0].equal(merged[1])


def test_numbers_are_those_of_numpys_generator():
    seed = np.random.SeedSequence([3, 1])
    state = np.array(np.random.SFC64(seed).state["state"]["state"], np.uint64)
    drawn = np.empty(1000, np.uint64)
    mix_kernels.draw(state, drawn[:300])
    mix_kernels.draw(state, drawn[300:])
    expected = np.random.Generator(np.random.SFC64(seed)).integers(0, 2**64 - 1, 1000, dtype=np.uint64, endpoint=True)
    assert np.array_equal(drawn, expected)
