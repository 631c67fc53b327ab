"""What is compiled for CPUs gives the bits of what GPUs run in torch's operations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fusion import drop_kernels, kernels, vectorised

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
def test_differences_and_variances_are_the_same(size: int, dtypes: list[str]):
    start, deltas = block(size, 2)
    base, *tuned = (x.to(getattr(torch, dtype)) for x, dtype in zip((start, *(start + deltas)), dtypes, strict=True))
    found = []
    for each in BOTH:
        values, variance = torch.empty(3, size), torch.empty(size)
        assert each.differences(base, tuned, values)
        each.variance(values[1:], variance)
        found.append((values, variance, each.nonzero(variance)))
    (values, variance, count), (other_values, other_variance, other_count) = found
    assert values.view(torch.int32).equal(other_values.view(torch.int32))
    assert values[0].equal(base.float())
    assert values[2].equal(tuned[1].float() - base.float())
    assert variance.equal(other_variance)
    assert count == other_count == int((variance != 0).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 2047, 2048, 2999])
def test_no_number_that_is_not_finite_goes_unseen(bad: float, place: int, dtype: torch.dtype):
    for each in BOTH:
        for row in (0, 1, 2):
            values = torch.ones(3, 3000, dtype=dtype)
            values[row, place] = bad
            assert not each.differences(values[0], list(values[1:]), torch.empty(3, 3000))


@pytest.mark.parametrize("size", SIZES)
def test_the_same_lies_between_the_ends_of_spans(size: int):
    values = block(size)[1][1].abs()
    few = values.sort().values[[size // 4, size // 2, size // 2, size - 1]].tolist()
    spans = [few[:2], few[1:3], [0.0, few[0]], [few[2], few[3]], [few[3], math.inf], [-math.inf, 0.0]]
    for ends in (spans, spans[:1], [[-math.inf, math.inf]]):
        found = []
        for each in BOTH:
            counts, between = np.zeros((len(ends), 3), np.int64), torch.empty(size)
            kept = each.spans(values, np.array(ends, np.float32), counts, between)
            found.append((counts.tolist(), between[:kept]))
        (counts, between), (other_counts, other_between) = found
        assert counts == other_counts
        assert between.equal(other_between)
        assert counts == [[int(n.sum()) for n in (values > b, values >= b, values >= a)] for a, b in ends]
        inside = torch.stack([(values > a) & (values < b) for a, b in ends]).any(dim=0)
        assert between.equal(values[inside])


@pytest.mark.parametrize("tied", [[0, 2, 3, 0], [0, 2100, 2500, 0], [1, 9999, 9999, 9999]])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
@pytest.mark.parametrize("size", SIZES)
def test_levels_and_energies_are_the_same(size: int, dtype: torch.dtype, tied: list[int]):
    thresholds = np.array([0.02, 0.01, 0.0, -math.inf], np.float32)
    found = []
    for each in BOTH:
        _, deltas = block(size)
        deltas[1, 1::2] = 0.01
        level, sums, ties = torch.empty(size, dtype=dtype), np.zeros((5, 3)), np.array(tied)
        each.levels(deltas[1].abs(), thresholds, ties, level)
        each.energies(deltas, level, sums)
        found.append((level, sums, ties))
    (level, sums, ties), (other_level, other_sums, other_ties) = found
    assert level.equal(other_level)
    assert ties.tolist() == other_ties.tolist()
    np.testing.assert_allclose(sums[1:], other_sums[1:], rtol=1e-14)


@pytest.mark.parametrize("average", [-1.0, 0.0, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_what_sce_merges_is_the_same_to_the_bit(size: int, dtype: torch.dtype, average: float):
    start, deltas = block(size)
    level = torch.arange(size).remainder(4).to(torch.uint8)
    weights = np.array([[0.2, 0.5, 0.3], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]], np.float32)
    merged = []
    for each in BOTH:
        out = torch.empty(3, size, dtype=dtype)
        each.combine(start, deltas, level, np.array([1, 2, 3], np.uint8), weights, average, out)
        merged.append(out.view({4: torch.int32, 2: torch.int16}[dtype.itemsize]))
    assert merged[0].equal(merged[1])
    assert merged[0][0][level < 1].equal(start.to(dtype).view(merged[0].dtype)[level < 1])


def test_numbers_are_rounded_to_the_nearest_bfloat16_and_halfway_to_the_even_one():
    halfway = torch.arange(0x3F80_0000, 0x3F84_0000, 1 << 12, dtype=torch.int32).view(torch.float32)
    ends = torch.tensor([3.38e38, 3.3895313892515355e38, 3.4e38, 1e-45, 1e-40, 0.0])
    numbers = torch.cat([halfway, ends, -halfway, -ends])
    out = torch.empty(1, numbers.numel(), dtype=torch.bfloat16)
    nothing = torch.zeros(1, numbers.numel())
    weights, needed = np.ones((1, 1), np.float32), np.zeros(1, np.uint8)
    kernels.combine(numbers, nothing, torch.zeros(numbers.numel(), dtype=torch.uint8), needed, weights, -1.0, out)
    assert out[0].view(torch.int16).equal(numbers.bfloat16().view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [[0.2, 0.3, 0.4], [0.5, -0.5, 1.0], []])
@pytest.mark.parametrize("size", SIZES)
def test_what_an_election_merges_is_the_same_to_the_bit(size: int, weights: list[float], dtype: torch.dtype):
    start, deltas = block(size)
    factors, divisors = np.array([0.3, -0.6, 1.5], np.float32), np.array(weights, np.float32)
    found = []
    for each in BOTH:
        kept, out = np.zeros(3, np.int64), torch.empty(size, dtype=dtype)
        found.append((each.elect(start, deltas, factors, divisors, 0.7, kept, out), kept.tolist(), out))
    (conflict, kept, out), (other_conflict, other_kept, other_out) = found
    assert (conflict, kept) == (other_conflict, other_kept)
    as_bits = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    assert out.view(as_bits).equal(other_out.view(as_bits))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_the_same_is_dropped(size: int, inverse: bool):
    numbers = np.random.default_rng(0).integers(0, 1 << 16, size, dtype=np.uint16)
    each_its_own = np.random.default_rng(1).integers(1, 1 << 16, size, dtype=np.uint16)
    for keep in [each_its_own] if inverse else [each_its_own, np.array([30000], np.uint16)]:
        deltas, sums = [], []
        for each in BOTH:
            delta, dropped = block(size)[1][1].clone(), np.empty(size, np.uint8)
            sums.append(each.magnitudes(delta, numbers, keep, dropped))
            each.drop(delta, numbers, keep, inverse)
            deltas.append(delta)
            assert dropped.tolist() == (numbers >= keep).astype(int).tolist()
            again = block(size)[1][1].clone()
            each.drop(again, dropped, np.array([1], np.uint16), False)  # each a number below 1 or not
            assert inverse or again.equal(delta)
        assert deltas[0].equal(deltas[1])
        assert sums[0] == pytest.approx(sums[1], rel=1e-5)


def test_numbers_are_those_of_numpys_generator():
    seed = np.random.SeedSequence([3, 1])
    state = np.array(np.random.SFC64(seed).state["state"]["state"], np.uint64)
    drawn = np.empty(1000, np.uint64)
    drop_kernels.draw(state, drawn[:300])
    drop_kernels.draw(state, drawn[300:])
    expected = np.random.Generator(np.random.SFC64(seed)).integers(0, 2**64 - 1, 1000, dtype=np.uint64, endpoint=True)
    assert np.array_equal(drawn, expected)
